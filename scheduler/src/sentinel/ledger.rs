//! The ledger: incidents and their notices, in Postgres, and in the spool while Postgres is away.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use dodo_common::clock::Clock;
use dodo_common::db::incident::{self, Claim, Incident, Kept, NoticeEvent, NoticeKey, Resolution};
use dodo_common::db::pool::{Db, DbError, DbResult};
use dodo_common::run_tx;
use tokio::time::timeout;
use uuid::Uuid;

use crate::sentinel::channel::refusal::Refusal;
use crate::sentinel::judge::Change;
use crate::sentinel::spool::{Held, Line, Spool, Told};

/// Postgres has this long to take one thing; then it goes to the spool.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// Postgres has this long to take a whole spool.
const REPLAY_TIMEOUT: Duration = Duration::from_secs(10);
/// A taken notice is due again after its channel's timeout and this much more.
const LEASE_MARGIN_MS: i64 = 3000;
/// A notice that was refused is sent again after this long, and twice as long each further time.
const BACKOFF_MS_MIN: i64 = 1000;
const BACKOFF_MS_MAX: i64 = 300_000;

pub struct Ledger {
    db: Db,
    clock: Clock,
    /// The channels that tell of an incident.
    channels: Vec<String>,
    spool: Mutex<Spool>,
    /// Open incidents by rule, as this sentinel knows them.
    open: Mutex<HashMap<String, Incident>>,
}

impl Ledger {
    pub fn new(db: Db, clock: Clock, channels: Vec<String>, spool: Spool) -> Self {
        let open = spool.unresolved().into_iter().map(|incident| (incident.rule.clone(), incident)).collect();
        Self { db, clock, channels, spool: Mutex::new(spool), open: Mutex::new(open) }
    }

    /// The rules with an open incident in the spool of an earlier sentinel.
    pub fn open_rules(&self) -> Vec<String> {
        lock(&self.open).keys().cloned().collect()
    }

    /// Learns the open incidents of Postgres; returns their rules.
    pub async fn load(&self) -> DbResult<Vec<String>> {
        let found = within(WRITE_TIMEOUT, incident::unresolved(&self.db)).await?;
        let rules = found.iter().map(|incident| incident.rule.clone()).collect();
        lock(&self.open).extend(found.into_iter().map(|incident| (incident.rule.clone(), incident)));
        Ok(rules)
    }

    /// Writes a change down, durably and with its notices, before it returns.
    pub async fn record(&self, change: Change, postgres_up: bool) {
        match change {
            Change::Fire { rule, metric, severity, summary, advice } => {
                let incident = Incident {
                    id: Uuid::now_v7(),
                    rule,
                    metric: metric.as_str().to_owned(),
                    severity: severity.as_str().to_owned(),
                    summary,
                    advice,
                    fired_at: self.now(),
                    resolved_at: None,
                    outcome: None,
                };
                self.fire(incident, postgres_up).await;
            }
            Change::Resolve { rule, outcome } => self.resolve(&rule, outcome, postgres_up).await,
        }
    }

    async fn fire(&self, fired: Incident, postgres_up: bool) {
        tracing::warn!(incident = %fired.id, rule = fired.rule, severity = fired.severity, "fired: {}", fired.summary);
        let opened = match self.direct(postgres_up) {
            true => within(WRITE_TIMEOUT, incident::open(&self.db, &fired, &self.channels)).await,
            false => Err(away()),
        };
        let open = opened.unwrap_or_else(|error| {
            self.keep(NoticeEvent::Fired, fired.clone(), &error);
            fired.clone()
        });
        if open.id != fired.id {
            tracing::info!(incident = %open.id, rule = open.rule, "another sentinel was first");
        }
        lock(&self.open).insert(open.rule.clone(), open);
    }

    async fn resolve(&self, rule: &str, outcome: String, postgres_up: bool) {
        let at = self.now();
        let known = lock(&self.open).remove(rule);
        tracing::info!(incident = known.as_ref().map(|known| known.id.to_string()), rule, "resolved: {outcome}");
        let resolved = match self.direct(postgres_up) {
            true => {
                let end = Resolution { rule, at, outcome: &outcome };
                within(WRITE_TIMEOUT, incident::resolve(&self.db, end, &self.channels)).await.map(|_| ())
            }
            false => Err(away()),
        };
        if let (Err(error), Some(known)) = (resolved, known) {
            let over = Incident { resolved_at: Some(at), outcome: Some(outcome), ..known };
            self.keep(NoticeEvent::Resolved, over, &error);
        }
    }

