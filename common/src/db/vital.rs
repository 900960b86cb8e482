//! The vital signs that Postgres shows: what the sentinel's metrics are made of.

use uuid::Uuid;

use crate::db::pool::{Db, DbResult};

/// Hosts whose first due job is looked at.
const HOSTS_MAX: i32 = 500;
/// Groups into which the events of a window are counted at most.
const GROUPS_MAX: i64 = 1000;
/// Events closer together than this are counted as one group, milliseconds.
const GROUP_MS_MIN: i64 = 100;

/// Something that happens at a time and is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An incarnation was committed lost that had not begun to drain.
    WorkerLost,
    /// The manifests were read without an error.
    ManifestRefresh,
    /// A job ran out of tries, or killed its workers.
    DeadJob,
}

impl Event {
    /// Where such events are, and their time.
    fn source(self) -> (&'static str, &'static str) {
        match self {
            Event::WorkerLost => ("worker WHERE draining_at IS NULL AND lost_at", "lost_at"),
            Event::ManifestRefresh => ("manifest_refresh WHERE ok AND at", "at"),
            Event::DeadJob => ("crawl_log WHERE outcome IN ('dead', 'quarantined') AND finished_at", "finished_at"),
        }
    }
}

/// An incarnation that should be at work: neither draining, ended nor lost.
#[derive(Clone, Copy, Debug)]
pub struct Live {
    pub id: Uuid,
    pub registered_ms: i64,
}

/// The server answers.
pub async fn ping(db: &Db) -> DbResult<()> {
    let client = db.client().await?;
    client.execute("-- ping\nSELECT 1", &[]).await?;
    Ok(())
}

pub async fn live_workers(db: &Db) -> DbResult<Vec<Live>> {
    let client = db.client().await?;
    let rows = client
        .query(
            "-- live-workers
             SELECT id, (extract(epoch FROM clock_timestamp() - registered_at) * 1000)::int8 FROM worker
              WHERE released_at IS NULL AND lost_at IS NULL AND ended_at IS NULL AND draining_at IS NULL",
            &[],
        )
        .await?;
    Ok(rows.iter().map(|row| Live { id: row.get(0), registered_ms: row.get(1) }).collect())
}

/// The events of the last `window_ms` as (age in milliseconds by the server's clock, how many).
pub async fn events(db: &Db, event: Event, window_ms: i64) -> DbResult<Vec<(i64, i64)>> {
    let (table, at) = event.source();
    let group_ms = (window_ms / GROUPS_MAX).max(GROUP_MS_MIN);
    let client = db.client().await?;
    let statement = client
        .prepare_cached(&format!(
            "-- count-events
             SELECT (extract(epoch FROM clock_timestamp() - {at}) * 1000)::int8 / $2 * $2, count(*)
               FROM {table} > clock_timestamp() - $1 * interval '1 millisecond' GROUP BY 1"
        ))
        .await?;
    let rows = client.query(&statement, &[&(window_ms as f64), &group_ms]).await?;
    Ok(rows.iter().map(|row| (row.get::<_, i64>(0).max(0), row.get(1))).collect())
}

/// How long the oldest due job has waited, milliseconds: each host's first in its order, of the first
/// [`HOSTS_MAX`] hosts, but for what is paused; 0 when none is due.
pub async fn oldest_due_ms(db: &Db) -> DbResult<i64> {
    let client = db.client().await?;
    let statement = client
        .prepare_cached(
            "-- oldest-due
             WITH RECURSIVE scan AS (
               (SELECT tenant, host, run_at, dispatch, 1 AS n FROM crawl_schedule WHERE started_at IS NULL
                 ORDER BY tenant, host, priority, run_at, id LIMIT 1)
               UNION ALL
               SELECT s.tenant, s.host, s.run_at, s.dispatch, scan.n + 1 FROM scan, LATERAL (
                 SELECT tenant, host, run_at, dispatch FROM crawl_schedule c
                  WHERE (c.tenant, c.host) > (scan.tenant, scan.host) AND c.started_at IS NULL
                  ORDER BY c.tenant, c.host, c.priority, c.run_at, c.id LIMIT 1) s
                WHERE scan.n < $1)
             SELECT coalesce(greatest((extract(epoch FROM clock_timestamp() - min(run_at)) * 1000)::int8, 0), 0) FROM scan
              WHERE NOT EXISTS (SELECT 1 FROM dispatch d WHERE d.tenant = scan.tenant AND d.id = scan.dispatch
                AND d.paused_at IS NOT NULL)",
        )
        .await?;
    Ok(client.query_one(&statement, &[&HOSTS_MAX]).await?.get(0))
}
