//! Submissions: a dispatch and its first jobs, in one transaction.

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::db::control;
use crate::db::pool::{Db, DbError, DbResult, Transaction};
use crate::db::schedule::BATCH_MAX;
use crate::model::spec::{CrawlSpec, NoopSpec};
use crate::model::terms::Terms;
use crate::model::url::Canonical;
use crate::run_tx;

/// How a dispatch is submitted, whatever its work.
#[derive(Clone, Debug, Default)]
pub struct Submission<'a> {
    /// A known key returns the dispatch that has it, whatever else was asked.
    pub key: Option<&'a str>,
    /// The dispatch that starts it.
    pub parent: Option<Uuid>,
    pub terms: Terms,
    /// They go with its requests and nowhere else.
    pub headers: BTreeMap<String, String>,
}

/// A dispatch that was submitted, or found under its key.
#[derive(Clone, Debug)]
pub struct Submitted {
    pub id: Uuid,
    /// False: the key was known and nothing was scheduled.
    pub created: bool,
    pub scheduled: i64,
}

/// Submits a crawl.
pub async fn crawl(
    db: &Db,
    tenant: &str,
    spec: &CrawlSpec,
    seeds: &[Canonical],
    submission: &Submission<'_>,
) -> DbResult<Submitted> {
    let value = serde_json::to_value(spec).map_err(|error| DbError::Input(error.to_string()))?;
    run_tx!(db, "submit-crawl", tenant: tenant, |tx| {
        crawl_in(tx, tenant, &value, seeds, submission).await
    })
}

/// The same within a transaction.
pub(crate) async fn crawl_in(
    tx: &Transaction<'_>,
    tenant: &str,
    spec: &serde_json::Value,
    seeds: &[Canonical],
    submission: &Submission<'_>,
) -> DbResult<Submitted> {
    let id = Uuid::now_v7();
    if let Some(known) = insert(tx, tenant, id, ("crawl", spec), submission).await? {
        return Ok(Submitted { id: known, created: false, scheduled: 0 });
    }
    keep_headers(tx, tenant, id, &submission.headers).await?;
    let scheduled = schedule_seeds(tx, tenant, id, seeds, &submission.terms).await?;
    Ok(Submitted { id, created: true, scheduled })
}

/// Keeps the headers of a dispatch where only workers read them.
pub(crate) async fn keep_headers(
    tx: &Transaction<'_>,
    tenant: &str,
    id: Uuid,
    headers: &BTreeMap<String, String>,
) -> DbResult<()> {
    if headers.is_empty() {
        return Ok(());
    }
    let value = serde_json::to_value(headers).map_err(|error| DbError::Input(error.to_string()))?;
    tx.execute(
        "-- keep-headers\nINSERT INTO dispatch_secret (tenant, dispatch, headers) VALUES ($1, $2, $3)",
        &[&tenant, &id, &value],
    )
    .await?;
    Ok(())
}

/// Submits no-op jobs, one for each payload, all in one transaction.
pub async fn noops(
    db: &Db,
    tenant: &str,
    spec: &NoopSpec,
    payloads: &[Option<serde_json::Value>],
    submission: &Submission<'_>,
) -> DbResult<Submitted> {
    run_tx!(db, "submit-noops", tenant: tenant, |tx| { noops_in(tx, tenant, spec, payloads, submission).await })
}

/// The same within a transaction.
pub(crate) async fn noops_in(
    tx: &Transaction<'_>,
    tenant: &str,
    spec: &NoopSpec,
    payloads: &[Option<serde_json::Value>],
    submission: &Submission<'_>,
) -> DbResult<Submitted> {
    let id = Uuid::now_v7();
    let spec = serde_json::to_value(spec).map_err(|error| DbError::Input(error.to_string()))?;
    if let Some(known) = insert(tx, tenant, id, ("noop", &spec), submission).await? {
        return Ok(Submitted { id: known, created: false, scheduled: 0 });
    }
    let mut scheduled = 0;
    for batch in payloads.chunks(BATCH_MAX) {
        scheduled += schedule_noops(tx, tenant, id, batch, &submission.terms).await?;
    }
    Ok(Submitted { id, created: true, scheduled })
}

