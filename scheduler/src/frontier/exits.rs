//! Exits: the proxies of the pool, each with its clock and its health, and which one a host's requests leave by.
//!
//! A host keeps its proxy: the one with the highest hash of both (rendezvous hashing, Thaler and Ravishankar 1998) of those
//! of the region that may be used. One that leaves takes only its own hosts along, and they come back with it. A host that
//! does not let its proxy in tries the next one, and comes back for another look after as long as a quarantine. The clock
//! of the host stays the same wherever its requests leave: that of the proxy comes on top.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use dodo_common::clock::Millis;
use dodo_common::db::proxy::ProxyRow;
use dodo_common::model::cause::Cause;
use dodo_common::model::proxy::ProxyWord;
use dodo_common::model::proxy_pool::{Pooled, ProxyPool};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::frontier::flow::FlowId;
use crate::frontier::health::{Health, State};
use crate::politeness::{Clock, Limit, Wait};

/// Hosts that are remembered for what they refused.
const REFUSALS_MAX: usize = 10_000;
/// Bad answers in a row after which a host does not let a proxy in: a few forbidden pages need not mean that.
const BAD_MAX: u32 = 3;

/// What a request may leave by: the proxies of this region; none means any.
pub type Region = Option<Arc<str>>;

/// Whether a request may leave by a region now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    Open,
    /// One request, which decides over its proxy.
    Trial,
    /// Every proxy of it is in quarantine, or on trial.
    Shut,
}

/// A proxy that was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitId(usize);

/// What is asked of each proxy.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Requests under way by it, and the rest after one.
    pub concurrency: u32,
    pub delay_ms: Millis,
    /// The first quarantine.
    pub quarantine_ms: Millis,
}

#[derive(Debug, Default)]
pub struct Exits {
    exits: Vec<Exit>,
    bounds: Bounds,
    /// Hosts that have given a bad answer by some proxy, and no good one by it since.
    refusals: HashMap<String, Refusals>,
}

/// The bad answers of a host.
#[derive(Debug, Default)]
struct Refusals {
    /// Since its last good answer, by whichever proxy.
    mark: Option<Mark>,
    /// A few at most: those of the pool.
    by: Vec<Streak>,
}

/// The bad answers of a host by one proxy since the last good one.
#[derive(Debug)]
struct Streak {
    exit: usize,
    count: u32,
    /// Until then it leaves by others, if there are any.
    avoided_until: Millis,
}

/// Where a host has given a bad answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    /// By this proxy only: whose fault it is cannot be told, and the proxy has others.
    At(usize),
    /// By another one, too: it is the host that refuses, and no proxy is blamed.
    Everywhere,
}

#[derive(Debug)]
struct Exit {
    address: Arc<str>,
    region: Box<str>,
    /// Of its address.
    seed: u64,
    clock: Clock,
    health: Health,
    /// Flows that wait for a place, in their order; each once.
    queue: VecDeque<FlowId>,
    waiting: HashSet<FlowId>,
    /// It fares otherwise than when it was written down last.
    changed: bool,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { concurrency: 1, delay_ms: 0, quarantine_ms: 0 }
    }
}

impl Exits {
    /// The pool, each proxy as `known` says that it fares.
    pub fn new(now: Millis, pool: &ProxyPool, bounds: Bounds, known: &[ProxyRow]) -> Self {
        let exit = |pooled: &Pooled| {
            let address: Arc<str> = pooled.proxy.to_string().into();
            let row = known.iter().find(|row| *row.address == *address);
            Exit {
                seed: xxh3_64(address.as_bytes()),
                region: pooled.region.as_str().into(),
                clock: Clock::default(),
                health: row.map_or_else(Health::default, |row| Health::restored(now, row)),
                queue: VecDeque::new(),
                waiting: HashSet::new(),
                changed: true,
                address,
            }
        };
        Self { exits: pool.all().iter().map(exit).collect(), bounds, refusals: HashMap::new() }
    }

    /// Nothing is in flight, and nobody waits; every proxy counts as just used.
    pub fn complete_all(&mut self, now: Millis) {
        for exit in &mut self.exits {
            exit.clock = Clock::since(now);
            exit.health.forget_trial(now);
            exit.queue.clear();
            exit.waiting.clear();
        }
    }

