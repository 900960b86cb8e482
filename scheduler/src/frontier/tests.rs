//! The frontier without I/O: times are given, entries are numbered.

mod budget;
mod clock;
mod refill;
mod region;
mod turn;
mod walk;

use std::ops::RangeInclusive;

use dodo_common::db::host::{HostState, HostView, RobotsAt};
use dodo_common::db::schedule::{DueJob, Refill};
use dodo_common::model::job::JobKey;

use super::*;
use crate::frontier::issued::SettledJob;

const TENANT: &str = "default";
/// Of the issued entries none is unread.
const NOTHING: RangeInclusive<StreamId> = StreamId::MAX..=StreamId::MIN;

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
        self.add_at(host, &[address], count);
    }

    /// Jobs at a host with several addresses.
    fn add_at(&mut self, host: &str, addresses: &[&str], count: usize) {
        self.find(host, count);
        let asked = self.frontier.wants_view(10);
        let views = asked.iter().map(|host| prepared(host, addresses)).collect();
        self.frontier.viewed(0, &asked, views);
    }

    /// Jobs at a host of which there is no row yet.
    fn add_unprepared(&mut self, host: &str, count: usize) {
        self.frontier.gained(TENANT, host);
        self.find(host, count);
        let asked = self.frontier.wants_view(10);
        self.frontier.viewed(0, &asked, Vec::new());
    }

    /// A refill finds so many jobs.
    fn find(&mut self, host: &str, count: usize) {
        let due = (0..count).map(|_| due_job(self.dispatch)).collect();
        let refill = Refill { tenant: TENANT.to_owned(), host: host.to_owned(), due, ..Refill::default() };
        self.frontier.refilled(0, refill, 10_000);
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

    /// Ends what is over a budget.
    fn over_budget(&mut self) -> Vec<OverBudget> {
        let batches = std::iter::from_fn(|| Some(self.frontier.take_over_budget(10)).filter(|batch| !batch.is_empty()));
        let ended: Vec<OverBudget> = batches.flatten().collect();
        ended.iter().for_each(|job| self.frontier.skipped(job));
        ended
    }

    fn settle(&mut self, now: Millis) {
        let entry = self.open.remove(0);
        let settled = SettledJob { requested: true, page: true, ..SettledJob::default() };
        self.frontier.settled(now, entry, &settled);
    }
}

fn due_job(dispatch: Uuid) -> DueJob {
    DueJob { id: Uuid::now_v7(), attempt: 0, dispatch, alone: false, exempt: false }
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
