//! `crawl_schedule` as the scheduler reads it: what is due, what will be, what ends without being issued.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::db::leader;
use crate::db::pool::{Db, DbResult};
use crate::model::job::{ALONE_CRASHES_MAX, Outcome, SUSPECT_CRASHES};
use crate::run_tx;

/// Jobs in one statement.
pub const BATCH_MAX: usize = 1000;
/// Jobs that one look passes over at most.
pub const PAST_ROWS_MAX: i64 = 2000;

/// A due job as the dispatcher buffers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueJob {
    pub id: Uuid,
    pub attempt: i16,
    pub dispatch: Uuid,
    /// It is a suspect: its worker runs nothing beside it.
    pub alone: bool,
    /// It visits a page again, or makes a result again that had counted: no budget of pages holds it.
    pub exempt: bool,
}

/// A place in the order of the due jobs of a host: that of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// As it is stored: the lower goes first.
    pub priority: i16,
    pub run_at: DateTime<Utc>,
    pub id: Uuid,
}

/// What a refill is to look for: due jobs of one (tenant, host).
#[derive(Clone, Debug)]
pub struct Look {
    pub tenant: String,
    pub host: String,
    pub limit: i64,
    /// Only those behind this; none: from the head on.
    pub after: Option<Position>,
}

/// What a look of a refill found.
#[derive(Clone, Debug, Default)]
pub struct Refill {
    pub tenant: String,
    pub host: String,
    pub after: Option<Position>,
    pub due: Vec<DueJob>,
    /// When it looked, by the clock of Postgres: what became due later was not found.
    pub read_at: DateTime<Utc>,
    /// How far it came: it has found as many as it was to, or passed over as many as it may. None: nothing is due behind.
    pub upto: Option<Position>,
}

/// The priorities of a host `k` that has jobs, each by one descent of the index: what is due of one is then a range of
/// it, and what is to come is never walked over.
macro_rules! priorities {
    ($from:literal) => {
        concat!(
            "WITH RECURSIVE p AS (
           (SELECT c.priority FROM crawl_schedule c WHERE c.tenant = k.tenant AND c.host = k.host AND c.started_at IS NULL ",
            $from,
            " ORDER BY c.priority LIMIT 1)
           UNION ALL
           SELECT n.priority FROM p, LATERAL (
             SELECT c.priority FROM crawl_schedule c WHERE c.tenant = k.tenant AND c.host = k.host
                AND c.started_at IS NULL AND c.priority > p.priority ORDER BY c.priority LIMIT 1) n)"
        )
    };
}

/// Dispatches whose jobs a refill looks past.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Past {
    pub all: Vec<Uuid>,
    /// Those whose budget is spent: what is made again of them had counted before it was, and is not passed over.
    pub spent: Vec<Uuid>,
}

/// The due jobs of several (tenant, host), at most `limit` each, in their order, but for those of dispatches in `past`:
/// they are passed over in the index, so that what lies behind them does not wait. A look passes over [`PAST_ROWS_MAX`] at
/// most; what lies behind that is another one's.
pub async fn refill(db: &Db, looks: &[Look], past: &Past) -> DbResult<Vec<Refill>> {
    let tenants: Vec<&str> = looks.iter().map(|look| look.tenant.as_str()).collect();
    let hosts: Vec<&str> = looks.iter().map(|look| look.host.as_str()).collect();
    let limits: Vec<i64> = looks.iter().map(|look| look.limit).collect();
    let after = |look: &Look| look.after.map(|at| (at.priority, at.run_at, at.id));
    let priorities: Vec<Option<i16>> = looks.iter().map(|look| Some(after(look)?.0)).collect();
    let run_ats: Vec<Option<DateTime<Utc>>> = looks.iter().map(|look| Some(after(look)?.1)).collect();
    let ids: Vec<Option<Uuid>> = looks.iter().map(|look| Some(after(look)?.2)).collect();
    let client = db.client().await?;
    let statement = client
        .prepare_cached(concat!(
            "-- refill-hosts
             SELECT k.ord, s.id, s.attempt, s.dispatch, s.crashes >= $7, s.exempt, s.fits, s.nth, s.priority, s.run_at,
                    statement_timestamp()
               FROM unnest($1::text[], $2::text[], $3::int8[], $4::int2[], $5::timestamptz[], $6::uuid[])
                      WITH ORDINALITY AS k(tenant, host, n, priority, run_at, id, ord)
               LEFT JOIN LATERAL (
                 SELECT * FROM (
                   SELECT *, row_number() OVER () AS nth FROM (",
            priorities!("AND c.priority >= coalesce(k.priority, (-32768)::int2)"),
            "SELECT c.* FROM p, LATERAL (
                       SELECT id, attempt, dispatch, crashes, priority, run_at,
                              remake_of IS NOT NULL OR (payload IS NOT NULL AND kind = 'crawl' AND payload ? 'last') AS exempt,
                              alone_crashes < $8 AND dispatch <> ALL ($9)
                                AND (remake_of IS NOT NULL OR dispatch <> ALL ($11)) AS fits
                         FROM crawl_schedule s
                        WHERE s.tenant = k.tenant AND s.host = k.host AND s.priority = p.priority
                          AND s.run_at <= statement_timestamp() AND s.started_at IS NULL
                          AND (s.run_at, s.id) > (CASE WHEN p.priority = k.priority THEN k.run_at ELSE '-infinity' END,
                            CASE WHEN p.priority = k.priority THEN k.id ELSE '00000000-0000-0000-0000-000000000000' END)
                        ORDER BY s.run_at, s.id LIMIT k.n + $10) c LIMIT k.n + $10) seen) numbered
                  WHERE fits OR nth = k.n + $10 LIMIT k.n) s ON true",
        ))
        .await?;
    let rows = client
        .query(
            &statement,
            &[
                &tenants,
                &hosts,
                &limits,
                &priorities,
                &run_ats,
                &ids,
                &SUSPECT_CRASHES,
                &ALONE_CRASHES_MAX,
                &past.all,
                &PAST_ROWS_MAX,
                &past.spent,
            ],
        )
        .await?;
    let mut refills: Vec<Refill> = looks
        .iter()
        .map(|look| Refill {
            tenant: look.tenant.clone(),
            host: look.host.clone(),
            after: look.after,
            ..Refill::default()
        })
        .collect();
    for row in rows {
        let index = row.get::<_, i64>(0) as usize - 1;
        let (refill, limit) = (&mut refills[index], limits[index]);
        refill.read_at = row.get(10);
        let Some(id) = row.get(1) else { continue };
        if row.get(6) {
            refill.due.push(DueJob {
                id,
                attempt: row.get(2),
                dispatch: row.get(3),
                alone: row.get(4),
                exempt: row.get(5),
            });
        }
        if refill.due.len() as i64 >= limit || row.get::<_, i64>(7) >= limit + PAST_ROWS_MAX {
            refill.upto = Some(Position { priority: row.get(8), run_at: row.get(9), id });
        }
    }
    Ok(refills)
}

