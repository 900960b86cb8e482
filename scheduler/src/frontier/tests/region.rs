//! Jobs whose region is shut step aside, and nobody else waits for them.

use std::collections::{BTreeMap, BTreeSet};

use dodo_common::db::proxy::ProxyRow;
use dodo_common::db::schedule::Look;
use dodo_common::model::cause::Cause;
use dodo_common::model::proxy::ProxyWord;
use dodo_common::stream::question::Waiting;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::frontier::exits::Bounds;
use crate::frontier::flow::BUFFER_MAX;
use crate::frontier::issued::Adopted;
use crate::frontier::pick::Pick;
use crate::frontier::refill::Wanted;

const DELAY_MS: Millis = 100;
const QUARANTINE_MS: Millis = 1000;
const POOL: &str = "eu=http://eu:1,us=http://us:1";

/// The pool, with the proxy of `eu` in quarantine until [`QUARANTINE_MS`].
fn exits() -> Exits {
    let bounds = Bounds { concurrency: 32, delay_ms: 0, quarantine_ms: QUARANTINE_MS };
    let away = ProxyRow {
        address: "eu:1".to_owned(),
        region: "eu".to_owned(),
        quarantined_ms: Some(QUARANTINE_MS),
        strikes: 1,
        successes: 0,
        blocks: 0,
        failures: 3,
    };
    Exits::new(0, &POOL.parse().unwrap(), bounds, &[away])
}

fn rules(region: Option<&str>) -> Rules {
    Rules { delay_ms: DELAY_MS, idle: false, region: region.map(Arc::from), ..Rules::idle() }
}

/// What Postgres has: jobs in the order in which they are due, each at its host.
#[derive(Default)]
struct Schedule {
    jobs: Vec<(String, DueJob)>,
    /// The host that a scan was at last.
    at: String,
}

impl Schedule {
    fn add(&mut self, host: &str, dispatch: Uuid, count: usize) {
        self.jobs.extend((0..count).map(|_| (host.to_owned(), due_job(dispatch))));
    }

    /// A scan goes on as far as there is room.
    fn scan(&mut self, frontier: &mut Frontier) {
        let rest: BTreeSet<String> =
            self.jobs.iter().map(|(host, _)| host).filter(|host| **host > self.at).cloned().collect();
        for host in rest {
            if !frontier.has_room() || !frontier.found(TENANT, &host) {
                return;
            }
            self.at = host;
        }
        self.at.clear();
        frontier.scanned();
    }

    /// What the dispatcher reads before it issues. Returns the dispatches that were looked past.
    fn serve(&self, frontier: &mut Frontier, now: Millis, address: impl Fn(&str) -> String) -> Vec<Uuid> {
        let mut looked_past = Vec::new();
        for Wanted { looks, past } in frontier.wants_refill(now, 100) {
            for Look { tenant, host, limit, .. } in looks {
                let is_due = |(at, job): &&(String, DueJob)| *at == host && !past.all.contains(&job.dispatch);
                let due = self.jobs.iter().filter(is_due).take(limit as usize).map(|(_, job)| job.clone()).collect();
                frontier.refilled(now, Refill { tenant, host, due, ..Refill::default() }, limit);
            }
            looked_past.extend(past.all);
        }
        let asked = frontier.wants_view(100);
        let views = asked.iter().map(|host| prepared(host, &[&address(host)])).collect();
        frontier.viewed(now, &asked, views);
        looked_past
    }
}

