//! The frontier: which due job may be issued now. Pure: it is told the time and does no I/O.
//!
//! Politeness is decided here and nowhere else (invariant 8): each host and each address has a clock
//! with the requests in flight and the time of the last completion. A job is issued only when both
//! clocks allow it. Tenants take turns, and within a tenant its hosts do.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use dodo_common::clock::Millis;
use dodo_common::db::host::{HostState, HostView, RobotsAt};
use dodo_common::db::schedule::{DueJob, Refill};
use dodo_common::model::job::JobKey;
use dodo_common::model::stream_id::StreamId;
use uuid::Uuid;

use crate::politeness::{Clock, Limit, NEVER, Wait};

/// Due ids asked for and buffered for each (tenant, host): a few, and more the faster they go.
const BUFFER_MIN: usize = 32;
pub const BUFFER_MAX: usize = 2048;
/// A buffer that lasts less than this is doubled, one that lasts more than that is halved, milliseconds.
const BUFFER_SHORT_MS: Millis = 1_000;
const BUFFER_LONG_MS: Millis = 30_000;
/// With enough in the buffer, what came meanwhile with a higher priority waits this long, milliseconds: looking for it
/// reads past all that is buffered or issued.
const STALE_MS: Millis = 1_000;
/// A host's addresses and robots are renewed this long before they run out, milliseconds.
const RENEW_MS: Millis = 5_000;
/// Another origin that is busy is asked again after this long.
const ELSEWHERE_MS: Millis = 20;

/// (tenant, host): the unit of turns.
pub type FlowKey = (String, String);

/// What the dispatch of a job asks for.
#[derive(Clone, Debug)]
pub struct Rules {
    pub delay_ms: Millis,
    pub host_concurrency: u32,
    /// Pages it may still fetch; none means no budget.
    pub max_pages: Option<i64>,
    /// Pages fetched, as far as reports and the last reading of the progress tell; never too low.
    pub pages: i64,
    pub in_flight: i64,
    /// `pages` was read from Postgres while nothing was in flight.
    pub exact: bool,
    /// It is paused, or what is left of it ends without being issued.
    pub idle: bool,
}

impl Rules {
    /// Nothing of it is issued.
    pub fn idle() -> Self {
        Self { delay_ms: 0, host_concurrency: 1, max_pages: None, pages: 0, in_flight: 0, exact: true, idle: true }
    }
}

/// A job to issue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pick {
    pub key: JobKey,
    pub host: String,
    pub dispatch: Uuid,
    /// Its worker is to run nothing beside it.
    pub alone: bool,
}

/// An issued job: what it occupies until it is settled.
#[derive(Clone, Debug)]
struct Issued {
    key: JobKey,
    host: String,
    addresses: Vec<String>,
    /// Another origin that it asks: where its host's robots.txt is redirected to.
    robots_host: Option<String>,
    dispatch: Uuid,
    alone: bool,
    issued_ms: Millis,
}

#[derive(Debug)]
struct Host {
    clock: Clock,
    /// Nothing until its row has been read.
    view: Option<View>,
    /// It has adopted entries whose address is not known until its row has been read.
    adopted: bool,
}

impl Host {
    fn since(last_completion_ms: Millis) -> Self {
        Self { clock: Clock::since(last_completion_ms), view: None, adopted: false }
    }
}

#[derive(Clone, Debug)]
struct View {
    state: HostState,
    address: Option<String>,
    crawl_delay_ms: Millis,
    hold_until_ms: Millis,
    valid_until_ms: Millis,
    robots_at: Option<RobotsAt>,
}

impl View {
    /// Every address that a request made now goes to or may go to, and the other origin it goes to.
    fn places(&self) -> (Vec<String>, Option<String>) {
        let mut addresses: Vec<String> = self.address.iter().cloned().collect();
        let Some(at) = self.robots_at.as_ref().filter(|_| self.state == HostState::New) else {
            return (addresses, None);
        };
        if !addresses.contains(&at.address) {
            addresses.push(at.address.clone());
        }
        (addresses, Some(at.host.clone()))
    }
}

