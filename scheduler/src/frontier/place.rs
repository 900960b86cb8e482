//! Hosts and addresses, each with its clock: whether a request may go there now (invariant 8).

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use dodo_common::clock::Millis;
use dodo_common::db::host::{HostState, HostView, RENEW_MS};
use dodo_common::model::cause::Cause;
use slotmap::{SlotMap, new_key_type};
use smallvec::SmallVec;

use crate::frontier::flow::FlowId;
use crate::politeness::{Clock, Limit, NEVER, Pace, Wait};

/// Another origin that is busy is asked again after this long.
const ELSEWHERE_MS: Millis = 20;

new_key_type! {
    pub struct HostId;
}

/// A host as long as something waits for it, and then until no delay can count from its last completion any more.
#[derive(Debug)]
pub struct Host {
    pub name: Arc<str>,
    clock: Clock,
    pace: Pace,
    /// Nothing until its row has been read.
    view: Option<Box<View>>,
    /// It has adopted entries whose address is not known until its row has been read.
    adopted: bool,
    /// One for each tenant that has jobs here.
    pub flows: SmallVec<[FlowId; 1]>,
}

/// Its row.
#[derive(Debug)]
struct View {
    state: HostState,
    /// All that are pinned, each once: a worker may connect to any of them. Mostly it is one.
    addresses: SmallVec<[IpAddr; 1]>,
    crawl_delay_ms: Millis,
    hold_until_ms: Millis,
    valid_until_ms: Millis,
    /// Where the next request for its robots.txt goes: the other origin and its address, the only one that is pinned there.
    robots_at: Option<(HostId, Option<IpAddr>)>,
}

/// What a request occupies until it is settled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stay {
    /// Its own host first.
    hosts: SmallVec<[HostId; 1]>,
    addresses: SmallVec<[IpAddr; 1]>,
}

impl Stay {
    /// Whose request it is; none without a host.
    pub fn host(&self) -> Option<HostId> {
        self.hosts.first().copied()
    }
}

#[derive(Debug)]
pub struct Places {
    hosts: SlotMap<HostId, Host>,
    names: HashMap<Arc<str>, HostId>,
    addresses: HashMap<IpAddr, Clock>,
    /// Flows that wait for a completion at an address.
    waiters: HashMap<IpAddr, HashSet<FlowId>>,
    /// When this window began: a host or address not seen since counts as completed then.
    began_ms: Millis,
    /// Hosts whose row must be read before anything is issued to them.
    unseen: HashSet<HostId>,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            hosts: SlotMap::with_key(),
            names: HashMap::new(),
            addresses: HashMap::new(),
            waiters: HashMap::new(),
            began_ms: NEVER,
            unseen: HashSet::new(),
        }
    }
}

impl Places {
    /// After a takeover or a new generation every host and address counts as completed now, with nothing in flight.
    pub fn complete_all(&mut self, now: Millis) {
        for clock in self.hosts.values_mut().map(|host| &mut host.clock).chain(self.addresses.values_mut()) {
            *clock = Clock::since(now);
        }
        self.began_ms = now;
        self.waiters.clear();
    }

    pub fn id(&self, name: &str) -> Option<HostId> {
        self.names.get(name).copied()
    }

    pub fn get(&self, id: HostId) -> Option<&Host> {
        self.hosts.get(id)
    }

    pub fn get_mut(&mut self, id: HostId) -> Option<&mut Host> {
        self.hosts.get_mut(id)
    }

    pub fn id_or_new(&mut self, name: &str) -> HostId {
        if let Some(id) = self.names.get(name) {
            return *id;
        }
        let name: Arc<str> = Arc::from(name);
        let id = self.hosts.insert(Host {
            name: Arc::clone(&name),
            clock: Clock::since(self.began_ms),
            pace: Pace::default(),
            view: None,
            adopted: false,
            flows: SmallVec::new(),
        });
        self.names.insert(name, id);
        id
    }

