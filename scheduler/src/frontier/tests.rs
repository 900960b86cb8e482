//! The frontier without I/O: times are given, entries are numbered.

use std::collections::BTreeMap;

use dodo_common::db::host::HostState;

use super::*;
use crate::frontier::exits::Bounds;
use crate::frontier::flow::{BUFFER_MAX, BUFFER_MIN, STALE_MS};
use crate::frontier::host_budget::HostRules;

mod region;

const TENANT: &str = "default";

struct Bench {
    frontier: Frontier,
    dispatch: Uuid,
    serial: u64,
    open: Vec<StreamId>,
}

impl Bench {
    fn new(delay_ms: Millis, host_concurrency: u32) -> Self {
        let mut frontier = Frontier::default();
        let dispatch = Uuid::now_v7();
        frontier.set_rules(dispatch, Rules { delay_ms, host_concurrency, idle: false, ..Rules::idle() });
        Self { frontier, dispatch, serial: 0, open: Vec::new() }
    }

    fn add(&mut self, host: &str, address: &str, count: usize) {
        let due = (0..count)
            .map(|_| DueJob { id: Uuid::now_v7(), attempt: 0, dispatch: self.dispatch, alone: false, revisit: false })
            .collect();
        let refill = Refill { tenant: TENANT.to_owned(), host: host.to_owned(), due };
        self.frontier.refilled(0, refill, 10_000);
        let asked = self.frontier.wants_view(10);
        let views = asked.iter().map(|host| prepared(host, &[address])).collect();
        self.frontier.viewed(0, &asked, views);
    }

    fn pick(&mut self, now: Millis) -> Vec<String> {
        let picks = self.frontier.pick(now, 100);
        let hosts = picks.iter().map(|pick| pick.host.clone()).collect();
        for pick in picks {
            self.serial += 1;
            let entry = StreamId { ms: self.serial, seq: 0 };
            self.open.push(entry);
            self.frontier.issued(now, entry, pick);
        }
        hosts
    }

    fn settle(&mut self, now: Millis) {
        let entry = self.open.remove(0);
        let settled = SettledJob { requested: true, page: true, ..SettledJob::default() };
        self.frontier.settled(now, entry, &settled);
    }
}

/// The row of a host that is prepared.
fn prepared(host: &str, addresses: &[&str]) -> HostView {
    HostView {
        host: host.to_owned(),
        addresses: addresses.iter().map(ToString::to_string).collect(),
        state: HostState::Ready,
        crawl_delay_ms: None,
        hold_in_ms: None,
        valid_in_ms: 3_600_000,
        robots_at: None,
        pace_ms: None,
    }
}

/// What visits a page again spends no budget of pages, and is held by none.
#[test]
fn a_spent_budget_lets_visits_go_on() {
    let mut bench = Bench::new(0, 8);
    let rules = Rules { host_concurrency: 8, idle: false, max_pages: Some(1), ..Rules::idle() };
    bench.frontier.set_rules(bench.dispatch, rules.clone());
    let due = [true, false, true, false, true].map(|revisit| DueJob {
        id: Uuid::now_v7(),
        attempt: 0,
        dispatch: bench.dispatch,
        alone: false,
        revisit,
    });
    let refill = Refill { tenant: TENANT.to_owned(), host: "http://a".to_owned(), due: due.to_vec() };
    bench.frontier.refilled(0, refill, 10_000);
    let asked = bench.frontier.wants_view(10);
    bench.frontier.viewed(0, &asked, vec![prepared("http://a", &["10.0.0.1"])]);
    assert_eq!(bench.pick(0).len(), 3, "two visits and the one page");
    for page in [false, true, false] {
        let entry = bench.open.remove(0);
        bench.frontier.settled(1, entry, &SettledJob { requested: true, page, ..SettledJob::default() });
    }
    bench.frontier.set_rules(bench.dispatch, Rules { pages: 1, ..rules });
    assert_eq!(bench.pick(2).len(), 1, "the last visit");
    assert_eq!(bench.frontier.take_over_budget().len(), 1, "the second page");
}

