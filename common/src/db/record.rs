//! Records: what processed items became, newest wins; and the items that did not fit.

use std::collections::{BTreeMap, HashSet};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::db::pool::{Db, DbResult, Transaction};
use crate::db::raw::{RawKey, authorise_worker};
use crate::db::worker::Incarnation;
use crate::model::record::{Record, without_nul};
use crate::run_tx;

/// What one entry of `items` became.
#[derive(Clone, Debug)]
pub struct Processed {
    pub key: RawKey,
    pub dispatch: Uuid,
    pub job: Uuid,
    pub records: Vec<Record>,
    pub unfit: Vec<Unfit>,
}

/// An item that did not fit, and why.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Unfit {
    pub source: String,
    pub instance: String,
    /// Of the item's content: the same item is kept once.
    pub hash: Uuid,
    #[schema(value_type = Object)]
    pub item: Value,
    pub reason: String,
    pub dispatch: Uuid,
    pub job: Uuid,
    pub fetched_at: DateTime<Utc>,
}

impl Unfit {
    pub fn new(
        (source, instance): (&str, &str),
        item: &Value,
        reason: String,
        (dispatch, job): (Uuid, Uuid),
        fetched_at: DateTime<Utc>,
    ) -> Self {
        Self {
            source: source.to_owned(),
            instance: instance.to_owned(),
            hash: Uuid::from_u128(xxhash_rust::xxh3::xxh3_128(item.to_string().as_bytes())),
            item: without_nul(item),
            reason: reason.replace('\0', "\u{fffd}"),
            dispatch,
            job,
            fetched_at,
        }
    }
}

/// Stores what entries became, those that nobody has processed before: once, whoever does it twice.
pub async fn process(db: &Db, worker: &Incarnation, entries: &[Processed]) -> DbResult<()> {
    run_tx!(db, "process-items", |tx| {
        authorise_worker(tx, worker).await?;
        let fresh = take(tx, entries).await?;
        let entries: Vec<&Processed> = entries.iter().filter(|entry| fresh.contains(&entry.key)).collect();
        for (tenant, entries) in by_tenant(&entries) {
            let records: Vec<(&Record, Uuid, Uuid)> =
                entries.iter().flat_map(|e| e.records.iter().map(|record| (record, e.dispatch, e.job))).collect();
            upsert(tx, tenant, &records).await?;
            keep_unfit(tx, tenant, entries.iter().flat_map(|e| &e.unfit)).await?;
        }
        count(tx, &entries).await
    })
}

/// Marks entries as processed; returns those that were not.
async fn take(tx: &Transaction<'_>, entries: &[Processed]) -> DbResult<HashSet<RawKey>> {
    let mut keys: Vec<&RawKey> = entries.iter().map(|entry| &entry.key).collect();
    keys.sort();
    let tenants: Vec<&str> = keys.iter().map(|k| k.tenant.as_str()).collect();
    let streams: Vec<&str> = keys.iter().map(|k| k.stream.as_str()).collect();
    let ms: Vec<i64> = keys.iter().map(|k| k.id.ms as i64).collect();
    let seq: Vec<i64> = keys.iter().map(|k| k.id.seq as i64).collect();
    let generations: Vec<i64> = keys.iter().map(|k| k.generation).collect();
    let rows = tx
        .query(
            "-- take-items
             WITH own AS MATERIALIZED (
               SELECT s.place, k.ord FROM unnest($1::text[], $2::text[], $3::int8[], $4::int8[], $5::int8[]) WITH ORDINALITY
                   AS k(tenant, stream, ms, seq, generation, ord),
                 LATERAL (SELECT r.ctid AS place FROM raw_result r WHERE r.tenant = k.tenant AND r.stream = k.stream
                     AND r.ms = k.ms AND r.seq = k.seq AND r.generation = k.generation AND NOT r.processed FOR UPDATE) s)
             UPDATE raw_result r SET processed = true FROM own WHERE r.ctid = own.place RETURNING own.ord",
            &[&tenants, &streams, &ms, &seq, &generations],
        )
        .await?;
    Ok(rows.iter().map(|row| keys[row.get::<_, i64>(0) as usize - 1].clone()).collect())
}

