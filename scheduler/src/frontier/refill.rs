//! Refills: which flows are to be read anew from the schedule, and what was found.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use dodo_common::clock::Millis;
use dodo_common::db::schedule::{Look, Past, Refill};

use crate::frontier::exits::{Gate, Region};
use crate::frontier::flow::{Flow, FlowId};
use crate::frontier::{CROWDED_WAIT_MS, FlowKey, Frontier};

/// Flows that only go on with their walk, in one turn: they look at many rows, and others do not wait for that.
const WALKS_MAX: usize = 20;

/// What one statement is to look for.
#[derive(Debug, Default)]
pub struct Wanted {
    /// One for each flow, and another one behind it for each that walks.
    pub looks: Vec<Look>,
    pub past: Past,
}

impl Frontier {
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

    /// Flows to refill now, at most `count` of them.
    pub fn wants_refill(&mut self, now: Millis, count: usize) -> Vec<Wanted> {
        self.told_ms = now;
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
        let mut ids: Vec<FlowId> = self.hungry.iter().take(count).copied().collect();
        let walks = self.walks.len().min(WALKS_MAX);
        for id in self.walks.drain(..walks) {
            if let Some(flow) = self.flows.get_mut(id) {
                flow.leave_queue();
            }
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
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
            let behind = flow.asks_behind(now, self.budgets.resumptions());
            let look = |limit, after| Look { tenant: key.0.clone(), host: key.1.clone(), limit, after };
            let head = look(flow.asks(now) as i64, None);
            let behind = behind.map(|(after, limit)| look(limit as i64, Some(after)));
            let past = |regions: &Vec<Region>| Wanted { past: self.budgets.past(regions), ..Wanted::default() };
            let wanted = wanted.entry(regions).or_insert_with_key(past);
            wanted.looks.push(head);
            wanted.looks.extend(behind);
        }
        wanted.into_values().collect()
    }

    /// Takes what a look of a refill found; `limit` is what was asked for.
    pub fn refilled(&mut self, now: Millis, refill: Refill, limit: i64) {
        let Some(id) = self.flow(&refill.tenant, &refill.host) else { return };
        let Some(flow) = self.flows.get_mut(id) else { return };
        let (tenant, host, read_at) = (refill.tenant.clone(), refill.host.clone(), refill.read_at);
        flow.refill(now, refill, limit.max(0) as usize, &self.taken, self.budgets.resumptions());
        if flow.is_asked() {
            return;
        }
        if flow.has_walk() {
            self.walkers.insert(id);
        }
        let unknown = flow.dispatches().filter(|dispatch| self.budgets.get(*dispatch).is_none());
        self.unknown_dispatches.extend(unknown.map(|dispatch| (tenant.clone(), dispatch)));
        if !flow.is_empty() {
            flow.again = None;
            self.places.look_up_once(flow.host);
        }
        if !flow.more {
            self.short.insert((tenant, host), read_at);
        }
        self.enqueue(id);
    }

    /// Flows of which all that was due then has been read: when more becomes due is to be told. Asking forgets them.
    pub fn take_short(&mut self) -> Vec<(FlowKey, DateTime<Utc>)> {
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

    /// The schedule may hold something that the buffer does not.
    pub(super) fn look_again(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        if flow.is_low() {
            self.hungry.insert(id);
        } else if let Some(at) = flow.look_again() {
            self.refill_at(at, id);
        }
    }

    pub(super) fn refill_at(&mut self, at: Millis, id: FlowId) {
        if let Some(flow) = self.flows.get_mut(id)
            && self.refill_timers.insert((at, id))
        {
            flow.timers += 1;
        }
    }

    /// A flow has used up its buffer, and the schedule has more of it: while there are more flows than are held, it is
    /// another's turn.
    pub(super) fn refill_or_leave(&mut self, id: FlowId) {
        let flow = self.flows.get_mut(id);
        if let Some(walk) = flow.filter(|flow| flow.is_empty()).and_then(Flow::walk) {
            // It stays even so: it would never come to the end.
            if !std::mem::replace(&mut walk.queued, true) {
                self.walks.push_back(id);
            }
        } else if self.crowded && self.flows.get(id).is_some_and(Flow::is_empty) {
            self.forget_flow(id);
        } else {
            self.hungry.insert(id);
        }
    }

    /// Regions by which nothing may leave now.
    fn shut(&self, now: Millis) -> Vec<Region> {
        let regions = self.budgets.regions().into_iter();
        regions.filter(|region| self.exits.gate(now, region) == Gate::Shut).cloned().collect()
    }
}
