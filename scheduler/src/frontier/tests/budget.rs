//! Budgets, of crawls and of hosts, and what is paused.

use dodo_common::model::cause::Cause;
use dodo_common::stream::question::Waiting;

use super::*;
use crate::frontier::host_budget::{HostRules, Over};
use crate::frontier::over_budget::OVER_BUDGET_MAX;
use crate::frontier::pick::RULES_MS;

/// What visits a page again or makes a result again spends no budget of pages, and is held by none.
#[test]
fn a_spent_budget_lets_go_on_what_it_does_not_hold() {
    let mut bench = Bench::new(0, 8);
    let rules = Rules { host_concurrency: 8, idle: false, max_pages: Some(1), ..Rules::idle() };
    bench.frontier.set_rules(bench.dispatch, rules.clone());
    let due = [true, false, true, false, true].map(|exempt| DueJob { exempt, ..due_job(bench.dispatch) });
    let refill =
        Refill { tenant: TENANT.to_owned(), host: "http://a".to_owned(), due: due.to_vec(), ..Refill::default() };
    bench.frontier.refilled(0, refill, 10_000);
    let asked = bench.frontier.wants_view(10);
    bench.frontier.viewed(0, &asked, vec![prepared("http://a", &["10.0.0.1"])]);
    assert_eq!(bench.pick(0).len(), 3, "two visits and the one page");
    for page in [false, true, false] {
        let entry = bench.open.remove(0);
        bench.frontier.settled(1, entry, &SettledJob { requested: true, page, ..SettledJob::default() });
    }
    bench.frontier.set_rules(bench.dispatch, Rules { pages: 1, ..rules });
    let cause = |exempt| {
        let of = Waiting { host: "http://a".to_owned(), dispatch: bench.dispatch, exempt, alone: false };
        bench.frontier.standing(2, &of).cause
    };
    assert_eq!([cause(true), cause(false)], [Cause::Turn, Cause::Budget]);
    assert_eq!(bench.pick(2).len(), 1, "the last visit");
    assert_eq!(bench.over_budget().len(), 1, "the second page");
}

/// With its bytes or seconds spent a crawl ends, but for results that had counted and are made again.
#[test]
fn a_crawl_that_ends_makes_again_what_was_lost() {
    let mut bench = Bench::new(0, 8);
    let other = Uuid::now_v7();
    let rules = |idle, spent| Rules { host_concurrency: 8, idle, spent, ..Rules::idle() };
    bench.frontier.set_rules(bench.dispatch, rules(false, true));
    bench.frontier.set_rules(other, rules(true, true));
    let mut past = bench.frontier.budgets.past(&[]);
    past.spent.sort();
    let mut both = [bench.dispatch, other];
    both.sort();
    assert_eq!((past.all.as_slice(), past.spent.as_slice()), ([other].as_slice(), both.as_slice()));
    assert_eq!(bench.frontier.budgets.past(&[None]).all.len(), 2, "nothing of it leaves by a region that is shut");
    let due = [(bench.dispatch, false), (other, true), (bench.dispatch, true), (other, false)];
    let due = due.map(|(dispatch, exempt)| DueJob { exempt, ..due_job(dispatch) }).to_vec();
    bench.add("http://a", "10.0.0.1", 0);
    bench.frontier.refilled(
        0,
        Refill { tenant: TENANT.to_owned(), host: "http://a".to_owned(), due, ..Refill::default() },
        10_000,
    );
    let asked = bench.frontier.wants_view(10);
    bench.frontier.viewed(0, &asked, vec![prepared("http://a", &["10.0.0.1"])]);
    let picked = bench.frontier.pick(0, 10);
    assert_eq!(picked.iter().map(|pick| (pick.dispatch, pick.exempt)).collect::<Vec<_>>(), [(bench.dispatch, true)]);
    assert!(bench.over_budget().is_empty(), "the rest is looked for in the schedule");
    bench.frontier.set_rules(other, rules(false, true));
    assert!(bench.frontier.take_resumed(), "what is made again was passed over while it was paused");
    bench.frontier.set_rules(bench.dispatch, rules(false, false));
    assert!(bench.frontier.take_resumed());
}

#[test]
fn a_budget_is_never_exceeded_and_the_rest_is_skipped() {
    let mut bench = Bench::new(0, 8);
    let rules = Rules { host_concurrency: 8, idle: false, max_pages: Some(3), ..Rules::idle() };
    bench.frontier.set_rules(bench.dispatch, rules);
    bench.add("http://a", "10.0.0.1", 10);
    assert_eq!(bench.pick(0).len(), 3);
    assert!(bench.pick(50).is_empty());
    assert_eq!(bench.frontier.next_due_ms(), None, "it waits for one of them, and for no timer");
    for _ in 0..3 {
        bench.settle(60);
    }
    assert!(bench.pick(100).is_empty());
    assert!(bench.over_budget().is_empty(), "only the progress in Postgres says that it is used up");
    let rules = Rules { host_concurrency: 8, idle: false, max_pages: Some(3), pages: 3, ..Rules::idle() };
    bench.frontier.set_rules(bench.dispatch, rules);
    assert!(bench.pick(200).is_empty());
    assert_eq!(bench.over_budget().len(), 7);
}

