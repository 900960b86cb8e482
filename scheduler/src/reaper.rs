//! The reaper: finds lost workers, commits that they are lost, and takes back what they held.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use dodo_common::clock::Millis;
use dodo_common::db::pool::DbError;
use dodo_common::db::suspect;
use dodo_common::db::worker::{self, WorkerRow, consumer_name};
use dodo_common::fail;
use dodo_common::model::job::JobKey;
use dodo_common::model::stream_id::StreamId;
use dodo_common::stream::heartbeat::{self, ABSENT_MS, Beat, Heard, LEASE_MS};
use dodo_common::stream::{control, queue};
use tokio::time::Instant;
use uuid::Uuid;

use crate::context::{Context, Term};
use crate::window::WindowError;

/// Between two looks at a worker at most this much counts as standstill: while nobody could look, a server was
/// away, and nobody could settle.
const LOOK_MAX: Duration = Duration::from_secs(1);

/// What the reaper keeps between two ticks: when it began to watch each incarnation, and its progress.
#[derive(Debug, Default)]
pub struct Watch {
    /// Workers without a heartbeat in Redis have a lease from here,
    since: HashMap<Uuid, Instant>,
    /// or from here, where they had one: its stamp, and when this was seen first.
    beaten: HashMap<Uuid, (Millis, Instant)>,
    standstills: HashMap<Uuid, Standstill>,
}

impl Watch {
    /// For how long a worker has been silent: since another heartbeat than before was seen. Our own clock tells, which no
    /// step of Redis' clock moves: that would make all of them old in one look.
    fn silence(&mut self, id: Uuid, heard: Option<&Heard>, now: Instant) -> Duration {
        let begun = *self.since.entry(id).or_insert(now);
        if let Some(heard) = heard
            && self.beaten.get(&id).is_none_or(|(at_ms, _)| *at_ms != heard.at_ms)
        {
            self.beaten.insert(id, (heard.at_ms, now));
        }
        now.saturating_duration_since(self.beaten.get(&id).map_or(begun, |(_, seen)| *seen))
    }
}

/// For how long a worker has held jobs and settled none.
#[derive(Debug)]
struct Standstill {
    settled: u64,
    seen: Instant,
    lasted: Duration,
}

impl Standstill {
    fn new(now: Instant) -> Self {
        Self { settled: 0, seen: now, lasted: Duration::ZERO }
    }

    fn look(&mut self, beat: &Beat, now: Instant) -> Duration {
        let step = now.saturating_duration_since(self.seen).min(LOOK_MAX);
        self.seen = now;
        let stands = beat.in_flight > 0 && beat.settled == self.settled;
        self.settled = beat.settled;
        self.lasted = if stands { self.lasted + step } else { Duration::ZERO };
        self.lasted
    }
}

/// What one tick did.
#[derive(Debug, Default)]
pub struct Summary {
    pub lost: Vec<Uuid>,
    /// Entries taken back; their jobs return to the dispatcher.
    pub returned: Vec<StreamId>,
    /// Permits of live workers.
    pub permits: usize,
    pub live: usize,
}

