//! The frontier: which due job may be issued now. Pure: it is told the time and does no I/O.
//!
//! Politeness is decided here and nowhere else (invariant 8): each host and each address has a clock
//! with the requests in flight and the time of the last completion. A job is issued only when both
//! clocks allow it. Tenants take turns, and within a tenant its hosts do.

pub mod aside;
pub mod budget;
pub mod exits;
pub mod flow;
pub mod health;
pub mod host_budget;
pub mod place;
pub mod turns;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use dodo_common::clock::Millis;
use dodo_common::db::host::HostView;
use dodo_common::db::proxy::ProxyRow;
use dodo_common::db::schedule::{DueJob, Refill};
use dodo_common::db::tally::TallyKey;
use dodo_common::model::cause::Cause;
use dodo_common::model::job::JobKey;
use dodo_common::model::proxy::ProxyWord;
use dodo_common::model::stream_id::StreamId;
use dodo_common::stream::question::Standing;
use slotmap::SlotMap;
use uuid::Uuid;

use crate::frontier::aside::Asides;
use crate::frontier::budget::{Budgets, Room, Rules};
use crate::frontier::exits::{Exits, Gate, Region};
use crate::frontier::flow::{Flow, FlowId};
use crate::frontier::host_budget::{HostBudgets, HostRoom, Over};
use crate::frontier::place::{HostId, Places, Stay};
use crate::frontier::turns::Turns;
use crate::politeness::{NEVER, Wait};

/// Flows held at once. With more, one leaves when its buffer is used up, and the scan brings it back in its turn.
pub const FLOWS_MAX: usize = 200_000;
/// While there are more flows than that, one that would wait longer leaves, too, milliseconds.
const CROWDED_WAIT_MS: Millis = 5_000;
/// Rules that are not known yet are there after this long, milliseconds.
const RULES_MS: Millis = 5;

/// (tenant, host), as the schedule names it.
pub type FlowKey = (String, String);

/// Flows to refill by one statement.
#[derive(Debug, Default)]
pub struct Wanted {
    pub flows: Vec<FlowKey>,
    /// How many rows to ask for of each.
    pub limits: Vec<i64>,
    /// Dispatches whose jobs are looked past.
    pub past: Vec<Uuid>,
}

/// A job to issue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pick {
    pub key: JobKey,
    pub host: String,
    pub dispatch: Uuid,
    /// Its worker is to run nothing beside it.
    pub alone: bool,
    /// The address of the proxy that its request leaves by.
    pub proxy: Option<Arc<str>>,
    /// No budget of pages holds it, or is spent by it.
    revisit: bool,
    stay: Stay,
}

/// An entry that an earlier leader has issued.
#[derive(Clone, Debug)]
pub struct Adopted {
    pub key: JobKey,
    pub host: String,
    pub dispatch: Uuid,
    pub alone: bool,
    pub proxy: Option<String>,
}

