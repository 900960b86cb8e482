//! Dispatches: one row per batch of jobs, its progress, and when it is done.

use std::collections::{BTreeMap, HashSet};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::db::leader;
use crate::db::pool::{Db, DbError, DbResult};
use crate::model::terms::Terms;
use crate::run_tx;

/// Delta rows rolled up in one tick.
const ROLLUP_MAX: i64 = 20_000;

/// What a dispatch has done so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Progress {
    /// Jobs ever scheduled for it.
    pub scheduled: i64,
    /// Jobs that ended.
    pub finished: i64,
    /// Pages fetched, each visit of one.
    pub pages: i64,
    /// Jobs that ended dead, failed or with an HTTP error.
    pub failed: i64,
    /// Jobs that ended without a request, or without a body: robots, address rules, budget, media types.
    pub skipped: i64,
    /// Links stored.
    pub links: i64,
    /// Links in scope that had been seen already.
    pub duplicates: i64,
    /// Body bytes received.
    pub bytes: i64,
    /// Raw results not yet archived and verified.
    pub raw: i64,
    /// Items of the API pages that were stored.
    #[serde(default)]
    pub items: i64,
    /// Records that were made or renewed of them.
    #[serde(default)]
    pub records: i64,
    /// Items that did not fit, kept with their reason.
    #[serde(default)]
    pub unfit: i64,
    /// Of the pages those that had been visited before.
    #[serde(default)]
    pub revisits: i64,
    /// Of these, those that the server said had not been modified; and the body bytes that it did not send.
    #[serde(default)]
    pub not_modified: i64,
    #[serde(default)]
    pub bytes_saved: i64,
    /// And those that it sent as they had been; and the body bytes that were not stored again.
    #[serde(default)]
    pub identical: i64,
    #[serde(default)]
    pub bytes_not_stored: i64,
}

impl Progress {
    pub fn add(&mut self, other: &Progress) {
        self.scheduled += other.scheduled;
        self.finished += other.finished;
        self.pages += other.pages;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.links += other.links;
        self.duplicates += other.duplicates;
        self.bytes += other.bytes;
        self.raw += other.raw;
        self.items += other.items;
        self.records += other.records;
        self.unfit += other.unfit;
        self.revisits += other.revisits;
        self.not_modified += other.not_modified;
        self.bytes_saved += other.bytes_saved;
        self.identical += other.identical;
        self.bytes_not_stored += other.bytes_not_stored;
    }
}

#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Dispatch {
    pub tenant: String,
    pub id: Uuid,
    pub kind: String,
    pub key: Option<String>,
    /// The manifest's dispatch that started it.
    #[serde(default)]
    pub parent: Option<Uuid>,
    /// What it waits for beside its own jobs: dispatches it has started, entries of a manifest that are still to run.
    #[serde(default)]
    pub awaits: i64,
    #[schema(value_type = Object)]
    pub spec: serde_json::Value,
    #[serde(default)]
    pub terms: Terms,
    /// `running`, `archiving` (no jobs left, results on their way to the archive), or `done`.
    pub state: String,
    /// Nothing of it is issued since then.
    #[serde(default)]
    pub paused_at: Option<DateTime<Utc>>,
    /// `cancelled` or `budget`: how what is left of it ends.
    #[serde(default)]
    pub ending: Option<String>,
    /// Why it ends, or ended, before its time.
    #[serde(default)]
    pub note: Option<String>,
    pub created_at: DateTime<Utc>,
    pub finished_at: Option<DateTime<Utc>>,
    pub progress: Progress,
    /// Which writing of its row this is.
    #[serde(skip)]
    #[schema(ignore)]
    pub version: i64,
}

/// The headers of a dispatch, for the worker that sends them.
pub async fn headers(db: &Db, tenant: &str, id: Uuid) -> DbResult<BTreeMap<String, String>> {
    let client = db.client().await?;
    let row = client
        .query_opt(
            "-- headers\nSELECT headers FROM dispatch_secret WHERE tenant = $1 AND dispatch = $2",
            &[&tenant, &id],
        )
        .await?;
    let Some(row) = row else { return Ok(BTreeMap::new()) };
    serde_json::from_value(row.get(0)).map_err(|error| DbError::Input(format!("dispatch {id} has no headers: {error}")))
}