/// One look at every incarnation (DESIGN 4): lost is an absent connection and no new heartbeat for a moment, or none for
/// as long as the lease.
pub async fn tick(ctx: &Context, term: &Term, watch: &mut Watch) -> Result<Summary, WindowError> {
    let mut summary = Summary::default();
    // Before the rows: a worker that registers after this look holds none of these entries, though its slot has.
    let pending = queue::pending(&ctx.redis, None).await?;
    let rows = worker::unreleased(&ctx.db).await?;
    let beats: HashMap<Uuid, Heard> =
        heartbeat::all(&ctx.redis).await?.into_iter().map(|heard| (heard.worker, heard)).collect();
    let clients = control::clients(&ctx.redis).await?;
    let mut released = Vec::new();
    for row in &rows {
        if row.ended_at.is_none() && row.lost_at.is_none() {
            let beat = beats.get(&row.id);
            let stalled = |watch: &mut Watch| stall(row.id, beat, watch, ctx.bounds.stall_ms_max);
            let Some(reason) = verdict(row.id, beat, &clients, watch, Instant::now()).or_else(|| stalled(watch)) else {
                summary.live += 1;
                if row.draining_at.is_none() {
                    summary.permits += row.permits.max(0) as usize;
                }
                continue;
            };
            match worker::mark_lost(&ctx.db, term.epoch, row.id, &reason).await {
                Ok(()) => {}
                Err(error @ DbError::LeaderRefused(_)) => return Err(error.into()),
                Err(error) => {
                    // The next look tries again; the others need not wait for it.
                    tracing::warn!(worker = %row.id, %error, "cannot be declared lost yet: {reason}");
                    continue;
                }
            }
            tracing::warn!(worker = %row.id, slot = row.slot, pid = row.pid, "worker lost: {reason}");
            metrics::counter!("dodo_workers_lost_total").increment(1);
            summary.lost.push(row.id);
            fail::point_async("worker-lost").await;
        }
        // Ended or lost: its connections must not take another entry, then what it held comes back.
        control::kill_connections(&ctx.redis, &row.id.to_string()).await?;
        worker::end_sessions(&ctx.db, row.id).await?;
        if row.lost_at.is_some() || summary.lost.contains(&row.id) {
            count_crashes(ctx, term, row).await?;
        }
        summary.returned.extend(take_back(ctx, term, &consumer_name(row.slot)).await?);
        released.push(row.id);
    }
    if !released.is_empty() {
        fail::point_async("entries-taken-back").await;
        worker::release(&ctx.db, term.epoch, &released).await?;
    }
    let known: HashSet<Uuid> = rows.iter().map(|row| row.id).collect();
    let stale: Vec<Uuid> = beats.keys().filter(|id| !known.contains(id)).copied().chain(released).collect();
    heartbeat::forget(&ctx.redis, &stale).await?;
    watch.since.retain(|id, _| known.contains(id));
    watch.beaten.retain(|id, _| known.contains(id));
    watch.standstills.retain(|id, _| known.contains(id));
    let strays = strays(pending, &rows);
    queue::take_back(&ctx.redis, term.epoch, &strays).await?;
    summary.returned.extend(strays);
    metrics::gauge!("dodo_workers_live").set(summary.live as f64);
    Ok(summary)
}

/// Why a worker is lost, or nothing. It has just registered, or Redis has just lost its heartbeats: it has a lease from when
/// we looked.
fn verdict(
    id: Uuid,
    heard: Option<&Heard>,
    clients: &[(String, String)],
    watch: &mut Watch,
    now: Instant,
) -> Option<String> {
    let name = id.to_string();
    let connected = clients.iter().any(|(_, client)| client.starts_with(&name));
    let silent = watch.silence(id, heard, now);
    let ms = silent.as_millis();
    if heard.is_some() && !connected {
        let absent = silent > Duration::from_millis(ABSENT_MS as u64);
        return absent.then(|| format!("its connection is closed and its last heartbeat is {ms} ms old"));
    }
    (silent > Duration::from_millis(LEASE_MS as u64)).then(|| format!("no heartbeat for {ms} ms"))
}

/// A worker that lives and holds jobs, but settles nothing for longer than any job takes, is lost too.
fn stall(id: Uuid, heard: Option<&Heard>, watch: &mut Watch, ms_max: u64) -> Option<String> {
    let beat = &heard?.beat;
    let now = Instant::now();
    let lasted = watch.standstills.entry(id).or_insert_with(|| Standstill::new(now)).look(beat, now);
    (lasted > Duration::from_millis(ms_max))
        .then(|| format!("it holds {} jobs and has settled none for {} s", beat.in_flight, lasted.as_secs()))
}

/// Counts a loss against the jobs that the worker held, before they return: another leader may find it half done.
async fn count_crashes(ctx: &Context, term: &Term, lost: &WorkerRow) -> Result<(), WindowError> {
    let held = queue::held(&ctx.redis, &consumer_name(lost.slot)).await?;
    let keys: Vec<JobKey> = held.into_iter().map(|entry| entry.key).collect();
    let counted = suspect::count(&ctx.db, term.epoch, lost.id, &keys).await?;
    if counted.suspects > 0 {
        let (jobs, suspects) = (counted.jobs, counted.suspects);
        tracing::warn!(worker = %lost.id, jobs, suspects, "jobs were lost with a worker once too often: they run alone");
    }
    fail::point_async("crashes-counted").await;
    Ok(())
}

/// Takes back every pending entry of a consumer.
async fn take_back(ctx: &Context, term: &Term, consumer: &str) -> Result<Vec<StreamId>, WindowError> {
    let entries: Vec<StreamId> =
        queue::pending(&ctx.redis, Some(consumer)).await?.into_iter().map(|(entry, _)| entry).collect();
    if !entries.is_empty() {
        queue::take_back(&ctx.redis, term.epoch, &entries).await?;
        tracing::info!(consumer, entries = entries.len(), "entries taken back");
    }
    Ok(entries)
}

