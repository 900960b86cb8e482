//! Visits of pages that are due again: each is a job, scheduled by the commit that ends the one before.

use tokio_postgres::Statement;
use uuid::Uuid;

use crate::clock::Millis;
use crate::db::commit::Finished;
use crate::db::pool::{Client, DbError, DbResult, Transaction};
use crate::model::revisit::Plan;

/// What a finished job means for the visits of its page, in a crawl that visits pages again.
#[derive(Clone, Debug, Default)]
pub struct Revisited {
    /// The job of the next visit, and what that is told; none where there is to be none.
    pub next: Option<(Uuid, Plan)>,
    /// The page had been visited before.
    pub again: bool,
    pub spared: Option<Spared>,
    /// Its dispatch, and what sitemaps say of pages: the hashes of their URLs, and their first interval, milliseconds.
    pub dispatch: Uuid,
    pub hints: Vec<(Uuid, i64)>,
    /// What sitemaps say of pages, known ones too: the hashes of their URLs, and when they were modified, milliseconds since
    /// the epoch.
    pub modified: Vec<(Uuid, Millis)>,
    /// No visit comes sooner than this after the one before, milliseconds.
    pub min_ms: i64,
}

/// Body bytes that a visit did not cost, since the page was as it had been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spared {
    /// They were not sent: the server answered 304.
    Transfer(i64),
    /// They were sent, and are not stored again.
    Storage(i64),
}

/// A page goes on by one job: the one its row names, or the first. The lock keeps whoever runs the same job from doing
/// this twice. Results that are made again go on by none, and count nothing.
const SCHEDULE: &str = "-- schedule-revisits
WITH k AS MATERIALIZED (SELECT * FROM unnest($1::text[], $2::uuid[], $3::int2[], $4::uuid[], $5::int8[], $6::jsonb[],
    $7::bool[], $8::int8[], $9::int8[])
    AS k(tenant, id, attempt, next, delay_ms, plan, again, not_sent, not_stored)),
own AS MATERIALIZED (
  SELECT s.*, k.next, k.delay_ms, k.plan, k.again, k.not_sent, k.not_stored FROM k, LATERAL (
    SELECT c.tenant, c.id, c.dispatch, c.host, c.priority, c.depth, c.hops, c.url, c.url_hash, c.found_on
      FROM crawl_schedule c WHERE c.tenant = k.tenant AND c.id = k.id AND c.attempt = k.attempt AND c.remake_of IS NULL
       FOR UPDATE) s),
turn AS (
  INSERT INTO revisit AS r (tenant, url_hash, dispatch, last, next)
  SELECT own.tenant, own.url_hash, own.dispatch, own.id, own.next FROM own
   WHERE own.next IS NOT NULL AND own.url_hash IS NOT NULL ORDER BY 1, 2, 3
  ON CONFLICT (tenant, url_hash, dispatch) DO UPDATE SET last = excluded.last, next = excluded.next
    WHERE r.next = excluded.last
  RETURNING r.tenant, r.next),
scheduled AS (
  INSERT INTO crawl_schedule (tenant, id, dispatch, kind, host, priority, run_at, depth, hops, url, url_hash, found_on, payload)
  SELECT own.tenant, own.next, own.dispatch, 'crawl', own.host, own.priority,
         clock_timestamp() + own.delay_ms * interval '1 millisecond', own.depth, own.hops, own.url, own.url_hash,
         own.found_on, own.plan
    FROM own JOIN turn ON turn.tenant = own.tenant AND turn.next = own.next
  RETURNING tenant, id, host),
delta AS (
  INSERT INTO dispatch_delta (tenant, dispatch, scheduled, revisits, not_modified, bytes_saved, identical, bytes_not_stored)
  SELECT own.tenant, own.dispatch, count(s.id), count(*) FILTER (WHERE own.again), count(own.not_sent),
         coalesce(sum(own.not_sent), 0), count(own.not_stored), coalesce(sum(own.not_stored), 0)
    FROM own LEFT JOIN scheduled s ON s.tenant = own.tenant AND s.id = own.next
   GROUP BY 1, 2)
SELECT DISTINCT tenant, host FROM scheduled";

