//! Manifests: each file once, its entries, and one future occurrence of each.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::clock::Millis;
use crate::db::leader;
use crate::db::pool::{Db, DbError, DbResult, Transaction};
use crate::db::raw::authorise_worker;
use crate::db::source;
use crate::db::submit::{self, Submission, Submitted};
use crate::db::worker::Incarnation;
use crate::model::job::JobKey;
use crate::model::manifest::{Checked, Options, Reason, Schedule, crawl_spec};
use crate::model::paged::PagedSpec;
use crate::run_tx;

/// Refreshes that are remembered, for the metric.
const REFRESHES_DAYS: i32 = 7;

/// A manifest as the log has it.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Manifest {
    pub name: String,
    /// SHA-256 of its content.
    pub hash: String,
    /// `s3` or `api`.
    pub origin: String,
    /// `accepted`, `malformed`, `replaced` by other content, or `deleted`.
    pub state: String,
    pub bytes: i64,
    pub entries: i32,
    /// What is wrong with a malformed one.
    pub reasons: Vec<Reason>,
    /// The dispatch of its entries.
    pub dispatch: Option<Uuid>,
    pub seen_at: DateTime<Utc>,
    pub ended_at: Option<DateTime<Utc>>,
    #[serde(skip)]
    pub stamp: String,
}

/// A manifest that was read.
#[derive(Clone, Debug)]
pub struct Read<'a> {
    pub name: &'a str,
    pub hash: &'a str,
    pub origin: &'a str,
    pub stamp: &'a str,
    pub bytes: i64,
}

const SELECT: &str =
    "SELECT name, hash, origin, state, bytes, entries, reasons, dispatch, seen_at, ended_at, stamp FROM manifest_log";

/// Manifests of a tenant, newest first; with `current` only those of S3 that are in force.
pub async fn list(db: &Db, tenant: &str, current: bool, limit: i64) -> DbResult<Vec<Manifest>> {
    run_tx!(db, "list-manifests", tenant: tenant, |tx| {
        let filter = if current { "AND state IN ('accepted', 'malformed') AND origin = 's3'" } else { "" };
        let sql = format!("-- list-manifests\n{SELECT} WHERE tenant = $1 {filter} ORDER BY seen_at DESC, name LIMIT $2");
        tx.query(&sql, &[&tenant, &limit]).await?.iter().map(of_row).collect()
    })
}

/// Records a manifest: once by name and content. What was in force under the name is replaced; a known content
/// that comes back goes on where it was. Returns the row.
pub async fn record(
    db: &Db,
    epoch: Option<i64>,
    tenant: &str,
    read: &Read<'_>,
    content: Result<&[Checked], &[Reason]>,
) -> DbResult<Manifest> {
    run_tx!(db, "record-manifest", |tx| {
        if let Some(epoch) = epoch {
            leader::authorise(tx, epoch).await?;
        }
        // Two readers of one name take turns.
        tx.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))",
            &[&format!("manifest:{tenant}:{}", read.name)],
        )
        .await?;
        end(tx, tenant, read.name, Some(read.hash), "replaced").await?;
        let (state, entries, reasons) = match content {
            Ok(entries) => ("accepted", entries.len(), Value::Array(Vec::new())),
            Err(reasons) => ("malformed", 0, json!(reasons)),
        };
        let known = tx
            .query_opt(
                "-- revive-manifest
                 UPDATE manifest_log SET state = CASE WHEN reasons = '[]' THEN 'accepted' ELSE 'malformed' END, stamp = $4, ended_at = NULL
                  WHERE tenant = $1 AND name = $2 AND hash = $3 RETURNING dispatch, reasons = '[]'",
                &[&tenant, &read.name, &read.hash, &read.stamp],
            )
            .await?;
        // A content that was malformed may fit now: a source that it names has been stored.
        let fits = matches!((&known, content), (Some(row), Ok(_)) if !row.get::<_, bool>(1));
        match known {
            Some(row) if !fits => revive(tx, tenant, row.get(0)).await?,
            _ => {
                let id = Uuid::now_v7();
                let mut dispatch = None;
                if let Ok(entries) = content {
                    let spec = json!({ "manifest": read.name, "hash": read.hash, "entries": entries.len() });
                    submit::insert(tx, tenant, id, ("manifest", &spec), &Submission::default()).await?;
                    insert_entries(tx, tenant, id, entries).await?;
                    dispatch = Some(id);
                }
                tx.execute(
                    "-- insert-manifest
                     INSERT INTO manifest_log (tenant, name, hash, origin, stamp, bytes, state, entries, reasons, dispatch)
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
                     ON CONFLICT (tenant, name, hash) DO UPDATE SET state = excluded.state, entries = excluded.entries,
                       reasons = excluded.reasons, dispatch = excluded.dispatch",
                    &[ &tenant, &read.name, &read.hash, &read.origin, &read.stamp, &read.bytes, &state, &(entries as i32), &reasons, &dispatch],
                )
                .await?;
            }
        }
        let sql = format!("-- recorded-manifest\n{SELECT} WHERE tenant = $1 AND name = $2 AND hash = $3");
        of_row(&tx.query_one(&sql, &[&tenant, &read.name, &read.hash]).await?)
    })
}