/// An issued job: what it occupies until it is settled.
#[derive(Clone, Debug)]
struct Issued {
    key: JobKey,
    host: HostId,
    stay: Stay,
    proxy: Option<Arc<str>>,
    dispatch: Uuid,
    alone: bool,
    revisit: bool,
    issued_ms: Millis,
}

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
    timers: BTreeSet<(Millis, FlowId)>,
    hungry: HashSet<FlowId>,
    refill_timers: BTreeSet<(Millis, FlowId)>,
    short: HashSet<FlowKey>,
    /// Jobs that are issued, or end without being issued: a refill finds them still in the schedule.
    taken: HashSet<Uuid>,
    issued: HashMap<StreamId, Issued>,
    over_budget: Vec<(JobKey, Over)>,
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
            hungry: HashSet::new(),
            refill_timers: BTreeSet::new(),
            short: HashSet::new(),
            taken: HashSet::new(),
            issued: HashMap::new(),
            over_budget: Vec::new(),
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
        for (id, flow) in &mut self.flows {
            flow.clear();
            self.hungry.insert(id);
        }
        self.turns.clear();
        self.timers.clear();
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

    pub fn in_flight(&self) -> usize {
        self.issued.len()
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

    /// A host gained work, or may have.
    pub fn gained(&mut self, tenant: &str, host: &str) {
        if let Some(id) = self.flow(tenant, host) {
            self.look_again(id);
        }
    }

    /// A scan came by a host with work: unlike a hint it says nothing new of one that has jobs in its buffer. False: there
    /// is no room for it, and the scan is to wait here.
    pub fn found(&mut self, tenant: &str, host: &str) -> bool {
        let Some(id) = self.flow(tenant, host) else { return false };
        if self.flows.get(id).is_some_and(Flow::is_empty) {
            self.look_again(id);
        }
        true
    }

    /// Whether another flow can be held. What has stepped aside makes room: the scan brings it back.
    pub fn has_room(&mut self) -> bool {
        let full = self.flows.len() >= self.flows_max;
        self.crowded |= full;
        self.refused |= full;
        if full {
            self.drop_asides();
        }
        self.flows.len() < self.flows_max
    }

    /// A scan over all hosts with work is through. True: it is to begin again, since there are more than are held.
    pub fn scanned(&mut self) -> bool {
        self.crowded = std::mem::take(&mut self.refused);
        self.crowded
    }

    /// The schedule may hold something that the buffer does not.
    fn look_again(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        if flow.is_low() {
            self.hungry.insert(id);
        } else if let Some(at) = flow.look_again() {
            self.refill_at(at, id);
        }
    }

    fn refill_at(&mut self, at: Millis, id: FlowId) {
        if let Some(flow) = self.flows.get_mut(id)
            && self.refill_timers.insert((at, id))
        {
            flow.timers += 1;
        }
    }

    /// Flows to refill now, at most `count` of them.
    pub fn wants_refill(&mut self, now: Millis, count: usize) -> Vec<Wanted> {
        while let Some((at, _)) = self.refill_timers.first()
            && *at <= now
        {
            if let Some((_, id)) = self.refill_timers.pop_first()
                && let Some(flow) = self.flows.get_mut(id)
            {
                flow.timers -= 1;
                self.hungry.insert(id);
            }
        }
        let ids: Vec<FlowId> = self.hungry.iter().take(count).copied().collect();
        let shut = if self.crowded { self.shut(now) } else { Vec::new() };
        // Flows that look past the same regions are read together: mostly all of them, since they look past none.
        let mut wanted: HashMap<Vec<Region>, Wanted> = HashMap::new();
        for id in ids {
            self.hungry.remove(&id);
            let (Some(key), Some(flow)) = (self.key_of(id), self.flows.get_mut(id)) else { continue };
            let mut regions: Vec<Region> = flow.asides().iter().map(|aside| aside.region.clone()).collect();
            if !key.1.is_empty() {
                regions.extend(shut.iter().cloned());
                regions.sort();
                regions.dedup();
            }
            let limit = flow.asks(now) as i64;
            let past = |regions: &Vec<Region>| Wanted { past: self.budgets.past(regions), ..Wanted::default() };
            let wanted = wanted.entry(regions).or_insert_with_key(past);
            wanted.flows.push(key);
            wanted.limits.push(limit);
        }
        wanted.into_values().collect()
    }

    /// Regions by which nothing may leave now.
    fn shut(&self, now: Millis) -> Vec<Region> {
        let regions = self.budgets.regions().into_iter();
        regions.filter(|region| self.exits.gate(now, region) == Gate::Shut).cloned().collect()
    }

    /// Takes what a refill found; `limit` is what was asked for.
    pub fn refilled(&mut self, now: Millis, refill: Refill, limit: i64) {
        let Some(id) = self.flow(&refill.tenant, &refill.host) else { return };
        let Some(flow) = self.flows.get_mut(id) else { return };
        flow.refill(now, refill.due, limit.max(0) as usize, &self.taken);
        let unknown = flow.dispatches().filter(|dispatch| self.budgets.get(*dispatch).is_none());
        self.unknown_dispatches.extend(unknown.map(|dispatch| (refill.tenant.clone(), dispatch)));
        if !flow.is_empty() {
            self.places.look_up_once(flow.host);
        }
        if !flow.more {
            self.short.insert((refill.tenant, refill.host));
        }
        self.enqueue(id);
    }

    /// Flows of which all that is due has been read: when more becomes due is to be told. Asking forgets them.
    pub fn take_short(&mut self) -> Vec<FlowKey> {
        self.short.drain().collect()
    }

    /// A job of this flow becomes due in so many milliseconds.
    pub fn due_in(&mut self, now: Millis, key: &FlowKey, in_ms: Millis) {
        if self.crowded && in_ms > CROWDED_WAIT_MS {
            return;
        }
        if let Some(id) = self.flow(&key.0, &key.1) {
            self.refill_at(now + in_ms + 1, id);
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

    /// Picks at most `count` jobs that may be issued now. Each is in flight from here on; tell
    /// [`Frontier::issued`] its entry, or [`Frontier::complete_all`] if the push failed.
    pub fn pick(&mut self, now: Millis, count: usize) -> Vec<Pick> {
        while let Some((at, _)) = self.timers.first()
            && *at <= now
        {
            if let Some((_, id)) = self.timers.pop_first() {
                self.enqueue(id);
            }
        }
        let woken = self.exits.wake();
        self.enqueue_all(woken);
        self.wake_asides(now);
        let mut picks = Vec::new();
        while picks.len() < count {
            let Some(id) = self.turns.take() else { break };
            let Some(flow) = self.flows.get_mut(id) else { continue };
            flow.in_ring = false;
            match self.pick_one(now, id) {
                Ok(Some(pick)) => {
                    picks.push(pick);
                    self.enqueue(id);
                }
                Ok(None) => {}
                Err(wait) => self.wait(now, id, wait),
            }
        }
        picks
    }

    /// Brings back what stepped aside where its region is open again; for a trial one at a time, and if that does not leave
    /// at once, another one at the next turn.
    fn wake_asides(&mut self, now: Millis) {
        for region in self.asides.regions() {
            let mut count = match self.exits.gate(now, &region) {
                Gate::Open => usize::MAX,
                Gate::Trial => 1,
                Gate::Shut => 0,
            };
            while count > 0
                && let Some(id) = self.asides.take(&region)
            {
                if self.flows.get_mut(id).is_some_and(|flow| flow.come_back(&region)) {
                    // What stands behind it is in the schedule.
                    self.hungry.insert(id);
                    self.enqueue(id);
                    count -= 1;
                }
            }
        }
    }

    /// The next job of a flow steps aside: its region is shut.
    fn step_aside(&mut self, id: FlowId, region: Region, suspects_too: bool) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        let Some(job) = flow.queue(suspects_too).pop_front() else { return };
        // While there are more flows than are held, nothing stays for it.
        if !self.crowded && flow.step_aside(region.clone(), job) {
            self.asides.push(region, id);
        }
    }

    fn drop_asides(&mut self) {
        for region in self.asides.regions() {
            while self.flows.len() >= self.flows_max
                && let Some(id) = self.asides.take(&region)
            {
                if let Some(flow) = self.flows.get_mut(id) {
                    flow.take_aside(&region);
                }
                self.forget_if_idle(id);
            }
        }
    }

    fn wait(&mut self, now: Millis, id: FlowId, wait: Wait) {
        if let Some(flow) = self.flows.get_mut(id) {
            flow.waits = wait.cause;
        }
        let Some(at) = wait.until else { return };
        if self.crowded && at > now + CROWDED_WAIT_MS {
            self.forget_flow(id);
        } else {
            self.timers.insert((at, id));
        }
    }

    /// When a timer is due next; the past while flows wait for a refill.
    pub fn next_due_ms(&self) -> Option<Millis> {
        if !self.hungry.is_empty() {
            return Some(NEVER);
        }
        let issue = self.timers.first().map(|(at, _)| *at);
        let refill = self.refill_timers.first().map(|(at, _)| *at);
        issue.into_iter().chain(refill).min()
    }

    /// Records the stream entry of a picked job.
    pub fn issued(&mut self, now: Millis, entry: StreamId, pick: Pick) {
        let Pick { key, host, dispatch, alone, proxy, revisit, stay } = pick;
        let host = self.places.id_or_new(&host);
        self.issued.insert(entry, Issued { key, host, stay, proxy, dispatch, alone, revisit, issued_ms: now });
    }

    /// Takes over an entry that an earlier leader has issued.
    pub fn adopt(&mut self, now: Millis, entry: StreamId, adopted: Adopted) {
        let Adopted { key, host, dispatch, alone, proxy } = adopted;
        self.suspects += usize::from(alone);
        if self.taken.insert(key.id)
            && let Some(flow) = self.flow(&key.tenant, &host).and_then(|id| self.flows.get_mut(id))
        {
            flow.taken += 1;
        }
        let stay = if host.is_empty() { Stay::default() } else { self.places.adopt(now, &host) };
        let host = self.places.id_or_new(&host);
        self.enter_budgets(dispatch, host);
        let proxy: Option<Arc<str>> = proxy.map(Arc::from);
        if let Some(address) = &proxy {
            self.exits.adopt(address);
        }
        // Its address is known when the row of its host has been read. Whether it visits again is not known, and what is in
        // flight may be a page.
        let revisit = false;
        self.issued.insert(entry, Issued { key, host, stay, proxy, dispatch, alone, revisit, issued_ms: now });
    }

    /// An entry was settled or taken back. Idempotent: a second report of it does nothing.
    pub fn settled(&mut self, now: Millis, entry: StreamId, settled: &SettledJob) {
        let Some(issued) = self.issued.remove(&entry) else { return };
        self.taken.remove(&issued.key.id);
        let id = self.known_flow(&issued.key.tenant, issued.host);
        if let Some(flow) = id.and_then(|id| self.flows.get_mut(id)) {
            flow.taken = flow.taken.saturating_sub(1);
        }
        if issued.alone {
            self.suspects = self.suspects.saturating_sub(1);
            self.wake_suspects();
        }
        // It cannot have ended before it was issued, whatever a report says.
        let ended_ms = now.saturating_sub(settled.ended_ms_ago.max(0)).max(issued.issued_ms);
        let mut woken = self.places.leave(ended_ms, &issued.stay, settled.requested);
        if let Some(address) = &issued.proxy {
            let host = self.places.get(issued.host).map(|host| Arc::clone(&host.name)).unwrap_or_default();
            woken.extend(self.exits.leave(now, address, &host, settled.requested, settled.proxy));
        }
        if settled.reload_host {
            self.places.look_up_own(&issued.stay);
        } else if let Some(hold_ms) = settled.hold_ms {
            self.places.hold(&issued.stay, now + hold_ms);
        }
        if let Some((latency_ms, well)) = settled.answered {
            self.places.answered(&issued.stay, latency_ms, well);
        }
        if issued.revisit {
            self.budgets.rest(issued.dispatch, settled.idle);
        } else {
            self.host_budgets.leave((issued.dispatch, issued.host), settled.page, settled.fresh);
            woken.extend(self.budgets.leave(issued.dispatch, settled.page, settled.idle));
        }
        if let Some(in_ms) = settled.due_in_ms {
            // Its flow may have left meanwhile.
            let id = id.or_else(|| {
                let host = Arc::clone(&self.places.get(issued.host)?.name);
                self.flow(&issued.key.tenant, &host)
            });
            match id {
                Some(id) if in_ms <= 0 => self.look_again(id),
                Some(id) => self.refill_at(now + in_ms + 1, id),
                None => {}
            }
        }
        woken.extend(id);
        self.enqueue_all(woken);
    }

    /// Entries issued before `before`, for the audit.
    pub fn issued_before(&self, before: Millis) -> Vec<StreamId> {
        self.issued.iter().filter(|(_, issued)| issued.issued_ms < before).map(|(entry, _)| *entry).collect()
    }

    /// Jobs for which a budget has no room; they end without being issued.
    pub fn take_over_budget(&mut self) -> Vec<(JobKey, Over)> {
        std::mem::take(&mut self.over_budget)
    }

    /// A skipped job is gone from the schedule.
    pub fn skipped(&mut self, key: &JobKey) {
        self.taken.remove(&key.id);
    }

    /// Forgets hosts with nothing in flight, nothing that waits and no clock that still counts.
    pub fn forget_idle(&mut self, now: Millis, idle_ms: Millis) {
        self.places.forget_idle(now, idle_ms);
        self.host_budgets.forget_hosts(|host| self.places.get(host).is_some());
    }

    /// What the jobs of each (tenant, dispatch) wait for: one for each request under way, and one for each flow whose next
    /// job waits for something else.
    pub fn census(&self) -> HashMap<(&str, Uuid, Cause), i64> {
        let mut census = HashMap::new();
        let mut count = |tenant, dispatch, cause| *census.entry((tenant, dispatch, cause)).or_default() += 1;
        for issued in self.issued.values() {
            count(issued.key.tenant.as_str(), issued.dispatch, Cause::Request);
        }
        for flow in self.flows.values() {
            let is_active = |dispatch| self.budgets.get(dispatch).is_some_and(|rules| !rules.idle);
            for aside in flow.asides().iter().filter(|aside| is_active(aside.job.dispatch)) {
                count(&flow.tenant, aside.job.dispatch, Cause::Quarantine);
            }
            let cause = if flow.in_ring { Cause::Turn } else { flow.waits };
            if let Some(job) = flow.front().filter(|_| cause != Cause::Busy) {
                count(&flow.tenant, job.dispatch, cause);
            }
        }
        census
    }

    /// How things stand for the jobs of this dispatch at this host.
    pub fn standing(&self, now: Millis, host: &str, dispatch: Uuid) -> Standing {
        let known = self.places.id(host);
        let clock = known.and_then(|host| self.places.clock(host));
        let wait = self.budgets.get(dispatch).and_then(|rules| {
            if rules.room() != Room::Some {
                return Some(Wait::event(Cause::Budget));
            }
            if !host.is_empty() && self.exits.gate(now, &rules.region) == Gate::Shut {
                return Some(self.exits.shut(now, &rules.region));
            }
            let host = known?;
            self.places.would_allow(now, host, &rules.limit()).err().or_else(|| self.waits_for_proxy(host))
        });
        Standing {
            cause: wait.map_or(Cause::Turn, |wait| wait.cause),
            until_ms: wait.and_then(|wait| wait.until),
            in_flight: clock.map_or(0, |clock| clock.in_flight),
            last_completion_ms: clock.map(|clock| clock.last_completion_ms).filter(|at| *at > NEVER),
        }
    }

    /// A place at a proxy is asked for last.
    fn waits_for_proxy(&self, host: HostId) -> Option<Wait> {
        let mut flows = self.places.get(host)?.flows.iter().filter_map(|id| self.flows.get(*id));
        flows.find(|flow| !flow.in_ring && flow.waits == Cause::Proxy).map(|flow| Wait::event(flow.waits))
    }

    fn pick_one(&mut self, now: Millis, id: FlowId) -> Result<Option<Pick>, Wait> {
        let suspects_too = self.suspects < self.suspects_max;
        loop {
            let Some(flow) = self.flows.get_mut(id) else { return Ok(None) };
            let (more, suspects) = (flow.more, flow.has_suspects());
            let (tenant, host) = (Arc::clone(&flow.tenant), flow.host);
            let queue = flow.queue(suspects_too);
            let Some(job) = queue.front() else {
                if suspects {
                    self.suspect_waiters.insert(id);
                }
                if more {
                    self.refill_or_leave(id);
                } else {
                    self.forget_if_idle(id);
                }
                return Ok(None);
            };
            let Some(rules) = self.budgets.get(job.dispatch) else {
                // It was forgotten with jobs in the buffer, and is read again.
                self.unknown_dispatches.insert((tenant.to_string(), job.dispatch));
                return Err(Wait::until(now + RULES_MS, Cause::Turn));
            };
            if rules.idle {
                queue.pop_front();
                continue;
            }
            let (limit, host_rules) = (rules.limit(), rules.host);
            let DueJob { id: job, attempt, dispatch, alone, revisit } = *job;
            let key = || JobKey { tenant: tenant.to_string(), id: job, attempt };
            let host_room = || host_rules.map(|rules| self.host_budgets.room(&rules, (dispatch, host)));
            let over = match (rules.room(), host_room()) {
                _ if revisit => None,
                (Room::Some, None | Some(HostRoom::Some)) => None,
                (Room::Some, Some(HostRoom::Later)) => return Err(Wait::event(Cause::Budget)),
                (Room::Some, Some(HostRoom::Unread)) => {
                    self.unread.insert((tenant, dispatch, host));
                    return Err(Wait::until(now + RULES_MS, Cause::Turn));
                }
                (Room::Some, Some(HostRoom::None(over))) => Some(over),
                (Room::Later, _) => {
                    self.budgets.wait(dispatch, id);
                    return Err(Wait::event(Cause::Budget));
                }
                (Room::None, _) => Some(Over::Crawl),
            };
            if let Some(over) = over {
                queue.pop_front();
                self.taken.insert(job);
                self.over_budget.push((key(), over));
                continue;
            }
            let name = self.places.get(host).map(|host| Arc::clone(&host.name)).unwrap_or_default();
            let (mut stay, mut proxy) = (Stay::default(), None);
            if !name.is_empty() {
                let Ok(exit) = self.exits.choose(now, &name, &rules.region) else {
                    let region = rules.region.clone();
                    self.step_aside(id, region, suspects_too);
                    continue;
                };
                stay = self.places.allow(now, host, &limit, id)?;
                // Last: whoever is woken for a place at a proxy has nothing else to wait for.
                proxy = exit.map(|exit| self.exits.allow(now, exit, id)).transpose()?;
                self.places.enter(&stay);
            }
            if let Some(address) = &proxy {
                self.exits.enter(address);
            }
            let flow = self.flows.get_mut(id).expect("it was just seen");
            flow.queue(suspects_too).pop_front();
            flow.taken += 1;
            let low = flow.more && flow.is_low();
            self.taken.insert(job);
            self.suspects += usize::from(alone);
            if low && !self.crowded {
                self.hungry.insert(id);
            }
            if !revisit {
                self.enter_budgets(dispatch, host);
            }
            return Ok(Some(Pick { key: key(), host: name.to_string(), dispatch, alone, proxy, revisit, stay }));
        }
    }

    fn enter_budgets(&mut self, dispatch: Uuid, host: HostId) {
        self.budgets.enter(dispatch);
        if self.budgets.get(dispatch).is_some_and(|rules| rules.host.is_some()) {
            self.host_budgets.enter((dispatch, host));
        }
    }

    /// A flow has used up its buffer, and the schedule has more of it: while there are more flows than are held, it is
    /// another's turn.
    fn refill_or_leave(&mut self, id: FlowId) {
        if self.crowded && self.flows.get(id).is_some_and(Flow::is_empty) {
            self.forget_flow(id);
        } else {
            self.hungry.insert(id);
        }
    }

    fn wake_suspects(&mut self) {
        let waiters = std::mem::take(&mut self.suspect_waiters);
        self.enqueue_all(waiters);
    }

    fn key_of(&self, id: FlowId) -> Option<FlowKey> {
        let flow = self.flows.get(id)?;
        Some((flow.tenant.to_string(), self.places.get(flow.host)?.name.to_string()))
    }

    fn known_flow(&self, tenant: &str, host: HostId) -> Option<FlowId> {
        let flows = &self.places.get(host)?.flows;
        flows.iter().copied().find(|id| self.flows.get(*id).is_some_and(|flow| &*flow.tenant == tenant))
    }

    /// The flow of this name, made if there is room.
    fn flow(&mut self, tenant: &str, host: &str) -> Option<FlowId> {
        let known = self.places.id(host).and_then(|host| self.known_flow(tenant, host));
        if known.is_some() {
            return known;
        }
        if !self.has_room() {
            return None;
        }
        let host = self.places.id_or_new(host);
        let tenant = match self.tenants.get(tenant) {
            Some(known) => Arc::clone(known),
            None => {
                let new: Arc<str> = Arc::from(tenant);
                self.tenants.insert(Arc::clone(&new));
                new
            }
        };
        let id = self.flows.insert(Flow::new(tenant, host));
        self.places.get_mut(host)?.flows.push(id);
        Some(id)
    }

    fn forget_flow(&mut self, id: FlowId) {
        let Some(flow) = self.flows.remove(id) else { return };
        if let Some(host) = self.places.get_mut(flow.host) {
            host.flows.retain(|known| *known != id);
        }
    }

    fn enqueue_all(&mut self, ids: impl IntoIterator<Item = FlowId>) {
        for id in ids {
            self.enqueue(id);
        }
    }

    fn enqueue(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        if flow.in_ring {
            return;
        }
        if flow.is_empty() {
            if flow.more {
                self.refill_or_leave(id);
            } else {
                self.forget_if_idle(id);
            }
            return;
        }
        flow.in_ring = true;
        self.turns.push(&flow.tenant, id);
    }

    /// Nothing waits here, and nothing is under way: it comes back with a hint or the scan.
    fn forget_if_idle(&mut self, id: FlowId) {
        if self.flows.get(id).is_some_and(Flow::is_idle) && !self.hungry.contains(&id) {
            self.forget_flow(id);
        }
    }
}

/// What became of an issued job, as far as the frontier cares.
#[derive(Clone, Copy, Debug, Default)]
pub struct SettledJob {
    /// It counts against the pages budget, or may: the next reading of the progress puts it right.
    pub page: bool,
    /// It has said something new.
    pub fresh: bool,
    /// A request was sent, or may have been.
    pub requested: bool,
    /// How long ago that ended, milliseconds.
    pub ended_ms_ago: Millis,
    /// Its host's row has changed.
    pub reload_host: bool,
    pub hold_ms: Option<Millis>,
    /// How long its host took to answer, milliseconds, and whether that was a good answer.
    pub answered: Option<(Millis, bool)>,
    /// What its request said of its proxy.
    pub proxy: Option<ProxyWord>,
    /// Its row is still there, due in so many milliseconds.
    pub due_in_ms: Option<Millis>,
    /// Its dispatch is paused.
    pub idle: bool,
}

impl SettledJob {
    /// Nobody knows what became of it: its request may have been under way, so its host counts as completed now,
    /// and may have been prepared by it.
    pub fn lost() -> Self {
        Self { page: true, requested: true, reload_host: true, due_in_ms: Some(0), ..Self::default() }
    }
}

#[cfg(test)]
mod tests;