/// Entries in the pending list of a consumer whose slot nobody holds: delivered to a dying connection. What the
/// holder of a slot has, the living settles and the dead has had taken back.
fn strays(pending: Vec<(StreamId, String)>, rows: &[WorkerRow]) -> Vec<StreamId> {
    let held: HashSet<String> = rows.iter().map(|row| consumer_name(row.slot)).collect();
    pending.into_iter().filter(|(_, consumer)| !held.contains(consumer)).map(|(entry, _)| entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standstill_is_time_with_jobs_and_without_progress() {
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let beat = |in_flight, settled| Beat { in_flight, settled, ..Beat::default() };
        let mut standstill = Standstill::new(begin);
        assert_eq!(standstill.look(&beat(0, 5), at(1)), Duration::ZERO);
        assert_eq!(standstill.look(&beat(0, 5), at(2)), Duration::ZERO, "it holds nothing");
        assert_eq!(standstill.look(&beat(3, 5), at(3)).as_secs(), 1);
        assert_eq!(standstill.look(&beat(3, 5), at(4)).as_secs(), 2);
        assert_eq!(standstill.look(&beat(3, 5), at(1000)).as_secs(), 3, "nobody looked meanwhile");
        assert_eq!(standstill.look(&beat(9, 6), at(1001)), Duration::ZERO, "it has settled one");
        assert_eq!(standstill.look(&beat(9, 6), at(1002)).as_secs(), 1);
    }

    /// Looks at a worker every 200 ms from `from` on until it is lost, at most for a minute; `beats` is what Redis shows then.
    fn lost_after_ms(
        watch: &mut Watch,
        id: Uuid,
        from: Instant,
        connected: bool,
        beats: impl Fn(u64) -> Option<Millis>,
    ) -> Option<u64> {
        let client = if connected { id.to_string() } else { "another".to_owned() };
        let clients = [(String::new(), client)];
        (0..60_000).step_by(200).find(|ms| {
            // Whatever age Redis would tell: it does not count.
            let heard = beats(*ms).map(|at_ms| Heard { worker: id, at_ms, age_ms: 3_600_000, beat: Beat::default() });
            verdict(id, heard.as_ref(), &clients, watch, from + Duration::from_millis(*ms)).is_some()
        })
    }

    #[test]
    fn no_step_of_the_clock_of_redis_makes_a_living_worker_lost() {
        const HOUR_MS: Millis = 3_600_000;
        let steps = [HOUR_MS, -HOUR_MS, 5000, -5000];
        for (step_ms, connected) in steps.into_iter().flat_map(|step| [(step, true), (step, false)]) {
            let beat = |ms: u64| {
                let beaten = (ms / 500 * 500) as Millis;
                Some(if beaten < 30_000 { beaten } else { beaten + step_ms })
            };
            let lost = lost_after_ms(&mut Watch::default(), Uuid::now_v7(), Instant::now(), connected, beat);
            assert_eq!(lost, None, "a step of {step_ms} ms, connected: {connected}");
        }
    }

    #[test]
    fn a_silent_worker_is_lost_in_time_by_our_own_clock() {
        let begin = Instant::now();
        let stops = |ms: u64| Some((ms.min(10_000) / 500 * 500) as Millis);
        let lost = |connected, beats: &dyn Fn(u64) -> Option<Millis>| {
            lost_after_ms(&mut Watch::default(), Uuid::now_v7(), begin, connected, beats)
        };
        assert_eq!(lost(true, &stops), Some(14_200), "frozen, or its heart stands still");
        assert_eq!(lost(false, &stops), Some(11_000), "killed");
        assert_eq!(lost(true, &|_| None), Some(4200), "it has registered and never beaten");
        assert_eq!(lost(false, &|_| Some(7)), Some(1000), "dead before this leader came");
        assert_eq!(lost(true, &|ms| (ms < 2000).then_some(ms as Millis)), Some(6000), "Redis has lost its heartbeat");
    }

    #[test]
    fn only_entries_of_a_slot_that_nobody_holds_are_strays() {
        let row = |slot, lost: bool| WorkerRow {
            id: Uuid::now_v7(),
            slot,
            generation: 1,
            host: String::new(),
            address: String::new(),
            region: None,
            proxy: None,
            roles: Vec::new(),
            version: String::new(),
            pid: 1,
            permits: 1,
            registered_at: chrono::DateTime::UNIX_EPOCH,
            draining_at: None,
            ended_at: None,
            lost_at: lost.then_some(chrono::DateTime::UNIX_EPOCH),
            reason: None,
            released_at: None,
        };
        let entry = |ms, slot| (StreamId { ms, seq: 0 }, consumer_name(slot));
        let pending = vec![entry(1, 1), entry(2, 2), entry(3, 3)];
        // Slot 1 was taken after the look at the list; 2 is a dead one's, whose list was read anew.
        assert_eq!(strays(pending, &[row(1, false), row(2, true)]), [StreamId { ms: 3, seq: 0 }]);
    }
}