/// In how many milliseconds the next job of each (tenant, host) becomes due that was not when a refill looked there; those
/// without one are left out.
pub async fn next_due(db: &Db, flows: &[((String, String), DateTime<Utc>)]) -> DbResult<Vec<((String, String), i64)>> {
    let (tenants, hosts): (Vec<&str>, Vec<&str>) =
        flows.iter().map(|((tenant, host), _)| (tenant.as_str(), host.as_str())).unzip();
    let read_ats: Vec<DateTime<Utc>> = flows.iter().map(|(_, at)| *at).collect();
    let client = db.client().await?;
    let statement = client
        .prepare_cached(concat!(
            "-- next-due
             SELECT k.ord, greatest((extract(epoch FROM s.next - statement_timestamp()) * 1000)::int8, 0)
               FROM unnest($1::text[], $2::text[], $3::timestamptz[]) WITH ORDINALITY AS k(tenant, host, read_at, ord), LATERAL (",
            priorities!(""),
            "SELECT min(s.run_at) AS next FROM p, LATERAL (
               SELECT c.run_at FROM crawl_schedule c
                WHERE c.tenant = k.tenant AND c.host = k.host AND c.priority = p.priority
                  AND c.run_at > k.read_at AND c.started_at IS NULL
                ORDER BY c.run_at LIMIT 1) s) s
              WHERE s.next IS NOT NULL",
        ))
        .await?;
    let rows = client.query(&statement, &[&tenants, &hosts, &read_ats]).await?;
    Ok(rows.iter().map(|row| (flows[row.get::<_, i64>(0) as usize - 1].0.clone(), row.get(1))).collect())
}