/// The spec of a dispatch, for the worker's cache.
pub async fn spec<T: serde::de::DeserializeOwned>(db: &Db, tenant: &str, id: Uuid) -> DbResult<T> {
    let client = db.client().await?;
    let statement =
        client.prepare_cached("-- dispatch-spec\nSELECT spec FROM dispatch WHERE tenant = $1 AND id = $2").await?;
    let row = client.query_opt(&statement, &[&tenant, &id]).await?;
    let row = row.ok_or_else(|| DbError::Input(format!("there is no dispatch {id}")))?;
    serde_json::from_value(row.get(0))
        .map_err(|error| DbError::Input(format!("the spec of dispatch {id} is not one of this version: {error}")))
}

const SELECT: &str = "SELECT d.tenant, d.id, d.kind, d.key, d.spec, d.state, d.created_at, d.finished_at,
    p.scheduled + x.scheduled, p.finished + x.finished, p.pages + x.pages, p.failed + x.failed, p.skipped + x.skipped,
    p.links + x.links, p.duplicates + x.duplicates, p.bytes + x.bytes, p.raw + x.raw,
    p.items + x.items, p.records + x.records, p.unfit + x.unfit, d.parent,
    (SELECT count(*) FROM dispatch c WHERE c.tenant = d.tenant AND c.parent = d.id AND c.state <> 'done')
      + CASE WHEN d.kind = 'manifest' AND EXISTS (SELECT 1 FROM manifest_entry e WHERE e.tenant = d.tenant
               AND e.dispatch = d.id AND e.state = 'active') THEN 1 ELSE 0 END,
    d.paused_at, d.ending, d.note, d.max_bytes, d.max_seconds, d.retries, d.priority, d.start_at, d.xmin::text::int8,
    p.revisits + x.revisits, p.not_modified + x.not_modified, p.bytes_saved + x.bytes_saved, p.identical + x.identical,
    p.bytes_not_stored + x.bytes_not_stored
  FROM dispatch d JOIN dispatch_progress p ON p.tenant = d.tenant AND p.dispatch = d.id,
  LATERAL (SELECT coalesce(sum(scheduled), 0)::int8 AS scheduled, coalesce(sum(finished), 0)::int8 AS finished,
    coalesce(sum(pages), 0)::int8 AS pages, coalesce(sum(failed), 0)::int8 AS failed,
    coalesce(sum(skipped), 0)::int8 AS skipped, coalesce(sum(links), 0)::int8 AS links,
    coalesce(sum(duplicates), 0)::int8 AS duplicates, coalesce(sum(bytes), 0)::int8 AS bytes,
    coalesce(sum(raw), 0)::int8 AS raw, coalesce(sum(items), 0)::int8 AS items,
    coalesce(sum(records), 0)::int8 AS records, coalesce(sum(unfit), 0)::int8 AS unfit,
    coalesce(sum(revisits), 0)::int8 AS revisits, coalesce(sum(not_modified), 0)::int8 AS not_modified,
    coalesce(sum(bytes_saved), 0)::int8 AS bytes_saved, coalesce(sum(identical), 0)::int8 AS identical,
    coalesce(sum(bytes_not_stored), 0)::int8 AS bytes_not_stored
    FROM dispatch_delta y WHERE y.tenant = d.tenant AND y.dispatch = d.id) x";

/// One dispatch of a tenant, its progress exact to the last commit.
pub async fn get(db: &Db, tenant: &str, id: Uuid) -> DbResult<Option<Dispatch>> {
    run_tx!(db, "get-dispatch", tenant: tenant, |tx| {
        let sql = format!("-- get-dispatch\n{SELECT} WHERE d.tenant = $1 AND d.id = $2");
        let statement = tx.prepare_cached(&sql).await?;
        Ok(tx.query_opt(&statement, &[&tenant, &id]).await?.map(|row| of_row(&row)))
    })
}

/// The latest dispatches of a tenant, of one kind if it is given, newest first.
pub async fn list(db: &Db, tenant: &str, kind: Option<&str>, limit: i64) -> DbResult<Vec<Dispatch>> {
    run_tx!(db, "list-dispatches", tenant: tenant, |tx| {
        let sql = format!(
            "-- list-dispatches\n{SELECT} WHERE d.tenant = $1 AND ($2::text IS NULL OR d.kind = $2) ORDER BY d.id DESC LIMIT $3"
        );
        Ok(tx.query(&sql, &[&tenant, &kind, &limit]).await?.iter().map(of_row).collect())
    })
}

