//! The frontier: which due job may be issued now. Pure: it is told the time and does no I/O.
//!
//! Politeness is decided here and nowhere else (invariant 8): each host and each address has a clock
//! with the requests in flight and the time of the last completion. A job is issued only when both
//! clocks allow it. Tenants take turns, and within a tenant its hosts do.
//!
//! A job comes by `refill` into the `flow` of its tenant and host, waits there for its turn, and leaves by `pick`, which
//! asks `budget`, `host_budget`, `place` and `exits`; it is in `issued` until it is settled. `over_budget` has those that end
//! without that, `aside` those whose proxies are all away, `walk` goes on where a refill has passed over as much as it may,
//! and `standing` tells what jobs wait for.

pub mod aside;
pub mod budget;
pub mod exits;
pub mod flow;
pub mod flows;
pub mod health;
pub mod host_budget;
pub mod issued;
pub mod over_budget;
pub mod pick;
pub mod place;
pub mod refill;
pub mod standing;
pub mod turns;
pub mod walk;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use dodo_common::clock::Millis;
use dodo_common::db::host::HostView;
use dodo_common::db::proxy::ProxyRow;
use dodo_common::db::tally::TallyKey;
use dodo_common::model::stream_id::StreamId;
use slotmap::SlotMap;
use uuid::Uuid;

use crate::frontier::aside::Asides;
use crate::frontier::budget::{Budgets, Rules};
use crate::frontier::exits::Exits;
use crate::frontier::flow::{Flow, FlowId};
use crate::frontier::host_budget::HostBudgets;
use crate::frontier::issued::Issued;
use crate::frontier::over_budget::OverBudget;
use crate::frontier::place::{HostId, Places};
use crate::frontier::turns::Turns;
use crate::politeness::NEVER;

/// Flows held at once. With more, one leaves when its buffer is used up, and the scan brings it back in its turn.
pub const FLOWS_MAX: usize = 200_000;
/// While there are more flows than that, one that would wait longer leaves, too, milliseconds.
const CROWDED_WAIT_MS: Millis = 5_000;

/// (tenant, host), as the schedule names it.
pub type FlowKey = (String, String);

#[derive(Debug)]
pub struct Frontier {
    places: Places,
    exits: Exits,
    asides: Asides,
    budgets: Budgets,
    host_budgets: HostBudgets,
    /// What these hosts have given these dispatches must be read before anything more is issued.
    unread: HashSet<(Arc<str>, Uuid, HostId)>,
    flows: SlotMap<FlowId, Flow>,
    tenants: HashSet<Arc<str>>,
    flows_max: usize,
    /// There are more flows than are held, or were in the last scan.
    crowded: bool,
    /// A flow was refused since the scan began.
    refused: bool,
    turns: Turns,
    /// When a flow may go on, and when it was picked last: those that wait for the same moment, as hosts at one address do, take
    /// turns.
    timers: BTreeSet<(Millis, u64, FlowId)>,
    /// Of the last pick.
    serial: u64,
    /// The latest time that it was told.
    told_ms: Millis,
    hungry: HashSet<FlowId>,
    /// Flows that go on with their walk, in their order.
    walks: VecDeque<FlowId>,
    /// All that have one.
    walkers: HashSet<FlowId>,
    refill_timers: BTreeSet<(Millis, FlowId)>,
    /// Flows of which all that was due has been read, and when that was, by the clock of Postgres.
    short: HashMap<FlowKey, DateTime<Utc>>,
    /// Jobs that are issued, or end without being issued: a refill finds them still in the schedule.
    taken: HashSet<Uuid>,
    issued: HashMap<StreamId, Issued>,
    over_budget: BTreeSet<OverBudget>,
    /// Flows with more of them than there is room for.
    over_budget_waiters: BTreeSet<FlowId>,
    unknown_dispatches: HashSet<(String, Uuid)>,
    /// Suspects in flight at most, and now; each keeps a worker from everything else.
    suspects_max: usize,
    suspects: usize,
    /// Flows whose suspects wait for one in flight.
    suspect_waiters: HashSet<FlowId>,
}

impl Default for Frontier {
    fn default() -> Self {
        Self::bounded(FLOWS_MAX)
    }
}

impl Frontier {
    /// One that holds at most `flows_max` flows.
    pub fn bounded(flows_max: usize) -> Self {
        Self {
            places: Places::default(),
            exits: Exits::default(),
            asides: Asides::default(),
            budgets: Budgets::default(),
            host_budgets: HostBudgets::default(),
            unread: HashSet::new(),
            flows: SlotMap::with_key(),
            tenants: HashSet::new(),
            flows_max,
            crowded: false,
            refused: false,
            turns: Turns::default(),
            timers: BTreeSet::new(),
            serial: 0,
            told_ms: NEVER,
            hungry: HashSet::new(),
            walks: VecDeque::new(),
            walkers: HashSet::new(),
            refill_timers: BTreeSet::new(),
            short: HashMap::new(),
            taken: HashSet::new(),
            issued: HashMap::new(),
            over_budget: BTreeSet::new(),
            over_budget_waiters: BTreeSet::new(),
            unknown_dispatches: HashSet::new(),
            suspects_max: 0,
            suspects: 0,
            suspect_waiters: HashSet::new(),
        }
    }