fn by_tenant<'a>(entries: &[&'a Processed]) -> BTreeMap<&'a str, Vec<&'a Processed>> {
    let mut tenants = BTreeMap::<&str, Vec<&Processed>>::new();
    for entry in entries {
        tenants.entry(&entry.key.tenant).or_default().push(entry);
    }
    tenants
}

/// Inserts records or renews older versions of them; of several versions of one here, the newest.
async fn upsert(tx: &Transaction<'_>, tenant: &str, records: &[(&Record, Uuid, Uuid)]) -> DbResult<u64> {
    let mut newest: BTreeMap<(&str, &str, &str), (&Record, Uuid, Uuid)> = BTreeMap::new();
    for &(record, dispatch, job) in records {
        let key = (record.source.as_str(), record.instance.as_str(), record.external_id.as_str());
        match newest.get(&key) {
            Some((other, _, _)) if version(other) > version(record) => {}
            _ => {
                newest.insert(key, (record, dispatch, job));
            }
        }
    }
    let r: Vec<&Record> = newest.values().map(|(record, _, _)| *record).collect();
    let dispatch: Vec<Uuid> = newest.values().map(|(_, dispatch, _)| *dispatch).collect();
    let job: Vec<Uuid> = newest.values().map(|(_, _, job)| *job).collect();
    let texts = |of: fn(&Record) -> Option<&str>| r.iter().map(|record| of(record)).collect::<Vec<_>>();
    let statement = tx
        .prepare_cached(
            "-- upsert-records
             INSERT INTO record AS r (tenant, source, instance, external_id, author, text, language, url, rating, created_at,
               updated_at, metadata, fetched_at, version_at, dispatch, job)
             SELECT $1, * FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
               $9::float8[], $10::timestamptz[], $11::timestamptz[], $12::jsonb[], $13::timestamptz[], $14::timestamptz[],
               $15::uuid[], $16::uuid[])
             ON CONFLICT (tenant, source, instance, external_id) DO UPDATE SET author = excluded.author, text = excluded.text,
               language = excluded.language, url = excluded.url, rating = excluded.rating, created_at = excluded.created_at,
               updated_at = excluded.updated_at, metadata = excluded.metadata, fetched_at = excluded.fetched_at,
               version_at = excluded.version_at, dispatch = excluded.dispatch, job = excluded.job
             WHERE (excluded.version_at, excluded.fetched_at) >= (r.version_at, r.fetched_at)",
        )
        .await?;
    Ok(tx
        .execute(
            &statement,
            &[
                &tenant,
                &texts(|r| Some(&r.source)),
                &texts(|r| Some(&r.instance)),
                &texts(|r| Some(&r.external_id)),
                &texts(|r| r.author.as_deref()),
                &texts(|r| r.text.as_deref()),
                &texts(|r| r.language.as_deref()),
                &texts(|r| r.url.as_deref()),
                &r.iter().map(|record| record.rating).collect::<Vec<_>>(),
                &r.iter().map(|record| record.created_at).collect::<Vec<_>>(),
                &r.iter().map(|record| record.updated_at).collect::<Vec<_>>(),
                &r.iter().map(|record| &record.metadata).collect::<Vec<_>>(),
                &r.iter().map(|record| record.fetched_at).collect::<Vec<_>>(),
                &r.iter().map(|record| version(record).0).collect::<Vec<_>>(),
                &dispatch,
                &job,
            ],
        )
        .await?)
}

/// What decides which version is the newer one: the source's own word, or the time of the fetch.
fn version(record: &Record) -> (DateTime<Utc>, DateTime<Utc>) {
    (record.updated_at.unwrap_or(record.fetched_at), record.fetched_at)
}

