//! Suspects: jobs whose worker was lost while it held them. A lost worker burns no attempt of its jobs; a job that was
//! held by two of them runs alone from then on, and ends when three more were lost while it did.

use uuid::Uuid;

use crate::db::leader;
use crate::db::pool::{Db, DbResult};
use crate::db::raw::authorise_worker;
use crate::db::worker::Incarnation;
use crate::model::job::{ALONE_CRASHES_MAX, JobKey, SUSPECT_CRASHES};
use crate::run_tx;

/// Reasons kept of a job's crashes: the latest.
const REASONS_MAX: i32 = 5;
/// More crashes than this are not told apart.
const COUNT_MAX: i16 = 1000;

/// What a count changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Jobs that the lost worker held.
    pub jobs: u64,
    /// Those of them that run alone from now on.
    pub suspects: u64,
}

/// Counts the loss of a worker against each job that it held, and against the one that it ran alone. A second count
/// of the same loss changes nothing, nor does one of a worker that was leaving: what ends then is no fault of a job.
pub async fn count(db: &Db, epoch: i64, lost: Uuid, held: &[JobKey]) -> DbResult<Counted> {
    let tenants: Vec<&str> = held.iter().map(|key| key.tenant.as_str()).collect();
    let ids: Vec<Uuid> = held.iter().map(|key| key.id).collect();
    let attempts: Vec<i16> = held.iter().map(|key| key.attempt).collect();
    run_tx!(db, "count-crashes", |tx| {
        leader::authorise(tx, epoch).await?;
        let row = tx
            .query_one(
                "-- count-crashes
                 WITH w AS MATERIALIZED (
                   SELECT id, 'worker ' || id || ' (slot ' || slot || ', process ' || pid || '): ' || coalesce(reason, 'lost') AS reason
                     FROM worker WHERE id = $1 AND lost_at IS NOT NULL AND draining_at IS NULL),
                 locked AS MATERIALIZED (
                   SELECT s.place FROM (SELECT DISTINCT * FROM unnest($2::text[], $3::uuid[], $4::int2[]) AS k(tenant, id, attempt)
                                         ORDER BY 1, 2) k, LATERAL (
                     SELECT c.ctid AS place FROM crawl_schedule c
                      WHERE c.tenant = k.tenant AND c.id = k.id AND c.attempt = k.attempt FOR UPDATE) s),
                 -- It need not be pending any more: Redis may have been lost with its worker.
                 alone AS MATERIALIZED (
                   SELECT c.ctid AS place FROM crawl_schedule c WHERE c.alone_by = $1 FOR UPDATE),
                 counted AS (
                   UPDATE crawl_schedule c
                      SET crashes = least(c.crashes + (c.crashed_with IS DISTINCT FROM w.id)::int, $6::int2),
                          crash_reasons = CASE WHEN c.crashed_with IS DISTINCT FROM w.id
                            THEN (c.crash_reasons || w.reason)[greatest(coalesce(cardinality(c.crash_reasons), 0) + 2 - $5, 1):]
                            ELSE c.crash_reasons END,
                          crashed_with = w.id,
                          alone_crashes = least(c.alone_crashes + coalesce(c.alone_by = w.id, false)::int, $6::int2),
                          alone_by = nullif(c.alone_by, w.id)
                     FROM w
                    WHERE c.ctid = ANY (ARRAY(SELECT place FROM locked UNION SELECT place FROM alone))
                      AND (c.crashed_with IS DISTINCT FROM w.id OR c.alone_by = w.id)
                   RETURNING c.crashes)
                 SELECT count(*), count(*) FILTER (WHERE crashes >= $7) FROM counted",
                &[&lost, &tenants, &ids, &attempts, &REASONS_MAX, &COUNT_MAX, &SUSPECT_CRASHES],
            )
            .await?;
        Ok(Counted { jobs: row.get::<_, i64>(0) as u64, suspects: row.get::<_, i64>(1) as u64 })
    })
}

/// A worker commits that nothing but this job runs on it now. False: the job is gone or has moved on.
pub async fn begin_alone(db: &Db, worker: &Incarnation, key: &JobKey) -> DbResult<bool> {
    run_tx!(db, "begin-alone", |tx| {
        authorise_worker(tx, worker).await?;
        let begun = tx
            .execute(
                "-- begin-alone
                 UPDATE crawl_schedule SET alone_by = $4 WHERE tenant = $1 AND id = $2 AND attempt = $3",
                &[&key.tenant, &key.id, &key.attempt, &worker.id],
            )
            .await?;
        Ok(begun == 1)
    })
}

/// It has run and its row stays: what becomes of its worker from now on is not its fault.
pub async fn end_alone(db: &Db, worker: &Incarnation, key: &JobKey) -> DbResult<()> {
    run_tx!(db, "end-alone", |tx| {
        authorise_worker(tx, worker).await?;
        tx.execute(
            "-- end-alone
             UPDATE crawl_schedule SET alone_by = NULL WHERE tenant = $1 AND id = $2 AND alone_by = $3",
            &[&key.tenant, &key.id, &worker.id],
        )
        .await?;
        Ok(())
    })
}

/// Jobs that [`ALONE_CRASHES_MAX`] workers were lost with while they ran nothing else: (tenant, id, reason). A call that
/// was begun is left out: it ends as unknown.
pub async fn doomed(db: &Db, limit: i64) -> DbResult<Vec<(String, Uuid, String)>> {
    let client = db.client().await?;
    let statement = client
        .prepare_cached(
            "-- doomed-jobs
             SELECT tenant, id, crashes, alone_crashes, coalesce(array_to_string(crash_reasons, '; '), '') FROM crawl_schedule
              WHERE crashes > 0 AND alone_crashes >= $1 AND started_at IS NULL LIMIT $2",
        )
        .await?;
    let rows = client.query(&statement, &[&ALONE_CRASHES_MAX, &limit]).await?;
    Ok(rows
        .iter()
        .map(|row| {
            let (crashes, alone): (i16, i16) = (row.get(2), row.get(3));
            let reasons: String = row.get(4);
            let reason = format!(
                "{crashes} workers were lost while they held it, {alone} of them while they ran nothing else: {reasons}"
            );
            (row.get(0), row.get(1), reason)
        })
        .collect())
}

/// Pending jobs that run alone.
pub async fn pending(db: &Db) -> DbResult<i64> {
    let client = db.client().await?;
    let statement = client
        .prepare_cached("-- count-suspects\nSELECT count(*) FROM crawl_schedule WHERE crashes > 0 AND crashes >= $1")
        .await?;
    Ok(client.query_one(&statement, &[&SUSPECT_CRASHES]).await?.get(0))
}