/// What is told of a page that waits for its first visit, whoever has found it. A row that another commit holds is being
/// ended: it is passed over.
const HINT: &str = "-- hint-intervals
WITH k AS MATERIALIZED (SELECT * FROM unnest($1::text[], $2::uuid[], $3::uuid[], $4::jsonb[]) AS k(tenant, dispatch, hash, plan)),
first AS MATERIALIZED (
  SELECT s.place, k.plan FROM k, LATERAL (
    SELECT u.job FROM url u WHERE u.tenant = k.tenant AND u.hash = k.hash AND u.dispatch = k.dispatch OFFSET 0) u, LATERAL (
    SELECT c.ctid AS place FROM crawl_schedule c WHERE c.tenant = k.tenant AND c.id = u.job AND c.payload IS NULL
       FOR UPDATE SKIP LOCKED) s)
UPDATE crawl_schedule c SET payload = first.plan FROM first WHERE c.ctid = first.place";

/// The next visits of pages that were modified later than they were visited last are due now, or as soon as the bounds of
/// their crawl allow. A row that another commit holds is passed over: it is being ended, or brought forward already; so no
/// two commits wait for one another. What waits for another try is left alone.
const HASTEN: &str = "-- hasten-visits
WITH k AS MATERIALIZED (SELECT * FROM unnest($1::text[], $2::uuid[], $3::int2[], $4::int8[], $5::uuid[], $6::int8[])
    AS k(tenant, id, attempt, min_ms, hash, modified_ms)),
own AS MATERIALIZED (
  SELECT s.* FROM (SELECT DISTINCT tenant, id, attempt FROM k) d, LATERAL (
    SELECT c.tenant, c.id, c.dispatch FROM crawl_schedule c
     WHERE c.tenant = d.tenant AND c.id = d.id AND c.attempt = d.attempt AND c.remake_of IS NULL) s),
later AS MATERIALIZED (
  SELECT s.place, k.modified_ms, greatest(clock_timestamp(), to_timestamp((s.at_ms + k.min_ms) / 1000.0)) AS due
    FROM own JOIN k ON k.tenant = own.tenant AND k.id = own.id, LATERAL (
    SELECT r.next FROM revisit r WHERE r.tenant = k.tenant AND r.url_hash = k.hash AND r.dispatch = own.dispatch OFFSET 0) r, LATERAL (
    SELECT c.ctid AS place, (c.payload -> 'last' ->> 'at_ms')::int8 AS at_ms FROM crawl_schedule c
     WHERE c.tenant = k.tenant AND c.id = r.next AND c.attempt = 0 AND c.refusals = 0 AND c.started_at IS NULL
       AND c.run_at > clock_timestamp() AND (c.payload -> 'last' ->> 'at_ms')::int8 < k.modified_ms
       FOR UPDATE SKIP LOCKED) s),
hastened AS (
  UPDATE crawl_schedule c SET run_at = later.due, payload = c.payload || jsonb_build_object('modified_ms', later.modified_ms)
    FROM later WHERE c.ctid = later.place AND c.run_at > later.due
  RETURNING c.tenant, c.host)
SELECT DISTINCT tenant, host FROM hastened";

/// The statements of a commit of a crawl that visits again, with their parameters.
pub(crate) struct Prepared<'a> {
    schedule: Statement,
    hint: Statement,
    hasten: Statement,
    tenant: Vec<&'a str>,
    id: Vec<Uuid>,
    attempt: Vec<i16>,
    next: Vec<Option<Uuid>>,
    delay_ms: Vec<Option<i64>>,
    plan: Vec<Option<serde_json::Value>>,
    again: Vec<bool>,
    not_sent: Vec<Option<i64>>,
    not_stored: Vec<Option<i64>>,
    hint_tenant: Vec<&'a str>,
    hint_dispatch: Vec<Uuid>,
    hint_hash: Vec<Uuid>,
    hint_plan: Vec<serde_json::Value>,
    modified_tenant: Vec<&'a str>,
    modified_id: Vec<Uuid>,
    modified_attempt: Vec<i16>,
    modified_min_ms: Vec<i64>,
    modified_hash: Vec<Uuid>,
    modified_ms: Vec<Millis>,
}