    /// The proxy for a request to `host`, none where there is no pool; or until when its region is shut. Nobody waits, and it
    /// takes no place yet.
    pub fn choose(&self, now: Millis, host: &str, region: &Region) -> Result<Option<ExitId>, Wait> {
        if self.exits.is_empty() && region.is_none() {
            return Ok(None);
        }
        let usable = self.of(region).filter(|(_, exit)| exit.is_usable(now));
        let refusals = self.refusals.get(host);
        let best = usable.max_by_key(|(index, exit)| {
            let avoided = refusals.is_some_and(|refusals| refusals.avoids(*index, now));
            (!avoided, xxh3_64_with_seed(host.as_bytes(), exit.seed), *index)
        });
        best.map(|(index, _)| Some(ExitId(index))).ok_or_else(|| self.shut(now, region))
    }

    /// The address of the proxy that was chosen, or what to wait for. `flow` is woken by what it waits for, where that is no
    /// moment.
    pub fn allow(&mut self, now: Millis, ExitId(index): ExitId, flow: FlowId) -> Result<Arc<str>, Wait> {
        self.would_allow(now, ExitId(index)).inspect_err(|wait| {
            if wait.until.is_none() {
                self.exits[index].wait(flow);
            }
        })?;
        Ok(Arc::clone(&self.exits[index].address))
    }

    /// The same, and nobody waits.
    pub fn would_allow(&self, now: Millis, ExitId(index): ExitId) -> Result<(), Wait> {
        let limit = Limit { concurrency: self.bounds.concurrency, delay_ms: self.bounds.delay_ms };
        let allowed = self.exits[index].clock.allows(&limit, now);
        allowed.map_err(|wait| Wait { cause: Cause::Proxy, ..wait })
    }

    /// Whether anything may leave by a region now.
    pub fn gate(&self, now: Millis, region: &Region) -> Gate {
        if self.exits.is_empty() && region.is_none() {
            return Gate::Open;
        }
        let mut gate = Gate::Shut;
        for (_, exit) in self.of(region).filter(|(_, exit)| exit.is_usable(now)) {
            if exit.health.state() == State::Healthy {
                return Gate::Open;
            }
            gate = Gate::Trial;
        }
        gate
    }

    /// What is waited for at a region that is shut: the first quarantine of it that ends; without a moment what comes of a
    /// trial.
    pub fn shut(&self, now: Millis, region: &Region) -> Wait {
        let quarantines = self.of(region).filter_map(|(_, exit)| match exit.health.state() {
            State::Quarantined { until_ms } => Some(until_ms).filter(|until_ms| *until_ms > now),
            State::Healthy | State::Trial => None,
        });
        Wait { until: quarantines.min(), cause: Cause::Quarantine }
    }

    fn of(&self, region: &Region) -> impl Iterator<Item = (usize, &Exit)> {
        let region = region.as_deref();
        let exits = self.exits.iter().enumerate();
        exits.filter(move |(_, exit)| region.is_none_or(|region| region == &*exit.region))
    }

    /// A request that was chosen for leaves by this proxy.
    pub fn enter(&mut self, address: &str) {
        if let Some(exit) = self.exits.iter_mut().find(|exit| *exit.address == *address) {
            exit.clock.in_flight += 1;
            if exit.health.state() != State::Healthy {
                exit.health.begin_trial();
                exit.changed = true;
            }
        }
    }

    /// An entry of an earlier leader is in flight by this proxy.
    pub fn adopt(&mut self, address: &str) {
        if let Some(exit) = self.exits.iter_mut().find(|exit| *exit.address == *address) {
            exit.clock.in_flight += 1;
        }
    }

    /// A request to `host` has ended, or was never sent. Returns the flows that may go on.
    pub fn leave(
        &mut self,
        now: Millis,
        address: &str,
        host: &str,
        requested: bool,
        word: Option<ProxyWord>,
    ) -> Vec<FlowId> {
        let Some(index) = self.exits.iter().position(|exit| *exit.address == *address) else { return Vec::new() };
        let counts = self.counts(now, index, host, word);
        let exit = &mut self.exits[index];
        exit.clock.leave(now, requested);
        let before = exit.health.state();
        let host = counts.then(|| xxh3_64(host.as_bytes()));
        exit.health.ended(now, word, host, self.bounds.quarantine_ms);
        exit.changed |= word.is_some() || exit.health.state() != before;
        match (before, exit.health.state()) {
            (State::Healthy, State::Healthy) => Vec::new(),
            (before, after) => {
                say(&exit.address, &exit.region, before, after, now);
                exit.waiting.clear();
                exit.queue.drain(..).collect()
            }
        }
    }

