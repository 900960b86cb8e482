//! Dead letters: jobs that ended without success, and their replay.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::db::explain::{JobReport, LOGGED, of_row};
use crate::db::pool::{Db, DbResult};
use crate::run_tx;

/// Which dead letters.
#[derive(Clone, Debug, Default)]
pub struct DeadQuery<'a> {
    pub tenant: &'a str,
    pub dispatch: Option<Uuid>,
    pub kind: Option<&'a str>,
    /// `dead`, `failed`, `unknown` or `quarantined`.
    pub outcome: Option<&'a str>,
    pub host: Option<&'a str>,
    /// A part of the reason.
    pub reason: Option<&'a str>,
    /// Ended then or later.
    pub since: Option<DateTime<Utc>>,
    pub after: Option<Uuid>,
    pub limit: i64,
}

const WHERE: &str =
    "tenant = $1 AND id > $2 AND outcome IN ('dead', 'failed', 'unknown', 'quarantined') AND replayed_by IS NULL
    AND ($3::uuid IS NULL OR dispatch = $3) AND ($4::text IS NULL OR kind = $4) AND ($5::text IS NULL OR outcome = $5)
    AND ($6::text IS NULL OR host = $6) AND ($7::text IS NULL OR strpos(reason, $7) > 0)
    AND ($8::timestamptz IS NULL OR finished_at >= $8)";

/// Dead letters that have not been replayed, in the order of their ids.
pub async fn list(db: &Db, q: &DeadQuery<'_>) -> DbResult<Vec<JobReport>> {
    run_tx!(db, "list-dead", tenant: q.tenant, |tx| {
        let sql = format!("-- list-dead\n{LOGGED} WHERE {WHERE} ORDER BY id LIMIT $9");
        let after = q.after.unwrap_or_default();
        let rows =
            tx.query(&sql, &[&q.tenant, &after, &q.dispatch, &q.kind, &q.outcome, &q.host, &q.reason, &q.since, &q.limit]).await?;
        Ok(rows.iter().map(of_row).collect())
    })
}

/// What a replay scheduled.
#[derive(Clone, Debug, Default)]
pub struct Replayed {
    pub jobs: u64,
    /// Calls that may not be repeated, left alone.
    pub left: u64,
    pub hosts: Vec<String>,
}

/// Schedules dead letters again, each once; their dispatches run again. Calls that may not be repeated only with `force`.
/// An occurrence is not replayed: its entry has gone on. Nor is a job of a dispatch that is being ended; one that was
/// cancelled and is done goes on with what is replayed, within its budget. A replayed job is no suspect: it begins
/// without crashes.
pub async fn replay(db: &Db, q: &DeadQuery<'_>, force: bool) -> DbResult<Replayed> {
    run_tx!(db, "replay-dead", |tx| {
        let sql = format!(
            "-- find-dead\nSELECT id, finished_at, outcome = 'unknown' OR kind = 'get_page' AND EXISTS (
                SELECT 1 FROM dispatch d WHERE d.tenant = l.tenant AND d.id = l.dispatch AND (d.spec #>> '{{document,at_most_once}}') = 'true')
               FROM crawl_log l WHERE {WHERE} AND kind <> 'occurrence'
                AND NOT EXISTS (SELECT 1 FROM dispatch d WHERE d.tenant = l.tenant AND d.id = l.dispatch
                  AND d.ending IS NOT NULL AND d.state <> 'done')
              ORDER BY id LIMIT $9 FOR UPDATE OF l"
        );
        let after = q.after.unwrap_or_default();
        let rows = tx
            .query(&sql, &[&q.tenant, &after, &q.dispatch, &q.kind, &q.outcome, &q.host, &q.reason, &q.since, &q.limit])
            .await?;
        let (taken, left): (Vec<_>, Vec<_>) = rows.iter().partition(|row| force || !row.get::<_, bool>(2));
        let ids: Vec<Uuid> = taken.iter().map(|row| row.get(0)).collect();
        let finished: Vec<chrono::DateTime<chrono::Utc>> = taken.iter().map(|row| row.get(1)).collect();
        let new: Vec<Uuid> = taken.iter().map(|_| Uuid::now_v7()).collect();
        let rows = tx
            .query(
                "-- replay-dead
                 WITH k AS MATERIALIZED (SELECT * FROM unnest($2::uuid[], $3::timestamptz[], $4::uuid[]) AS k(id, finished_at, new_id)),
                 old AS (
                   UPDATE crawl_log l SET replayed_by = k.new_id FROM k
                    WHERE l.tenant = $1 AND l.id = k.id AND l.finished_at = k.finished_at RETURNING l.*, k.new_id),
                 scheduled AS (
                   INSERT INTO crawl_schedule (tenant, id, dispatch, kind, host, priority, depth, hops, url, url_hash, found_on, payload,
                          remake_of, page, total_pages)
                   SELECT tenant, new_id, dispatch, kind, host, priority, depth, hops, url, url_hash, found_on, payload, remake_of, page,
                          total_pages FROM old RETURNING host),
                 turn AS (
                   -- A page that is to be visited again goes on by the replay, unless it has gone on meanwhile.
                   UPDATE revisit r SET next = old.new_id FROM old
                    WHERE r.tenant = $1 AND r.url_hash = old.url_hash AND r.dispatch = old.dispatch AND r.next = old.id),
                 state AS (
                   UPDATE dispatch d SET state = 'running', finished_at = NULL, ending = NULL, note = NULL
                    WHERE d.tenant = $1 AND d.id IN (SELECT dispatch FROM old)),
                 delta AS (
                   INSERT INTO dispatch_delta (tenant, dispatch, scheduled, failed)
                   SELECT tenant, dispatch, count(*), -count(*) FROM old GROUP BY 1, 2)
                 SELECT host, count(*) FROM scheduled GROUP BY 1",
                &[&q.tenant, &ids, &finished, &new],
            )
            .await?;
        Ok(Replayed {
            jobs: rows.iter().map(|row| row.get::<_, i64>(1) as u64).sum(),
            left: left.len() as u64,
            hosts: rows.iter().map(|row| row.get(0)).collect(),
        })
    })
}
