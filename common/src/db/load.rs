//! Rows of `crawl_schedule` as a worker loads them, with all that its jobs must know before they send anything.

use tokio_postgres::Row;
use uuid::Uuid;

use crate::db::host::{self, HostState, RENEW_MS, RobotsAt};
use crate::db::pool::{Db, DbResult};
use crate::model::job::{Job, JobKey, JobKind, Outcome};
use crate::model::paged::Metadata;
use crate::model::stream_id::StreamId;

/// What the clocks of Redis and Postgres may differ by, milliseconds.
const SKEW_MS: i64 = 500;

/// A job with what its worker must know before it sends anything.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub job: Job,
    pub host: Option<LoadedHost>,
    pub paging: LoadedPaging,
    pub leave: Leave,
    /// The spec of its dispatch, where that is one of no-op jobs; those of others are larger, and kept by the worker.
    pub noop: Option<serde_json::Value>,
}

/// Whether the dispatch of a job lets it run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Leave {
    #[default]
    Run,
    /// Not now.
    Paused,
    /// Not any more: how it ends, and why.
    Ending(Outcome, String),
}

/// What is known of a page dispatch before any request of it leaves.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadedPaging {
    /// The count, and how often it has changed; none before it was asked for.
    pub metadata: Option<(Metadata, i32)>,
    /// The job that has stored this very page.
    pub stored_by: Option<Uuid>,
}

/// What [`jobs`] found of a batch.
#[derive(Debug, Default)]
pub struct Batch {
    pub rows: Vec<Loaded>,
    /// Jobs of a kind that this binary does not know: a newer one has made them.
    pub unknown: Vec<Unknown>,
}

#[derive(Clone, Debug)]
pub struct Unknown {
    pub key: JobKey,
    pub kind: String,
    pub dispatch: Uuid,
    pub host: String,
}

#[derive(Clone, Debug)]
pub struct LoadedHost {
    pub addresses: Vec<String>,
    pub state: HostState,
    /// Addresses and robots are known and not too old.
    pub fresh: bool,
    /// When its state came to be, and when its addresses run out, milliseconds since the epoch.
    pub checked_ms: i64,
    pub valid_until_ms: i64,
    pub robots_url: Option<String>,
    pub robots_hops: i16,
    pub robots_at: Option<RobotsAt>,
    pub failures: i32,
    pub version: i64,
    pub last_error: Option<String>,
    pub robots_status: Option<i16>,
    /// Of those who have crawled it so far the longest that its robots.txt asks for.
    pub crawl_delay_ms: Option<i64>,
}

impl LoadedHost {
    /// The entry of a job was issued when its host was prepared, which it is no more. To prepare it takes a place at its clocks,
    /// which this job has not.
    pub fn was_prepared(&self, entry: StreamId) -> bool {
        let issued_ms = (entry.ms as i64).saturating_add(SKEW_MS);
        issued_ms < self.checked_ms || (!self.fresh && issued_ms < self.valid_until_ms - RENEW_MS)
    }
}

/// Loads the rows of a batch of stream entries; what is gone or has moved on is not in the answer.
pub async fn jobs(db: &Db, keys: &[JobKey]) -> DbResult<Batch> {
    let tenants: Vec<&str> = keys.iter().map(|key| key.tenant.as_str()).collect();
    let ids: Vec<Uuid> = keys.iter().map(|key| key.id).collect();
    let attempts: Vec<i16> = keys.iter().map(|key| key.attempt).collect();
    let client = db.client().await?;
    let statement = client
        .prepare_cached(
            "-- load-jobs
             SELECT s.tenant, s.id, s.attempt, s.dispatch, s.kind, s.host, s.depth, s.hops, s.url, s.payload,
                    h.addresses, h.state, h.valid_until > clock_timestamp(), h.robots_url, h.robots_hops, h.failures,
                    h.version, h.last_error, s.page, s.total_pages, s.remake_of, m.total_items, m.total_pages, m.round, p.job,
                    d.paused_at IS NOT NULL, d.ending, d.note, d.retries, s.refusals, coalesce(h.refusals, 0),
                    CASE s.kind WHEN 'noop' THEN d.spec END, h.robots_host, h.robots_address, h.robots_status,
                    coalesce((extract(epoch FROM h.checked_at) * 1000)::int8, 0),
                    (extract(epoch FROM h.valid_until) * 1000)::int8, h.crawl_delay_ms
               FROM unnest($1::text[], $2::uuid[], $3::int2[]) AS k(tenant, id, attempt),
               LATERAL (SELECT * FROM crawl_schedule c
                         WHERE c.tenant = k.tenant AND c.id = k.id AND c.attempt = k.attempt OFFSET 0) s
               LEFT JOIN host h ON h.host = s.host
               LEFT JOIN dispatch d ON d.tenant = s.tenant AND d.id = s.dispatch
               -- Of the other kinds nothing is looked up: an outer join by itself looks first and compares kinds then.
               LEFT JOIN LATERAL (SELECT * FROM page_metadata m WHERE s.kind IN ('page_dispatch', 'get_metadata', 'get_page')
                                     AND m.tenant = s.tenant AND m.dispatch = s.dispatch OFFSET 0) m ON true
               LEFT JOIN LATERAL (SELECT * FROM page_scrape p WHERE s.kind = 'get_page' AND p.tenant = s.tenant
                                     AND p.dispatch = s.dispatch AND p.page = s.page AND p.total_pages = s.total_pages
                                   OFFSET 0) p ON true",
        )
        .await?;
    let rows = client.query(&statement, &[&tenants, &ids, &attempts]).await?;
    let mut batch = Batch::default();
    for row in &rows {
        let key = JobKey { tenant: row.get(0), id: row.get(1), attempt: row.get(2) };
        match JobKind::parse(row.get(4)) {
            Some(kind) => batch.rows.push(loaded(row, key, kind)),
            None => {
                batch.unknown.push(Unknown { key, kind: row.get(4), dispatch: row.get(3), host: row.get(5) });
            }
        }
    }
    Ok(batch)
}