async fn keep_unfit<'a>(tx: &Transaction<'_>, tenant: &str, unfit: impl Iterator<Item = &'a Unfit>) -> DbResult<()> {
    for u in unfit {
        tx.execute(
            "-- keep-unfit
             INSERT INTO unfit_item (tenant, source, instance, hash, item, reason, dispatch, job, fetched_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
             ON CONFLICT (tenant, source, instance, hash) DO UPDATE SET reason = excluded.reason",
            &[&tenant, &u.source, &u.instance, &u.hash, &u.item, &u.reason, &u.dispatch, &u.job, &u.fetched_at],
        )
        .await?;
    }
    Ok(())
}

/// Counts what entries became, but for those that only make again what was counted before it was lost.
async fn count(tx: &Transaction<'_>, entries: &[&Processed]) -> DbResult<()> {
    let tenants: Vec<&str> = entries.iter().map(|entry| entry.key.tenant.as_str()).collect();
    let jobs: Vec<Uuid> = entries.iter().map(|entry| entry.job).collect();
    let rows = tx
        .query(
            "-- counted-before
             SELECT k.job FROM unnest($1::text[], $2::uuid[]) AS k(tenant, job),
               LATERAL (SELECT 1 FROM lost_result l WHERE l.tenant = k.tenant AND l.remade_by = k.job AND l.counted
                         LIMIT 1) l",
            &[&tenants, &jobs],
        )
        .await?;
    let again: HashSet<Uuid> = rows.iter().map(|row| row.get(0)).collect();
    let mut totals: BTreeMap<(&str, Uuid), (i64, i64)> = BTreeMap::new();
    for entry in entries.iter().filter(|entry| !again.contains(&entry.job)) {
        let total = totals.entry((&entry.key.tenant, entry.dispatch)).or_default();
        total.0 += entry.records.len() as i64;
        total.1 += entry.unfit.len() as i64;
    }
    for ((tenant, dispatch), (records, unfit)) in totals {
        if records + unfit > 0 {
            tx.execute(
                "-- count-records\nINSERT INTO dispatch_delta (tenant, dispatch, records, unfit) VALUES ($1, $2, $3, $4)",
                &[&tenant, &dispatch, &records, &unfit],
            )
            .await?;
        }
    }
    Ok(())
}

/// Which records to list: by keyset, in the order (source, instance, external id).
#[derive(Clone, Debug, Default)]
pub struct RecordQuery<'a> {
    pub tenant: &'a str,
    pub source: Option<&'a str>,
    pub after: Option<(String, String, String)>,
    pub limit: i64,
}

pub async fn list(db: &Db, query: &RecordQuery<'_>) -> DbResult<Vec<Record>> {
    let (source, instance, id) = query.after.clone().unwrap_or_default();
    run_tx!(db, "list-records", tenant: query.tenant, |tx| {
        let rows = tx
            .query(
                "-- list-records
                 SELECT source, instance, external_id, author, text, language, url, rating, created_at, updated_at, metadata, fetched_at
                   FROM record WHERE tenant = $1 AND (source, instance, external_id) > ($2, $3, $4)
                    AND ($5::text IS NULL OR source = $5)
                  ORDER BY source, instance, external_id LIMIT $6",
                &[&query.tenant, &source, &instance, &id, &query.source, &query.limit],
            )
            .await?;
        Ok(rows
            .iter()
            .map(|row| Record {
                source: row.get(0),
                instance: row.get(1),
                external_id: row.get(2),
                author: row.get(3),
                text: row.get(4),
                language: row.get(5),
                url: row.get(6),
                rating: row.get(7),
                created_at: row.get(8),
                updated_at: row.get(9),
                metadata: row.get(10),
                fetched_at: row.get(11),
            })
            .collect())
    })
}