#[derive(Debug)]
struct Flow {
    buffer: VecDeque<DueJob>,
    /// How many the next refill asks for.
    room: usize,
    refilled_ms: Millis,
    /// It is refilled at [`STALE_MS`] after the last time.
    stale: bool,
    /// Those that run alone: few at a time are issued, and nobody waits behind them.
    suspects: VecDeque<DueJob>,
    /// Jobs of this flow that are buffered or issued: a refill must look past them.
    busy: usize,
    /// The schedule may hold more due jobs than the buffer took.
    more: bool,
    in_ring: bool,
}

impl Default for Flow {
    fn default() -> Self {
        Self {
            buffer: VecDeque::new(),
            room: BUFFER_MIN,
            refilled_ms: NEVER,
            stale: false,
            suspects: VecDeque::new(),
            busy: 0,
            more: false,
            in_ring: false,
        }
    }
}

impl Flow {
    /// It is time for a refill; before, there is enough.
    fn is_low(&self) -> bool {
        self.buffer.len() <= self.room / 4
    }

    fn is_empty(&self) -> bool {
        self.buffer.is_empty() && self.suspects.is_empty()
    }

    /// Where its next job comes from: suspects have waited longer.
    fn queue(&mut self, suspects_too: bool) -> &mut VecDeque<DueJob> {
        if suspects_too && !self.suspects.is_empty() { &mut self.suspects } else { &mut self.buffer }
    }
}

#[derive(Debug, Default)]
pub struct Frontier {
    hosts: HashMap<String, Host>,
    addresses: HashMap<String, Clock>,
    /// When this window began: a host or address not seen since counts as completed then.
    began_ms: Option<Millis>,
    /// The tenants that have a flow at a host.
    tenants: HashMap<String, Vec<String>>,
    /// Flows that wait for a completion at an address.
    address_waiters: HashMap<String, HashSet<FlowKey>>,
    /// Flows whose next job's dispatch has its whole budget in flight: they wait for what comes of that.
    budget_waiters: HashMap<Uuid, HashSet<FlowKey>>,
    flows: HashMap<FlowKey, Flow>,
    rules: HashMap<Uuid, Rules>,
    /// Flows that may have something to issue, by tenant; the tenants take turns.
    rings: VecDeque<(String, VecDeque<String>)>,
    timers: BTreeSet<(Millis, FlowKey)>,
    hungry: HashSet<FlowKey>,
    refill_timers: BTreeSet<(Millis, FlowKey)>,
    short: HashSet<FlowKey>,
    unseen_hosts: HashSet<String>,
    busy: HashSet<(String, Uuid)>,
    issued: HashMap<StreamId, Issued>,
    over_budget: Vec<JobKey>,
    unknown_dispatches: HashSet<(String, Uuid)>,
    /// Suspects in flight at most, and now; each keeps a worker from everything else.
    suspects_max: usize,
    suspects: usize,
    /// Flows whose suspects wait for one in flight.
    suspect_waiters: HashSet<FlowKey>,
    resumed: bool,
}

impl Frontier {
    /// After a takeover or a new generation every host counts as completed now.
    pub fn complete_all(&mut self, now: Millis) {
        for clock in self.hosts.values_mut().map(|host| &mut host.clock).chain(self.addresses.values_mut()) {
            *clock = Clock { in_flight: 0, last_completion_ms: now };
        }
        self.began_ms = Some(now);
        self.issued.clear();
        self.busy.clear();
        self.over_budget.clear();
        for rules in self.rules.values_mut() {
            rules.in_flight = 0;
        }
        for (key, flow) in &mut self.flows {
            *flow = Flow::default();
            self.hungry.insert(key.clone());
        }
        self.rings.clear();
        self.timers.clear();
        self.refill_timers.clear();
        self.short.clear();
        self.address_waiters.clear();
        self.budget_waiters.clear();
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

    pub fn in_flight(&self) -> usize {
        self.issued.len()
    }

    /// Sets what a dispatch asks for; what is in flight is kept.
    pub fn set_rules(&mut self, id: Uuid, mut rules: Rules) {
        if let Some(known) = self.rules.get(&id) {
            self.resumed |= known.idle && !rules.idle;
            // With jobs in flight the progress may hold a page whose report is still to come.
            if known.in_flight > 0 {
                rules = Rules { pages: known.pages, in_flight: known.in_flight, exact: false, ..rules };
            }
        }
        let exact = rules.exact;
        self.rules.insert(id, rules);
        if exact {
            self.wake_budget(id);
        }
    }

    /// Forgets the dispatches that are not `open`, but for those with jobs in flight.
    pub fn forget_dispatches(&mut self, open: &HashSet<Uuid>) {
        let gone: Vec<Uuid> = self
            .rules
            .iter()
            .filter(|(id, rules)| rules.in_flight <= 0 && !open.contains(id))
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            self.rules.remove(&id);
            self.wake_budget(id);
        }
    }