    /// Brings the spool to Postgres; running it twice changes nothing. Returns how many lines it brought.
    pub async fn replay(&self) -> DbResult<usize> {
        let (held, strays, count) = {
            let spool = lock(&self.spool);
            (spool.held(self.clock.steady_ms()), spool.strays(), spool.len())
        };
        if count == 0 {
            return Ok(0);
        }
        within(REPLAY_TIMEOUT, replay(&self.db, &held, &strays)).await?;
        lock(&self.spool).settle(count);
        tracing::info!(lines = count, incidents = held.len(), "the spool is in Postgres");
        Ok(count)
    }

    /// Takes the next notice of a channel, from the spool or from Postgres.
    pub async fn claim(&self, channel: &str, limit: Duration) -> DbResult<Option<Claim>> {
        let lease_ms = limit.as_millis() as i64 + LEASE_MARGIN_MS;
        if let Some(claim) = lock(&self.spool).claim(channel, self.clock.steady_ms(), lease_ms) {
            return Ok(Some(claim));
        }
        within(WRITE_TIMEOUT, incident::claim(&self.db, channel, lease_ms)).await
    }

    /// Writes down how the sending of a taken notice went.
    pub async fn settle(&self, claim: &Claim, sent: Result<(), Refusal>) {
        let (key, attempts) = (&claim.key, claim.attempts);
        let (channel, event, rule) = (&key.channel, key.event.as_str(), &claim.incident.rule);
        match sent {
            Ok(()) => {
                tracing::info!(incident = %key.incident, rule, channel, event, attempts, "notice delivered");
                let direct = lock(&self.spool).is_empty()
                    && within(WRITE_TIMEOUT, incident::delivered(&self.db, key)).await.is_ok();
                if !direct {
                    let line = Line::Delivered(Told { key: key.clone(), at: self.now() });
                    lock(&self.spool).push(line);
                }
            }
            Err(refusal) => {
                let backoff_ms = (BACKOFF_MS_MIN << (attempts - 1).clamp(0, 16)).min(BACKOFF_MS_MAX);
                let wait_ms = refusal.retry_after.map_or(backoff_ms, |after| after.as_millis() as i64);
                tracing::warn!(incident = %key.incident, rule, channel, event, attempts, wait_ms, "notice not delivered: {}", refusal.text);
                lock(&self.spool).put_off(key, self.clock.steady_ms() + wait_ms);
                // Without Postgres it is due again when its lease runs out.
                let _ = within(WRITE_TIMEOUT, incident::put_off(&self.db, key, wait_ms, &refusal.text)).await;
            }
        }
    }

    /// Forgets what is long over.
    pub async fn expire(&self) -> DbResult<u64> {
        within(WRITE_TIMEOUT, incident::expire(&self.db)).await
    }

    /// Postgres answers, and nothing older waits in the spool.
    fn direct(&self, postgres_up: bool) -> bool {
        postgres_up && lock(&self.spool).is_empty()
    }

    fn keep(&self, event: NoticeEvent, incident: Incident, error: &DbError) {
        tracing::warn!(%error, incident = %incident.id, rule = incident.rule, "kept in the spool");
        lock(&self.spool).push(Line::Event { event, incident, channels: self.channels.clone() });
    }

    fn now(&self) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(self.clock.now_ms()).unwrap_or_default()
    }
}

async fn replay(db: &Db, held: &[Held], strays: &[Told]) -> DbResult<()> {
    run_tx!(db, "replay-spool", |tx| {
        incident::begin_replay(tx).await?;
        for one in held {
            // Here it may be part of an incident that another sentinel has brought.
            let id = incident::replay_incident(tx, &one.incident).await?;
            for told in &one.told {
                let key = NoticeKey { incident: id, ..told.key.clone() };
                incident::replay_delivery(tx, &key, told.at).await?;
            }
            for kept in &one.pending {
                let key = NoticeKey { incident: id, ..kept.key.clone() };
                incident::replay_notice(tx, &Kept { key, ..*kept }).await?;
            }
        }
        for told in strays {
            incident::replay_delivery(tx, &told.key, told.at).await?;
        }
        Ok(())
    })
}

async fn within<T>(limit: Duration, work: impl Future<Output = DbResult<T>>) -> DbResult<T> {
    timeout(limit, work).await.unwrap_or_else(|_| Err(DbError::Pool(format!("no answer within {limit:?}"))))
}

fn away() -> DbError {
    DbError::Pool("it does not answer".to_owned())
}

/// What a panic interrupted is whole all the same: every change under these locks is one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
