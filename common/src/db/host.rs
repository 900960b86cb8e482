//! Hosts: pinned addresses, robots.txt, holds and failures.

use serde::Serialize;

use crate::db::leader;
use crate::db::pool::{Db, DbResult, Transaction};
use crate::model::retry::HOST_REFUSALS_MAX;
use crate::run_tx;

/// robots.txt and the pinned addresses are good for this long (RFC 9309 2.4: at most 24 hours).
pub const VALID_MS: i64 = 24 * 3600 * 1000;
/// They are renewed so long before they run out, milliseconds: nothing is issued with less.
pub const RENEW_MS: i64 = 5_000;
/// A host that could not be reached is left alone for this long, milliseconds.
pub const DEAD_MS: i64 = 10 * 60 * 1000;
/// Failed preparations in a row after which a host is dead where nobody answers, which is after some two minutes;
pub const FAILURES_MAX: i32 = 8;
/// and where it answers that it is out of order (429, 5xx), which is after more than an hour: it is there, and it comes back.
pub const OUTAGES_MAX: i32 = 20;

/// What became of a host when its first job prepared it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HostState {
    /// Never prepared.
    New,
    /// Addresses pinned, robots known.
    Ready,
    /// Preparation failed or the server asked to wait: nothing is sent before `hold_until`.
    Held,
    /// Out of preparations: its jobs end without a request until `valid_until`.
    Dead,
    /// It resolves to addresses that may not be fetched.
    Refused,
}

impl HostState {
    pub fn as_str(self) -> &'static str {
        match self {
            HostState::New => "new",
            HostState::Ready => "ready",
            HostState::Held => "held",
            HostState::Dead => "dead",
            HostState::Refused => "refused",
        }
    }

    pub fn parse(text: &str) -> Self {
        match text {
            "ready" => HostState::Ready,
            "held" => HostState::Held,
            "dead" => HostState::Dead,
            "refused" => HostState::Refused,
            _ => HostState::New,
        }
    }
}

/// A host as the dispatcher sees it. Times are milliseconds from now by the server's clock.
#[derive(Clone, Debug, PartialEq)]
pub struct HostView {
    pub host: String,
    pub addresses: Vec<String>,
    pub state: HostState,
    pub crawl_delay_ms: Option<i64>,
    pub hold_in_ms: Option<i64>,
    pub valid_in_ms: i64,
    /// The next request for its robots.txt goes to another origin.
    pub robots_at: Option<RobotsAt>,
    /// How fast it answers, as a leader has written it down.
    pub pace_ms: Option<i64>,
}

/// The other origin, `scheme://authority`, that a robots.txt is redirected to, and its first address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RobotsAt {
    pub host: String,
    pub address: String,
}

/// The row a worker writes when it has prepared a host, or was told to wait.
#[derive(Clone, Debug)]
pub struct HostUpdate {
    pub host: String,
    pub addresses: Vec<String>,
    pub state: HostState,
    pub robots: Option<Vec<u8>>,
    pub robots_status: Option<i16>,
    pub robots_url: Option<String>,
    pub robots_hops: i16,
    pub robots_at: Option<RobotsAt>,
    pub crawl_delay_ms: Option<i64>,
    pub failures: i32,
    pub hold_ms: Option<i64>,
    pub valid_ms: i64,
    pub last_error: Option<String>,
}

/// The dispatcher's view of these hosts; hosts without a row are left out.
pub async fn view(db: &Db, hosts: &[String]) -> DbResult<Vec<HostView>> {
    let client = db.client().await?;
    let statement = client
        .prepare_cached(
            "-- view-hosts
             SELECT host, addresses, state, crawl_delay_ms,
                    (extract(epoch FROM hold_until - clock_timestamp()) * 1000)::int8,
                    CASE WHEN isfinite(valid_until)
                         THEN (extract(epoch FROM valid_until - clock_timestamp()) * 1000)::int8 ELSE 0 END,
                    robots_host, robots_address, pace_ms
               FROM unnest($1::text[]) k(name) JOIN host ON host.host = k.name",
        )
        .await?;
    let rows = client.query(&statement, &[&hosts]).await?;
    Ok(rows
        .iter()
        .map(|row| HostView {
            host: row.get(0),
            addresses: row.get(1),
            state: HostState::parse(row.get(2)),
            crawl_delay_ms: row.get(3),
            hold_in_ms: row.get(4),
            valid_in_ms: row.get(5),
            robots_at: robots_at(row.get(6), row.get(7)),
            pace_ms: row.get(8),
        })
        .collect())
}