    /// Dispatches whose jobs a refill must look past.
    pub fn idle(&self) -> Vec<Uuid> {
        self.rules.iter().filter(|(_, rules)| rules.idle).map(|(id, _)| *id).collect()
    }

    /// True when a dispatch goes on whose jobs were passed over: nothing else would bring them back soon; asking
    /// forgets it.
    pub fn take_resumed(&mut self) -> bool {
        std::mem::take(&mut self.resumed)
    }

    /// Dispatches of buffered jobs whose rules are not known, each with its tenant; asking forgets them.
    pub fn take_unknown_dispatches(&mut self) -> Vec<(String, Uuid)> {
        self.unknown_dispatches.drain().collect()
    }

    /// A host gained work, or may have.
    pub fn gained(&mut self, tenant: &str, host: &str) {
        self.look_again((tenant.to_owned(), host.to_owned()));
    }

    /// The schedule may hold something that the buffer does not.
    fn look_again(&mut self, key: FlowKey) {
        let flow = self.flow(&key);
        if flow.is_low() {
            self.hungry.insert(key);
        } else if !std::mem::replace(&mut flow.stale, true) {
            let at = flow.refilled_ms + STALE_MS;
            self.refill_timers.insert((at, key));
        }
    }

    /// Flows to refill now with how many rows to ask for, at most `count` of them.
    pub fn wants_refill(&mut self, now: Millis, count: usize) -> Vec<(FlowKey, i64)> {
        while let Some((at, _)) = self.refill_timers.first()
            && *at <= now
        {
            if let Some((_, key)) = self.refill_timers.pop_first() {
                self.hungry.insert(key);
            }
        }
        let keys: Vec<FlowKey> = self.hungry.iter().take(count).cloned().collect();
        keys.into_iter()
            .map(|key| {
                self.hungry.remove(&key);
                let Some(flow) = self.flows.get_mut(&key) else { return (key, BUFFER_MIN as i64) };
                let lasted = now - flow.refilled_ms;
                if flow.more && flow.is_low() && lasted < BUFFER_SHORT_MS {
                    flow.room = (flow.room * 2).min(BUFFER_MAX);
                } else if lasted > BUFFER_LONG_MS {
                    flow.room = (flow.room / 2).max(BUFFER_MIN);
                }
                // What is issued has not left the schedule; what is buffered is read anew.
                let limit = flow.busy + flow.room;
                (key, limit as i64)
            })
            .collect()
    }

    /// Takes what a refill found; `limit` is what was asked for.
    pub fn refilled(&mut self, now: Millis, refill: Refill, limit: i64) {
        let key = (refill.tenant, refill.host);
        self.flow(&key);
        let Some(flow) = self.flows.get_mut(&key) else { return };
        flow.more = refill.due.len() as i64 >= limit;
        flow.stale = false;
        flow.refilled_ms = now;
        // The buffer is what the schedule says now: what came later with a higher priority goes first.
        for job in flow.buffer.drain(..) {
            flow.busy = flow.busy.saturating_sub(1);
            self.busy.remove(&(key.0.clone(), job.id));
        }
        for job in refill.due {
            let queue = if job.alone { &mut flow.suspects } else { &mut flow.buffer };
            if queue.len() >= BUFFER_MAX {
                flow.more = true;
                continue;
            }
            if self.busy.insert((key.0.clone(), job.id)) {
                if !self.rules.contains_key(&job.dispatch) {
                    self.unknown_dispatches.insert((key.0.clone(), job.dispatch));
                }
                flow.busy += 1;
                queue.push_back(job);
            }
        }
        if !flow.more {
            self.short.insert(key.clone());
        }
        if flow.is_empty() && flow.busy == 0 && !flow.more {
            // Nothing waits here: it comes back with a hint, a timer or the scan.
            self.forget_flow(&key);
            return;
        }
        if !key.1.is_empty() && self.hosts.get(&key.1).is_none_or(|host| host.view.is_none()) {
            self.unseen_hosts.insert(key.1.clone());
        }
        self.enqueue(&key);
    }