/// The regions that running dispatches want to leave by, and how many want each.
pub async fn regions(db: &Db) -> DbResult<Vec<(String, i64)>> {
    let client = db.client().await?;
    let sql = "-- wanted-regions
               SELECT spec ->> 'region', count(*) FROM dispatch WHERE state = 'running' AND spec ->> 'region' IS NOT NULL
                GROUP BY 1 ORDER BY 1";
    let statement = client.prepare_cached(sql).await?;
    Ok(client.query(&statement, &[]).await?.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Every dispatch that is not done, of all tenants, for the leader.
pub async fn open(db: &Db) -> DbResult<Vec<Dispatch>> {
    let client = db.client().await?;
    let sql = format!("-- open-dispatches\n{SELECT} WHERE d.state <> 'done' ORDER BY d.tenant, d.id");
    let statement = client.prepare_cached(&sql).await?;
    Ok(client.query(&statement, &[]).await?.iter().map(of_row).collect())
}

/// Those of (tenant, dispatch) that are not done, for the leader.
pub async fn open_of(db: &Db, keys: &[(String, Uuid)]) -> DbResult<Vec<Dispatch>> {
    let (tenants, ids): (Vec<&str>, Vec<Uuid>) = keys.iter().map(|(tenant, id)| (tenant.as_str(), *id)).unzip();
    let client = db.client().await?;
    let sql =
        format!("-- open-dispatches-of\n{SELECT} WHERE d.tenant = ANY ($1) AND d.id = ANY ($2) AND d.state <> 'done'");
    let statement = client.prepare_cached(&sql).await?;
    Ok(client.query(&statement, &[&tenants, &ids]).await?.iter().map(of_row).collect())
}

/// The progress of all dispatches of a tenant, by their kind.
pub async fn totals(db: &Db, tenant: &str) -> DbResult<BTreeMap<String, Progress>> {
    run_tx!(db, "dispatch-totals", tenant: tenant, |tx| {
        let sql = format!("-- dispatch-totals\n{SELECT} WHERE d.tenant = $1");
        let mut totals = BTreeMap::<String, Progress>::new();
        for row in tx.query(&sql, &[&tenant]).await? {
            let dispatch = of_row(&row);
            totals.entry(dispatch.kind).or_default().add(&dispatch.progress);
        }
        Ok(totals)
    })
}

/// How many dispatches are not done, of all tenants, but for those of manifests: these are open as long as an entry is.
pub async fn open_count(db: &Db) -> DbResult<i64> {
    let client = db.client().await?;
    Ok(client
        .query_one(
            "-- count-open-dispatches\nSELECT count(*) FROM dispatch WHERE state <> 'done' AND kind <> 'manifest'",
            &[],
        )
        .await?
        .get(0))
}

/// Sums delta rows into progress. Returns how many rows it took.
pub async fn roll_up(db: &Db, epoch: i64) -> DbResult<i64> {
    run_tx!(db, "roll-up", |tx| {
        leader::authorise(tx, epoch).await?;
        let row = tx
            .query_one(
                "-- roll-up
                 WITH gone AS (
                   DELETE FROM dispatch_delta WHERE ctid = ANY (ARRAY(SELECT ctid FROM dispatch_delta LIMIT $1)) RETURNING *),
                 total AS (
                   SELECT tenant, dispatch, count(*) AS n, sum(scheduled) AS scheduled, sum(finished) AS finished,
                     sum(pages) AS pages, sum(failed) AS failed, sum(skipped) AS skipped, sum(links) AS links,
                     sum(duplicates) AS duplicates, sum(bytes) AS bytes, sum(raw) AS raw,
                     sum(items) AS items, sum(records) AS records, sum(unfit) AS unfit, sum(revisits) AS revisits,
                     sum(not_modified) AS not_modified, sum(bytes_saved) AS bytes_saved, sum(identical) AS identical,
                     sum(bytes_not_stored) AS bytes_not_stored FROM gone GROUP BY 1, 2),
                 rolled AS (
                   UPDATE dispatch_progress p SET scheduled = p.scheduled + t.scheduled, finished = p.finished + t.finished,
                     pages = p.pages + t.pages, failed = p.failed + t.failed, skipped = p.skipped + t.skipped,
                     links = p.links + t.links, duplicates = p.duplicates + t.duplicates, bytes = p.bytes + t.bytes,
                     raw = p.raw + t.raw, items = p.items + t.items, records = p.records + t.records, unfit = p.unfit + t.unfit,
                     revisits = p.revisits + t.revisits, not_modified = p.not_modified + t.not_modified,
                     bytes_saved = p.bytes_saved + t.bytes_saved, identical = p.identical + t.identical,
                     bytes_not_stored = p.bytes_not_stored + t.bytes_not_stored
                     FROM total t WHERE p.tenant = t.tenant AND p.dispatch = t.dispatch)
                 SELECT coalesce(sum(n), 0)::int8 FROM total",
                &[&ROLLUP_MAX],
            )
            .await?;
        Ok(row.get(0))
    })
}

/// Moves a dispatch to the state its progress says, unless its row was written since that was read: what schedules
/// jobs for a dispatch that had none left writes its row too.
pub async fn settle_state(db: &Db, epoch: i64, dispatch: &Dispatch) -> DbResult<Option<&'static str>> {
    let p = &dispatch.progress;
    let state = match (p.scheduled == p.finished && dispatch.awaits == 0, p.raw == 0) {
        (true, true) => "done",
        (true, false) => "archiving",
        (false, _) => "running",
    };
    if state == dispatch.state {
        return Ok(None);
    }
    run_tx!(db, "settle-dispatch", |tx| {
        leader::authorise(tx, epoch).await?;
        let statement = tx
            .prepare_cached(
                "-- settle-dispatch
                 UPDATE dispatch SET state = $3, finished_at = CASE WHEN $3 = 'done' THEN clock_timestamp() END,
                        paused_at = CASE WHEN $3 <> 'done' THEN paused_at END
                  WHERE tenant = $1 AND id = $2 AND state <> 'done' AND xmin::text::int8 = $4",
            )
            .await?;
        let moved = tx.execute(&statement, &[&dispatch.tenant, &dispatch.id, &state, &dispatch.version]).await?;
        Ok((moved == 1).then_some(state))
    })
}

/// Dispatches that wait for the archive, some.
pub async fn archiving(db: &Db) -> DbResult<HashSet<Uuid>> {
    let client = db.client().await?;
    let sql = "-- archiving\nSELECT id FROM dispatch WHERE state = 'archiving' ORDER BY tenant, id LIMIT 1000";
    Ok(client.query(sql, &[]).await?.iter().map(|row| row.get(0)).collect())
}

/// True while a dispatch has no jobs left and waits for its results to be archived: do not wait for a
/// segment to fill.
pub async fn any_archiving(db: &Db) -> DbResult<bool> {
    let client = db.client().await?;
    let row = client
        .query_one("-- any-archiving\nSELECT EXISTS (SELECT 1 FROM dispatch WHERE state = 'archiving')", &[])
        .await?;
    Ok(row.get(0))
}

fn of_row(row: &tokio_postgres::Row) -> Dispatch {
    Dispatch {
        tenant: row.get(0),
        id: row.get(1),
        kind: row.get(2),
        key: row.get(3),
        spec: row.get(4),
        state: row.get(5),
        created_at: row.get(6),
        finished_at: row.get(7),
        parent: row.get(20),
        awaits: row.get(21),
        paused_at: row.get(22),
        ending: row.get(23),
        note: row.get(24),
        version: row.get(30),
        terms: Terms {
            max_bytes: row.get(25),
            max_seconds: row.get(26),
            retries: row.get(27),
            priority: row.get(28),
            start_at: row.get(29),
        },
        progress: Progress {
            scheduled: row.get(8),
            finished: row.get(9),
            pages: row.get(10),
            failed: row.get(11),
            skipped: row.get(12),
            links: row.get(13),
            duplicates: row.get(14),
            bytes: row.get(15),
            raw: row.get(16),
            items: row.get(17),
            records: row.get(18),
            unfit: row.get(19),
            revisits: row.get(31),
            not_modified: row.get(32),
            bytes_saved: row.get(33),
            identical: row.get(34),
            bytes_not_stored: row.get(35),
        },
    }
}