#[test]
fn a_job_leaves_by_a_proxy_or_waits_and_takes_no_place_meanwhile() {
    let mut bench = Bench::new(0, 1);
    let bounds = Bounds { concurrency: 1, delay_ms: 0, quarantine_ms: 1000 };
    bench.frontier.set_exits(Exits::new(0, &"eu=http://a:1".parse().unwrap(), bounds, &[]));
    bench.add("http://a", "10.0.0.1", 5);
    bench.add("http://b", "10.0.0.2", 5);
    let first = bench.frontier.pick(0, 100);
    assert_eq!(first.iter().map(|pick| pick.proxy.as_deref()).collect::<Vec<_>>(), [Some("a:1")]);
    let census = bench.frontier.census(&NOTHING);
    assert_eq!(census[&(TENANT, bench.dispatch, Cause::Proxy)], 1, "the other host waits for the proxy");
    let down = SettledJob { proxy: Some(ProxyWord::Down), due_in_ms: Some(0), ..SettledJob::default() };
    let (mut serial, mut next) = (0, first);
    for _ in 0..3 {
        for pick in next {
            serial += 1;
            let entry = StreamId { ms: serial, seq: 0 };
            bench.frontier.issued(0, entry, pick);
            bench.frontier.settled(0, entry, &down);
        }
        next = bench.frontier.pick(0, 1);
    }
    assert!(next.is_empty() && bench.frontier.pick(999, 100).is_empty());
    assert_eq!(bench.frontier.census(&NOTHING)[&(TENANT, bench.dispatch, Cause::Quarantine)], 2);
    assert_eq!(bench.frontier.take_exits(0)[0].quarantined_ms, Some(1000));
    assert_eq!(bench.frontier.pick(1000, 100).len(), 1, "the trial");

    // A new leader finds it in the stream; the places of the proxy are counted as before.
    bench.frontier.complete_all(1000);
    let adopted = Adopted {
        key: JobKey { tenant: TENANT.to_owned(), id: Uuid::now_v7(), attempt: 0 },
        host: "http://a".to_owned(),
        dispatch: bench.dispatch,
        alone: false,
        proxy: Some("a:1".to_owned()),
    };
    bench.frontier.adopt(1000, StreamId { ms: 90, seq: 0 }, adopted);
    bench.add("http://c", "10.0.0.3", 1);
    assert!(bench.pick(1000).is_empty(), "one is under way by the proxy");
    bench.frontier.settled(1001, StreamId { ms: 90, seq: 0 }, &SettledJob::default());
    assert_eq!(bench.pick(1001), ["http://c"]);
}

