//! Pages of an API: stored once, followed by their next jobs, all in the commit of the job that has them.

use serde_json::Value;
use tokio_postgres::Statement;
use uuid::Uuid;

use crate::db::leader;
use crate::db::pool::{Client, Db, DbResult, Transaction};
use crate::db::raw::authorise_worker;
use crate::db::worker::Incarnation;
use crate::model::job::{JobKey, JobKind};
use crate::model::paged::{Metadata, ROUNDS_MAX};
use crate::run_tx;

/// Jobs that one job may put behind itself.
pub const NEXT_MAX: usize = 1000;

/// What a finished job means for its page dispatch.
#[derive(Clone, Debug, Default)]
pub struct Paged {
    /// Items of the page it fetched.
    pub items: i32,
    /// Its page is to be stored; it counts only if no other job has stored it and its round is the current one.
    pub stores: bool,
    /// The answer to a call that may not be repeated: kept until it is archived.
    pub kept: Option<Vec<u8>>,
    /// The count as it was found, and the round it was found in: none when it was not known before.
    pub metadata: Option<(Option<i32>, Metadata)>,
    pub next: Vec<NextJob>,
}

/// A job that follows another: of the same dispatch, once under its key while it is pending.
#[derive(Clone, Debug)]
pub struct NextJob {
    pub kind: JobKind,
    pub host: String,
    pub url: Option<String>,
    pub page: Option<(i32, i32)>,
    pub payload: Value,
    pub key: String,
}

/// A count that was not known is stored; one that changed begins a round, unless another job has begun it.
const COUNT: &str = "-- note-counts
WITH k AS MATERIALIZED (SELECT DISTINCT ON (tenant, dispatch) s.tenant, s.dispatch, k.round, k.items, k.pages
    FROM unnest($1::text[], $2::uuid[], $3::int2[], $4::int4[], $5::int8[], $6::int4[])
      AS k(tenant, id, attempt, round, items, pages),
    LATERAL (SELECT c.tenant, c.dispatch FROM crawl_schedule c
              WHERE c.tenant = k.tenant AND c.id = k.id AND c.attempt = k.attempt) s
   ORDER BY tenant, dispatch),
known AS (
  INSERT INTO page_metadata (tenant, dispatch, total_items, total_pages)
  SELECT tenant, dispatch, items, pages FROM k WHERE round IS NULL ON CONFLICT DO NOTHING)
UPDATE page_metadata m SET total_items = k.items, total_pages = k.pages, round = m.round + 1,
       changed_at = clock_timestamp(), changed_in = pg_current_xact_id()
  FROM k WHERE m.tenant = k.tenant AND m.dispatch = k.dispatch AND m.round = k.round AND m.round < $7";

/// The pages of a count that this transaction has changed are fetched again under the same number of pages. A
/// statement of its own: it must see what was stored until the count's row was ours.
const PRUNE: &str = "-- prune-pages
DELETE FROM page_scrape p USING page_metadata m, (SELECT DISTINCT s.tenant, s.dispatch
    FROM unnest($1::text[], $2::uuid[]) AS k(tenant, id),
    LATERAL (SELECT c.tenant, c.dispatch FROM crawl_schedule c WHERE c.tenant = k.tenant AND c.id = k.id) s) d
 WHERE m.tenant = d.tenant AND m.dispatch = d.dispatch AND m.changed_in = pg_current_xact_id()
   AND p.tenant = m.tenant AND p.dispatch = m.dispatch AND p.total_pages = m.total_pages";

/// A page is stored if it is of the current round; the lock keeps the round from changing until we are through.
const STORE: &str = "-- store-pages
WITH k AS MATERIALIZED (SELECT * FROM unnest($1::text[], $2::uuid[], $3::int2[], $4::int4[], $5::bool[], $6::bytea[])
    AS k(tenant, id, attempt, items, stores, kept)),
own AS MATERIALIZED (
  SELECT s.*, k.items, k.stores, k.kept FROM k, LATERAL (
    SELECT c.tenant, c.id, c.dispatch, c.page, c.total_pages, c.remake_of, (c.payload ->> 'round')::int4 AS round FROM crawl_schedule c
     WHERE c.tenant = k.tenant AND c.id = k.id AND c.attempt = k.attempt FOR UPDATE) s),
answer AS (
  INSERT INTO kept_answer (tenant, job, answer) SELECT tenant, id, kept FROM own WHERE kept IS NOT NULL
  ON CONFLICT DO NOTHING),
old AS (
  DELETE FROM kept_answer a USING own WHERE own.kept IS NOT NULL AND a.tenant = own.tenant AND a.job = own.remake_of)