    /// Its row must be read, or read again. The host without a name has none: its jobs send no request.
    pub fn look_up(&mut self, id: HostId) {
        if let Some(host) = self.hosts.get_mut(id).filter(|host| !host.name.is_empty()) {
            host.view = None;
            self.unseen.insert(id);
        }
    }

    /// The same, unless it has been read.
    pub fn look_up_once(&mut self, id: HostId) {
        if self.hosts.get(id).is_some_and(|host| host.view.is_none()) {
            self.look_up(id);
        }
    }

    /// Names of hosts whose row is to be read, at most `count`; asking forgets them.
    pub fn wants_view(&mut self, count: usize) -> Vec<String> {
        let ids: Vec<HostId> = self.unseen.iter().take(count).copied().collect();
        for id in &ids {
            self.unseen.remove(id);
        }
        ids.into_iter().filter_map(|id| Some(self.hosts.get(id)?.name.to_string())).collect()
    }

    /// Takes the row of a host, or that it has none. Returns the host, and what its adopted entries occupy as it turns out,
    /// if it has any.
    pub fn viewed(&mut self, now: Millis, name: &str, row: Option<HostView>) -> (HostId, Option<Stay>) {
        let id = self.id_or_new(name);
        let pace_ms = row.as_ref().and_then(|row| row.pace_ms);
        let view = match row {
            None => View {
                state: HostState::New,
                addresses: SmallVec::new(),
                crawl_delay_ms: 0,
                hold_until_ms: NEVER,
                valid_until_ms: NEVER,
                robots_at: None,
            },
            Some(row) => View {
                state: row.state,
                addresses: pinned(&row.addresses),
                crawl_delay_ms: row.crawl_delay_ms.unwrap_or(0),
                hold_until_ms: row.hold_in_ms.map_or(NEVER, |ms| now + ms),
                valid_until_ms: now + row.valid_in_ms,
                robots_at: row.robots_at.map(|at| (self.id_or_new(&at.host), at.address.parse().ok())),
            },
        };
        let stay = stay(id, &view);
        let host = &mut self.hosts[id];
        host.view = Some(Box::new(view));
        host.pace.restore(pace_ms);
        let adopted = std::mem::take(&mut host.adopted);
        (id, adopted.then_some(stay))
    }

    /// An entry of an earlier leader is in flight at this host; where else is not known yet.
    pub fn adopt(&mut self, now: Millis, name: &str) -> Stay {
        let id = self.id_or_new(name);
        let host = &mut self.hosts[id];
        host.clock = Clock { in_flight: host.clock.in_flight + 1, last_completion_ms: now };
        host.adopted = true;
        self.look_up(id);
        Stay { hosts: [id].into_iter().collect(), addresses: SmallVec::new() }
    }

    /// Completes what an adopted entry occupies.
    pub fn extend(&mut self, known: &mut Stay, whole: &Stay) {
        let hosts = whole.hosts.iter().filter(|id| !known.hosts.contains(id)).copied().collect();
        let rest = Stay { hosts, addresses: whole.addresses.clone() };
        self.enter(&rest);
        *known = whole.clone();
    }

    /// What a request to the host would occupy, or what to wait for. `flow` is woken by what it waits for, where that is no
    /// moment.
    pub fn allow(&mut self, now: Millis, id: HostId, limit: &Limit, flow: FlowId) -> Result<Stay, Wait> {
        let allowed = self.would_allow(now, id, limit);
        match &allowed {
            Err(Wait { cause: Cause::Address, until: None }) => {
                let view = self.hosts.get(id).and_then(|host| host.view.as_ref());
                let addresses = view.map(|view| stay(id, view).addresses).unwrap_or_default();
                for address in addresses {
                    // Where nothing is under way no completion would wake it.
                    if self.addresses.get(&address).is_some_and(|clock| clock.in_flight > 0) {
                        self.waiters.entry(address).or_default().insert(flow);
                    }
                }
            }
            Err(Wait { cause: Cause::Robots, .. }) => {
                if self.is_unread(id) {
                    self.look_up(id);
                }
                self.look_up_elsewhere(id);
            }
            Ok(_) | Err(_) => {}
        }
        allowed
    }

