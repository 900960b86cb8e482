//! Refills: how much is read when, and more flows than are held.

use dodo_common::db::schedule::Look;
use dodo_common::model::cause::Cause;

use super::*;
use crate::frontier::flow::{BUFFER_MAX, BUFFER_MIN, STALE_MS};
use crate::frontier::pick::Pick;
use crate::frontier::refill::Wanted;

/// Refills the only flow as the schedule would, were it endless; returns how many rows were asked for.
fn refill_endless(bench: &mut Bench, now: Millis) -> usize {
    let asked = bench.frontier.wants_refill(now, 10);
    let [Wanted { looks, .. }] = asked.as_slice() else { return 0 };
    let Look { tenant, host, limit, .. } = &looks[0];
    // What is issued is still in the schedule, and in front.
    let busy: Vec<Uuid> = bench.frontier.issued.values().map(|issued| issued.key.id).collect();
    let fresh = std::iter::repeat_with(Uuid::now_v7).take(*limit as usize - busy.len());
    let due: Vec<DueJob> =
        busy.iter().copied().chain(fresh).map(|id| DueJob { id, ..due_job(bench.dispatch) }).collect();
    let refill = Refill { tenant: tenant.clone(), host: host.clone(), due, ..Refill::default() };
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
    let due = (0..count).map(|_| due_job(dispatch)).collect();
    frontier.refilled(0, Refill { tenant: TENANT.to_owned(), host: host.to_owned(), due, ..Refill::default() }, limit);
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
    assert_eq!(frontier.census(&NOTHING).get(&(TENANT, dispatch, Cause::Request)), Some(&6));
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

/// Of revisits, retries and crawls that are to begin later there may be more than flows are held.
#[test]
fn what_waits_for_tomorrow_keeps_nobody_out() {
    const DAY_MS: Millis = 86_400_000;
    let mut bench = Bench::new(0, 1);
    bench.frontier.flows_max = 3;
    bench.add("http://a", "10.0.0.1", 1);
    assert_eq!(bench.pick(0), ["http://a"]);
    for (host, in_ms) in [("http://b", DAY_MS), ("http://c", 1000)] {
        let key = (TENANT.to_owned(), host.to_owned());
        bench.frontier.due_in(0, &key, in_ms);
    }
    assert!(bench.frontier.found(TENANT, "http://d"), "it takes the place of what is due tomorrow");
    assert!(!bench.frontier.found(TENANT, "http://e"), "one is due at once, one soon, and one under way");
    assert!(bench.frontier.scanned(), "the scan goes on: what has left comes back by it");
    // A long wait at a host gives way, too; its clock is kept.
    let mut bench = Bench::new(DAY_MS, 1);
    bench.frontier.flows_max = 1;
    bench.add("http://a", "10.0.0.1", 2);
    assert_eq!(bench.pick(0), ["http://a"]);
    bench.settle(10);
    assert!(bench.pick(10).is_empty());
    assert!(bench.frontier.found(TENANT, "http://b"));
    assert!(!bench.frontier.found(TENANT, "http://a"), "there is one place");
}