INSERT INTO page_scrape (tenant, dispatch, page, total_pages, job, items)
SELECT own.tenant, own.dispatch, own.page, own.total_pages, own.id, own.items FROM own
 WHERE own.stores AND own.page IS NOT NULL AND (own.round IS NULL OR EXISTS (
   SELECT 1 FROM page_metadata m WHERE m.tenant = own.tenant AND m.dispatch = own.dispatch AND m.round = own.round FOR SHARE))
 ORDER BY 1, 2, 3, 4
ON CONFLICT DO NOTHING";

const FOLLOW: &str = "-- follow-up-jobs
WITH k AS MATERIALIZED (SELECT * FROM unnest($1::text[], $2::uuid[], $3::int2[], $4::uuid[], $5::text[], $6::text[], $7::text[],
    $8::int4[], $9::int4[], $10::jsonb[], $11::text[])
    AS k(tenant, parent, attempt, id, kind, host, url, page, total_pages, payload, key)),
own AS MATERIALIZED (
  SELECT DISTINCT s.* FROM (SELECT DISTINCT tenant, parent, attempt FROM k) k, LATERAL (
    SELECT c.tenant, c.id, c.dispatch, c.priority FROM crawl_schedule c
     WHERE c.tenant = k.tenant AND c.id = k.parent AND c.attempt = k.attempt) s),
scheduled AS (
  INSERT INTO crawl_schedule (tenant, id, dispatch, kind, host, priority, url, page, total_pages, payload, dedupe_key)
  SELECT k.tenant, k.id, own.dispatch, k.kind, k.host, own.priority, k.url, k.page, k.total_pages, k.payload, k.key
    FROM k JOIN own ON own.tenant = k.tenant AND own.id = k.parent
   ORDER BY k.tenant, k.key
  ON CONFLICT (tenant, dedupe_key) WHERE dedupe_key IS NOT NULL DO NOTHING
  RETURNING tenant, dispatch, host),
delta AS (
  INSERT INTO dispatch_delta (tenant, dispatch, scheduled)
  SELECT tenant, dispatch, count(*) FROM scheduled GROUP BY 1, 2)
SELECT DISTINCT tenant, host FROM scheduled";

/// The statements of a commit that has pages, with their parameters.
pub(crate) struct Prepared<'a> {
    count: Statement,
    prune: Statement,
    store: Statement,
    follow: Statement,
    keys: Keys<'a>,
    items: Vec<i32>,
    stores: Vec<bool>,
    kept: Vec<Option<&'a [u8]>>,
    counted: Keys<'a>,
    round: Vec<Option<i32>>,
    total_items: Vec<i64>,
    total_pages: Vec<i32>,
    next: Next<'a>,
}

#[derive(Default)]
struct Keys<'a> {
    tenant: Vec<&'a str>,
    id: Vec<Uuid>,
    attempt: Vec<i16>,
}

impl<'a> Keys<'a> {
    fn push(&mut self, key: &'a JobKey) {
        self.tenant.push(&key.tenant);
        self.id.push(key.id);
        self.attempt.push(key.attempt);
    }
}

#[derive(Default)]
struct Next<'a> {
    parent: Keys<'a>,
    id: Vec<Uuid>,
    kind: Vec<&'static str>,
    host: Vec<&'a str>,
    url: Vec<Option<&'a str>>,
    page: Vec<Option<i32>>,
    total_pages: Vec<Option<i32>>,
    payload: Vec<&'a Value>,
    key: Vec<&'a str>,
}

/// Prepares what [`settle`] sends; nothing for a batch without pages.
pub(crate) async fn prepare<'a>(client: &Client, paged: &[(&'a JobKey, &'a Paged)]) -> DbResult<Option<Prepared<'a>>> {
    if paged.is_empty() {
        return Ok(None);
    }
    let mut sorted = paged.to_vec();
    sorted.sort_by(|a, b| a.0.cmp(b.0));
    let mut p = Prepared {
        count: client.prepare_cached(COUNT).await?,
        prune: client.prepare_cached(PRUNE).await?,
        store: client.prepare_cached(STORE).await?,
        follow: client.prepare_cached(FOLLOW).await?,
        keys: Keys::default(),
        items: Vec::new(),
        stores: Vec::new(),
        kept: Vec::new(),
        counted: Keys::default(),
        round: Vec::new(),
        total_items: Vec::new(),
        total_pages: Vec::new(),
        next: Next::default(),
    };
    for (key, paged) in sorted {
        p.keys.push(key);
        p.items.push(paged.items);
        p.stores.push(paged.stores);
        p.kept.push(paged.kept.as_deref());
        if let Some((round, metadata)) = &paged.metadata {
            p.counted.push(key);
            p.round.push(*round);
            p.total_items.push(metadata.total_items);
            p.total_pages.push(metadata.total_pages);
        }
        for job in &paged.next {
            p.next.parent.push(key);
            p.next.id.push(Uuid::now_v7());
            p.next.kind.push(job.kind.as_str());
            p.next.host.push(&job.host);
            p.next.url.push(job.url.as_deref());
            p.next.page.push(job.page.map(|(page, _)| page));
            p.next.total_pages.push(job.page.map(|(_, total)| total));
            p.next.payload.push(&job.payload);
            p.next.key.push(&job.key);
        }
    }
    Ok(Some(p))
}