fn loaded(row: &Row, key: JobKey, kind: JobKind) -> Loaded {
    let paused = row.get::<_, Option<bool>>(25).unwrap_or_default();
    let is_remake = row.get::<_, Option<Uuid>>(20).is_some();
    Loaded {
        job: Job {
            key,
            dispatch: row.get(3),
            kind,
            host: row.get(5),
            depth: row.get(6),
            hops: row.get(7),
            url: row.get(8),
            payload: row.get(9),
            page: row.get::<_, Option<i32>>(18).zip(row.get(19)),
            remake_of: row.get(20),
            retries: row.get(28),
            refusals: row.get(29),
            host_refusals: row.get(30),
        },
        paging: LoadedPaging {
            metadata: row
                .get::<_, Option<i64>>(21)
                .map(|total_items| (Metadata { total_items, total_pages: row.get(22) }, row.get(23))),
            stored_by: row.get(24),
        },
        leave: leave(paused, row.get(26), row.get(27), is_remake),
        noop: row.get(31),
        host: row.get::<_, Option<Vec<String>>>(10).map(|addresses| LoadedHost {
            addresses,
            state: HostState::parse(row.get(11)),
            fresh: row.get(12),
            checked_ms: row.get(35),
            valid_until_ms: row.get(36),
            robots_url: row.get(13),
            robots_hops: row.get(14),
            robots_at: host::robots_at(row.get(32), row.get(33)),
            failures: row.get(15),
            version: row.get(16),
            last_error: row.get(17),
            robots_status: row.get(34),
            crawl_delay_ms: row.get(37),
        }),
    }
}

/// What is made again had counted before its dispatch spent its budget: it may run, and only its user can end it.
fn leave(paused: bool, ending: Option<&str>, note: Option<String>, is_remake: bool) -> Leave {
    match ending.map(|ending| if ending == Outcome::Budget.as_str() { Outcome::Budget } else { Outcome::Cancelled }) {
        Some(outcome) if outcome == Outcome::Cancelled || !is_remake => {
            Leave::Ending(outcome, note.unwrap_or_default())
        }
        _ if paused => Leave::Paused,
        _ => Leave::Run,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_again_runs_though_its_budget_is_spent() {
        let leave = |paused, ending, is_remake| leave(paused, ending, Some("why".to_owned()), is_remake);
        let ends = |outcome| Leave::Ending(outcome, "why".to_owned());
        assert_eq!([leave(false, None, false), leave(false, None, true)], [Leave::Run, Leave::Run]);
        assert_eq!([leave(true, None, false), leave(true, None, true)], [Leave::Paused, Leave::Paused]);
        let spent = [leave(false, Some("budget"), false), leave(true, Some("budget"), false)];
        assert_eq!(spent, [ends(Outcome::Budget), ends(Outcome::Budget)]);
        assert_eq!(
            [leave(false, Some("budget"), true), leave(true, Some("budget"), true)],
            [Leave::Run, Leave::Paused]
        );
        let cancelled = [leave(false, Some("cancelled"), false), leave(false, Some("cancelled"), true)];
        assert_eq!(cancelled, [ends(Outcome::Cancelled), ends(Outcome::Cancelled)]);
    }

    #[test]
    fn who_was_issued_to_a_prepared_host_does_not_prepare_it() {
        let host = |fresh, checked_ms, valid_until_ms| LoadedHost {
            addresses: Vec::new(),
            state: HostState::New,
            fresh,
            checked_ms,
            valid_until_ms,
            robots_url: None,
            robots_hops: 0,
            robots_at: None,
            failures: 0,
            version: 1,
            last_error: None,
            robots_status: None,
            crawl_delay_ms: None,
        };
        let was_prepared = |host: LoadedHost, ms| host.was_prepared(StreamId { ms, seq: 0 });
        // It is new since 100,000.
        assert!(was_prepared(host(true, 100_000, 200_000), 99_000));
        assert!(!was_prepared(host(true, 100_000, 200_000), 100_001));
        assert!(!was_prepared(host(true, 100_000, 200_000), 99_600), "their clocks differ");
        // It has run out at 100,000: from 95,000 on nothing is issued as if it had not.
        assert!(was_prepared(host(false, 10_000, 100_000), 94_000));
        assert!(!was_prepared(host(false, 10_000, 100_000), 95_000));
        assert!(was_prepared(host(false, 97_000, 97_000), 96_000), "it was held meanwhile");
        assert!(!was_prepared(host(false, 97_000, 97_000), 98_000));
    }
}
