//! Archive segments: planned before the object is written, verified after, resumed by a successor.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

use crate::db::pool::{Db, DbError, DbResult, Transaction};
use crate::db::raw::{self, RawKey};
use crate::db::worker::Incarnation;
use crate::model::stream_id::StreamId;
use crate::run_tx;

/// One object of the archive: what it holds and what it must hash to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Segment {
    pub tenant: String,
    pub generation: i64,
    pub stream: String,
    pub first: StreamId,
    pub last: StreamId,
    pub key: String,
    pub entries: i32,
    pub bytes: i64,
    pub sha256: String,
}

/// Results that are made again in one transaction.
const REMAKE_MAX: usize = 1000;

/// Plans the segments of one range, all or none, each with the entries that it has: all of its tenant's that count, from the
/// first of the stream on. The exclusion constraint refuses an overlap.
///
/// A result up to their ends that they have not has left the stream. Then nothing is planned: some of these results are made
/// again, and the (tenant, host) of each is returned.
pub async fn plan(
    db: &Db,
    worker: &Incarnation,
    segments: &[(&Segment, &HashSet<StreamId>)],
) -> DbResult<Vec<(String, String)>> {
    run_tx!(db, "plan-segments", |tx| {
        raw::authorise_worker(tx, worker).await?;
        for (s, present) in segments {
            let lost = missing(tx, s, StreamId { ms: 0, seq: 0 }, present).await?;
            if !lost.is_empty() {
                return raw::remake_in(tx, &lost[..lost.len().min(REMAKE_MAX)]).await;
            }
            tx.execute(
                "-- plan-segment
                 INSERT INTO archive_segment (tenant, generation, stream, first_ms, first_seq, last_ms, last_seq, key, entries, bytes, sha256)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
                &[
                    &s.tenant, &s.generation, &s.stream, &(s.first.ms as i64), &(s.first.seq as i64),
                    &(s.last.ms as i64), &(s.last.seq as i64), &s.key, &s.entries, &s.bytes, &s.sha256,
                ],
            )
            .await?;
        }
        Ok(Vec::new())
    })
}

/// Planned segments of a stream that are not verified yet, in order.
pub async fn planned(db: &Db, stream: &str) -> DbResult<Vec<Segment>> {
    let client = db.client().await?;
    let rows = client
        .query(
            "-- planned-segments
             SELECT tenant, generation, stream, first_ms, first_seq, last_ms, last_seq, key, entries, bytes, sha256
               FROM archive_segment WHERE stream = $1 AND verified_at IS NULL
              ORDER BY generation, first_ms, first_seq, tenant",
            &[&stream],
        )
        .await?;
    Ok(rows.iter().map(of_row).collect())
}

/// Records that the object is in the archive and right; from here on its entries may leave the stream. `present` is what it
/// has, if that is known: a result in its range that was committed meanwhile, and whose entry had left the stream before, is
/// made again. Then nothing is recorded, and the (tenant, host) is returned, as by [`plan`].
///
/// # Errors
/// [`DbError::Input`] when there is no such plan: then they may not.
pub async fn record(
    db: &Db,
    worker: &Incarnation,
    s: &Segment,
    present: Option<&HashSet<StreamId>>,
) -> DbResult<Vec<(String, String)>> {
    run_tx!(db, "record-segment", |tx| {
        raw::authorise_worker(tx, worker).await?;
        if let Some(present) = present {
            let lost = missing(tx, s, s.first, present).await?;
            if !lost.is_empty() {
                return raw::remake_in(tx, &lost).await;
            }
        }
        let row = tx.query_one(
            "-- record-segment
             WITH verified AS (
               UPDATE archive_segment SET verified_at = clock_timestamp()
                WHERE tenant = $1 AND generation = $2 AND stream = $3 AND first_ms = $4 AND first_seq = $5 AND verified_at IS NULL
               RETURNING 1),
             gone AS (
               DELETE FROM raw_result WHERE tenant = $1 AND generation = $2 AND stream = $3
                  AND (ms, seq) >= ($4, $5) AND (ms, seq) <= ($6, $7) AND EXISTS (SELECT 1 FROM verified)
               RETURNING tenant, dispatch, job),
             answer AS (
               DELETE FROM kept_answer a USING gone WHERE a.tenant = gone.tenant AND a.job = gone.job),
             delta AS (
               INSERT INTO dispatch_delta (tenant, dispatch, raw) SELECT tenant, dispatch, -count(*) FROM gone GROUP BY 1, 2)
             SELECT EXISTS (SELECT 1 FROM verified) OR EXISTS (
               SELECT 1 FROM archive_segment WHERE tenant = $1 AND generation = $2 AND stream = $3 AND first_ms = $4
                  AND first_seq = $5 AND verified_at IS NOT NULL)",
            &[
                &s.tenant, &s.generation, &s.stream, &(s.first.ms as i64), &(s.first.seq as i64),
                &(s.last.ms as i64), &(s.last.seq as i64),
            ],
        )
        .await?;
        if !row.get::<_, bool>(0) {
            return Err(DbError::Input(format!("{} was never planned, or its plan was given up", s.key)));
        }
        Ok(Vec::new())
    })
}

