//! Timers: what is submitted again and again. A source whose document says `every_s` has one of its own.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::db::leader;
use crate::db::pool::{Db, DbError, DbResult, Transaction};
use crate::db::source;
use crate::db::submit::{self, Submission, Submitted};
use crate::model::paged::PagedSpec;
use crate::model::spec::{CrawlSpec, NoopSpec};
use crate::model::terms::Terms;
use crate::model::url::Canonical;
use crate::run_tx;

/// Timers of a tenant.
pub const TIMERS_MAX: i64 = 10_000;

/// A stored timer.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Timer {
    pub id: Uuid,
    pub key: Option<String>,
    /// `crawl`, `noop` or `paged`.
    pub kind: String,
    /// What is submitted each time.
    #[schema(value_type = Object)]
    pub request: Value,
    /// The source whose document asks for it; it goes with that.
    pub source: Option<String>,
    /// Either seconds from one time to the next,
    pub every_s: Option<i64>,
    /// or a cron pattern,
    pub cron: Option<String>,
    /// and the time zone of its clock.
    pub timezone: Option<String>,
    /// When it goes off next; none when it never will.
    pub next_at: Option<DateTime<Utc>>,
    pub last_at: Option<DateTime<Utc>>,
    pub last_dispatch: Option<Uuid>,
    /// Why the last time started nothing.
    pub last_error: Option<String>,
    pub created_at: DateTime<Utc>,
}

/// A timer to store.
#[derive(Clone, Debug)]
pub struct New<'a> {
    pub key: Option<&'a str>,
    pub kind: &'a str,
    pub request: Value,
    pub cron: &'a str,
    pub timezone: &'a str,
    pub next_at: DateTime<Utc>,
    /// They go with the requests of each of its dispatches and nowhere else.
    pub headers: &'a BTreeMap<String, String>,
}

const SELECT: &str =
    "SELECT id, key, kind, request, source, every_s, cron, timezone, next_at, last_at, last_dispatch, last_error,
    created_at FROM timer";

/// Stores a timer; a known key returns the one that has it, and changes nothing.
///
/// # Errors
/// [`DbError::Input`] when there are [`TIMERS_MAX`] already.
pub async fn create(db: &Db, tenant: &str, new: &New<'_>) -> DbResult<Timer> {
    run_tx!(db, "create-timer", tenant: tenant, |tx| {
        let count: i64 = tx
            .query_one("-- count-timers\nSELECT count(*) FROM timer WHERE tenant = $1", &[&tenant])
            .await?
            .get(0);
        if count >= TIMERS_MAX {
            return Err(DbError::Input(format!("there are {TIMERS_MAX} timers already; delete some")));
        }
        let id = Uuid::now_v7();
        let created = tx
            .execute(
            "-- create-timer
             INSERT INTO timer (tenant, id, key, kind, request, cron, timezone, next_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
             ON CONFLICT (tenant, key) DO NOTHING",
            &[&tenant, &id, &new.key, &new.kind, &new.request, &new.cron, &new.timezone, &new.next_at],
        )
        .await?;
        if created == 1 && !new.headers.is_empty() {
            let headers = serde_json::to_value(new.headers).map_err(|error| DbError::Input(error.to_string()))?;
            tx.execute(
                "-- keep-timer-headers\nINSERT INTO timer_secret (tenant, timer, headers) VALUES ($1, $2, $3)",
                &[&tenant, &id, &headers],
            )
            .await?;
        }
        let sql = format!("-- created-timer\n{SELECT} WHERE tenant = $1 AND (id = $2 OR key = $3)");
        Ok(of_row(&tx.query_one(&sql, &[&tenant, &id, &new.key]).await?))
    })
}

pub async fn list(db: &Db, tenant: &str) -> DbResult<Vec<Timer>> {
    run_tx!(db, "list-timers", tenant: tenant, |tx| {
        let sql = format!("-- list-timers\n{SELECT} WHERE tenant = $1 ORDER BY next_at, id");
        Ok(tx.query(&sql, &[&tenant]).await?.iter().map(of_row).collect())
    })
}

/// What became of a deletion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deleted {
    Done,
    Unknown,
    /// It belongs to a source's document.
    OfSource(String),
}

pub async fn delete(db: &Db, tenant: &str, id: Uuid) -> DbResult<Deleted> {
    run_tx!(db, "delete-timer", tenant: tenant, |tx| {
        let row = tx
            .query_opt("-- timer-to-delete\nSELECT source FROM timer WHERE tenant = $1 AND id = $2 FOR UPDATE", &[&tenant, &id])
            .await?;
        let Some(row) = row else { return Ok(Deleted::Unknown) };
        if let Some(source) = row.get(0) {
            return Ok(Deleted::OfSource(source));
        }
        tx.execute("-- delete-timer\nDELETE FROM timer WHERE tenant = $1 AND id = $2", &[&tenant, &id]).await?;
        Ok(Deleted::Done)
    })
}

