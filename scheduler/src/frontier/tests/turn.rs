//! Turns: of tenants, of suspects, and what is waited for meanwhile.

use std::collections::BTreeMap;

use dodo_common::model::cause::Cause;
use dodo_common::stream::question::Waiting;

use super::*;
use crate::frontier::issued::Adopted;

#[test]
fn tenants_take_turns() {
    let mut bench = Bench::new(0, 100);
    bench.add("http://a", "10.0.0.1", 50);
    let due = (0..50).map(|_| due_job(bench.dispatch)).collect();
    let refill = Refill { tenant: "other".to_owned(), host: "http://a".to_owned(), due, ..Refill::default() };
    bench.frontier.refilled(0, refill, 1000);
    let picks = bench.frontier.pick(0, 10);
    assert_eq!(picks.iter().filter(|pick| pick.key.tenant == "other").count(), 5);
}

#[test]
fn suspects_wait_for_one_another_and_nobody_waits_for_them() {
    let mut bench = Bench::new(0, 100);
    bench.frontier.set_suspects_max(1);
    bench.frontier.gained(TENANT, "");
    let due = (0..8).map(|n| DueJob { alone: n < 5, ..due_job(bench.dispatch) }).collect();
    let refill = Refill { tenant: TENANT.to_owned(), host: String::new(), due, ..Refill::default() };
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
    let dispatch = bench.dispatch;
    let cause = |frontier: &Frontier, alone| {
        frontier.standing(0, &Waiting { host: String::new(), dispatch, exempt: false, alone }).cause
    };
    assert_eq!([cause(frontier, true), cause(frontier, false)], [Cause::Suspects, Cause::Turn]);
    assert_eq!(frontier.census(&NOTHING)[&(TENANT, dispatch, Cause::Suspects)], 1);
    frontier.settled(1, StreamId { ms: 2, seq: 0 }, &SettledJob::default());
    assert!(pick(frontier).is_empty(), "another than the suspect was settled");
    frontier.settled(1, StreamId { ms: 1, seq: 0 }, &SettledJob::default());
    assert_eq!(cause(frontier, true), Cause::Turn, "there is room again");
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
    let due = (0..2).map(|_| DueJob { alone: true, ..due_job(bench.dispatch) }).collect();
    frontier.refilled(2, Refill { tenant: TENANT.to_owned(), host: String::new(), due, ..Refill::default() }, 100);
    assert_eq!(pick(frontier), [true], "a third has room, a fourth has not");
}

#[test]
fn the_census_says_what_is_waited_for() {
    let mut bench = Bench::new(1000, 1);
    let census = |bench: &Bench| -> BTreeMap<Cause, i64> {
        let all = bench.frontier.census(&NOTHING).into_iter();
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
fn what_no_worker_has_taken_waits_for_one() {
    let mut bench = Bench::new(0, 4);
    bench.add("http://a", "10.0.0.1", 3);
    let frontier = &mut bench.frontier;
    for (pick, ms) in frontier.pick(0, 100).into_iter().zip(1..) {
        frontier.issued(0, StreamId { ms, seq: 0 }, pick);
    }
    // The second was read; the third may have been since.
    let unread = StreamId { ms: 2, seq: 0 }..=frontier.newest_issued();
    let census = frontier.census(&unread);
    let of = |cause| census.get(&(TENANT, bench.dispatch, cause)).copied().unwrap_or_default();
    assert_eq!([of(Cause::Request), of(Cause::Workers)], [1, 2]);
}

#[test]
fn what_has_only_tries_to_repeat_waits_for_them() {
    let mut bench = Bench::new(0, 4);
    bench.add("http://a", "10.0.0.1", 2);
    let frontier = &mut bench.frontier;
    for (pick, ms) in frontier.pick(0, 100).into_iter().zip(1..) {
        frontier.issued(0, StreamId { ms, seq: 0 }, pick);
    }
    let of = |frontier: &Frontier, cause| {
        frontier.census(&NOTHING).get(&(TENANT, bench.dispatch, cause)).copied().unwrap_or_default()
    };
    let again = |cause| SettledJob { due_in_ms: Some(5000), again: Some(cause), ..SettledJob::default() };
    frontier.settled(1, StreamId { ms: 1, seq: 0 }, &again(Cause::Errors));
    assert_eq!([of(frontier, Cause::Request), of(frontier, Cause::Errors)], [1, 0], "another is under way there");
    frontier.settled(2, StreamId { ms: 2, seq: 0 }, &again(Cause::Hold));
    assert_eq!([of(frontier, Cause::Hold), of(frontier, Cause::Errors)], [1, 0], "one for the host");
    let due = vec![due_job(bench.dispatch)];
    frontier.refilled(
        6000,
        Refill { tenant: TENANT.to_owned(), host: "http://a".to_owned(), due, ..Refill::default() },
        100,
    );
    assert_eq!([of(frontier, Cause::Hold), of(frontier, Cause::Turn)], [0, 1]);
}
