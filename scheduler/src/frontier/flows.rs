//! The flows that are held: made, put in turn, forgotten.

use std::sync::Arc;

use dodo_common::clock::Millis;

use crate::frontier::flow::{Flow, FlowId};
use crate::frontier::place::HostId;
use crate::frontier::{CROWDED_WAIT_MS, FlowKey, Frontier};
use crate::politeness::NEVER;

impl Frontier {
    /// Whether another flow can be held. What has stepped aside makes room: the scan brings it back.
    pub fn has_room(&mut self) -> bool {
        let full = self.flows.len() >= self.flows_max;
        self.crowded |= full;
        self.refused |= full;
        if full {
            self.drop_asides();
            self.drop_sleepers();
        }
        self.flows.len() < self.flows_max
    }

    /// What has long to wait makes room for what has not: the flows whose next job, or whose host's next moment, is furthest.
    fn drop_sleepers(&mut self) {
        let soon = self.told_ms.saturating_add(CROWDED_WAIT_MS);
        while self.flows.len() >= self.flows_max {
            let refill = self.refill_timers.last().map_or(NEVER, |(at, _)| *at);
            let issue = self.timers.last().map_or(NEVER, |(at, ..)| *at);
            if refill.max(issue) <= soon {
                return;
            }
            if issue >= refill {
                if let Some((.., id)) = self.timers.pop_last() {
                    self.forget_flow(id);
                }
            } else if let Some((_, id)) = self.refill_timers.pop_last()
                && let Some(flow) = self.flows.get_mut(id)
            {
                flow.timers -= 1;
                if flow.is_empty() && flow.taken == 0 {
                    self.forget_flow(id);
                } else {
                    // It is read anew when its buffer is used up.
                    flow.more = true;
                }
            }
        }
    }

    /// A scan over all hosts with work is through. True: it is to begin again, since there are more than are held.
    pub fn scanned(&mut self) -> bool {
        self.crowded = std::mem::take(&mut self.refused);
        self.crowded
    }

    /// The flow of this name, made if there is room.
    pub(super) fn flow(&mut self, tenant: &str, host: &str) -> Option<FlowId> {
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

    pub(super) fn known_flow(&self, tenant: &str, host: HostId) -> Option<FlowId> {
        let flows = &self.places.get(host)?.flows;
        flows.iter().copied().find(|id| self.flows.get(*id).is_some_and(|flow| &*flow.tenant == tenant))
    }

    pub(super) fn key_of(&self, id: FlowId) -> Option<FlowKey> {
        let flow = self.flows.get(id)?;
        Some((flow.tenant.to_string(), self.places.get(flow.host)?.name.to_string()))
    }

    pub(super) fn forget_flow(&mut self, id: FlowId) {
        let Some(flow) = self.flows.remove(id) else { return };
        if let Some(host) = self.places.get_mut(flow.host) {
            host.flows.retain(|known| *known != id);
        }
    }

    /// Nothing waits here, and nothing is under way: it comes back with a hint or the scan.
    pub(super) fn forget_if_idle(&mut self, id: FlowId) {
        // While there is room a walk is kept for a while: the next hint would begin it anew.
        let is_idle = |flow: &Flow| flow.is_idle() && (self.crowded || !flow.has_walk());
        if self.flows.get(id).is_some_and(is_idle) && !self.hungry.contains(&id) {
            self.forget_flow(id);
        }
    }

    /// Forgets walks that are over, and the flows that were kept for them.
    pub(super) fn forget_walks(&mut self, now: Millis) {
        let resumptions = self.budgets.resumptions();
        let mut gone = Vec::new();
        for id in &self.walkers {
            let flow = self.flows.get_mut(*id);
            if !flow.is_some_and(|flow| {
                flow.forget_walk(now, resumptions);
                flow.has_walk()
            }) {
                gone.push(*id);
            }
        }
        for id in gone {
            self.walkers.remove(&id);
            self.forget_if_idle(id);
        }
    }

    pub(super) fn enqueue(&mut self, id: FlowId) {
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

    pub(super) fn enqueue_all(&mut self, ids: impl IntoIterator<Item = FlowId>) {
        for id in ids {
            self.enqueue(id);
        }
    }
}
