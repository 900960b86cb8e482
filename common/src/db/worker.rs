//! Worker incarnations: registered, draining, ended, lost, released.

use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

use crate::db::leader;
use crate::db::pool::{Db, DbError, DbResult};
use crate::run_tx;

/// Slots, and with them consumer names, come from this many.
pub const SLOTS_MAX: i32 = 1024;

/// What a worker tells of itself when it registers.
#[derive(Clone, Debug)]
pub struct Registration {
    pub host: String,
    pub address: String,
    pub region: Option<String>,
    /// host:port of the proxy its requests leave by.
    pub proxy: Option<String>,
    pub roles: Vec<String>,
    pub version: String,
    pub pid: i32,
    pub permits: i32,
}

/// One life of a worker process in one generation.
#[derive(Clone, Debug, Serialize)]
pub struct Incarnation {
    pub id: Uuid,
    pub slot: i32,
    pub generation: i64,
    /// That of the server of Redis that the generation belongs to.
    pub run_id: String,
}

/// A row of the table, for the registry and for status.
#[derive(Clone, Debug, Serialize)]
pub struct WorkerRow {
    pub id: Uuid,
    pub slot: i32,
    pub generation: i64,
    pub host: String,
    pub address: String,
    pub region: Option<String>,
    /// host:port of the proxy its requests leave by.
    pub proxy: Option<String>,
    pub roles: Vec<String>,
    pub version: String,
    pub pid: i32,
    pub permits: i32,
    pub registered_at: DateTime<Utc>,
    pub draining_at: Option<DateTime<Utc>>,
    pub ended_at: Option<DateTime<Utc>>,
    pub lost_at: Option<DateTime<Utc>>,
    pub reason: Option<String>,
    pub released_at: Option<DateTime<Utc>>,
}

/// The name a worker's database sessions carry; `terminate_worker_sessions` ends them by it.
pub fn session_name(worker: Uuid) -> String {
    format!("dodo-worker:{worker}")
}

/// The name of a worker's consumer in every group.
pub fn consumer_name(slot: i32) -> String {
    format!("worker-{slot}")
}

/// Registers a new incarnation in the lowest free slot and ends the one it follows, if any.
pub async fn register(db: &Db, id: Uuid, before: Option<Uuid>, about: &Registration) -> DbResult<Incarnation> {
    run_tx!(db, "register-worker", |tx| {
        // One at a time: two workers that start together must not want the same slot.
        tx.execute("SELECT pg_advisory_xact_lock(hashtext('dodo-worker-slot'))", &[]).await?;
        if let Some(before) = before {
            tx.execute(
                "UPDATE worker SET ended_at = clock_timestamp(), reason = 'registered anew' WHERE id = $1 AND ended_at IS NULL",
                &[&before],
            )
            .await?;
        }
        let row = tx
            .query_opt(
                "-- register-worker
                 INSERT INTO worker (id, slot, generation, host, address, region, proxy, roles, version, pid, permits)
                 SELECT $1, slot, (SELECT number FROM generation), $2, $3, $4, $5, $6, $7, $8, $9
                   FROM generate_series(1, $10::int) slot
                  WHERE NOT EXISTS (SELECT 1 FROM worker w WHERE w.slot = slot.slot AND w.released_at IS NULL)
                  ORDER BY slot LIMIT 1 RETURNING slot, generation, (SELECT run_id FROM generation)",
                &[
                    &id,
                    &about.host,
                    &about.address,
                    &about.region,
                    &about.proxy,
                    &about.roles,
                    &about.version,
                    &about.pid,
                    &about.permits,
                    &SLOTS_MAX,
                ],
            )
            .await?
            .ok_or_else(|| DbError::Input(format!("all {SLOTS_MAX} worker slots are taken")))?;
        Ok(Incarnation { id, slot: row.get(0), generation: row.get(1), run_id: row.get(2) })
    })
}

/// The worker says that it takes no more work.
pub async fn drain(db: &Db, id: Uuid) -> DbResult<()> {
    let client = db.client().await?;
    client.execute("-- drain-worker\nUPDATE worker SET draining_at = clock_timestamp() WHERE id = $1", &[&id]).await?;
    Ok(())
}

/// The worker's own last word: everything it held is settled.
pub async fn end(db: &Db, id: Uuid) -> DbResult<()> {
    let client = db.client().await?;
    client
        .execute(
            "-- end-worker
             UPDATE worker SET ended_at = clock_timestamp(), reason = 'drained' WHERE id = $1 AND ended_at IS NULL AND lost_at IS NULL",
            &[&id],
        )
        .await?;
    Ok(())
}