#[test]
fn a_host_waits_its_delay_after_each_completion() {
    let mut bench = Bench::new(1000, 1);
    bench.add("http://a", "10.0.0.1", 3);
    assert_eq!(bench.pick(0), ["http://a"]);
    assert!(bench.pick(5000).is_empty(), "one in flight");
    bench.settle(5000);
    assert!(bench.pick(5999).is_empty(), "the delay counts from the completion");
    assert_eq!(bench.pick(6000), ["http://a"]);
}

#[test]
fn hosts_of_one_address_share_its_clock() {
    let mut bench = Bench::new(1000, 1);
    bench.add("http://a", "10.0.0.1", 2);
    bench.add("http://b", "10.0.0.1", 2);
    bench.add("http://c", "10.0.0.2", 2);
    assert_eq!(bench.pick(0).len(), 2, "one of a and b, and c");
    bench.settle(100);
    bench.settle(100);
    assert!(bench.pick(1099).is_empty());
    assert_eq!(bench.pick(1100).len(), 2);
}

#[test]
fn a_new_host_gets_one_job_until_it_is_prepared() {
    let mut bench = Bench::new(0, 8);
    bench.frontier.gained(TENANT, "http://a");
    let due = (0..5)
        .map(|_| DueJob { id: Uuid::now_v7(), attempt: 0, dispatch: bench.dispatch, alone: false, revisit: false })
        .collect();
    let refill = Refill { tenant: TENANT.to_owned(), host: "http://a".to_owned(), due };
    bench.frontier.refilled(0, refill, 100);
    let asked = bench.frontier.wants_view(10);
    bench.frontier.viewed(0, &asked, Vec::new());
    assert_eq!(bench.pick(0).len(), 1);
    assert!(bench.pick(10).is_empty());
}

#[test]
fn a_second_report_of_an_entry_does_nothing() {
    let mut bench = Bench::new(0, 1);
    bench.add("http://a", "10.0.0.1", 3);
    assert_eq!(bench.pick(0).len(), 1);
    let entry = bench.open[0];
    bench.settle(1);
    assert_eq!(bench.pick(1).len(), 1);
    bench.frontier.settled(1, entry, &SettledJob::default());
    assert!(bench.pick(1).is_empty(), "the place of the second job is not given away");
}

#[test]
fn a_budget_is_never_exceeded_and_the_rest_is_skipped() {
    let mut bench = Bench::new(0, 8);
    let rules = Rules {
        delay_ms: 0,
        host_concurrency: 8,
        region: None,
        max_pages: Some(3),
        pages: 0,
        in_flight: 0,
        exact: true,
        idle: false,
        host: None,
    };
    bench.frontier.set_rules(bench.dispatch, rules);
    bench.add("http://a", "10.0.0.1", 10);
    assert_eq!(bench.pick(0).len(), 3);
    assert!(bench.pick(50).is_empty());
    assert_eq!(bench.frontier.next_due_ms(), None, "it waits for one of them, and for no timer");
    for _ in 0..3 {
        bench.settle(60);
    }
    assert!(bench.pick(100).is_empty());
    assert!(bench.frontier.take_over_budget().is_empty(), "only the progress in Postgres says that it is used up");
    let rules = Rules {
        delay_ms: 0,
        host_concurrency: 8,
        region: None,
        max_pages: Some(3),
        pages: 3,
        in_flight: 0,
        exact: true,
        idle: false,
        host: None,
    };
    bench.frontier.set_rules(bench.dispatch, rules);
    assert!(bench.pick(200).is_empty());
    assert_eq!(bench.frontier.take_over_budget().len(), 7);
}

#[test]
fn tenants_take_turns() {
    let mut bench = Bench::new(0, 100);
    bench.add("http://a", "10.0.0.1", 50);
    let due = (0..50)
        .map(|_| DueJob { id: Uuid::now_v7(), attempt: 0, dispatch: bench.dispatch, alone: false, revisit: false })
        .collect();
    let refill = Refill { tenant: "other".to_owned(), host: "http://a".to_owned(), due };
    bench.frontier.refilled(0, refill, 1000);
    let picks = bench.frontier.pick(0, 10);
    assert_eq!(picks.iter().filter(|pick| pick.key.tenant == "other").count(), 5);
}