/// A crawl of many hosts may come to its end with very many jobs in their buffers.
#[test]
fn what_is_over_a_budget_ends_in_batches() {
    let mut bench = Bench::new(0, 8);
    let rules = Rules { idle: false, max_pages: Some(3), pages: 3, ..Rules::idle() };
    bench.frontier.set_rules(bench.dispatch, rules);
    let (hosts, each) = (OVER_BUDGET_MAX / 500, 1000);
    let name = |host: usize| format!("http://{host}");
    for host in 0..hosts {
        bench.add(&name(host), &format!("10.0.0.{host}"), each);
    }
    let (mut ended, mut turns) = (0, 0);
    while ended < hosts * each {
        turns += 1;
        assert!(bench.pick(turns).is_empty());
        assert!(bench.frontier.taken.len() <= OVER_BUDGET_MAX, "the rest stays where it is");
        // One batch of less than there is: the rest is still taken.
        let batch = bench.frontier.take_over_budget(700);
        assert!((1..=700).contains(&batch.len()), "{}", batch.len());
        batch.iter().for_each(|job| bench.frontier.skipped(job));
        ended += batch.len();
        let (frontier, left) = (&bench.frontier, bench.frontier.over_budget.len());
        let looked_past: usize = frontier.flows.values().map(|flow| flow.taken).sum();
        assert_eq!((frontier.taken.len(), looked_past), (left, left), "they are taken, and a refill looks past them");
    }
    assert!(turns as usize >= hosts * each / 700, "{turns}");
    assert!(bench.frontier.flows.is_empty(), "nothing is left of them");
}

#[test]
fn a_batch_of_what_is_over_a_budget_has_one_tenant_and_one_reason() {
    let mut bench = Bench::new(0, 8);
    let host = Some(HostRules { max_pages: Some(2), allowance: None });
    let other = Uuid::now_v7();
    bench.frontier.set_rules(bench.dispatch, Rules { idle: false, host, ..Rules::idle() });
    bench.frontier.set_rules(other, Rules { idle: false, max_pages: Some(1), pages: 1, ..Rules::idle() });
    for (tenant, dispatch) in [("b", other), (TENANT, bench.dispatch), ("a", other), (TENANT, other), ("b", other)] {
        let due = vec![due_job(dispatch), due_job(dispatch)];
        bench.frontier.refilled(
            0,
            Refill { tenant: tenant.to_owned(), host: "http://a".to_owned(), due, ..Refill::default() },
            10_000,
        );
        bench.pick(0);
        for key in bench.frontier.take_unread(10) {
            bench.frontier.set_given(&key, (2, 0));
        }
        bench.pick(RULES_MS);
    }
    let batches = std::iter::from_fn(|| Some(bench.frontier.take_over_budget(3)).filter(|batch| !batch.is_empty()));
    let batches: Vec<_> = batches.map(|batch| (batch[0].key.tenant.clone(), batch[0].over, batch.len())).collect();
    let all = |tenant: &str, over, count| (tenant.to_owned(), over, count);
    let pages = Over::Pages { max: 2 };
    let crawl = Over::Crawl;
    let expected =
        [all("a", crawl, 2), all("b", crawl, 3), all("b", crawl, 1), all(TENANT, crawl, 2), all(TENANT, pages, 2)];
    assert_eq!(batches, expected);
}

#[test]
fn a_flow_at_its_budget_goes_on_when_a_job_was_no_page() {
    let mut bench = Bench::new(0, 8);
    let rules = Rules { host_concurrency: 8, idle: false, max_pages: Some(2), ..Rules::idle() };
    bench.frontier.set_rules(bench.dispatch, rules);
    bench.add("http://a", "10.0.0.1", 5);
    assert_eq!(bench.pick(0).len(), 2);
    assert!(bench.pick(10).is_empty());
    let entry = bench.open.remove(0);
    bench.frontier.settled(20, entry, &SettledJob { requested: true, ..SettledJob::default() });
    assert_eq!(bench.pick(20).len(), 1);
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
    assert!(bench.over_budget().is_empty(), "only the tally in Postgres says that it is used up");
    read(&mut bench, 2);
    assert!(bench.pick(100 + RULES_MS).is_empty());
    let over = bench.over_budget();
    assert_eq!(over.len(), 6);
    assert!(over.iter().all(|job| job.over == Over::Pages { max: 2 }), "{over:?}");
}

#[test]
fn a_paused_dispatch_is_dropped_from_the_buffer_and_found_again() {
    let mut bench = Bench::new(0, 8);
    bench.add("http://a", "10.0.0.1", 3);
    let rules = |idle| Rules { host_concurrency: 8, idle, ..Rules::idle() };
    bench.frontier.set_rules(bench.dispatch, rules(true));
    assert_eq!(bench.frontier.budgets.past(&[]).all, [bench.dispatch]);
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