/// Inserts the row; returns the id of the dispatch that has the key already.
pub(crate) async fn insert(
    tx: &Transaction<'_>,
    tenant: &str,
    id: Uuid,
    (kind, spec): (&str, &serde_json::Value),
    Submission { key, parent, terms, .. }: &Submission<'_>,
) -> DbResult<Option<Uuid>> {
    let (paused_at, ending, note) = match *parent {
        Some(parent) => control::inherited(tx, tenant, parent).await?,
        None => Default::default(),
    };
    let statement = tx
        .prepare_cached(
            "-- insert-dispatch
             WITH d AS (INSERT INTO dispatch (tenant, id, kind, key, spec, parent, paused_at, ending, note,
                               max_bytes, max_seconds, retries, priority, start_at)
                        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
                        ON CONFLICT (tenant, key) DO NOTHING RETURNING tenant, id)
             INSERT INTO dispatch_progress (tenant, dispatch) SELECT tenant, id FROM d",
        )
        .await?;
    let inserted = tx
        .execute(
            &statement,
            &[
                &tenant,
                &id,
                &kind,
                &key,
                &spec,
                &parent,
                &paused_at,
                &ending,
                &note,
                &terms.max_bytes,
                &terms.max_seconds,
                &terms.retries,
                &terms.priority,
                &terms.start_at,
            ],
        )
        .await?;
    if inserted == 1 {
        return Ok(None);
    }
    let row = tx
        .query_one("-- dispatch-by-key\nSELECT id FROM dispatch WHERE tenant = $1 AND key = $2", &[&tenant, &key])
        .await?;
    Ok(Some(row.get(0)))
}

/// Schedules the seeds of a dispatch; seeds it has seen already are left out. Returns how many are new.
async fn schedule_seeds(
    tx: &Transaction<'_>,
    tenant: &str,
    dispatch: Uuid,
    seeds: &[Canonical],
    terms: &Terms,
) -> DbResult<i64> {
    let ids: Vec<Uuid> = seeds.iter().map(|_| Uuid::now_v7()).collect();
    let hashes: Vec<Uuid> = seeds.iter().map(|seed| seed.hash.to_uuid()).collect();
    let urls: Vec<&str> = seeds.iter().map(|seed| seed.url.as_str()).collect();
    let hosts: Vec<&str> = seeds.iter().map(|seed| seed.host.as_str()).collect();
    let statement = tx
        .prepare_cached(
            "-- submit-seeds
             WITH f AS (SELECT * FROM unnest($3::uuid[], $4::uuid[], $5::text[], $6::text[]) AS f(id, hash, url, host)),
             fresh AS (
               INSERT INTO url (tenant, dispatch, hash, job) SELECT $1, $2, hash, id FROM f ORDER BY hash
               ON CONFLICT DO NOTHING RETURNING job),
             scheduled AS (
               INSERT INTO crawl_schedule (tenant, id, dispatch, kind, host, url, url_hash, priority, run_at)
               SELECT $1, f.id, $2, 'crawl', f.host, f.url, f.hash, $7, coalesce($8, now()) FROM fresh JOIN f ON f.id = fresh.job RETURNING 1),
             delta AS (
               INSERT INTO dispatch_delta (tenant, dispatch, scheduled) SELECT $1, $2, count(*) FROM scheduled)
             SELECT count(*) FROM scheduled",
        )
        .await?;
    let row = tx
        .query_one(&statement, &[&tenant, &dispatch, &ids, &hashes, &urls, &hosts, &terms.rank(), &terms.start_at])
        .await?;
    Ok(row.get(0))
}

/// Schedules no-op jobs, at most [`BATCH_MAX`] at once; each payload becomes an entry of `items`.
async fn schedule_noops(
    tx: &Transaction<'_>,
    tenant: &str,
    dispatch: Uuid,
    payloads: &[Option<serde_json::Value>],
    terms: &Terms,
) -> DbResult<i64> {
    let ids: Vec<Uuid> = payloads.iter().map(|_| Uuid::now_v7()).collect();
    let statement = tx
        .prepare_cached(
            "-- submit-noops
             WITH delta AS (INSERT INTO dispatch_delta (tenant, dispatch, scheduled) VALUES ($1, $2, cardinality($3::uuid[])))
             INSERT INTO crawl_schedule (tenant, id, dispatch, kind, payload, priority, run_at)
             SELECT $1, id, $2, 'noop', payload, $5, coalesce($6, now()) FROM unnest($3::uuid[], $4::jsonb[]) AS n(id, payload)",
        )
        .await?;
    let count = tx.execute(&statement, &[&tenant, &dispatch, &ids, &payloads, &terms.rank(), &terms.start_at]).await?;
    Ok(count as i64)
}