    /// The same, and nobody waits.
    pub fn would_allow(&self, now: Millis, id: HostId, limit: &Limit) -> Result<Stay, Wait> {
        let Some((host, view)) = self.hosts.get(id).and_then(|host| Some((host, host.view.as_ref()?))) else {
            return Err(Wait::event(Cause::Robots));
        };
        let valid = view.valid_until_ms > now + RENEW_MS;
        let stay = stay(id, view);
        if valid && matches!(view.state, HostState::Dead | HostState::Refused) {
            // Its jobs end without a request.
            return Ok(stay);
        }
        if view.hold_until_ms > now {
            return Err(Wait::until(view.hold_until_ms, Cause::Hold));
        }
        let prepared = valid && view.state == HostState::Ready;
        let delay = host.pace.delay(limit, view.crawl_delay_ms);
        // Until a host is prepared one job at a time goes there; the others wait for what it finds.
        let limit = Limit { concurrency: if prepared { limit.concurrency } else { 1 }, delay_ms: delay.ms };
        host.clock.allows(&limit, now).map_err(|wait| match wait.until {
            Some(_) => Wait { cause: delay.cause, ..wait },
            None if prepared => wait,
            None => Wait::event(Cause::Robots),
        })?;
        self.allow_elsewhere(now, &stay, &limit)?;
        let unknown = Clock::since(self.began_ms);
        for address in &stay.addresses {
            let clock = self.addresses.get(address).unwrap_or(&unknown);
            clock.allows(&limit, now).map_err(|wait| Wait { cause: Cause::Address, ..wait })?;
        }
        Ok(stay)
    }

    /// Its row is to be read: it has not been, or where its robots.txt is has been forgotten meanwhile.
    fn is_unread(&self, id: HostId) -> bool {
        let view = self.hosts.get(id).and_then(|host| host.view.as_ref());
        view.is_none_or(|view| stay(id, view).hosts.iter().any(|id| !self.hosts.contains_key(*id)))
    }

    /// The rows of the other origins of its stay are to be read, where they have not been.
    fn look_up_elsewhere(&mut self, id: HostId) {
        let Some(view) = self.hosts.get(id).and_then(|host| host.view.as_ref()) else { return };
        for other in stay(id, view).hosts.into_iter().skip(1) {
            self.look_up_once(other);
        }
    }

    /// The other origins of a stay allow one request at a time.
    fn allow_elsewhere(&self, now: Millis, stay: &Stay, limit: &Limit) -> Result<(), Wait> {
        for other in stay.hosts.iter().skip(1) {
            let Some(other) = self.hosts.get(*other) else { return Err(Wait::event(Cause::Robots)) };
            // Whether it is to be left alone stands in its row.
            let Some(known) = &other.view else { return Err(Wait::until(now + ELSEWHERE_MS, Cause::Robots)) };
            if known.hold_until_ms > now {
                return Err(Wait::until(known.hold_until_ms, Cause::Hold));
            }
            let delay_ms = limit.delay_ms.max(known.crawl_delay_ms);
            if let Err(wait) = other.clock.allows(&Limit { concurrency: 1, delay_ms }, now) {
                // Its flows are woken by a completion; this one is another host's.
                return Err(Wait::until(wait.until.unwrap_or(now + ELSEWHERE_MS), Cause::Robots));
            }
        }
        Ok(())
    }

    /// A request takes its places.
    pub fn enter(&mut self, stay: &Stay) {
        for id in &stay.hosts {
            if let Some(host) = self.hosts.get_mut(*id) {
                host.clock.in_flight += 1;
            }
        }
        for address in &stay.addresses {
            self.addresses.entry(*address).or_insert_with(|| Clock::since(self.began_ms)).in_flight += 1;
        }
    }

