//! What the dispatches of buffered jobs ask for: delays, budgets, pauses.

use std::collections::{HashMap, HashSet};

use dodo_common::clock::Millis;
use dodo_common::db::schedule::{DueJob, Past};
use uuid::Uuid;

use crate::frontier::exits::Region;
use crate::frontier::flow::FlowId;
use crate::frontier::host_budget::HostRules;
use crate::politeness::Limit;

/// What the dispatch of a job asks for.
#[derive(Clone, Debug)]
pub struct Rules {
    pub delay_ms: Millis,
    pub host_concurrency: u32,
    /// What its requests leave by.
    pub region: Region,
    /// Pages it may still fetch; none means no budget.
    pub max_pages: Option<i64>,
    /// Pages fetched, as far as reports and the last reading of the progress tell; never too low.
    pub pages: i64,
    pub in_flight: i64,
    /// `pages` was read from Postgres while nothing was in flight.
    pub exact: bool,
    /// It is paused, or what is left of it ends without being issued.
    pub idle: bool,
    /// Its bytes or seconds are spent: what is left of it ends without being issued, but for what is made again.
    pub spent: bool,
    /// What it asks of each host; none means nothing.
    pub host: Option<HostRules>,
}

impl Rules {
    /// Nothing of it is issued.
    pub fn idle() -> Self {
        Self {
            delay_ms: 0,
            host_concurrency: 1,
            region: None,
            max_pages: None,
            pages: 0,
            in_flight: 0,
            exact: true,
            idle: true,
            spent: false,
            host: None,
        }
    }

    pub fn limit(&self) -> Limit {
        Limit { concurrency: self.host_concurrency, delay_ms: self.delay_ms }
    }

    /// A job in the buffer is dropped. A visit that was there before the budget was spent is not told apart from what is
    /// made again: its worker ends it.
    pub fn passes_over(&self, job: &DueJob) -> bool {
        self.idle || (self.spent && !job.exempt)
    }

    pub fn room(&self) -> Room {
        match self.max_pages {
            Some(max) if self.pages >= max && self.exact => Room::None,
            Some(max) if self.pages + self.in_flight >= max => Room::Later,
            _ => Room::Some,
        }
    }
}

/// Whether the budget of a dispatch lets another job go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    Some,
    /// What is in flight may use it up.
    Later,
    /// It is used up.
    None,
}

#[derive(Debug, Default)]
pub struct Budgets {
    rules: HashMap<Uuid, Rules>,
    /// Flows whose next job's dispatch has its whole budget in flight: they wait for what comes of that.
    waiters: HashMap<Uuid, HashSet<FlowId>>,
    resumed: bool,
    /// How often a dispatch went on whose jobs were passed over.
    resumptions: u64,
}

impl Budgets {
    pub fn get(&self, id: Uuid) -> Option<&Rules> {
        self.rules.get(&id)
    }

    /// Sets what a dispatch asks for; what is in flight is kept. Returns the flows that may go on.
    pub fn set(&mut self, id: Uuid, mut rules: Rules) -> HashSet<FlowId> {
        if let Some(known) = self.rules.get(&id) {
            if (known.idle && !rules.idle) || (known.spent && !rules.spent) {
                self.resumed = true;
                self.resumptions += 1;
            }
            // With jobs in flight the progress may hold a page whose report is still to come.
            if known.in_flight > 0 {
                rules = Rules { pages: known.pages, in_flight: known.in_flight, exact: false, ..rules };
            }
        }
        let exact = rules.exact;
        self.rules.insert(id, rules);
        if exact { self.woken(id) } else { HashSet::new() }
    }

    /// Forgets the dispatches that are not `open`, but for those with jobs in flight. Returns the flows that may go on.
    pub fn forget(&mut self, open: &HashSet<Uuid>) -> HashSet<FlowId> {
        let done = |(id, rules): (&Uuid, &Rules)| (rules.in_flight <= 0 && !open.contains(id)).then_some(*id);
        let gone: Vec<Uuid> = self.rules.iter().filter_map(done).collect();
        let mut woken = HashSet::new();
        for id in gone {
            self.rules.remove(&id);
            woken.extend(self.woken(id));
        }
        woken
    }

    /// Dispatches whose jobs a refill must look past: those that are idle or spent, and those of these regions.
    pub fn past(&self, regions: &[Region]) -> Past {
        let of = |is_past: &dyn Fn(&Rules) -> bool| {
            self.rules.iter().filter(|(_, rules)| is_past(rules)).map(|(id, _)| *id).collect()
        };
        let all = of(&|rules| rules.idle || regions.contains(&rules.region));
        Past { all, spent: of(&|rules| rules.spent) }
    }

    /// What the requests of all of them leave by.
    pub fn regions(&self) -> HashSet<&Region> {
        self.rules.values().map(|rules| &rules.region).collect()
    }

    /// True when a dispatch goes on whose jobs were passed over; asking forgets it.
    pub fn take_resumed(&mut self) -> bool {
        std::mem::take(&mut self.resumed)
    }

    /// How often one did.
    pub fn resumptions(&self) -> u64 {
        self.resumptions
    }

    /// This flow goes on when something comes of what is in flight.
    pub fn wait(&mut self, id: Uuid, flow: FlowId) {
        self.waiters.entry(id).or_default().insert(flow);
    }

    pub fn enter(&mut self, id: Uuid) {
        if let Some(rules) = self.rules.get_mut(&id) {
            rules.in_flight += 1;
            rules.exact = false;
        }
    }

    /// A job has ended, perhaps as a page; its worker may have found its dispatch `idle`. Returns the flows that may go on.
    pub fn leave(&mut self, id: Uuid, page: bool, idle: bool) -> HashSet<FlowId> {
        if let Some(rules) = self.rules.get_mut(&id) {
            rules.in_flight -= 1;
            rules.pages += i64::from(page);
        }
        self.rest(id, idle);
        self.woken(id)
    }

    /// The worker of a job has found its dispatch `idle`, or not.
    pub fn rest(&mut self, id: Uuid, idle: bool) {
        if let Some(rules) = self.rules.get_mut(&id) {
            // The worker has read it from the row; the next reading of the rules puts it right.
            rules.idle |= idle;
        }
    }

    /// Nothing is in flight any more, and nobody waits.
    pub fn clear(&mut self) {
        for rules in self.rules.values_mut() {
            rules.in_flight = 0;
        }
        self.waiters.clear();
    }

    fn woken(&mut self, id: Uuid) -> HashSet<FlowId> {
        self.waiters.remove(&id).unwrap_or_default()
    }
}