#[test]
fn a_region_that_is_shut_steps_aside_and_its_hosts_go_on() {
    let (eu, us, host) = (Uuid::now_v7(), Uuid::now_v7(), "http://a");
    let (mut frontier, mut schedule) = (Frontier::default(), Schedule::default());
    frontier.set_exits(exits());
    frontier.set_rules(eu, rules(Some("eu")));
    frontier.set_rules(us, rules(Some("us")));
    // More of the first than is ever buffered: what is behind it is not even read before it is looked past.
    schedule.add(host, eu, BUFFER_MAX * 2);
    schedule.add(host, us, 3);
    schedule.scan(&mut frontier);
    let serve = |frontier: &mut Frontier, now| schedule.serve(frontier, now, |_| "10.0.0.1".to_owned());
    let mut serial = 0;
    let mut pick = |frontier: &mut Frontier, now| -> Vec<(Uuid, StreamId)> {
        let picks = frontier.pick(now, 100).into_iter();
        let mut issue = |pick: Pick| {
            serial += 1;
            let (dispatch, entry) = (pick.dispatch, StreamId { ms: serial, seq: 0 });
            assert_eq!(pick.proxy.as_deref(), Some(if dispatch == eu { "eu:1" } else { "us:1" }));
            frontier.issued(now, entry, pick);
            (dispatch, entry)
        };
        picks.map(&mut issue).collect()
    };
    let good = SettledJob { requested: true, page: true, proxy: Some(ProxyWord::Good), ..SettledJob::default() };

    assert!(serve(&mut frontier, 0).is_empty());
    assert_eq!(pick(&mut frontier, 0), [], "all that was read is of the region that is shut");
    assert_eq!(serve(&mut frontier, 1), [eu]);
    let mut now = 1;
    for _ in 0..3 {
        let picked = pick(&mut frontier, now);
        assert_eq!(picked.iter().map(|(dispatch, _)| *dispatch).collect::<Vec<_>>(), [us]);
        let standing = frontier.standing(now, &waiting(host, eu));
        assert_eq!((standing.cause, standing.until_ms), (Cause::Quarantine, Some(QUARANTINE_MS)));
        assert_eq!(frontier.standing(now, &waiting(host, us)).cause, Cause::Busy);
        let census = frontier.census(&NOTHING);
        assert_eq!((census[&(TENANT, eu, Cause::Quarantine)], census[&(TENANT, us, Cause::Request)]), (1, 1));
        now += 10;
        frontier.settled(now, picked[0].1, &good);
        now += DELAY_MS;
        assert_eq!(pick(&mut frontier, now - 1), [], "the clock of the host is that of both");
    }
    assert!(serve(&mut frontier, now).is_empty(), "nothing of the other is left, nor is anything asked for");
    assert_eq!(pick(&mut frontier, QUARANTINE_MS - 1), []);
    frontier.forget_idle(QUARANTINE_MS - 1, 0);
    assert_eq!(frontier.census(&NOTHING)[&(TENANT, eu, Cause::Quarantine)], 1, "it is not forgotten");

    let trial = pick(&mut frontier, QUARANTINE_MS);
    assert_eq!(trial.len(), 1, "it is the trial");
    let standing = frontier.standing(QUARANTINE_MS, &waiting(host, eu));
    assert_eq!((standing.cause, standing.until_ms), (Cause::Quarantine, None), "what the trial says");
    assert!(serve(&mut frontier, QUARANTINE_MS).is_empty(), "nothing is looked past any more");
    now = QUARANTINE_MS + 10;
    frontier.settled(now, trial[0].1, &good);
    assert_eq!(pick(&mut frontier, now + DELAY_MS).len(), 1);
}

#[test]
fn for_a_trial_one_flow_comes_back_and_then_all() {
    const HOSTS: usize = 10;
    let eu = Uuid::now_v7();
    let (mut frontier, mut schedule) = (Frontier::default(), Schedule::default());
    frontier.set_exits(exits());
    frontier.set_rules(eu, rules(Some("eu")));
    for host in 0..HOSTS {
        schedule.add(&format!("http://h{host}"), eu, 2);
    }
    schedule.scan(&mut frontier);
    let address = |host: &str| format!("10.0.0.{}", host.as_bytes()[host.len() - 1]);
    schedule.serve(&mut frontier, 0, address);
    assert!(frontier.pick(0, 100).is_empty());
    assert_eq!(frontier.census(&NOTHING)[&(TENANT, eu, Cause::Quarantine)], HOSTS as i64);
    assert!(frontier.pick(QUARANTINE_MS, 0).is_empty());
    assert!(frontier.wants_refill(QUARANTINE_MS, 100).is_empty(), "nobody comes back while the window is full");
    let trial = frontier.pick(QUARANTINE_MS, 100);
    assert_eq!(trial.len(), 1);
    let read: usize = frontier.wants_refill(QUARANTINE_MS, 100).iter().map(|wanted| wanted.looks.len()).sum();
    assert_eq!(read, 1, "only that one is read anew");
    assert_eq!(frontier.census(&NOTHING)[&(TENANT, eu, Cause::Quarantine)], HOSTS as i64 - 1);
    let entry = StreamId { ms: 1, seq: 0 };
    frontier.issued(QUARANTINE_MS, entry, trial[0].clone());
    let good = SettledJob { requested: true, proxy: Some(ProxyWord::Good), ..SettledJob::default() };
    frontier.settled(QUARANTINE_MS + 10, entry, &good);
    assert_eq!(frontier.pick(QUARANTINE_MS + 10, 100).len(), HOSTS - 1, "it is healthy");
}