#[test]
fn a_flow_at_its_budget_goes_on_when_a_job_was_no_page() {
    let mut bench = Bench::new(0, 8);
    let rules = Rules {
        delay_ms: 0,
        host_concurrency: 8,
        region: None,
        max_pages: Some(2),
        pages: 0,
        in_flight: 0,
        exact: true,
        idle: false,
        host: None,
    };
    bench.frontier.set_rules(bench.dispatch, rules);
    bench.add("http://a", "10.0.0.1", 5);
    assert_eq!(bench.pick(0).len(), 2);
    assert!(bench.pick(10).is_empty());
    let entry = bench.open.remove(0);
    bench.frontier.settled(20, entry, &SettledJob { requested: true, ..SettledJob::default() });
    assert_eq!(bench.pick(20).len(), 1);
}

#[test]
fn the_delay_counts_from_the_end_of_the_request_and_not_from_its_report() {
    let mut bench = Bench::new(1000, 1);
    bench.add("http://a", "10.0.0.1", 4);
    // One is issued at 100, ends at 300 and is reported at 900.
    let settle = |bench: &mut Bench, now, ended_ms_ago| {
        let entry = bench.open.remove(0);
        let settled = SettledJob { requested: true, ended_ms_ago, ..SettledJob::default() };
        bench.frontier.settled(now, entry, &settled);
    };
    assert_eq!(bench.pick(100).len(), 1);
    settle(&mut bench, 900, 600);
    assert!(bench.pick(1299).is_empty());
    assert_eq!(bench.pick(1300).len(), 1);
    // No request ends before it is issued, nor after its report.
    settle(&mut bench, 2000, 5000);
    assert!(bench.pick(2299).is_empty());
    assert_eq!(bench.pick(2300).len(), 1);
    settle(&mut bench, 2400, -5000);
    assert!(bench.pick(3399).is_empty());
    assert_eq!(bench.pick(3400).len(), 1);
}

#[test]
fn a_host_is_looked_up_again_after_a_loss() {
    let mut bench = Bench::new(0, 1);
    bench.frontier.gained(TENANT, "http://a");
    let due = (0..2)
        .map(|_| DueJob { id: Uuid::now_v7(), attempt: 0, dispatch: bench.dispatch, alone: false, revisit: false })
        .collect();
    let refill = Refill { tenant: TENANT.to_owned(), host: "http://a".to_owned(), due };
    bench.frontier.refilled(0, refill, 100);
    let asked = bench.frontier.wants_view(10);
    bench.frontier.viewed(0, &asked, Vec::new());
    assert_eq!(bench.pick(0).len(), 1);
    // Its worker prepared the host, committed that, and died before it could report.
    let entry = bench.open.remove(0);
    bench.frontier.settled(10, entry, &SettledJob::lost());
    assert_eq!(bench.frontier.wants_view(10), ["http://a"]);
    assert!(bench.pick(10).is_empty(), "nothing is issued by what was known before");
}