/// Items that did not fit, by (source, instance, hash) after `after`.
pub async fn unfit(db: &Db, query: &RecordQuery<'_>) -> DbResult<Vec<Unfit>> {
    let (source, instance, hash) = query.after.clone().unwrap_or_default();
    let hash = Uuid::parse_str(&hash).unwrap_or_default();
    run_tx!(db, "list-unfit", tenant: query.tenant, |tx| {
        let rows = tx
            .query(
                "-- list-unfit
                 SELECT source, instance, hash, item, reason, dispatch, job, fetched_at FROM unfit_item
                  WHERE tenant = $1 AND (source, instance, hash) > ($2, $3, $4) AND ($5::text IS NULL OR source = $5)
                  ORDER BY source, instance, hash LIMIT $6",
                &[&query.tenant, &source, &instance, &hash, &query.source, &query.limit],
            )
            .await?;
        Ok(rows
            .iter()
            .map(|row| Unfit {
                source: row.get(0),
                instance: row.get(1),
                hash: row.get(2),
                item: row.get(3),
                reason: row.get(4),
                dispatch: row.get(5),
                job: row.get(6),
                fetched_at: row.get(7),
            })
            .collect())
    })
}

/// Items that fit now become records; the others keep their new reason. One transaction.
pub async fn replay(db: &Db, tenant: &str, fit: &[(Unfit, Record)], still: &[Unfit]) -> DbResult<()> {
    run_tx!(db, "replay-unfit", |tx| {
        let records: Vec<(&Record, Uuid, Uuid)> = fit.iter().map(|(u, record)| (record, u.dispatch, u.job)).collect();
        upsert(tx, tenant, &records).await?;
        keep_unfit(tx, tenant, still.iter()).await?;
        for (u, _) in fit {
            tx.execute(
                "-- forget-unfit
                 WITH gone AS (
                   DELETE FROM unfit_item WHERE tenant = $1 AND source = $2 AND instance = $3 AND hash = $4 RETURNING dispatch)
                 INSERT INTO dispatch_delta (tenant, dispatch, records, unfit) SELECT $1, dispatch, 1, -1 FROM gone",
                &[&tenant, &u.source, &u.instance, &u.hash],
            )
            .await?;
        }
        Ok(())
    })
}

/// Records counted: by source, by language, by rating; and the range of their times.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Totals {
    pub sources: BTreeMap<String, i64>,
    pub languages: BTreeMap<String, i64>,
    pub ratings: BTreeMap<String, i64>,
    pub first: Option<DateTime<Utc>>,
    pub last: Option<DateTime<Utc>>,
    pub unfit: i64,
}

/// Totals of a tenant's records. A record without a language counts as `und`, one without a rating as `none`.
pub async fn totals(db: &Db, tenant: &str) -> DbResult<Totals> {
    run_tx!(db, "record-totals", tenant: tenant, |tx| {
        let rows = tx
            .query(
                "-- record-totals
                 SELECT source, coalesce(language, 'und'), coalesce(rating::text, 'none'), count(*), min(created_at), max(created_at)
                   FROM record WHERE tenant = $1 GROUP BY 1, 2, 3",
                &[&tenant],
            )
            .await?;
        let mut totals = Totals::default();
        for row in &rows {
            let count: i64 = row.get(3);
            *totals.sources.entry(row.get(0)).or_default() += count;
            *totals.languages.entry(row.get(1)).or_default() += count;
            *totals.ratings.entry(row.get(2)).or_default() += count;
            let (first, last): (Option<DateTime<Utc>>, Option<DateTime<Utc>>) = (row.get(4), row.get(5));
            totals.first = [totals.first, first].into_iter().flatten().min();
            totals.last = [totals.last, last].into_iter().flatten().max();
        }
        totals.unfit = tx.query_one("-- count-unfit\nSELECT count(*) FROM unfit_item WHERE tenant = $1", &[&tenant]).await?.get(0);
        Ok(totals)
    })
}