/// The next (tenant, host) with jobs after `after`, at most `limit`: a skip-scan, one index descent each.
pub async fn scan_hosts(db: &Db, after: Option<&(String, String)>, limit: i64) -> DbResult<Vec<(String, String)>> {
    let client = db.client().await?;
    // No tenant is empty, so the empty pair comes before all.
    let (tenant, host) = after.cloned().unwrap_or_default();
    let statement = client
        .prepare_cached(
            "-- scan-hosts
             WITH RECURSIVE scan AS (
               (SELECT tenant, host, 1 AS n FROM crawl_schedule
                 WHERE (tenant, host) > ($1, $2) AND started_at IS NULL ORDER BY tenant, host LIMIT 1)
               UNION ALL
               SELECT s.tenant, s.host, scan.n + 1 FROM scan, LATERAL (
                 SELECT tenant, host FROM crawl_schedule c
                  WHERE (c.tenant, c.host) > (scan.tenant, scan.host) AND c.started_at IS NULL
                  ORDER BY c.tenant, c.host LIMIT 1) s
                WHERE scan.n < $3)
             SELECT tenant, host FROM scan",
        )
        .await?;
    let rows = client.query(&statement, &[&tenant, &host, &(limit as i32)]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// A stretch of a tenant's schedule.
#[derive(Clone, Debug, Default)]
pub struct Stretch {
    /// (dispatch, job) of the jobs that were looked for, whatever they wait for; but for calls that have begun.
    pub found: Vec<(Uuid, Uuid)>,
    /// Where the next stretch begins; none at the end.
    pub next: Option<Uuid>,
}

/// Looks through `limit` jobs after `after` for those of `dispatches`, in the order of their ids; of those that are `spent`,
/// what is made again is not looked for. That is what an index by dispatch would cost every job that is scheduled.
pub async fn of_dispatches(
    db: &Db,
    tenant: &str,
    dispatches: &[Uuid],
    spent: &[Uuid],
    after: Uuid,
    limit: i64,
) -> DbResult<Stretch> {
    let client = db.client().await?;
    let statement = client
        .prepare_cached(
            "-- jobs-of-dispatches
             WITH stretch AS MATERIALIZED (
               SELECT id, dispatch, started_at, remake_of FROM crawl_schedule WHERE tenant = $1 AND id > $3
                ORDER BY id LIMIT $4),
             found AS MATERIALIZED (
               SELECT id, dispatch FROM stretch WHERE dispatch = ANY ($2) AND started_at IS NULL
                  AND (remake_of IS NULL OR dispatch <> ALL ($5)) ORDER BY dispatch, id)
             SELECT ARRAY(SELECT dispatch FROM found), ARRAY(SELECT id FROM found),
                    (SELECT id FROM stretch ORDER BY id DESC LIMIT 1), (SELECT count(*) FROM stretch)",
        )
        .await?;
    let row = client.query_one(&statement, &[&tenant, &dispatches, &after, &limit, &spent]).await?;
    let (of, ids): (Vec<Uuid>, Vec<Uuid>) = (row.get(0), row.get(1));
    let next = row.get::<_, Option<Uuid>>(2).filter(|_| row.get::<_, i64>(3) >= limit);
    Ok(Stretch { found: of.into_iter().zip(ids).collect(), next })
}

/// Ends jobs that will not be issued any more, each with its reason in the log. Returns how many.
pub async fn skip(db: &Db, epoch: i64, tenant: &str, ids: &[Uuid], outcome: Outcome, reason: &str) -> DbResult<u64> {
    run_tx!(db, "skip-jobs", |tx| {
        leader::authorise(tx, epoch).await?;
        let statement = tx
            .prepare_cached(
                "-- skip-jobs
                 WITH won AS (
                   DELETE FROM crawl_schedule WHERE tenant = $1 AND id = ANY($2) RETURNING *),
                 logged AS (
                   INSERT INTO crawl_log (tenant, id, finished_at, dispatch, kind, host, priority, attempt, depth, hops, url,
                          url_hash, found_on, payload, remake_of, created_at, outcome, reason, page, total_pages, started_at, worker,
                          crashes, alone_crashes, tries)
                   SELECT tenant, id, clock_timestamp(), dispatch, kind, host, priority, attempt, depth, hops, url,
                          url_hash, found_on, payload, remake_of, created_at, $3, $4, page, total_pages, started_at,
                          coalesce(started_by, CASE WHEN $3 = 'quarantined' THEN crashed_with END), crashes, alone_crashes, tries FROM won),
                 delta AS (
                   INSERT INTO dispatch_delta (tenant, dispatch, finished, skipped, failed)
                 SELECT tenant, dispatch, count(*), count(*) FILTER (WHERE $3 NOT IN ('unknown', 'quarantined')),
                        count(*) FILTER (WHERE $3 IN ('unknown', 'quarantined')) FROM won GROUP BY 1, 2)
                 SELECT count(*) FROM won",
            )
            .await?;
        let row = tx.query_one(&statement, &[&tenant, &ids, &outcome.as_str(), &reason]).await?;
        Ok(row.get::<_, i64>(0) as u64)
    })
}

/// Jobs waiting, and the age of the oldest due one that is not paused in milliseconds, as far as a bounded look tells.
pub async fn backlog(db: &Db) -> DbResult<(i64, i64)> {
    let client = db.client().await?;
    let row = client
        .query_one(
            "-- backlog
             SELECT coalesce(sum(scheduled - finished), 0)::int8,
                    coalesce((SELECT greatest(0, extract(epoch FROM clock_timestamp() - min(run_at)) * 1000)::int8
                       FROM (SELECT tenant, dispatch, run_at FROM crawl_schedule WHERE started_at IS NULL
                              ORDER BY tenant, host, priority, run_at LIMIT 1000) s
                      WHERE NOT EXISTS (SELECT 1 FROM dispatch d WHERE d.tenant = s.tenant AND d.id = s.dispatch
                        AND d.paused_at IS NOT NULL)), 0)
               FROM (SELECT scheduled, finished FROM dispatch_progress p
                       JOIN dispatch d ON d.tenant = p.tenant AND d.id = p.dispatch AND d.state <> 'done'
                     UNION ALL SELECT scheduled, finished FROM dispatch_delta) t",
            &[],
        )
        .await?;
    Ok((row.get(0), row.get(1)))
}