#[test]
fn suspects_wait_for_one_another_and_nobody_waits_for_them() {
    let mut bench = Bench::new(0, 100);
    bench.frontier.set_suspects_max(1);
    bench.frontier.gained(TENANT, "");
    let due = (0..8)
        .map(|n| DueJob { id: Uuid::now_v7(), attempt: 0, dispatch: bench.dispatch, alone: n < 5, revisit: false })
        .collect();
    let refill = Refill { tenant: TENANT.to_owned(), host: String::new(), due };
    bench.frontier.refilled(0, refill, 100);
    let mut pick = |frontier: &mut Frontier| -> Vec<bool> {
        let picks = frontier.pick(0, 100);
        picks
            .into_iter()
            .map(|pick| {
                let alone = pick.alone;
                bench.serial += 1;
                frontier.issued(0, StreamId { ms: bench.serial, seq: 0 }, pick);
                alone
            })
            .collect()
    };
    let frontier = &mut bench.frontier;
    assert_eq!(pick(frontier), [true, false, false, false], "those behind the suspects go on");
    assert!(pick(frontier).is_empty());
    frontier.settled(1, StreamId { ms: 2, seq: 0 }, &SettledJob::default());
    assert!(pick(frontier).is_empty(), "another than the suspect was settled");
    frontier.settled(1, StreamId { ms: 1, seq: 0 }, &SettledJob::default());
    assert_eq!(pick(frontier), [true]);
    frontier.set_suspects_max(3);
    assert_eq!(pick(frontier), [true, true]);
    // A new leader finds two of them in the stream.
    let adopted = |alone| Adopted {
        proxy: None,
        key: JobKey { tenant: TENANT.to_owned(), id: Uuid::now_v7(), attempt: 0 },
        host: String::new(),
        dispatch: Uuid::nil(),
        alone,
    };
    frontier.complete_all(2);
    frontier.adopt(2, StreamId { ms: 90, seq: 0 }, adopted(true));
    frontier.adopt(2, StreamId { ms: 91, seq: 0 }, adopted(true));
    let due = (0..2)
        .map(|_| DueJob { id: Uuid::now_v7(), attempt: 0, dispatch: bench.dispatch, alone: true, revisit: false })
        .collect();
    frontier.refilled(2, Refill { tenant: TENANT.to_owned(), host: String::new(), due }, 100);
    assert_eq!(pick(frontier), [true], "a third has room, a fourth has not");
}

#[test]
fn a_paused_dispatch_is_dropped_from_the_buffer_and_found_again() {
    let mut bench = Bench::new(0, 8);
    bench.add("http://a", "10.0.0.1", 3);
    let rules = |idle| Rules { host_concurrency: 8, idle, ..Rules::idle() };
    bench.frontier.set_rules(bench.dispatch, rules(true));
    assert_eq!(bench.frontier.budgets.past(&[]), [bench.dispatch]);
    assert!(bench.pick(0).is_empty());
    assert_eq!(bench.frontier.next_due_ms(), None, "nothing spins");
    assert!(!bench.frontier.take_resumed());
    bench.frontier.set_rules(bench.dispatch, rules(false));
    assert!(bench.frontier.take_resumed());
    bench.add("http://a", "10.0.0.1", 3);
    assert_eq!(bench.pick(0).len(), 3);
    // A worker that found it paused first says so.
    bench.add("http://a", "10.0.0.1", 2);
    let entry = bench.open.remove(0);
    bench.frontier.settled(1, entry, &SettledJob { due_in_ms: Some(0), idle: true, ..SettledJob::default() });
    assert!(bench.pick(1).is_empty());
}

/// Refills the only flow as the schedule would, were it endless; returns how many rows were asked for.
fn refill_endless(bench: &mut Bench, now: Millis) -> usize {
    let asked = bench.frontier.wants_refill(now, 10);
    let [Wanted { flows, limits, .. }] = asked.as_slice() else { return 0 };
    let (key, limit) = (&flows[0], &limits[0]);
    // What is issued is still in the schedule, and in front.
    let busy: Vec<Uuid> = bench.frontier.issued.values().map(|issued| issued.key.id).collect();
    let fresh = std::iter::repeat_with(Uuid::now_v7).take(*limit as usize - busy.len());
    let due: Vec<DueJob> = busy
        .iter()
        .copied()
        .chain(fresh)
        .map(|id| DueJob { id, attempt: 0, dispatch: bench.dispatch, alone: false, revisit: false })
        .collect();
    let refill = Refill { tenant: key.0.clone(), host: key.1.clone(), due };
    bench.frontier.refilled(now, refill, *limit);
    *limit as usize
}