/// Writes down how fast hosts answer, as the leader; hosts without a row are left out.
pub async fn save_paces(db: &Db, epoch: i64, paces: &[(String, i64)]) -> DbResult<u64> {
    let mut paces: Vec<&(String, i64)> = paces.iter().collect();
    paces.sort();
    let (hosts, ms): (Vec<&str>, Vec<i64>) = paces.iter().map(|(host, ms)| (host.as_str(), *ms)).unzip();
    run_tx!(db, "save-paces", |tx| {
        leader::authorise(tx, epoch).await?;
        let statement = tx
            .prepare_cached(
                "-- save-paces
                 WITH k AS MATERIALIZED (SELECT * FROM unnest($1::text[], $2::int8[]) AS k(name, ms)),
                 locked AS MATERIALIZED (
                   SELECT s.place, k.ms FROM k, LATERAL (SELECT h.ctid AS place FROM host h WHERE h.host = k.name FOR UPDATE) s)
                 UPDATE host h SET pace_ms = l.ms FROM locked l WHERE h.ctid = l.place",
            )
            .await?;
        Ok(tx.execute(&statement, &[&hosts, &ms]).await?)
    })
}

pub(crate) fn robots_at(host: Option<String>, address: Option<String>) -> Option<RobotsAt> {
    host.zip(address).map(|(host, address)| RobotsAt { host, address })
}

/// The robots.txt of a host, none if it has none, as its row of this version has it; nothing if there is another version.
pub async fn robots(db: &Db, host: &str, version: i64) -> DbResult<Option<Option<Vec<u8>>>> {
    let client = db.client().await?;
    let statement =
        client.prepare_cached("-- host-robots\nSELECT robots FROM host WHERE host = $1 AND version = $2").await?;
    Ok(client.query_opt(&statement, &[&host, &version]).await?.map(|row| row.get(0)))
}

/// Writes what a worker learned of a host, in the worker's own commit.
pub async fn update(tx: &Transaction<'_>, update: &HostUpdate) -> DbResult<()> {
    let statement = tx
        .prepare_cached(
            "-- update-host
             INSERT INTO host AS h (host, addresses, state, robots, robots_status, robots_url, robots_hops,
                    crawl_delay_ms, failures, hold_until, valid_until, version, last_error, checked_at,
                    robots_host, robots_address)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, clock_timestamp() + $10::float8 * interval '1 millisecond',
                     clock_timestamp() + $11::float8 * interval '1 millisecond', 1, $12, clock_timestamp(),
                     $13, $14)
             ON CONFLICT (host) DO UPDATE SET addresses = excluded.addresses, state = excluded.state,
                    robots = excluded.robots, robots_status = excluded.robots_status,
                    robots_url = excluded.robots_url, robots_hops = excluded.robots_hops,
                    robots_host = excluded.robots_host, robots_address = excluded.robots_address,
                    crawl_delay_ms = excluded.crawl_delay_ms, failures = excluded.failures,
                    hold_until = excluded.hold_until, valid_until = excluded.valid_until,
                    version = h.version + 1, last_error = excluded.last_error,
                    refusals = CASE WHEN excluded.state = 'ready' THEN 0 ELSE h.refusals END, checked_at = excluded.checked_at",
        )
        .await?;
    tx.execute(
        &statement,
        &[
            &update.host,
            &update.addresses,
            &update.state.as_str(),
            &update.robots,
            &update.robots_status,
            &update.robots_url,
            &update.robots_hops,
            &update.crawl_delay_ms,
            &update.failures,
            &update.hold_ms.map(|ms| ms as f64),
            &(update.valid_ms as f64),
            &update.last_error,
            &update.robots_at.as_ref().map(|at| &at.host),
            &update.robots_at.as_ref().map(|at| &at.address),
        ],
    )
    .await?;
    Ok(())
}