    /// A request has ended then, or was never sent. Returns the flows that may go on.
    pub fn leave(&mut self, ended_ms: Millis, stay: &Stay, requested: bool) -> Vec<FlowId> {
        let mut woken = Vec::new();
        for id in &stay.hosts {
            if let Some(host) = self.hosts.get_mut(*id) {
                host.clock.leave(ended_ms, requested);
                woken.extend(host.flows.iter().copied());
            }
        }
        for address in &stay.addresses {
            if let Some(clock) = self.addresses.get_mut(address) {
                clock.leave(ended_ms, requested);
            }
            woken.extend(self.waiters.remove(address).unwrap_or_default());
        }
        woken
    }

    /// The host of a stay asked to be left alone.
    pub fn hold(&mut self, stay: &Stay, until_ms: Millis) {
        if let Some(view) = self.own(stay).and_then(|host| host.view.as_mut()) {
            view.hold_until_ms = view.hold_until_ms.max(until_ms);
        }
    }

    /// The host of a stay has answered.
    pub fn answered(&mut self, stay: &Stay, latency_ms: Millis, well: bool) {
        if let Some(host) = self.own(stay) {
            host.pace.answered(latency_ms, well);
        }
    }

    /// Addresses at which flows wait for a completion.
    #[cfg(test)]
    pub fn waited_at(&self) -> usize {
        self.waiters.len()
    }

    /// The clock of a host.
    pub fn clock(&self, id: HostId) -> Option<&Clock> {
        Some(&self.hosts.get(id)?.clock)
    }

    /// The row of the host of a stay has changed.
    pub fn look_up_own(&mut self, stay: &Stay) {
        if let Some(id) = stay.host() {
            self.look_up(id);
        }
    }

    fn own(&mut self, stay: &Stay) -> Option<&mut Host> {
        self.hosts.get_mut(stay.host()?)
    }

    /// Paces that have changed since they were asked for last, and are worth writing down: at most `count`.
    pub fn take_paces(&mut self, count: usize) -> Vec<(String, i64)> {
        let changed =
            self.hosts.values_mut().filter_map(|host| Some((host.name.to_string(), host.pace.take_changed()?)));
        changed.take(count).collect()
    }

    /// Forgets hosts with nothing in flight, nothing that waits and no clock that still counts.
    pub fn forget_idle(&mut self, now: Millis, idle_ms: Millis) {
        let names = &mut self.names;
        self.hosts.retain(|_, host| {
            let counts = host.clock.in_flight > 0 || host.clock.last_completion_ms > now - idle_ms;
            if host.flows.is_empty() && host.clock.in_flight == 0 {
                // What is kept of very many hosts is their clock.
                host.view = None;
            }
            let keep = counts || !host.flows.is_empty();
            if !keep {
                names.remove(&host.name);
            }
            keep
        });
        self.addresses.retain(|_, clock| clock.in_flight > 0 || clock.last_completion_ms > now - idle_ms);
    }
}

/// The addresses of a row, each once: what is twice there is one clock. Whoever resolves them keeps few.
fn pinned(texts: &[String]) -> SmallVec<[IpAddr; 1]> {
    let mut addresses = SmallVec::new();
    for address in texts.iter().filter_map(|text| text.parse().ok()) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
}

/// Every host and address that a request made now goes to or may go to.
fn stay(id: HostId, view: &View) -> Stay {
    let addresses = SmallVec::from_slice(&view.addresses);
    let mut stay = Stay { hosts: [id].into_iter().collect(), addresses };
    if let Some((other, address)) = view.robots_at.filter(|_| view.state == HostState::New) {
        stay.hosts.push(other);
        stay.addresses.extend(address.filter(|address| !view.addresses.contains(address)));
    }
    stay
}
