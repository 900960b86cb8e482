//! Walks: more jobs are passed over in front than a refill looks at.

use chrono::DateTime;
use dodo_common::db::schedule::{Look, Position};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::frontier::flow::BUFFER_MAX;
use crate::frontier::refill::Wanted;
use crate::frontier::walk::WALK_MS;

/// As [`dodo_common::db::schedule::PAST_ROWS_MAX`], but small.
const PAST_MAX: usize = 10;
const DELAY_MS: Millis = 100;

/// The jobs of one host in their order, and what the host is asked.
struct Schedule {
    frontier: Frontier,
    jobs: Vec<(Position, DueJob)>,
    serial: i64,
    /// Rows that a look has read at most, beside those that it asked for.
    past_most: usize,
    refills: usize,
}

impl Schedule {
    fn new() -> Self {
        Self { frontier: Frontier::default(), jobs: Vec::new(), serial: 0, past_most: 0, refills: 0 }
    }

    fn dispatch(&mut self, idle: bool) -> Uuid {
        let id = Uuid::now_v7();
        self.set(id, idle);
        id
    }

    fn set(&mut self, id: Uuid, idle: bool) {
        self.frontier.set_rules(id, Rules { delay_ms: DELAY_MS, idle, ..Rules::idle() });
    }

    /// The lower the rank, the sooner they are due.
    fn add(&mut self, dispatch: Uuid, count: usize, rank: i16) {
        for _ in 0..count {
            self.serial += 1;
            let job = due_job(dispatch);
            let run_at = DateTime::from_timestamp_millis(self.serial).unwrap();
            self.jobs.push((Position { priority: rank, run_at, id: job.id }, job));
        }
        self.jobs.sort_by_key(|(at, _)| *at);
    }

    fn look(&mut self, look: &Look, past: &[Uuid]) -> Refill {
        let limit = look.limit as usize;
        let mut refill =
            Refill { tenant: look.tenant.clone(), host: look.host.clone(), after: look.after, ..Refill::default() };
        let behind = self.jobs.iter().filter(|(at, _)| look.after.is_none_or(|after| *at > after));
        for (seen, (at, job)) in (1..).zip(behind) {
            if !past.contains(&job.dispatch) {
                refill.due.push(job.clone());
            }
            self.past_most = self.past_most.max(seen - refill.due.len());
            if refill.due.len() >= limit || seen >= limit + PAST_MAX {
                refill.upto = Some(*at);
                break;
            }
        }
        refill
    }

    /// One turn of the dispatcher; a job that is issued is done at once. Returns the dispatches of those.
    fn turn(&mut self, now: Millis) -> Vec<Uuid> {
        for Wanted { looks, past } in self.frontier.wants_refill(now, 100) {
            for look in looks {
                self.refills += 1;
                let refill = self.look(&look, &past.all);
                self.frontier.refilled(now, refill, look.limit);
            }
        }
        let asked = self.frontier.wants_view(10);
        let views = asked.iter().map(|host| prepared(host, &["10.0.0.1"])).collect();
        self.frontier.viewed(now, &asked, views);
        let picks = self.frontier.pick(now, 10);
        let issued = picks.iter().map(|pick| pick.dispatch).collect();
        for pick in picks {
            self.jobs.retain(|(_, job)| job.id != pick.key.id);
            self.serial += 1;
            let entry = StreamId { ms: self.serial as u64, seq: 0 };
            self.frontier.issued(now, entry, pick);
            self.frontier.settled(now, entry, &SettledJob { requested: true, ..SettledJob::default() });
        }
        issued
    }
}

#[test]
fn a_job_behind_those_of_a_paused_dispatch_is_reached_by_short_looks() {
    let mut schedule = Schedule::new();
    let (paused, other) = (schedule.dispatch(true), schedule.dispatch(false));
    schedule.add(paused, 5000, 0);
    schedule.add(other, 1, 0);
    schedule.frontier.gained(TENANT, "http://a");
    let turns = (0..1000).find(|_| !schedule.turn(0).is_empty());
    assert!(turns.is_some(), "it is never reached");
    assert!(schedule.past_most <= PAST_MAX + 64, "{} rows passed over by one look", schedule.past_most);
    for _ in 0..1000 {
        schedule.turn(0);
    }
    let before = schedule.refills;
    assert!((0..100).all(|_| schedule.turn(0).is_empty()) && schedule.refills == before, "then it rests");

    // What goes on is seen again, all of it.
    schedule.set(paused, false);
    assert!(schedule.frontier.take_resumed());
    schedule.frontier.found(TENANT, "http://a");
    let issued = (1..20_000).flat_map(|turn| schedule.turn(turn * DELAY_MS)).filter(|of| *of == paused).count();
    assert_eq!((issued, schedule.jobs.len()), (5000, 0));
}

#[test]
fn what_comes_to_the_head_does_not_wait_for_a_walk() {
    let mut schedule = Schedule::new();
    let (paused, other) = (schedule.dispatch(true), schedule.dispatch(false));
    schedule.add(paused, 5000, 0);
    schedule.frontier.gained(TENANT, "http://a");
    schedule.turn(0);
    assert!(schedule.turn(0).is_empty(), "it walks");
    schedule.add(other, 1, -1);
    schedule.frontier.gained(TENANT, "http://a");
    assert_eq!(schedule.turn(0), [other]);
}