/// What an answer says of its host, beside what it says of its URL.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hold {
    pub host: String,
    pub word: Word,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Word {
    /// It answers, after it has refused: the refusals are forgotten.
    Answers,
    /// It answers, but its rate limit has nothing left: it is left alone for so many milliseconds.
    Waits { ms: i64, reason: String },
    /// Nobody answers at its addresses, and its name has others now: it is prepared anew. What was issued before that sends
    /// nothing, since no clock of the other addresses was asked for it.
    Moved,
    /// Its robots.txt asks who crawls it now to wait for so many milliseconds, which is longer than for those before: nothing
    /// was sent.
    Asks { ms: i64 },
    /// It said 429 or 503, or nobody answered there: the same, and after [`HOST_REFUSALS_MAX`] in a row its jobs end for a
    /// while.
    Refuses { ms: i64, reason: String },
}

impl Hold {
    /// How long nothing goes there; nothing at all where its row stays as the dispatcher knows it.
    pub fn ms(&self) -> Option<i64> {
        match &self.word {
            Word::Answers => None,
            Word::Moved | Word::Asks { .. } => Some(0),
            Word::Waits { ms, .. } | Word::Refuses { ms, .. } => Some(*ms),
        }
    }
}

/// Writes what an answer says of its host; never shortens a hold. What several requests at a time are told is one
/// refusal: while a hold lasts, no other is counted.
pub async fn hold(tx: &Transaction<'_>, hold: &Hold) -> DbResult<()> {
    match &hold.word {
        Word::Answers => {
            let sql = "-- calm-host\nUPDATE host SET refusals = 0 WHERE host = $1 AND refusals > 0";
            tx.execute(sql, &[&hold.host]).await?;
        }
        Word::Moved => {
            let sql = "-- move-host\nUPDATE host SET valid_until = clock_timestamp(), checked_at = clock_timestamp() WHERE host = $1 AND state = 'ready'";
            tx.execute(sql, &[&hold.host]).await?;
        }
        Word::Asks { ms } => {
            let sql = "-- slow-host\nUPDATE host SET crawl_delay_ms = greatest(crawl_delay_ms, $2) WHERE host = $1 AND state = 'ready'";
            tx.execute(sql, &[&hold.host, ms]).await?;
        }
        Word::Waits { ms, reason } => {
            tx.execute(
                "-- hold-host
                 UPDATE host SET hold_until = greatest(hold_until, clock_timestamp() + $2::float8 * interval '1 millisecond'),
                        last_error = $3, refusals = 0 WHERE host = $1",
                &[&hold.host, &(*ms as f64), &reason],
            )
            .await?;
        }
        Word::Refuses { ms, reason } => {
            tx.execute(
                "-- refuse-host
                 WITH h AS MATERIALIZED (
                   SELECT host, refusals + CASE WHEN hold_until > clock_timestamp() THEN 0 ELSE 1 END AS n
                     FROM host WHERE host = $1 FOR UPDATE),
                 k AS (SELECT host, n, n >= $4 AS over FROM h)
                 UPDATE host SET refusals = k.n, state = CASE WHEN k.over THEN 'dead' ELSE state END,
                        hold_until = CASE WHEN k.over THEN NULL
                          ELSE greatest(hold_until, clock_timestamp() + $2::float8 * interval '1 millisecond') END,
                        valid_until = CASE WHEN k.over THEN clock_timestamp() + $5::float8 * interval '1 millisecond' ELSE valid_until END,
                        last_error = CASE WHEN k.over THEN format('%s, %s times in a row', $3::text, k.n) ELSE $3 END
                   FROM k WHERE host.host = k.host",
                &[&hold.host, &(*ms as f64), &reason, &HOST_REFUSALS_MAX, &(DEAD_MS as f64)],
            )
            .await?;
        }
    }
    Ok(())
}