    /// After a takeover or a new generation every host counts as completed now.
    pub fn complete_all(&mut self, now: Millis) {
        self.places.complete_all(now);
        self.exits.complete_all(now);
        self.asides.clear();
        self.budgets.clear();
        self.host_budgets.clear();
        self.unread.clear();
        self.issued.clear();
        self.taken.clear();
        self.over_budget.clear();
        self.over_budget_waiters.clear();
        for (id, flow) in &mut self.flows {
            flow.clear();
            self.hungry.insert(id);
        }
        self.turns.clear();
        self.timers.clear();
        self.walks.clear();
        self.walkers.clear();
        self.refill_timers.clear();
        self.short.clear();
        self.suspect_waiters.clear();
        self.suspects = 0;
    }

    /// Sets how many suspects may be in flight.
    pub fn set_suspects_max(&mut self, count: usize) {
        let more = count > self.suspects_max;
        self.suspects_max = count;
        if more {
            self.wake_suspects();
        }
    }

    /// Sets the proxies that requests leave by; to be called before anything is issued.
    pub fn set_exits(&mut self, exits: Exits) {
        self.exits = exits;
    }

    /// How proxies fare, to be written down: those that fare otherwise than when this was asked last.
    pub fn take_exits(&mut self, now: Millis) -> Vec<ProxyRow> {
        self.exits.take_changed(now)
    }

    /// Sets what a dispatch asks for; what is in flight is kept.
    pub fn set_rules(&mut self, id: Uuid, rules: Rules) {
        let woken = self.budgets.set(id, rules);
        self.enqueue_all(woken);
    }

    /// Forgets the dispatches that are not `open`, but for those with jobs in flight.
    pub fn forget_dispatches(&mut self, open: &HashSet<Uuid>) {
        self.host_budgets.forget(open);
        let woken = self.budgets.forget(open);
        self.enqueue_all(woken);
    }

    /// True when a dispatch goes on whose jobs were passed over: nothing else would bring them back soon; asking
    /// forgets it.
    pub fn take_resumed(&mut self) -> bool {
        self.budgets.take_resumed()
    }

    /// Dispatches of buffered jobs whose rules are not known, each with its tenant; asking forgets them.
    pub fn take_unknown_dispatches(&mut self) -> Vec<(String, Uuid)> {
        self.unknown_dispatches.drain().collect()
    }

    /// (tenant, dispatch, host) whose tally must be read before anything more is issued, at most `count`; asking forgets
    /// them.
    pub fn take_unread(&mut self, count: usize) -> Vec<TallyKey> {
        let keys: Vec<_> = self.unread.iter().take(count).cloned().collect();
        for key in &keys {
            self.unread.remove(key);
        }
        let name = |host| self.places.get(host).map(|host| host.name.to_string());
        keys.into_iter()
            .filter_map(|(tenant, dispatch, host)| Some((tenant.to_string(), dispatch, name(host)?)))
            .collect()
    }

    /// Takes what a host has given a dispatch: pages, and how many of them said something new.
    pub fn set_given(&mut self, (_, dispatch, host): &TallyKey, (pages, fresh): (i64, i64)) {
        if let Some(host) = self.places.id(host) {
            self.host_budgets.set((*dispatch, host), pages, fresh);
        }
    }

    /// Hosts whose row must be read before anything is issued to them, at most `count`.
    pub fn wants_view(&mut self, count: usize) -> Vec<String> {
        self.places.wants_view(count)
    }

    /// Takes the rows of `asked`; a host without a row has never been prepared.
    pub fn viewed(&mut self, now: Millis, asked: &[String], views: Vec<HostView>) {
        let mut views: HashMap<String, HostView> = views.into_iter().map(|view| (view.host.clone(), view)).collect();
        for name in asked {
            let (host, adopted) = self.places.viewed(now, name, views.remove(name));
            if let Some(whole) = adopted {
                for issued in self.issued.values_mut().filter(|issued| issued.host == host) {
                    self.places.extend(&mut issued.stay, &whole);
                }
            }
            let flows = self.places.get(host).map(|host| host.flows.clone()).unwrap_or_default();
            self.enqueue_all(flows);
        }
    }

    /// Paces of hosts that are to be written down, at most `count`: they outlive this leader.
    pub fn take_paces(&mut self, count: usize) -> Vec<(String, i64)> {
        self.places.take_paces(count)
    }

    /// When a timer is due next; the past while flows wait for a refill.
    pub fn next_due_ms(&self) -> Option<Millis> {
        if !self.hungry.is_empty() || !self.walks.is_empty() {
            return Some(NEVER);
        }
        let issue = self.timers.first().map(|(at, ..)| *at);
        let refill = self.refill_timers.first().map(|(at, _)| *at);
        issue.into_iter().chain(refill).min()
    }

    /// Forgets hosts with nothing in flight, nothing that waits and no clock that still counts.
    pub fn forget_idle(&mut self, now: Millis, idle_ms: Millis) {
        self.forget_walks(now);
        self.places.forget_idle(now, idle_ms);
        self.host_budgets.forget_hosts(|host| self.places.get(host).is_some());
    }

    fn wake_suspects(&mut self) {
        let waiters = std::mem::take(&mut self.suspect_waiters);
        self.enqueue_all(waiters);
    }
}

#[cfg(test)]
mod tests;
