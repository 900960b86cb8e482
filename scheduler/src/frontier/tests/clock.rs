//! Clocks: of a host, of its addresses, of one that is new or slow.

use super::*;
use crate::frontier::issued::Adopted;

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
fn hosts_that_share_only_their_second_address_share_its_clock() {
    let mut bench = Bench::new(1000, 1);
    bench.add_at("http://a", &["10.0.0.1", "10.0.0.9"], 2);
    bench.add_at("http://b", &["10.0.0.2", "10.0.0.9"], 2);
    let mut hosts = Vec::new();
    for now in [0, 6000, 12_000, 18_000] {
        let picked = bench.pick(now);
        assert_eq!(picked.len(), 1, "one of both at {now}");
        hosts.extend(picked);
        assert!(bench.pick(now + 5000).is_empty(), "one in flight there");
        bench.settle(now + 5000);
        assert!(bench.pick(now + 5999).is_empty(), "the delay counts at each of them");
    }
    hosts.sort();
    assert_eq!(hosts, ["http://a", "http://a", "http://b", "http://b"]);
    assert_eq!(bench.frontier.places.waited_at(), 0, "nobody is left waiting where nothing is under way");
}

#[test]
fn hosts_at_one_address_take_turns() {
    let mut bench = Bench::new(1000, 1);
    let names = ["http://a", "http://b", "http://c"];
    for name in names {
        bench.add(name, "10.0.0.9", 3);
    }
    let mut order = Vec::new();
    for turn in 0..9 {
        let now = turn * 1200;
        order.extend(bench.pick(now));
        bench.settle(now + 200);
        assert!(bench.pick(now + 1199).is_empty());
    }
    assert_eq!(order.len(), 9);
    for round in order.chunks_mut(3) {
        round.sort();
        assert_eq!(round, names, "each has its turn");
    }
}

/// Without a delay, too, and whether there is room in the window or none: nobody gets there before those that wait.
#[test]
fn hosts_at_one_address_take_turns_however_fast_they_are() {
    for room in [1, 2, 100] {
        let mut bench = Bench::new(0, 1);
        let names = ["http://a", "http://b", "http://c"];
        for name in names {
            bench.add(name, "10.0.0.9", 3);
        }
        let mut order = Vec::new();
        for now in 0..9 {
            let picks = bench.frontier.pick(now, room);
            assert_eq!(picks.len(), 1);
            for pick in picks {
                order.push(pick.host.clone());
                let entry = StreamId { ms: 1 + now as u64, seq: 0 };
                bench.frontier.issued(now, entry, pick);
                bench.frontier.settled(now, entry, &SettledJob { requested: true, ..SettledJob::default() });
            }
        }
        for round in order.chunks_mut(3) {
            round.sort();
            assert_eq!(round, names, "each has its turn, with room for {room}");
        }
    }
}

#[test]
fn the_host_of_a_robots_txt_is_left_alone_as_long_as_it_asks() {
    let mut bench = Bench::new(1000, 1);
    bench.find("http://a", 1);
    let asked = bench.frontier.wants_view(10);
    assert_eq!(asked, ["http://a"]);
    let robots_at = Some(RobotsAt { host: "http://b".to_owned(), address: "10.0.0.2".to_owned() });
    let view = HostView { robots_at, state: HostState::New, ..prepared("http://a", &["10.0.0.1"]) };
    bench.frontier.viewed(0, &asked, vec![view]);
    // Nobody has looked at the other one's row.
    assert!(bench.pick(0).is_empty());
    let asked = bench.frontier.wants_view(10);
    assert_eq!(asked, ["http://b"]);
    let held = HostView { hold_in_ms: Some(60_000), ..prepared("http://b", &["10.0.0.2"]) };
    bench.frontier.viewed(0, &asked, vec![held]);
    assert!(bench.pick(59_999).is_empty());
    assert_eq!(bench.pick(60_000), ["http://a"]);
}

#[test]
fn an_adopted_entry_occupies_every_address_of_its_host() {
    let mut bench = Bench::new(1000, 1);
    bench.frontier.complete_all(0);
    let key = JobKey { tenant: TENANT.to_owned(), id: Uuid::now_v7(), attempt: 0 };
    let adopted = Adopted { key, host: "http://a".to_owned(), dispatch: bench.dispatch, alone: false, proxy: None };
    let entry = StreamId { ms: 1, seq: 0 };
    bench.frontier.adopt(0, entry, adopted);
    bench.add_at("http://a", &["10.0.0.1", "10.0.0.9"], 0);
    bench.add_at("http://b", &["10.0.0.2", "10.0.0.9"], 2);
    assert!(bench.pick(5000).is_empty(), "one in flight there");
    bench.frontier.settled(5000, entry, &SettledJob::lost());
    assert!(bench.pick(5999).is_empty());
    assert_eq!(bench.pick(6000), ["http://b"]);
}

#[test]
fn an_address_that_is_named_twice_is_one() {
    let mut bench = Bench::new(1000, 2);
    bench.add_at("http://a", &["10.0.0.1", "10.0.0.2", "10.0.0.1"], 4);
    assert_eq!(bench.pick(0).len(), 2);
    bench.settle(10);
    bench.settle(10);
    assert_eq!(bench.pick(1010).len(), 2);
}

#[test]
fn a_new_host_gets_one_job_until_it_is_prepared() {
    let mut bench = Bench::new(0, 8);
    bench.add_unprepared("http://a", 5);
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
    bench.add_unprepared("http://a", 2);
    assert_eq!(bench.pick(0).len(), 1);
    // Its worker prepared the host, committed that, and died before it could report.
    let entry = bench.open.remove(0);
    bench.frontier.settled(10, entry, &SettledJob::lost());
    assert_eq!(bench.frontier.wants_view(10), ["http://a"]);
    assert!(bench.pick(10).is_empty(), "nothing is issued by what was known before");
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