#[test]
fn the_buffer_follows_the_pace() {
    let mut bench = Bench::new(0, i32::MAX as u32);
    bench.frontier.gained(TENANT, "");
    let mut asked = Vec::new();
    for turn in 0..200 {
        asked.push(refill_endless(&mut bench, turn * 10));
        bench.pick(turn * 10);
        while !bench.open.is_empty() {
            bench.settle(turn * 10 + 5);
        }
    }
    assert_eq!(asked[0], BUFFER_MIN);
    let most = asked.iter().max().expect("it asked");
    assert!((BUFFER_MAX..=BUFFER_MAX + BUFFER_MAX / 4).contains(most), "{most}: what is left is read again");
    let (read, issued) = (asked.iter().sum::<usize>(), bench.serial as usize);
    assert!(read < issued * 2, "{read} rows read for {issued} jobs");
    // A slow one holds few.
    for minute in 1..20 {
        bench.frontier.gained(TENANT, "");
        refill_endless(&mut bench, minute * 60_000);
    }
    assert_eq!(bench.frontier.flows.values().map(|flow| flow.room).max(), Some(BUFFER_MIN));
}

#[test]
fn with_enough_in_the_buffer_a_hint_waits() {
    let mut bench = Bench::new(1000, 1);
    bench.add("http://a", "10.0.0.1", 20);
    for now in [10, 20, 30] {
        bench.frontier.gained(TENANT, "http://a");
        assert!(bench.frontier.wants_refill(now, 10).is_empty());
    }
    assert_eq!(bench.frontier.next_due_ms(), Some(STALE_MS), "one timer");
    assert_eq!(bench.frontier.wants_refill(STALE_MS, 10).len(), 1);
    assert_eq!(bench.frontier.next_due_ms(), None);
    bench.frontier.gained(TENANT, "http://new");
    assert_eq!(bench.frontier.wants_refill(STALE_MS, 10).len(), 1, "nothing is there to go on with");
}

/// A flow of a host with `count` jobs, as a scan and a refill would bring it.
fn bring(frontier: &mut Frontier, dispatch: Uuid, host: &str, count: usize, limit: i64) {
    frontier.found(TENANT, host);
    let due =
        (0..count).map(|_| DueJob { id: Uuid::now_v7(), attempt: 0, dispatch, alone: false, revisit: false }).collect();
    frontier.refilled(0, Refill { tenant: TENANT.to_owned(), host: host.to_owned(), due }, limit);
}

#[test]
fn more_flows_than_are_held_take_turns() {
    let mut frontier = Frontier::bounded(2);
    let dispatch = Uuid::now_v7();
    frontier.set_rules(dispatch, Rules { idle: false, host_concurrency: 8, ..Rules::idle() });
    let ready = |frontier: &mut Frontier| {
        let asked = frontier.wants_view(10);
        let views = asked.iter().map(|host| prepared(host, &[])).collect();
        frontier.viewed(0, &asked, views);
    };
    let hosts = |picks: &[Pick]| -> Vec<String> {
        let mut hosts: Vec<String> = picks.iter().map(|pick| pick.host.clone()).collect();
        hosts.sort();
        hosts
    };
    for host in ["http://a", "http://b", "http://c"] {
        // The schedule has more of each than was asked for.
        bring(&mut frontier, dispatch, host, 3, 3);
    }
    ready(&mut frontier);
    assert!(!frontier.has_room());
    assert!(!frontier.found(TENANT, "http://c"), "a scan waits there");
    assert!(frontier.found(TENANT, "http://b"), "and passes what is held");
    let picks = frontier.pick(0, 100);
    assert_eq!(hosts(&picks), ["http://a", "http://a", "http://a", "http://b", "http://b", "http://b"]);
    assert!(frontier.has_room(), "what is used up has left");
    assert!(frontier.scanned(), "the scan begins again: there was more than is held");
    bring(&mut frontier, dispatch, "http://c", 3, 100);
    ready(&mut frontier);
    assert_eq!(hosts(&frontier.pick(0, 100)), ["http://c"; 3]);
    // The clocks of those that left are kept, and so are their places.
    for (serial, pick) in (1..).zip(picks) {
        frontier.issued(0, StreamId { ms: serial, seq: 0 }, pick);
    }
    assert_eq!(frontier.census().get(&(TENANT, dispatch, Cause::Request)), Some(&6));
    assert!(!frontier.scanned(), "all was found");
}