/// A file that is gone: what has not started is cancelled.
pub async fn delete(db: &Db, epoch: i64, tenant: &str, name: &str) -> DbResult<()> {
    run_tx!(db, "delete-manifest", |tx| {
        leader::authorise(tx, epoch).await?;
        end(tx, tenant, name, None, "deleted").await
    })
}

/// The listing has a new stamp for the same content.
pub async fn restamp(db: &Db, epoch: i64, tenant: &str, name: &str, stamp: &str) -> DbResult<()> {
    run_tx!(db, "restamp-manifest", |tx| {
        leader::authorise(tx, epoch).await?;
        tx.execute(
            "-- restamp-manifest\nUPDATE manifest_log SET stamp = $3 WHERE tenant = $1 AND name = $2 AND state IN ('accepted', 'malformed')",
            &[&tenant, &name, &stamp],
        )
        .await?;
        Ok(())
    })
}

/// Ends what is in force under a name, but for the content `kept`.
async fn end(tx: &Transaction<'_>, tenant: &str, name: &str, kept: Option<&str>, state: &str) -> DbResult<()> {
    let reason = format!("its manifest was {state}");
    tx.execute(
        "-- end-manifest
         WITH ended AS (
           UPDATE manifest_log SET state = $4, ended_at = clock_timestamp()
            WHERE tenant = $1 AND name = $2 AND hash IS DISTINCT FROM $3 AND state IN ('accepted', 'malformed') RETURNING dispatch),
         stopped AS (
           -- One that is not to be expanded has an occurrence that has not begun: it is not counted as run.
           UPDATE manifest_entry SET state = 'stopped', occurrence = CASE WHEN expand THEN occurrence ELSE occurrence - 1 END
            WHERE tenant = $1 AND state = 'active'
              AND dispatch IN (SELECT dispatch FROM ended) RETURNING job),
         gone AS (
           DELETE FROM crawl_schedule c USING stopped WHERE c.tenant = $1 AND c.id = stopped.job RETURNING c.*),
         logged AS (
           INSERT INTO crawl_log (tenant, id, finished_at, dispatch, kind, host, priority, attempt, depth, hops, payload, created_at, outcome, reason)
           SELECT tenant, id, clock_timestamp(), dispatch, kind, host, priority, attempt, depth, hops, payload, created_at, 'cancelled', $5
             FROM gone)
         INSERT INTO dispatch_delta (tenant, dispatch, finished, skipped)
         SELECT tenant, dispatch, count(*), count(*) FROM gone GROUP BY 1, 2",
        &[&tenant, &name, &kept, &state, &reason],
    )
    .await?;
    Ok(())
}

/// A known content is in force again: entries that were stopped go on after their last occurrence.
async fn revive(tx: &Transaction<'_>, tenant: &str, dispatch: Option<Uuid>) -> DbResult<()> {
    tx.execute(
        "-- revive-entries
         WITH revived AS (
           UPDATE manifest_entry SET state = 'active', expand = true
            WHERE tenant = $1 AND dispatch = $2 AND state = 'stopped' RETURNING 1)
         UPDATE dispatch SET state = 'running', finished_at = NULL, ending = NULL, note = NULL
          WHERE tenant = $1 AND id = $2 AND EXISTS (SELECT 1 FROM revived)",
        &[&tenant, &dispatch],
    )
    .await?;
    Ok(())
}