/// Sends everything at once, in order, when it is first polled: what follows in the transaction sees it. Returns
/// the (tenant, host) that gained jobs.
pub(crate) async fn settle(tx: &Transaction<'_>, prepared: Option<&Prepared<'_>>) -> DbResult<Vec<(String, String)>> {
    let Some(p) = prepared else { return Ok(Vec::new()) };
    let rounds_max = ROUNDS_MAX;
    let store: [&(dyn tokio_postgres::types::ToSql + Sync); 6] =
        [&p.keys.tenant, &p.keys.id, &p.keys.attempt, &p.items, &p.stores, &p.kept];
    let count: [&(dyn tokio_postgres::types::ToSql + Sync); 7] =
        [&p.counted.tenant, &p.counted.id, &p.counted.attempt, &p.round, &p.total_items, &p.total_pages, &rounds_max];
    let n = &p.next;
    let follow: [&(dyn tokio_postgres::types::ToSql + Sync); 11] = [
        &n.parent.tenant,
        &n.parent.id,
        &n.parent.attempt,
        &n.id,
        &n.kind,
        &n.host,
        &n.url,
        &n.page,
        &n.total_pages,
        &n.payload,
        &n.key,
    ];
    let prune: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&p.counted.tenant, &p.counted.id];
    let (counted, pruned, stored, followed) = futures::join!(
        tx.execute(&p.count, &count),
        tx.execute(&p.prune, &prune),
        tx.execute(&p.store, &store),
        tx.query(&p.follow, &follow)
    );
    counted?;
    pruned?;
    stored?;
    Ok(followed?.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Marks an at-most-once job as begun, before its call. False: it was begun before, by this worker or another.
pub async fn begin(db: &Db, worker: &Incarnation, key: &JobKey) -> DbResult<bool> {
    run_tx!(db, "begin-call", |tx| {
        authorise_worker(tx, worker).await?;
        let begun = tx
            .execute(
                "-- begin-call
                 UPDATE crawl_schedule SET started_at = clock_timestamp(), started_by = $4
                  WHERE tenant = $1 AND id = $2 AND attempt = $3 AND started_at IS NULL",
                &[&key.tenant, &key.id, &key.attempt, &worker.id],
            )
            .await?;
        Ok(begun == 1)
    })
}

/// Marks a begun job as not begun: nothing was sent.
pub async fn take_back(db: &Db, worker: &Incarnation, key: &JobKey) -> DbResult<()> {
    run_tx!(db, "take-call-back", |tx| {
        authorise_worker(tx, worker).await?;
        tx.execute(
            "-- take-call-back
             UPDATE crawl_schedule SET started_at = NULL, started_by = NULL
              WHERE tenant = $1 AND id = $2 AND attempt = $3 AND started_by = $4",
            &[&key.tenant, &key.id, &key.attempt, &worker.id],
        )
        .await?;
        Ok(())
    })
}

/// The answer that the job kept whose lost result is made again.
pub async fn kept_answer(db: &Db, tenant: &str, job: Uuid) -> DbResult<Option<Vec<u8>>> {
    let client = db.client().await?;
    let row = client
        .query_opt("-- kept-answer\nSELECT answer FROM kept_answer WHERE tenant = $1 AND job = $2", &[&tenant, &job])
        .await?;
    Ok(row.map(|row| row.get(0)))
}

/// Jobs that were begun by a worker that is gone: (tenant, id, dispatch).
pub async fn orphaned(db: &Db, epoch: i64, limit: i64) -> DbResult<Vec<(String, Uuid)>> {
    run_tx!(db, "orphaned-calls", |tx| {
        leader::authorise(tx, epoch).await?;
        let rows = tx
            .query(
                // Those begun first, by their own index: in the order of tenants the whole schedule would be walked.
                "-- orphaned-calls
                 WITH begun AS MATERIALIZED (
                   SELECT tenant, id, started_by FROM crawl_schedule WHERE started_at IS NOT NULL)
                 SELECT c.tenant, c.id FROM begun c WHERE NOT EXISTS (
                    SELECT 1 FROM worker w WHERE w.id = c.started_by AND w.lost_at IS NULL AND w.ended_at IS NULL)
                  ORDER BY c.tenant LIMIT $1",
                &[&limit],
            )
            .await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    })
}