/// Sets, moves or removes the timer that a source's document asks for.
pub(crate) async fn of_source(tx: &Transaction<'_>, tenant: &str, name: &str, every_s: Option<i64>) -> DbResult<()> {
    let Some(every_s) = every_s else {
        tx.execute("-- drop-source-timer\nDELETE FROM timer WHERE tenant = $1 AND source = $2", &[&tenant, &name])
            .await?;
        return Ok(());
    };
    tx.execute(
        "-- set-source-timer
         INSERT INTO timer AS t (tenant, id, kind, request, source, every_s, next_at)
         VALUES ($1, $2, 'paged', jsonb_build_object('source', $3::text), $3, $4, clock_timestamp())
         ON CONFLICT (tenant, source) DO UPDATE SET every_s = excluded.every_s,
           next_at = CASE WHEN t.every_s = excluded.every_s THEN t.next_at ELSE excluded.next_at END",
        &[&tenant, &Uuid::now_v7(), &name, &every_s],
    )
    .await?;
    Ok(())
}

/// A timer that goes off: the time it was due, and the time it is.
#[derive(Clone, Debug)]
pub struct Due {
    pub tenant: String,
    pub timer: Timer,
    pub at: DateTime<Utc>,
    pub now: DateTime<Utc>,
}

impl Due {
    /// The next time of one that counts seconds, after now: those that were missed coalesce.
    pub fn after_seconds(&self, every_s: i64) -> Option<DateTime<Utc>> {
        let step = every_s.max(1);
        let passed = (self.now - self.at).num_seconds().max(0) / step;
        self.at.checked_add_signed(chrono::TimeDelta::try_seconds(step.checked_mul(passed + 1)?)?)
    }
}

pub async fn due(db: &Db, limit: i64) -> DbResult<Vec<Due>> {
    let client = db.client().await?;
    let sql = format!(
        "-- due-timers\n{}, tenant, clock_timestamp() FROM timer WHERE next_at <= clock_timestamp() ORDER BY next_at LIMIT $1",
        SELECT.trim_end_matches(" FROM timer")
    );
    let rows = client.query(&sql, &[&limit]).await?;
    Ok(rows
        .iter()
        .filter_map(|row| {
            let timer = of_row(row);
            Some(Due { tenant: row.get(13), at: timer.next_at?, now: row.get(14), timer })
        })
        .collect())
}

/// What a timer submits.
pub enum Work {
    Crawl { spec: Box<CrawlSpec>, seeds: Vec<Canonical> },
    Noop { spec: NoopSpec, payloads: Vec<Option<Value>> },
    Paged { spec: Box<PagedSpec> },
}

/// Submits the work of a due timer, once for that time, and sets it to its next one, in one transaction. Work that
/// cannot be built only moves the timer. Nothing when another has fired it, or it was deleted.
pub async fn fire(
    db: &Db,
    epoch: i64,
    due: &Due,
    work: &Result<(Work, Terms), String>,
    next: Option<DateTime<Utc>>,
) -> DbResult<Option<Submitted>> {
    run_tx!(db, "fire-timer", |tx| {
        leader::authorise(tx, epoch).await?;
        let moved = tx
            .execute(
                "-- fire-timer
                 UPDATE timer SET next_at = $4, last_at = $3, last_error = $5 WHERE tenant = $1 AND id = $2 AND next_at = $3",
                &[&due.tenant, &due.timer.id, &due.at, &next, &work.as_ref().err()],
            )
            .await?;
        let Ok((work, terms)) = work else { return Ok(None) };
        if moved == 0 {
            return Ok(None);
        }
        let key = format!("timer:{}:{}", due.timer.id, due.at.timestamp_millis());
        let headers = headers(tx, &due.tenant, due.timer.id).await?;
        let submission = Submission { key: Some(&key), terms: terms.clone(), headers, ..Submission::default() };
        let submitted = match work {
            Work::Crawl { spec, seeds } => {
                let spec = serde_json::to_value(spec).map_err(|error| DbError::Input(error.to_string()))?;
                submit::crawl_in(tx, &due.tenant, &spec, seeds, &submission).await?
            }
            Work::Noop { spec, payloads } => submit::noops_in(tx, &due.tenant, spec, payloads, &submission).await?,
            Work::Paged { spec } => source::submit_in(tx, &due.tenant, spec, &submission).await?,
        };
        tx.execute(
            "-- fired-timer\nUPDATE timer SET last_dispatch = $3 WHERE tenant = $1 AND id = $2",
            &[&due.tenant, &due.timer.id, &submitted.id],
        )
        .await?;
        Ok(Some(submitted))
    })
}

async fn headers(tx: &Transaction<'_>, tenant: &str, id: Uuid) -> DbResult<BTreeMap<String, String>> {
    let sql = "-- timer-headers\nSELECT headers FROM timer_secret WHERE tenant = $1 AND timer = $2";
    let Some(row) = tx.query_opt(sql, &[&tenant, &id]).await? else { return Ok(BTreeMap::new()) };
    serde_json::from_value(row.get(0)).map_err(|error| DbError::Input(format!("timer {id} has no headers: {error}")))
}

fn of_row(row: &tokio_postgres::Row) -> Timer {
    Timer {
        id: row.get(0),
        key: row.get(1),
        kind: row.get(2),
        request: row.get(3),
        source: row.get(4),
        every_s: row.get(5),
        cron: row.get(6),
        timezone: row.get(7),
        next_at: row.get(8),
        last_at: row.get(9),
        last_dispatch: row.get(10),
        last_error: row.get(11),
        created_at: row.get(12),
    }
}
