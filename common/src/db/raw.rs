//! Raw results: which entries of a stream count, and what is made again when Redis lost them (invariant 4).

use uuid::Uuid;

use crate::db::leader;
use crate::db::pool::{Db, DbError, DbResult, Transaction};
use crate::db::worker::Incarnation;
use crate::model::stream_id::StreamId;
use crate::run_tx;

/// A row of `raw_result`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RawKey {
    pub tenant: String,
    pub stream: String,
    pub id: StreamId,
    pub generation: i64,
}

/// An entry of a raw stream as the archiver reads it.
#[derive(Clone, Debug)]
pub struct EntryKey {
    pub tenant: String,
    pub id: StreamId,
    pub generation: i64,
    pub job: Uuid,
    pub attempt: i16,
    pub writer: Uuid,
}

/// What Postgres knows of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryState {
    /// It has its row, and what is to be made of it is made: it is part of the archive.
    Counts,
    /// It has its row; its items are still to be processed.
    Unprocessed,
    /// It never will: its job's row is gone, its attempt moved, or its writer is lost.
    Void,
    /// Its writer may still commit it.
    Open,
}

/// Judges entries of `stream` in one snapshot.
pub async fn judge(db: &Db, stream: &str, entries: &[EntryKey]) -> DbResult<Vec<EntryState>> {
    let client = db.client().await?;
    let tenants: Vec<&str> = entries.iter().map(|e| e.tenant.as_str()).collect();
    let ms: Vec<i64> = entries.iter().map(|e| e.id.ms as i64).collect();
    let seq: Vec<i64> = entries.iter().map(|e| e.id.seq as i64).collect();
    let generations: Vec<i64> = entries.iter().map(|e| e.generation).collect();
    let jobs: Vec<Uuid> = entries.iter().map(|e| e.job).collect();
    let attempts: Vec<i16> = entries.iter().map(|e| e.attempt).collect();
    let writers: Vec<Uuid> = entries.iter().map(|e| e.writer).collect();
    let statement = client
        .prepare_cached(
            "-- judge-entries
             SELECT r.processed,
                    r.processed IS NULL
                AND EXISTS (SELECT 1 FROM crawl_schedule c WHERE c.tenant = k.tenant AND c.id = k.job AND c.attempt = k.attempt)
                AND EXISTS (SELECT 1 FROM worker w WHERE w.id = k.writer AND w.lost_at IS NULL AND w.ended_at IS NULL)
                AND k.generation = (SELECT number FROM generation)
               FROM unnest($2::text[], $3::int8[], $4::int8[], $5::int8[], $6::uuid[], $7::int2[], $8::uuid[])
                    WITH ORDINALITY AS k(tenant, ms, seq, generation, job, attempt, writer, ord)
               -- One index lookup an entry, whatever the planner believes of the table's size.
               LEFT JOIN LATERAL (SELECT r.processed FROM raw_result r WHERE r.tenant = k.tenant AND r.stream = $1
                                     AND r.ms = k.ms AND r.seq = k.seq AND r.generation = k.generation AND r.job = k.job
                                    OFFSET 0) r ON true
              ORDER BY k.ord",
        )
        .await?;
    let rows =
        client.query(&statement, &[&stream, &tenants, &ms, &seq, &generations, &jobs, &attempts, &writers]).await?;
    Ok(rows
        .iter()
        .map(|row| match (row.get(0), row.get(1)) {
            (Some(true), _) => EntryState::Counts,
            (Some(false), _) => EntryState::Unprocessed,
            (None, true) => EntryState::Open,
            (None, false) => EntryState::Void,
        })
        .collect())
}

/// Whether a segment holds the entry of a raw result `r`. Segments of a stream's generation are disjoint: only the last one
/// that begins at or before an entry may hold it, and that is one descent of the index for each. Whether it is verified does
/// not matter: one that is not is written yet, or given up by the archiver, which then sees to its entries.
macro_rules! is_held {
    () => {
        "coalesce((SELECT (r.ms, r.seq) <= (a.last_ms, a.last_seq) FROM archive_segment a
         WHERE a.tenant = r.tenant AND a.stream = r.stream AND a.generation = r.generation
           AND (a.first_ms, a.first_seq) <= (r.ms, r.seq)
         ORDER BY a.first_ms DESC, a.first_seq DESC LIMIT 1), false)"
    };
}
pub(crate) use is_held;

/// Raw results in key order that no segment holds.
pub const PAGE: &str = concat!(
    "-- page-raw-results
 SELECT tenant, stream, ms, seq, generation FROM raw_result r
  WHERE (tenant, stream, ms, seq, generation) > ($1, $2, $3, $4, $5) AND NOT ",
    is_held!(),
    " ORDER BY tenant, stream, ms, seq, generation LIMIT $6"
);

/// Rows in key order after `after` that no planned segment covers.
pub async fn page(db: &Db, after: Option<&RawKey>, limit: i64) -> DbResult<Vec<RawKey>> {
    let client = db.client().await?;
    // No tenant is empty, so this comes before all.
    let after = after.cloned().unwrap_or(RawKey {
        tenant: String::new(),
        stream: String::new(),
        id: StreamId { ms: 0, seq: 0 },
        generation: 0,
    });
    let rows = client
        .query(
            PAGE,
            &[&after.tenant, &after.stream, &(after.id.ms as i64), &(after.id.seq as i64), &after.generation, &limit],
        )
        .await?;
    Ok(rows.iter().map(key_of).collect())
}