/// Prepares what [`schedule`] and [`hint`] send; nothing for a batch of crawls that fetch their pages once. `finished` is in
/// key order.
pub(crate) async fn prepare<'a>(client: &Client, finished: &[&'a Finished]) -> DbResult<Option<Prepared<'a>>> {
    if finished.iter().all(|job| job.revisited.is_none()) {
        return Ok(None);
    }
    let mut p = Prepared {
        schedule: client.prepare_cached(SCHEDULE).await?,
        hint: client.prepare_cached(HINT).await?,
        hasten: client.prepare_cached(HASTEN).await?,
        tenant: Vec::new(),
        id: Vec::new(),
        attempt: Vec::new(),
        next: Vec::new(),
        delay_ms: Vec::new(),
        plan: Vec::new(),
        again: Vec::new(),
        not_sent: Vec::new(),
        not_stored: Vec::new(),
        hint_tenant: Vec::new(),
        hint_dispatch: Vec::new(),
        hint_hash: Vec::new(),
        hint_plan: Vec::new(),
        modified_tenant: Vec::new(),
        modified_id: Vec::new(),
        modified_attempt: Vec::new(),
        modified_min_ms: Vec::new(),
        modified_hash: Vec::new(),
        modified_ms: Vec::new(),
    };
    for job in finished {
        let Some(revisited) = &job.revisited else { continue };
        let next = revisited.next.as_ref().map(|(id, plan)| (*id, placed(plan, job)));
        p.tenant.push(&job.key.tenant);
        p.id.push(job.key.id);
        p.attempt.push(job.key.attempt);
        p.next.push(next.as_ref().map(|(id, _)| *id));
        p.delay_ms.push(next.as_ref().and_then(|(_, plan)| plan.interval_ms));
        p.plan.push(next.map(|(_, plan)| json(&plan)).transpose()?);
        p.again.push(job.is_revisit());
        let (not_sent, not_stored) = match revisited.spared {
            Some(Spared::Transfer(bytes)) => (Some(bytes), None),
            Some(Spared::Storage(bytes)) => (None, Some(bytes)),
            None => (None, None),
        };
        p.not_sent.push(not_sent);
        p.not_stored.push(not_stored);
        for (hash, interval_ms) in &revisited.hints {
            p.hint_tenant.push(&job.key.tenant);
            p.hint_dispatch.push(revisited.dispatch);
            p.hint_hash.push(*hash);
            p.hint_plan.push(json(&Plan { interval_ms: Some(*interval_ms), ..Plan::default() })?);
        }
        for (hash, modified_ms) in &revisited.modified {
            p.modified_tenant.push(&job.key.tenant);
            p.modified_id.push(job.key.id);
            p.modified_attempt.push(job.key.attempt);
            p.modified_min_ms.push(revisited.min_ms);
            p.modified_hash.push(*hash);
            p.modified_ms.push(*modified_ms);
        }
    }
    Ok(Some(p))
}

/// The plan, which names this job's own record by its place in the stream.
fn placed(plan: &Plan, job: &Finished) -> Plan {
    let mut plan = plan.clone();
    let original = plan.last.as_mut().and_then(|last| last.seen.original.as_mut());
    if let Some(original) = original.filter(|original| original.job == job.key.id) {
        original.entry = job.raw.map(|(_, entry)| entry);
    }
    plan
}

fn json(plan: &Plan) -> DbResult<serde_json::Value> {
    serde_json::to_value(plan).map_err(|error| DbError::Input(error.to_string()))
}

/// Schedules the next visits, and counts these; brings those of modified pages forward, which may be among them. Before the
/// jobs' rows go: it is they that are passed on, and that say what may be done. Returns (tenant, host) that gained jobs.
pub(crate) async fn schedule(tx: &Transaction<'_>, p: Option<&Prepared<'_>>) -> DbResult<Vec<(String, String)>> {
    let Some(p) = p else { return Ok(Vec::new()) };
    let plans: [&(dyn tokio_postgres::types::ToSql + Sync); 9] =
        [&p.tenant, &p.id, &p.attempt, &p.next, &p.delay_ms, &p.plan, &p.again, &p.not_sent, &p.not_stored];
    let modified: [&(dyn tokio_postgres::types::ToSql + Sync); 6] =
        [&p.modified_tenant, &p.modified_id, &p.modified_attempt, &p.modified_min_ms, &p.modified_hash, &p.modified_ms];
    let hasten =
        async { if p.modified_hash.is_empty() { Ok(Vec::new()) } else { tx.query(&p.hasten, &modified).await } };
    let (scheduled, hastened) = futures::join!(tx.query(&p.schedule, &plans), hasten);
    let mut rows = scheduled.map_err(DbError::of)?;
    rows.extend(hastened.map_err(DbError::of)?);
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Tells jobs, those that were just found too, what a sitemap says of them.
pub(crate) async fn hint(tx: &Transaction<'_>, p: Option<&Prepared<'_>>) -> DbResult<()> {
    if let Some(p) = p.filter(|p| !p.hint_hash.is_empty()) {
        let hints: [&(dyn tokio_postgres::types::ToSql + Sync); 4] =
            [&p.hint_tenant, &p.hint_dispatch, &p.hint_hash, &p.hint_plan];
        tx.execute(&p.hint, &hints).await.map_err(DbError::of)?;
    }
    Ok(())
}