/// Gives a plan up: no object was written and `present` is all that is left of its entries in the stream. The plan goes, and
/// the results that Redis lost are made again: returns the (tenant, host) of each. What the plan may have left in the store
/// belongs to no segment.
pub async fn abandon(
    db: &Db,
    worker: &Incarnation,
    s: &Segment,
    present: &HashSet<StreamId>,
) -> DbResult<Vec<(String, String)>> {
    run_tx!(db, "abandon-segment", |tx| {
        raw::authorise_worker(tx, worker).await?;
        let given_up = tx
            .execute(
                "-- abandon-segment
                 DELETE FROM archive_segment WHERE tenant = $1 AND generation = $2 AND stream = $3 AND first_ms = $4
                    AND first_seq = $5 AND verified_at IS NULL",
                &[&s.tenant, &s.generation, &s.stream, &(s.first.ms as i64), &(s.first.seq as i64)],
            )
            .await?;
        if given_up == 0 {
            return Ok(Vec::new());
        }
        raw::remake_in(tx, &missing(tx, s, s.first, present).await?).await
    })
}

/// The results from there to the end of a segment that it has not, nor another one below it.
async fn missing(
    tx: &Transaction<'_>,
    s: &Segment,
    from: StreamId,
    present: &HashSet<StreamId>,
) -> DbResult<Vec<RawKey>> {
    let rows = tx
        .query(
            concat!(
                "-- results-between
             SELECT ms, seq FROM raw_result r WHERE tenant = $1 AND generation = $2 AND stream = $3
                AND (ms, seq) >= ($4, $5) AND (ms, seq) <= ($6, $7) AND ((ms, seq) >= ($8, $9) OR NOT ",
                raw::is_held!(),
                ")"
            ),
            &[
                &s.tenant,
                &s.generation,
                &s.stream,
                &(from.ms as i64),
                &(from.seq as i64),
                &(s.last.ms as i64),
                &(s.last.seq as i64),
                &(s.first.ms as i64),
                &(s.first.seq as i64),
            ],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| StreamId { ms: row.get::<_, i64>(0) as u64, seq: row.get::<_, i64>(1) as u64 })
        .filter(|id| !present.contains(id))
        .map(|id| RawKey { tenant: s.tenant.clone(), stream: s.stream.clone(), id, generation: s.generation })
        .collect())
}

/// Totals of the archive: objects and bytes, all tenants.
pub async fn totals(db: &Db) -> DbResult<(i64, i64)> {
    let client = db.client().await?;
    let row = client
        .query_one(
            "-- archive-totals\nSELECT count(*), coalesce(sum(bytes), 0)::int8 FROM archive_segment WHERE verified_at IS NOT NULL",
            &[],
        )
        .await?;
    Ok((row.get(0), row.get(1)))
}

/// Where an entry of a raw stream is, that is in the stream no longer or will not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// On its way to the object of this key.
    Planned(String),
    /// In it, since then.
    Verified(String, DateTime<Utc>),
    /// Nowhere: this job makes it again.
    Lost(Uuid),
}