    /// Flows of which all that is due has been read: when more becomes due is to be told. Asking forgets them.
    pub fn take_short(&mut self) -> Vec<FlowKey> {
        self.short.drain().collect()
    }

    /// A job of this flow becomes due in so many milliseconds.
    pub fn due_in(&mut self, now: Millis, key: FlowKey, in_ms: Millis) {
        self.refill_timers.insert((now + in_ms + 1, key));
    }

    /// Hosts whose row must be read before anything is issued to them, at most `count`.
    pub fn wants_view(&mut self, count: usize) -> Vec<String> {
        let hosts: Vec<String> = self.unseen_hosts.iter().take(count).cloned().collect();
        for host in &hosts {
            self.unseen_hosts.remove(host);
        }
        hosts
    }

    /// Takes the rows of `asked`; a host without a row has never been prepared.
    pub fn viewed(&mut self, now: Millis, asked: &[String], views: Vec<HostView>) {
        let mut views: HashMap<String, HostView> = views.into_iter().map(|view| (view.host.clone(), view)).collect();
        for name in asked {
            let view = match views.remove(name) {
                None => View {
                    state: HostState::New,
                    address: None,
                    crawl_delay_ms: 0,
                    hold_until_ms: NEVER,
                    valid_until_ms: NEVER,
                    robots_at: None,
                },
                Some(view) => View {
                    state: view.state,
                    address: view.addresses.into_iter().next(),
                    crawl_delay_ms: view.crawl_delay_ms.unwrap_or(0),
                    hold_until_ms: view.hold_in_ms.map_or(NEVER, |ms| now + ms),
                    valid_until_ms: now + view.valid_in_ms,
                    robots_at: view.robots_at,
                },
            };
            let began_ms = self.began_ms.unwrap_or(NEVER);
            let host = self.hosts.entry(name.clone()).or_insert_with(|| Host::since(began_ms));
            let adopted = std::mem::take(&mut host.adopted);
            let (addresses, robots_host) = view.places();
            host.view = Some(view);
            if adopted {
                for issued in self.issued.values_mut().filter(|i| i.host == *name && i.addresses.is_empty()) {
                    issued.addresses.clone_from(&addresses);
                    issued.robots_host.clone_from(&robots_host);
                    for address in &addresses {
                        self.addresses.entry(address.clone()).or_insert_with(|| Clock::since(began_ms)).in_flight += 1;
                    }
                    if let Some(other) = &robots_host {
                        let other = self.hosts.entry(other.clone()).or_insert_with(|| Host::since(began_ms));
                        other.clock.in_flight += 1;
                    }
                }
            }
            self.wake_host(name);
        }
    }

    /// Picks at most `count` jobs that may be issued now. Each is in flight from here on; tell
    /// [`Frontier::issued`] its entry, or [`Frontier::complete_all`] if the push failed.
    pub fn pick(&mut self, now: Millis, count: usize) -> Vec<Pick> {
        while let Some((at, _)) = self.timers.first()
            && *at <= now
        {
            if let Some((_, key)) = self.timers.pop_first() {
                self.enqueue(&key);
            }
        }
        let mut picks = Vec::new();
        while picks.len() < count {
            let Some((tenant, mut hosts)) = self.rings.pop_front() else { break };
            let Some(host) = hosts.pop_front() else { continue };
            if !hosts.is_empty() {
                self.rings.push_back((tenant.clone(), hosts));
            }
            let key = (tenant, host);
            if let Some(flow) = self.flows.get_mut(&key) {
                flow.in_ring = false;
            }
            match self.pick_one(now, &key) {
                Ok(Some(pick)) => {
                    picks.push(pick);
                    self.enqueue(&key);
                }
                Ok(None) => {}
                Err(Wait::Until(at)) => {
                    self.timers.insert((at, key));
                }
                Err(Wait::Event) => {}
            }
        }
        picks
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
        let view = self.hosts.get(&pick.host).and_then(|host| host.view.as_ref());
        let (addresses, robots_host) = view.map(View::places).unwrap_or_default();
        let Pick { key, host, dispatch, alone } = pick;
        self.issued.insert(entry, Issued { key, host, addresses, robots_host, dispatch, alone, issued_ms: now });
    }