#[test]
fn what_comes_behind_a_walk_that_has_ended_is_found_at_once() {
    let mut schedule = Schedule::new();
    let (paused, other) = (schedule.dispatch(true), schedule.dispatch(false));
    schedule.add(paused, 1000, 0);
    schedule.frontier.gained(TENANT, "http://a");
    for _ in 0..500 {
        schedule.turn(0);
    }
    for now in [1000, 2000, 3000] {
        schedule.add(other, 1, 0);
        schedule.frontier.gained(TENANT, "http://a");
        let before = schedule.refills;
        assert_eq!(schedule.turn(now), [other]);
        assert!(schedule.refills - before <= 2, "the head, and where the walk is");
        schedule.turn(now);
        schedule.frontier.forget_idle(now, 3_600_000);
    }
    schedule.frontier.forget_idle(WALK_MS, 3_600_000);
    assert!(schedule.frontier.flows.is_empty() && schedule.frontier.walkers.is_empty(), "nothing is kept for long");
}

#[test]
fn what_a_long_walk_has_found_is_kept() {
    let mut schedule = Schedule::new();
    let (paused, other) = (schedule.dispatch(true), schedule.dispatch(false));
    schedule.add(paused, 5000, 0);
    schedule.add(other, 100, 0);
    schedule.frontier.gained(TENANT, "http://a");
    let mut now = 0;
    while schedule.turn(now).is_empty() {
        now += 1000;
        assert!(now < 1_000_000, "it is never reached");
    }
    assert!(now > 2 * WALK_MS, "a walk of {now} ms is none");
    let mut issued = 0;
    for turn in 0..25 {
        if turn == 10 {
            // What goes on elsewhere has it begin again, and so does a job that comes back.
            let elsewhere = schedule.dispatch(true);
            schedule.set(elsewhere, false);
        }
        now += 1000;
        schedule.frontier.gained(TENANT, "http://a");
        issued += schedule.turn(now).len();
    }
    assert!(issued >= 24, "{issued} of the jobs that it had found");
}

#[test]
fn what_comes_where_a_walk_has_been_is_found_by_the_next() {
    let mut schedule = Schedule::new();
    let (paused, other) = (schedule.dispatch(true), schedule.dispatch(false));
    schedule.add(paused, 200, 0);
    schedule.add(paused, 200, 1);
    // These keep the walk where it is: behind all.
    schedule.add(other, 2000, 1);
    schedule.frontier.gained(TENANT, "http://a");
    let mut now = 0;
    while schedule.turn(now).is_empty() {}
    let urgent = schedule.dispatch(false);
    schedule.add(urgent, 1, 0);
    schedule.frontier.gained(TENANT, "http://a");
    while !schedule.turn(now).contains(&urgent) {
        now += DELAY_MS / 2;
        assert!(now < 2 * WALK_MS, "it waits for more than is found behind it");
    }
}

/// Whatever is paused and goes on, and whatever comes meanwhile: no look is long, and every job that may be is issued.
#[test]
fn random_pauses_starve_nobody() {
    for seed in 0..30 {
        let mut dice = ChaCha8Rng::seed_from_u64(seed);
        let mut schedule = Schedule::new();
        let mut dispatches: Vec<(Uuid, bool)> = Vec::new();
        for _ in 0..4 {
            let idle = dice.random_bool(0.5);
            dispatches.push((schedule.dispatch(idle), idle));
        }
        let mut now = 0;
        for _ in 0..40 {
            let (dispatch, rank) = (dispatches[dice.random_range(0..4)].0, dice.random_range(-1..=1));
            schedule.add(dispatch, dice.random_range(1..80), rank);
            schedule.frontier.gained(TENANT, "http://a");
            if dice.random_bool(0.3) {
                let (id, idle) = &mut dispatches[dice.random_range(0..4)];
                *idle = !*idle;
                let (id, idle) = (*id, *idle);
                schedule.set(id, idle);
            }
            for _ in 0..dice.random_range(1..60) {
                now += dice.random_range(0..DELAY_MS);
                schedule.turn(now);
            }
        }
        for (id, _) in &dispatches {
            schedule.set(*id, dispatches.iter().any(|(other, idle)| other == id && *idle));
        }
        let active = |schedule: &Schedule| {
            let is_active = |of: Uuid| dispatches.iter().any(|(id, idle)| *id == of && !*idle);
            schedule.jobs.iter().filter(|(_, job)| is_active(job.dispatch)).count()
        };
        for turn in 0..60_000 {
            now += DELAY_MS / 2;
            // The scan, once a minute.
            if turn % 1200 == 0 {
                schedule.frontier.found(TENANT, "http://a");
            }
            let issued = schedule.turn(now);
            assert!(issued.iter().all(|of| dispatches.iter().any(|(id, idle)| id == of && !*idle)), "seed {seed}");
            if active(&schedule) == 0 {
                break;
            }
        }
        assert_eq!(active(&schedule), 0, "seed {seed}");
        assert!(schedule.past_most <= PAST_MAX + 2 * BUFFER_MAX, "seed {seed}: {}", schedule.past_most);
    }
}