/// Segments of a stream's generation are disjoint: only the last one that begins at or before an entry may hold it. It does
/// not, if the entry was lost before it was planned.
pub const PLACE: &str = "-- place-of-entry
 SELECT s.key, s.verified_at, NULL::uuid AS remade_by FROM (
   SELECT key, verified_at, last_ms, last_seq FROM archive_segment
    WHERE tenant = $1 AND stream = $2 AND generation = $3 AND (first_ms, first_seq) <= ($4, $5)
    ORDER BY first_ms DESC, first_seq DESC LIMIT 1) s
  WHERE (s.last_ms, s.last_seq) >= ($4, $5)
 UNION ALL
 SELECT NULL, NULL, remade_by FROM lost_result
  WHERE tenant = $1 AND stream = $2 AND generation = $3 AND ms = $4 AND seq = $5
 ORDER BY remade_by LIMIT 1";

/// Where an entry is; nothing while it is in the stream.
pub async fn place_of(db: &Db, tenant: &str, stream: &str, generation: i64, id: StreamId) -> DbResult<Option<Place>> {
    let client = db.client().await?;
    let row = client.query_opt(PLACE, &[&tenant, &stream, &generation, &(id.ms as i64), &(id.seq as i64)]).await?;
    Ok(row.map(|row| match (row.get(1), row.get(2)) {
        (_, Some(job)) => Place::Lost(job),
        (Some(at), None) => Place::Verified(row.get(0), at),
        (None, None) => Place::Planned(row.get(0)),
    }))
}

/// What a segment's row is found by: its primary key, and the object that it names.
#[derive(Clone, Debug)]
pub struct PlanKey {
    pub tenant: String,
    pub stream: String,
    pub generation: i64,
    pub first: StreamId,
    pub key: String,
}

/// Plans in one call of [`known`].
pub const KNOWN_MAX: usize = 1000;

/// The object keys of those that are planned or verified.
pub async fn known(db: &Db, plans: &[PlanKey]) -> DbResult<HashSet<String>> {
    let client = db.client().await?;
    let tenants: Vec<&str> = plans.iter().map(|plan| plan.tenant.as_str()).collect();
    let streams: Vec<&str> = plans.iter().map(|plan| plan.stream.as_str()).collect();
    let generations: Vec<i64> = plans.iter().map(|plan| plan.generation).collect();
    let ms: Vec<i64> = plans.iter().map(|plan| plan.first.ms as i64).collect();
    let seqs: Vec<i64> = plans.iter().map(|plan| plan.first.seq as i64).collect();
    let keys: Vec<&str> = plans.iter().map(|plan| plan.key.as_str()).collect();
    let rows = client
        .query(
            "-- known-segments
             SELECT s.key FROM unnest($1::text[], $2::text[], $3::int8[], $4::int8[], $5::int8[], $6::text[])
                 AS k(tenant, stream, generation, ms, seq, key),
               LATERAL (SELECT key FROM archive_segment a WHERE a.tenant = k.tenant AND a.stream = k.stream
                           AND a.generation = k.generation AND a.first_ms = k.ms AND a.first_seq = k.seq AND a.key = k.key
                        OFFSET 0) s",
            &[&tenants, &streams, &generations, &ms, &seqs, &keys],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// True if there is no such plan; then there is none before this transaction ends, as no segment is planned or
/// recorded meanwhile: keep it short.
pub async fn lock_unplanned(tx: &Transaction<'_>, plan: &PlanKey) -> DbResult<bool> {
    tx.batch_execute("-- lock-segments\nLOCK TABLE archive_segment IN SHARE MODE").await?;
    let row = tx
        .query_one(
            "-- is-unplanned
             SELECT NOT EXISTS (SELECT 1 FROM archive_segment WHERE tenant = $1 AND stream = $2 AND generation = $3
                AND first_ms = $4 AND first_seq = $5 AND key = $6)",
            &[
                &plan.tenant,
                &plan.stream,
                &plan.generation,
                &(plan.first.ms as i64),
                &(plan.first.seq as i64),
                &plan.key,
            ],
        )
        .await?;
    Ok(row.get(0))
}

fn of_row(row: &tokio_postgres::Row) -> Segment {
    let number = |index: usize| row.get::<_, i64>(index) as u64;
    Segment {
        tenant: row.get(0),
        generation: row.get(1),
        stream: row.get(2),
        first: StreamId { ms: number(3), seq: number(4) },
        last: StreamId { ms: number(5), seq: number(6) },
        key: row.get(7),
        entries: row.get(8),
        bytes: row.get(9),
        sha256: row.get(10),
    }
}