    /// Takes over an entry that an earlier leader has issued.
    pub fn adopt(&mut self, now: Millis, entry: StreamId, pick: Pick) {
        let Pick { key, host, dispatch, alone } = pick;
        self.suspects += usize::from(alone);
        if self.busy.insert((key.tenant.clone(), key.id)) {
            self.flow(&(key.tenant.clone(), host.clone())).busy += 1;
        }
        if !host.is_empty() {
            let known = self.hosts.entry(host.clone()).or_insert_with(|| Host::since(now));
            known.clock.in_flight += 1;
            known.adopted = true;
            known.view = None;
            self.unseen_hosts.insert(host.clone());
        }
        if let Some(rules) = self.rules.get_mut(&dispatch) {
            rules.in_flight += 1;
            rules.exact = false;
        }
        // Its address is known when the row of its host has been read.
        let issued = Issued { key, host, addresses: Vec::new(), robots_host: None, dispatch, alone, issued_ms: now };
        self.issued.insert(entry, issued);
    }

    /// An entry was settled or taken back. Idempotent: a second report of it does nothing.
    pub fn settled(&mut self, now: Millis, entry: StreamId, settled: &SettledJob) {
        let Some(issued) = self.issued.remove(&entry) else { return };
        let flow_key = (issued.key.tenant.clone(), issued.host.clone());
        self.busy.remove(&(issued.key.tenant.clone(), issued.key.id));
        if let Some(flow) = self.flows.get_mut(&flow_key) {
            flow.busy = flow.busy.saturating_sub(1);
        }
        if let Some(rules) = self.rules.get_mut(&issued.dispatch) {
            rules.in_flight -= 1;
            rules.pages += i64::from(settled.page);
            // The worker has read it from the row; the next reading of the rules puts it right.
            rules.idle |= settled.idle;
        }
        if issued.alone {
            self.suspects = self.suspects.saturating_sub(1);
            self.wake_suspects();
        }
        if let Some(host) = self.hosts.get_mut(&issued.host) {
            host.clock.in_flight = host.clock.in_flight.saturating_sub(1);
            if settled.requested {
                host.clock.last_completion_ms = now;
            }
            if settled.reload_host {
                host.view = None;
                self.unseen_hosts.insert(issued.host.clone());
            } else if let Some(view) = &mut host.view
                && let Some(hold) = settled.hold_ms
            {
                view.hold_until_ms = view.hold_until_ms.max(now + hold);
            }
        }
        if let Some(other) = issued.robots_host.as_ref().and_then(|other| self.hosts.get_mut(other)) {
            other.clock.in_flight = other.clock.in_flight.saturating_sub(1);
            if settled.requested {
                other.clock.last_completion_ms = now;
            }
        }
        for address in &issued.addresses {
            let clock = self.addresses.entry(address.clone()).or_default();
            clock.in_flight = clock.in_flight.saturating_sub(1);
            if settled.requested {
                clock.last_completion_ms = now;
            }
            for waiter in self.address_waiters.remove(address).unwrap_or_default() {
                self.enqueue(&waiter);
            }
        }
        match settled.due_in_ms {
            Some(in_ms) if in_ms <= 0 => self.look_again(flow_key.clone()),
            Some(in_ms) => {
                self.refill_timers.insert((now + in_ms + 1, flow_key.clone()));
            }
            None => {}
        }
        self.wake_host(&issued.host);
        if let Some(other) = &issued.robots_host {
            self.wake_host(other);
        }
        self.wake_budget(issued.dispatch);
        self.enqueue(&flow_key);
    }

    /// Entries issued before `before`, for the audit.
    pub fn issued_before(&self, before: Millis) -> Vec<StreamId> {
        self.issued.iter().filter(|(_, issued)| issued.issued_ms < before).map(|(entry, _)| *entry).collect()
    }