    /// Whether what a request to `host` said speaks of the proxy, and not of the host.
    fn counts(&mut self, now: Millis, index: usize, host: &str, word: Option<ProxyWord>) -> bool {
        match word {
            None | Some(ProxyWord::Down) => true,
            Some(ProxyWord::Good) => {
                if let Some(refusals) = self.refusals.get_mut(host) {
                    refusals.mark = None;
                    refusals.by.retain(|streak| streak.exit != index);
                    if refusals.by.is_empty() {
                        self.refusals.remove(host);
                    }
                }
                true
            }
            Some(ProxyWord::Blocked | ProxyWord::Failed) => {
                if self.refusals.len() >= REFUSALS_MAX && !self.refusals.contains_key(host) {
                    // Those that are avoided, or that refuse everybody, are worth knowing.
                    self.refusals.retain(|_, known| known.matters(now));
                    if self.refusals.len() >= REFUSALS_MAX {
                        self.refusals.clear();
                    }
                }
                let refusals = self.refusals.entry(host.to_owned()).or_default();
                refusals.bad(index, now.saturating_add(self.bounds.quarantine_ms))
            }
        }
    }

    /// Flows that waited for a place where there is one now. One that does not take it leaves it to the next: this is asked
    /// at each turn.
    pub fn wake(&mut self) -> Vec<FlowId> {
        let mut woken = Vec::new();
        for exit in self.exits.iter_mut().filter(|exit| exit.health.state() == State::Healthy) {
            let free = self.bounds.concurrency.saturating_sub(exit.clock.in_flight) as usize;
            let count = free.min(exit.queue.len());
            woken.extend(exit.queue.drain(..count).inspect(|flow| {
                exit.waiting.remove(flow);
            }));
        }
        woken
    }

    /// How those fare that fare otherwise than when this was asked last.
    pub fn take_changed(&mut self, now: Millis) -> Vec<ProxyRow> {
        let row = |exit: &mut Exit| {
            let changed = std::mem::take(&mut exit.changed);
            changed.then(|| exit.health.row(now, &exit.address, &exit.region))
        };
        self.exits.iter_mut().filter_map(row).collect()
    }
}

impl Refusals {
    /// Another bad answer by this proxy, which is avoided until then if there were too many. Returns whether it is to blame.
    fn bad(&mut self, exit: usize, until: Millis) -> bool {
        let place = self.by.iter().position(|streak| streak.exit == exit).unwrap_or_else(|| {
            self.by.push(Streak { exit, count: 0, avoided_until: Millis::MIN });
            self.by.len() - 1
        });
        let streak = &mut self.by[place];
        streak.count = streak.count.saturating_add(1);
        if streak.count >= BAD_MAX {
            streak.avoided_until = until;
        }
        let mark = self.mark.get_or_insert(Mark::At(exit));
        if *mark != Mark::At(exit) {
            *mark = Mark::Everywhere;
        }
        *mark == Mark::At(exit)
    }

    fn matters(&self, now: Millis) -> bool {
        self.mark == Some(Mark::Everywhere) || self.by.iter().any(|streak| streak.avoided_until > now)
    }

    fn avoids(&self, exit: usize, now: Millis) -> bool {
        self.by.iter().any(|streak| streak.exit == exit && streak.avoided_until > now)
    }
}

impl Exit {
    /// What left before its quarantine must not be taken for the trial.
    fn is_usable(&self, now: Millis) -> bool {
        match self.health.state() {
            State::Healthy => true,
            State::Quarantined { until_ms } if until_ms > now => false,
            State::Quarantined { .. } | State::Trial => self.clock.in_flight == 0,
        }
    }

    fn wait(&mut self, flow: FlowId) {
        if self.waiting.insert(flow) {
            self.queue.push_back(flow);
        }
    }
}

fn say(proxy: &str, region: &str, before: State, after: State, now: Millis) {
    match (before, after) {
        (State::Trial, State::Healthy) => tracing::info!(proxy, region, "a proxy is healthy again"),
        (State::Healthy | State::Trial, State::Quarantined { until_ms }) if until_ms > now => {
            tracing::warn!(proxy, region, for_ms = until_ms - now, "a proxy is in quarantine");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests;