async fn insert_entries(tx: &Transaction<'_>, tenant: &str, dispatch: Uuid, entries: &[Checked]) -> DbResult<()> {
    let number: Vec<i32> = (0..entries.len() as i32).collect();
    let service: Vec<&str> = entries.iter().map(|e| e.service.as_str()).collect();
    let url: Vec<&str> = entries.iter().map(|e| e.url.as_str()).collect();
    let headers: Vec<Value> = entries.iter().map(|e| json!(e.headers)).collect();
    let options: Vec<Value> = entries.iter().map(|e| json!(e.options)).collect();
    let start: Vec<f64> = entries.iter().map(|e| e.schedule.start_ms as f64 / 1000.0).collect();
    let interval: Vec<i64> = entries.iter().map(|e| e.schedule.interval_s).collect();
    let count: Vec<i64> = entries.iter().map(|e| e.schedule.count).collect();
    let duration: Vec<Option<i64>> = entries.iter().map(|e| e.schedule.duration_s).collect();
    tx.execute(
        "-- insert-entries
         INSERT INTO manifest_entry (tenant, dispatch, entry, service, url, headers, options, start_at, interval_s, count, duration_s)
         SELECT $1, $2, n, service, url, headers, options, to_timestamp(start), interval_s, count, duration_s
           FROM unnest($3::int4[], $4::text[], $5::text[], $6::jsonb[], $7::jsonb[], $8::float8[], $9::int8[], $10::int8[], $11::int8[])
             AS e(n, service, url, headers, options, start, interval_s, count, duration_s)",
        &[&tenant, &dispatch, &number, &service, &url, &headers, &options, &start, &interval, &count, &duration],
    )
    .await?;
    Ok(())
}

/// Schedules the next occurrence of entries whose last one has begun, at most `limit`. Returns how many rows were
/// scheduled, and how many entries are over.
pub async fn expand(db: &Db, epoch: i64, limit: i64) -> DbResult<(u64, u64)> {
    run_tx!(db, "expand-entries", |tx| {
        leader::authorise(tx, epoch).await?;
        let rows = tx
            .query(
                "-- due-entries
                 SELECT tenant, dispatch, entry, start_at, interval_s, count, duration_s, occurrence,
                        (extract(epoch FROM clock_timestamp()) * 1000)::int8
                   FROM manifest_entry WHERE expand AND state = 'active' ORDER BY tenant, dispatch, entry LIMIT $1
                    FOR UPDATE SKIP LOCKED",
                &[&limit],
            )
            .await?;
        let mut c = Occurrences::default();
        for row in &rows {
            let schedule = Schedule::of_parts(row.get(3), row.get(4), row.get(5), row.get(6));
            let next = schedule.next(row.get(7), row.get::<_, Millis>(8));
            c.push(row.get(0), row.get(1), row.get(2), next);
        }
        let scheduled = c.write(tx).await?;
        Ok((scheduled, c.number.iter().filter(|number| number.is_none()).count() as u64))
    })
}

/// Occurrences column by column; an entry without a next one is over.
#[derive(Default)]
struct Occurrences {
    tenant: Vec<String>,
    dispatch: Vec<Uuid>,
    entry: Vec<i32>,
    job: Vec<Uuid>,
    number: Vec<Option<i64>>,
    at: Vec<Option<f64>>,
}

impl Occurrences {
    fn push(&mut self, tenant: String, dispatch: Uuid, entry: i32, next: Option<(i64, Millis)>) {
        self.tenant.push(tenant);
        self.dispatch.push(dispatch);
        self.entry.push(entry);
        self.job.push(Uuid::now_v7());
        self.number.push(next.map(|(number, _)| number));
        self.at.push(next.map(|(_, at)| at as f64 / 1000.0));
    }

    async fn write(&self, tx: &Transaction<'_>) -> DbResult<u64> {
        if self.tenant.is_empty() {
            return Ok(0);
        }
        let row = tx
            .query_one(
                "-- expand-entries
                 WITH k AS MATERIALIZED (
                   SELECT * FROM unnest($1::text[], $2::uuid[], $3::int4[], $4::uuid[], $5::int8[], $6::float8[])
                     AS k(tenant, dispatch, entry, job, number, at)),
                 entry AS (
                   UPDATE manifest_entry e SET expand = false, job = k.job, occurrence = coalesce(k.number, e.occurrence),
                          state = CASE WHEN k.number IS NULL THEN 'over' ELSE e.state END
                     FROM k WHERE e.tenant = k.tenant AND e.dispatch = k.dispatch AND e.entry = k.entry),
                 scheduled AS (
                   INSERT INTO crawl_schedule (tenant, id, dispatch, kind, run_at, payload, dedupe_key)
                   SELECT tenant, job, dispatch, 'occurrence', to_timestamp(at), jsonb_build_object('entry', entry, 'occurrence', number),
                          format('manifest:%s:%s:%s', dispatch, entry, number)
                     FROM k WHERE number IS NOT NULL
                   ON CONFLICT (tenant, dedupe_key) WHERE dedupe_key IS NOT NULL DO NOTHING RETURNING tenant, dispatch),
                 delta AS (
                   INSERT INTO dispatch_delta (tenant, dispatch, scheduled) SELECT tenant, dispatch, count(*) FROM scheduled GROUP BY 1, 2)
                 SELECT count(*) FROM scheduled",
                &[&self.tenant, &self.dispatch, &self.entry, &self.job, &self.number, &self.at],
            )
            .await?;
        Ok(row.get::<_, i64>(0) as u64)
    }
}