    /// Jobs whose dispatch has reached its budget; they end without being issued.
    pub fn take_over_budget(&mut self) -> Vec<JobKey> {
        std::mem::take(&mut self.over_budget)
    }

    /// A skipped job is gone from the schedule.
    pub fn skipped(&mut self, key: &JobKey) {
        self.busy.remove(&(key.tenant.clone(), key.id));
    }

    /// Forgets hosts with nothing in flight, nothing buffered and no clock that still counts.
    pub fn forget_idle(&mut self, now: Millis, idle_ms: Millis) {
        let with_flow = &self.tenants;
        self.hosts.retain(|name, host| {
            host.clock.in_flight > 0 || host.clock.last_completion_ms > now - idle_ms || with_flow.contains_key(name)
        });
        self.addresses.retain(|_, clock| clock.in_flight > 0 || clock.last_completion_ms > now - idle_ms);
    }

    fn pick_one(&mut self, now: Millis, key: &FlowKey) -> Result<Option<Pick>, Wait> {
        let suspects_too = self.suspects < self.suspects_max;
        loop {
            let Some(flow) = self.flows.get_mut(key) else { return Ok(None) };
            let (more, suspects) = (flow.more, !flow.suspects.is_empty());
            let queue = flow.queue(suspects_too);
            let Some(job) = queue.front() else {
                if more {
                    self.hungry.insert(key.clone());
                }
                if suspects {
                    self.suspect_waiters.insert(key.clone());
                }
                return Ok(None);
            };
            let Some(rules) = self.rules.get(&job.dispatch) else {
                // It was forgotten with jobs in the buffer, and is read again.
                self.unknown_dispatches.insert((key.0.clone(), job.dispatch));
                return Err(Wait::Until(now + 5));
            };
            if rules.idle {
                let job = queue.pop_front().expect("it was just seen");
                flow.busy = flow.busy.saturating_sub(1);
                self.busy.remove(&(key.0.clone(), job.id));
                continue;
            }
            if let Some(max) = rules.max_pages {
                if rules.pages >= max && rules.exact {
                    let job = queue.pop_front().expect("it was just seen");
                    flow.busy = flow.busy.saturating_sub(1);
                    self.over_budget.push(JobKey { tenant: key.0.clone(), id: job.id, attempt: job.attempt });
                    continue;
                }
                if rules.pages + rules.in_flight >= max {
                    self.budget_waiters.entry(job.dispatch).or_default().insert(key.clone());
                    return Err(Wait::Event);
                }
            }
            let limit = Limit { concurrency: rules.host_concurrency, delay_ms: rules.delay_ms };
            let dispatch = job.dispatch;
            if !key.1.is_empty() {
                self.occupy(now, key, &limit)?;
            }
            let flow = self.flows.get_mut(key).expect("it was just seen");
            let job = flow.queue(suspects_too).pop_front().expect("it was just seen");
            self.suspects += usize::from(job.alone);
            if flow.more && flow.is_low() {
                self.hungry.insert(key.clone());
            }
            if let Some(rules) = self.rules.get_mut(&dispatch) {
                rules.in_flight += 1;
                rules.exact = false;
            }
            let key_of_job = JobKey { tenant: key.0.clone(), id: job.id, attempt: job.attempt };
            return Ok(Some(Pick { key: key_of_job, host: key.1.clone(), dispatch, alone: job.alone }));
        }
    }