/// Rows of a stream before its first entry or behind its last one, of all if it is empty, that no planned segment covers.
pub async fn outside(db: &Db, stream: &str, ends: Option<(StreamId, StreamId)>, limit: i64) -> DbResult<Vec<RawKey>> {
    let client = db.client().await?;
    // All of them are behind an end that comes before every id.
    let (first, last) = ends.unwrap_or((StreamId::MIN, StreamId::MIN));
    let rows = client
        .query(
            concat!(
                "-- results-outside
             SELECT tenant, stream, ms, seq, generation FROM raw_result r
              WHERE stream = $1 AND ((ms, seq) < ($2, $3) OR (ms, seq) > ($4, $5)) AND NOT ",
                is_held!(),
                " LIMIT $6"
            ),
            &[&stream, &(first.ms as i64), &(first.seq as i64), &(last.ms as i64), &(last.seq as i64), &limit],
        )
        .await?;
    Ok(rows.iter().map(key_of).collect())
}

fn key_of(row: &tokio_postgres::Row) -> RawKey {
    RawKey {
        tenant: row.get(0),
        stream: row.get(1),
        id: StreamId { ms: row.get::<_, i64>(2) as u64, seq: row.get::<_, i64>(3) as u64 },
        generation: row.get(4),
    }
}

/// Results whose entry is gone are made again: the row goes, a new job names the one it replaces, and the loss is noted.
/// Returns the (tenant, host) of each new job.
pub async fn remake(db: &Db, epoch: i64, lost: &[RawKey]) -> DbResult<Vec<(String, String)>> {
    run_tx!(db, "remake", |tx| {
        leader::authorise(tx, epoch).await?;
        remake_in(tx, lost).await
    })
}

/// See [`remake`].
pub(crate) async fn remake_in(tx: &Transaction<'_>, lost: &[RawKey]) -> DbResult<Vec<(String, String)>> {
    let tenants: Vec<&str> = lost.iter().map(|k| k.tenant.as_str()).collect();
    let streams: Vec<&str> = lost.iter().map(|k| k.stream.as_str()).collect();
    let ms: Vec<i64> = lost.iter().map(|k| k.id.ms as i64).collect();
    let seq: Vec<i64> = lost.iter().map(|k| k.id.seq as i64).collect();
    let generations: Vec<i64> = lost.iter().map(|k| k.generation).collect();
    let ids: Vec<Uuid> = lost.iter().map(|_| Uuid::now_v7()).collect();
    let rows = tx
        .query(
            "-- remake-results
             WITH k AS MATERIALIZED (
               SELECT * FROM unnest($1::text[], $2::text[], $3::int8[], $4::int8[], $5::int8[], $6::uuid[])
                 AS k(tenant, stream, ms, seq, generation, new_id)),
             gone AS (
               DELETE FROM raw_result r USING k WHERE r.tenant = k.tenant AND r.stream = k.stream AND r.ms = k.ms
                  AND r.seq = k.seq AND r.generation = k.generation
               RETURNING r.tenant, r.stream, r.generation, r.ms, r.seq, r.dispatch, r.job, r.processed, k.new_id),
             lost AS (
               INSERT INTO lost_result (tenant, stream, generation, ms, seq, remade_by, counted)
               SELECT g.tenant, g.stream, g.generation, g.ms, g.seq, g.new_id,
                      g.processed OR EXISTS (SELECT 1 FROM lost_result l WHERE l.tenant = g.tenant AND l.remade_by = g.job AND l.counted)
                 FROM gone g),
             page AS (
               -- A page whose answer is lost counts as not stored.
               DELETE FROM page_scrape p USING gone WHERE p.tenant = gone.tenant AND p.dispatch = gone.dispatch AND p.job = gone.job),
             delta AS (
               INSERT INTO dispatch_delta (tenant, dispatch, scheduled, raw)
               SELECT tenant, dispatch, count(*), -count(*) FROM gone GROUP BY 1, 2)
             INSERT INTO crawl_schedule (tenant, id, dispatch, kind, host, priority, depth, hops, url, url_hash, found_on, payload, remake_of, page, total_pages)
             SELECT l.tenant, gone.new_id, l.dispatch, l.kind, l.host, l.priority, l.depth, l.hops, l.url, l.url_hash,
                    l.found_on, l.payload, l.id, l.page, l.total_pages
               FROM gone JOIN crawl_log l ON l.tenant = gone.tenant AND l.id = gone.job
             RETURNING tenant, host",
            &[&tenants, &streams, &ms, &seq, &generations, &ids],
        )
        .await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

pub(crate) async fn authorise_worker(tx: &Transaction<'_>, worker: &Incarnation) -> DbResult<()> {
    tx.execute("SELECT authorise_worker($1, $2)", &[&worker.id, &worker.generation]).await.map_err(DbError::of)?;
    Ok(())
}