/// Entries whose occurrence ended without beginning (its job is dead) go on with the next one.
pub async fn unstick(db: &Db, epoch: i64) -> DbResult<u64> {
    run_tx!(db, "unstick-entries", |tx| {
        leader::authorise(tx, epoch).await?;
        let count = tx
            .execute(
                "-- unstick-entries
                 UPDATE manifest_entry e SET expand = true WHERE e.state = 'active' AND NOT e.expand
                    AND NOT EXISTS (SELECT 1 FROM crawl_schedule c WHERE c.tenant = e.tenant AND c.id = e.job)",
                &[],
            )
            .await?;
        Ok(count)
    })
}

/// Notes an attempt to refresh: the sentinel's model metric.
pub async fn refreshed(db: &Db, epoch: i64, files: i32, accepted: i32, error: Option<&str>) -> DbResult<()> {
    run_tx!(db, "note-refresh", |tx| {
        leader::authorise(tx, epoch).await?;
        tx.execute(
            "-- note-refresh
             WITH old AS (DELETE FROM manifest_refresh WHERE at < clock_timestamp() - $5 * interval '1 day')
             INSERT INTO manifest_refresh (ok, files, accepted, error) VALUES ($1, $2, $3, $4)",
            &[&error.is_none(), &files, &accepted, &error, &f64::from(REFRESHES_DAYS)],
        )
        .await?;
        Ok(())
    })
}

/// What an occurrence started.
#[derive(Clone, Debug)]
pub struct Started {
    pub submitted: Submitted,
    /// Hosts that gained jobs.
    pub hosts: Vec<String>,
}

/// Starts the dispatch of an occurrence, once under its key, and lets the entry go on.
///
/// # Errors
/// [`DbError::Input`] says why the entry cannot be started (its source is gone); it goes on all the same.
pub async fn start(
    db: &Db,
    worker: &Incarnation,
    job: &JobKey,
    manifest: Uuid,
    entry: i32,
    number: i64,
) -> DbResult<Option<Started>> {
    run_tx!(db, "start-occurrence", |tx| {
        authorise_worker(tx, worker).await?;
        let row = tx
            .query_opt(
                "-- begin-occurrence
                 UPDATE manifest_entry SET expand = true WHERE tenant = $1 AND dispatch = $2 AND entry = $3 AND job = $4 AND state = 'active'
                 RETURNING service, url, headers, options",
                &[&job.tenant, &manifest, &entry, &job.id],
            )
            .await?;
        let Some(row) = row else { return Ok(None) };
        let (service, url): (String, String) = (row.get(0), row.get(1));
        let input = |error: serde_json::Error| DbError::Input(error.to_string());
        let headers: BTreeMap<String, String> = serde_json::from_value(row.get(2)).map_err(input)?;
        let options: Options = serde_json::from_value(row.get(3)).map_err(input)?;
        let key = format!("manifest:{manifest}:{entry}:{number}");
        let terms = options.terms();
        let submission = Submission { key: Some(&key), parent: Some(manifest), terms, headers };
        let started = match service.as_str() {
            "crawl" | "page" => {
                let (spec, seed) = crawl_spec(&service, &url, &options).map_err(DbError::Input)?;
                let hosts = vec![seed.host.clone()];
                let spec = serde_json::to_value(&spec).map_err(input)?;
                let submitted = submit::crawl_in(tx, &job.tenant, &spec, &[seed], &submission).await?;
                Started { submitted, hosts }
            }
            name => {
                let found = source::find(tx, &job.tenant, name).await?;
                let found = found.ok_or_else(|| DbError::Input(format!("there is no source {name} any more")))?;
                let spec = PagedSpec::new(
                    name,
                    found.version,
                    found.document,
                    Some(&url),
                    options.instance.as_deref(),
                    options.subject,
                )
                .map_err(DbError::Input)?;
                let submitted = source::submit_in(tx, &job.tenant, &spec, &submission).await?;
                Started { submitted, hosts: vec![String::new()] }
            }
        };
        Ok(Some(started))
    })
}

fn of_row(row: &tokio_postgres::Row) -> DbResult<Manifest> {
    Ok(Manifest {
        name: row.get(0),
        hash: row.get(1),
        origin: row.get(2),
        state: row.get(3),
        bytes: row.get(4),
        entries: row.get(5),
        reasons: serde_json::from_value(row.get(6)).map_err(|error| DbError::Input(error.to_string()))?,
        dispatch: row.get(7),
        seen_at: row.get(8),
        ended_at: row.get(9),
        stamp: row.get(10),
    })
}