/// True while this incarnation may still write.
pub async fn is_current(db: &Db, incarnation: &Incarnation) -> DbResult<bool> {
    let client = db.client().await?;
    let row = client
        .query_one(
            "-- is-current
             SELECT EXISTS (SELECT 1 FROM worker WHERE id = $1 AND lost_at IS NULL AND ended_at IS NULL)
                AND EXISTS (SELECT 1 FROM generation WHERE number = $2)",
            &[&incarnation.id, &incarnation.generation],
        )
        .await?;
    Ok(row.get(0))
}

/// Every incarnation whose slot is still taken: live ones, and dead ones the reaper is not done with.
pub async fn unreleased(db: &Db) -> DbResult<Vec<WorkerRow>> {
    rows(db, "-- unreleased-workers\nSELECT * FROM worker WHERE released_at IS NULL ORDER BY slot").await
}

/// The unreleased and the latest of the others, for status.
pub async fn recent(db: &Db) -> DbResult<Vec<WorkerRow>> {
    rows(
        db,
        "-- recent-workers
         SELECT * FROM worker ORDER BY (released_at IS NULL) DESC, registered_at DESC LIMIT 200",
    )
    .await
}

/// Commits "lost". It waits for the transactions of that worker that share-lock its row; when one of
/// them sits there (a frozen process), its sessions are terminated and it is tried again.
pub async fn mark_lost(db: &Db, epoch: i64, id: Uuid, reason: &str) -> DbResult<()> {
    match try_mark_lost(db, epoch, id, reason).await {
        Err(DbError::Postgres(_)) => {
            end_sessions(db, id).await?;
            try_mark_lost(db, epoch, id, reason).await
        }
        other => other,
    }
}

/// Ends the sessions of a worker, whatever they hold: a frozen one would keep the archiver's lock.
pub async fn end_sessions(db: &Db, id: Uuid) -> DbResult<()> {
    let client = db.client().await?;
    client.execute("-- terminate-sessions\nSELECT terminate_worker_sessions($1)", &[&id]).await?;
    Ok(())
}

async fn try_mark_lost(db: &Db, epoch: i64, id: Uuid, reason: &str) -> DbResult<()> {
    run_tx!(db, "mark-lost", |tx| {
        tx.batch_execute("SET LOCAL lock_timeout = '300ms'").await?;
        leader::authorise(tx, epoch).await?;
        tx.execute(
            "-- mark-lost
             UPDATE worker SET lost_at = clock_timestamp(), reason = $2 WHERE id = $1 AND lost_at IS NULL AND ended_at IS NULL",
            &[&id, &reason],
        )
        .await?;
        Ok(())
    })
}

/// Frees the slots of incarnations whose pending entries have all been returned.
pub async fn release(db: &Db, epoch: i64, ids: &[Uuid]) -> DbResult<()> {
    run_tx!(db, "release-workers", |tx| {
        leader::authorise(tx, epoch).await?;
        tx.execute(
            "-- release-workers\nUPDATE worker SET released_at = clock_timestamp() WHERE id = ANY($1) AND released_at IS NULL",
            &[&ids],
        )
        .await?;
        Ok(())
    })
}

/// Forgets incarnations released more than a day ago.
pub async fn expire(db: &Db, epoch: i64) -> DbResult<u64> {
    run_tx!(db, "expire-workers", |tx| {
        leader::authorise(tx, epoch).await?;
        Ok(tx
            .execute(
                "-- expire-workers\nDELETE FROM worker WHERE released_at < clock_timestamp() - interval '1 day'",
                &[],
            )
            .await?)
    })
}

async fn rows(db: &Db, sql: &str) -> DbResult<Vec<WorkerRow>> {
    let client = db.client().await?;
    let rows = client.query(sql, &[]).await?;
    Ok(rows
        .iter()
        .map(|row| WorkerRow {
            id: row.get("id"),
            slot: row.get("slot"),
            generation: row.get("generation"),
            host: row.get("host"),
            address: row.get("address"),
            region: row.get("region"),
            proxy: row.get("proxy"),
            roles: row.get("roles"),
            version: row.get("version"),
            pid: row.get("pid"),
            permits: row.get("permits"),
            registered_at: row.get("registered_at"),
            draining_at: row.get("draining_at"),
            ended_at: row.get("ended_at"),
            lost_at: row.get("lost_at"),
            reason: row.get("reason"),
            released_at: row.get("released_at"),
        })
        .collect())
}