/// A pool whose first proxy is down until `heals_ms`, and three crawls of six hosts at three addresses: every job is done,
/// none before its clocks allow it, and those that need not wait for the region do not.
fn simulate(seed: u64, mut frontier: Frontier) {
    const HOSTS: usize = 6;
    const JOBS: usize = 30;
    let heals_ms = 40_000;
    let mut dice = ChaCha8Rng::seed_from_u64(seed);
    let crawls = [Some("eu"), Some("us"), None].map(|region| (Uuid::now_v7(), region));
    let mut schedule = Schedule::default();
    frontier.set_exits(Exits::new(
        0,
        &POOL.parse().unwrap(),
        Bounds { concurrency: 4, delay_ms: 0, quarantine_ms: QUARANTINE_MS },
        &[],
    ));
    for (dispatch, region) in crawls {
        frontier.set_rules(dispatch, rules(region));
        for host in 0..HOSTS {
            schedule.add(&format!("http://h{host}"), dispatch, JOBS);
        }
    }
    let address = |host: &str| format!("10.0.0.{}", host.as_bytes()[host.len() - 1] / 2);
    let (eu, mut serial, mut now) = (crawls[0].0, 0, 0);
    // When it ends, its entry, its pick.
    let mut open: Vec<(Millis, StreamId, Pick)> = Vec::new();
    let mut completed: BTreeMap<String, Millis> = BTreeMap::new();
    let mut others_done_ms = 0;
    while !schedule.jobs.is_empty() {
        assert!(now < 4 * heals_ms, "seed {seed}: {} jobs are left", schedule.jobs.len());
        if now % 200 == 0 && (now == 0 || frontier.crowded) {
            schedule.scan(&mut frontier);
        }
        for _ in 0..4 {
            schedule.serve(&mut frontier, now, address);
        }
        for pick in frontier.pick(now, 8 - open.len()) {
            for place in [pick.host.clone(), address(&pick.host)] {
                let busy =
                    |(_, _, other): &(Millis, StreamId, Pick)| other.host == place || address(&other.host) == place;
                assert!(!open.iter().any(busy), "seed {seed}: two at {place}");
                let free_ms = completed.get(&place).map_or(0, |at| at + DELAY_MS);
                assert!(free_ms <= now, "seed {seed}: {place} is free at {free_ms}, and not at {now}");
            }
            serial += 1;
            let entry = StreamId { ms: serial, seq: 0 };
            frontier.issued(now, entry, pick.clone());
            open.push((now + dice.random_range(1..40), entry, pick));
        }
        now += 10;
        for (_, entry, pick) in open.extract_if(.., |(ends_ms, ..)| *ends_ms <= now) {
            if pick.proxy.as_deref() == Some("eu:1") && now < heals_ms {
                let down = SettledJob { proxy: Some(ProxyWord::Down), due_in_ms: Some(0), ..SettledJob::default() };
                frontier.settled(now, entry, &down);
                continue;
            }
            let good = SettledJob { requested: true, proxy: Some(ProxyWord::Good), ..SettledJob::default() };
            frontier.settled(now, entry, &good);
            completed.extend([pick.host.clone(), address(&pick.host)].map(|place| (place, now)));
            let before = schedule.jobs.len();
            schedule.jobs.retain(|(_, job)| job.id != pick.key.id);
            assert_eq!(schedule.jobs.len(), before - 1, "seed {seed}: it was done already");
            if pick.dispatch != eu {
                others_done_ms = now;
            }
        }
    }
    assert!(others_done_ms < heals_ms, "seed {seed}: they waited until {others_done_ms} of {now} ms");
}

#[test]
fn whatever_the_order_nothing_is_lost_and_no_clock_broken() {
    for seed in 0..6 {
        simulate(seed, Frontier::default());
        simulate(seed, Frontier::bounded(3));
    }
}

fn waiting(host: &str, dispatch: Uuid) -> Waiting {
    Waiting { host: host.to_owned(), dispatch, exempt: false, alone: false }
}