    /// Takes a place at the host and at its address, or says what it waits for.
    fn occupy(&mut self, now: Millis, key: &FlowKey, limit: &Limit) -> Result<(), Wait> {
        let Some(host) = self.hosts.get_mut(&key.1) else {
            self.unseen_hosts.insert(key.1.clone());
            return Err(Wait::Event);
        };
        let Some(view) = &host.view else {
            self.unseen_hosts.insert(key.1.clone());
            return Err(Wait::Event);
        };
        let valid = view.valid_until_ms > now + RENEW_MS;
        let ends_without_request = valid && matches!(view.state, HostState::Dead | HostState::Refused);
        if ends_without_request {
            host.clock.in_flight += 1;
            if let Some(address) = &view.address {
                self.addresses.entry(address.clone()).or_default().in_flight += 1;
            }
            return Ok(());
        }
        if view.hold_until_ms > now {
            return Err(Wait::Until(view.hold_until_ms));
        }
        // Until a host is prepared one job at a time goes there; the others wait for what it finds.
        let prepared = valid && view.state == HostState::Ready;
        let limit = Limit {
            concurrency: if prepared { limit.concurrency } else { 1 },
            delay_ms: limit.delay_ms.max(view.crawl_delay_ms),
        };
        host.clock.allows(&limit, now)?;
        let (addresses, robots_host) = view.places();
        let began_ms = self.began_ms.unwrap_or(NEVER);
        if let Some(other) = &robots_host {
            let other = self.hosts.entry(other.clone()).or_insert_with(|| Host::since(began_ms));
            let known = other.view.as_ref();
            let hold_until_ms = known.map_or(NEVER, |view| view.hold_until_ms);
            if hold_until_ms > now {
                return Err(Wait::Until(hold_until_ms));
            }
            let delay_ms = limit.delay_ms.max(known.map_or(0, |view| view.crawl_delay_ms));
            if let Err(wait) = other.clock.allows(&Limit { concurrency: 1, delay_ms }, now) {
                // Its flows are woken by a completion; this one is another host's.
                return Err(if wait == Wait::Event { Wait::Until(now + ELSEWHERE_MS) } else { wait });
            }
        }
        for address in &addresses {
            let clock = self.addresses.entry(address.clone()).or_insert_with(|| Clock::since(began_ms));
            if let Err(wait) = clock.allows(&limit, now) {
                if wait == Wait::Event {
                    self.address_waiters.entry(address.clone()).or_default().insert(key.clone());
                }
                return Err(wait);
            }
        }
        for address in &addresses {
            self.addresses.entry(address.clone()).or_default().in_flight += 1;
        }
        for name in robots_host.iter().chain([&key.1]) {
            if let Some(host) = self.hosts.get_mut(name) {
                host.clock.in_flight += 1;
            }
        }
        Ok(())
    }

    fn wake_host(&mut self, host: &str) {
        for tenant in self.tenants.get(host).cloned().unwrap_or_default() {
            self.enqueue(&(tenant, host.to_owned()));
        }
    }

    fn wake_budget(&mut self, dispatch: Uuid) {
        for waiter in self.budget_waiters.remove(&dispatch).unwrap_or_default() {
            self.enqueue(&waiter);
        }
    }

    fn wake_suspects(&mut self) {
        for waiter in std::mem::take(&mut self.suspect_waiters) {
            self.enqueue(&waiter);
        }
    }

    fn flow(&mut self, key: &FlowKey) -> &mut Flow {
        if !self.flows.contains_key(key) {
            self.tenants.entry(key.1.clone()).or_default().push(key.0.clone());
        }
        self.flows.entry(key.clone()).or_default()
    }

    fn forget_flow(&mut self, key: &FlowKey) {
        self.flows.remove(key);
        if let Some(tenants) = self.tenants.get_mut(&key.1) {
            tenants.retain(|tenant| *tenant != key.0);
            if tenants.is_empty() {
                self.tenants.remove(&key.1);
            }
        }
    }

    fn enqueue(&mut self, key: &FlowKey) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        if flow.in_ring {
            return;
        }
        if flow.is_empty() {
            if flow.more {
                self.hungry.insert(key.clone());
            } else if flow.busy == 0 {
                self.forget_flow(key);
            }
            return;
        }
        flow.in_ring = true;
        match self.rings.iter_mut().find(|(tenant, _)| *tenant == key.0) {
            Some((_, hosts)) => hosts.push_back(key.1.clone()),
            None => self.rings.push_back((key.0.clone(), VecDeque::from([key.1.clone()]))),
        }
    }
}

/// What became of an issued job, as far as the frontier cares.
#[derive(Clone, Copy, Debug, Default)]
pub struct SettledJob {
    /// It counts against the pages budget, or may: the next reading of the progress puts it right.
    pub page: bool,
    /// A request was sent, or may have been.
    pub requested: bool,
    /// Its host's row has changed.
    pub reload_host: bool,
    pub hold_ms: Option<Millis>,
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