#[test]
fn a_flow_that_waits_long_leaves_while_there_are_too_many() {
    let mut bench = Bench::new(60_000, 1);
    bench.frontier.flows_max = 1;
    bench.add("http://a", "10.0.0.1", 3);
    assert_eq!(bench.pick(0), ["http://a"]);
    bench.settle(10);
    assert!(!bench.frontier.has_room());
    assert!(bench.pick(10).is_empty());
    assert!(bench.frontier.has_room(), "it would wait a minute");
    bench.add("http://a", "10.0.0.1", 3);
    assert!(bench.pick(60_009).is_empty(), "its clock is kept");
    bench.add("http://a", "10.0.0.1", 3);
    assert_eq!(bench.pick(60_010), ["http://a"]);
}

#[test]
fn the_census_says_what_is_waited_for() {
    let mut bench = Bench::new(1000, 1);
    let census = |bench: &Bench| -> BTreeMap<Cause, i64> {
        let all = bench.frontier.census().into_iter();
        all.map(|((tenant, dispatch, cause), count)| {
            assert_eq!((tenant, dispatch), (TENANT, bench.dispatch));
            (cause, count)
        })
        .collect()
    };
    bench.add("http://a", "10.0.0.1", 3);
    bench.add("http://b", "10.0.0.1", 3);
    assert_eq!(census(&bench), BTreeMap::from([(Cause::Turn, 2)]));
    bench.pick(0);
    assert_eq!(
        census(&bench),
        BTreeMap::from([(Cause::Request, 1), (Cause::Address, 1)]),
        "one in flight, one beside it"
    );
    bench.settle(50);
    bench.pick(60);
    assert_eq!(census(&bench), BTreeMap::from([(Cause::Delay, 1), (Cause::Address, 1)]));
}

#[test]
fn a_slow_host_is_asked_less_often_and_the_next_leader_knows() {
    let mut bench = Bench::new(100, 1);
    bench.add("http://a", "10.0.0.1", 30);
    let mut now = 0;
    for _ in 0..10 {
        assert_eq!(bench.pick(now).len(), 1);
        now += 4000;
        let entry = bench.open.remove(0);
        let settled = SettledJob { requested: true, answered: Some((4000, true)), ..SettledJob::default() };
        bench.frontier.settled(now, entry, &settled);
        now += 4000;
    }
    let paces = bench.frontier.take_paces(10);
    assert_eq!(paces, [("http://a".to_owned(), 4000)]);
    assert!(bench.frontier.take_paces(10).is_empty());
    assert_eq!(bench.pick(now).len(), 1);
    bench.settle(now + 10);
    assert!(bench.pick(now + 4009).is_empty());
    assert_eq!(bench.pick(now + 4010).len(), 1);
}

#[test]
fn the_budget_of_a_host_is_its_own_and_what_is_over_ends() {
    let mut bench = Bench::new(0, 8);
    let host = Some(HostRules { max_pages: Some(2), allowance: None });
    bench.frontier.set_rules(bench.dispatch, Rules { idle: false, host_concurrency: 8, host, ..Rules::idle() });
    bench.add("http://a", "10.0.0.1", 5);
    bench.add("http://b", "10.0.0.2", 5);
    assert!(bench.pick(0).is_empty(), "what they have given is not known");
    let read = |bench: &mut Bench, pages| {
        for key in bench.frontier.take_unread(10) {
            bench.frontier.set_given(&key, (pages, 0));
        }
    };
    read(&mut bench, 0);
    assert_eq!(bench.pick(RULES_MS).len(), 4, "two of each");
    assert!(bench.pick(50).is_empty());
    for _ in 0..4 {
        bench.settle(60);
    }
    assert!(bench.pick(100).is_empty());
    assert!(bench.frontier.take_over_budget().is_empty(), "only the tally in Postgres says that it is used up");
    read(&mut bench, 2);
    assert!(bench.pick(100 + RULES_MS).is_empty());
    let over = bench.frontier.take_over_budget();
    assert_eq!(over.len(), 6);
    assert!(over.iter().all(|(_, over)| *over == Over::Pages { max: 2 }), "{over:?}");
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
    let census = bench.frontier.census();
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
    assert_eq!(bench.frontier.census()[&(TENANT, bench.dispatch, Cause::Quarantine)], 2);
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
