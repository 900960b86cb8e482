//! Jobs that have stepped aside: no proxy of their region may be used now, and others of their hosts go on meanwhile.

use std::collections::{HashMap, VecDeque};

use dodo_common::clock::Millis;
use dodo_common::db::schedule::DueJob;

use crate::frontier::Frontier;
use crate::frontier::exits::{Gate, Region};
use crate::frontier::flow::FlowId;
use crate::politeness::NEVER;

/// Between two flows that are brought back for a trial, milliseconds: one of them mostly leaves at once, and each is read anew.
const TRIAL_MS: Millis = 20;

/// The first job of a flow that may not leave by its region. It stands for all of that region there: they are left in the
/// schedule.
#[derive(Debug)]
pub struct Aside {
    pub region: Region,
    pub job: DueJob,
}

/// The flows of such jobs, region by region, in the order in which they stepped aside.
#[derive(Debug, Default)]
pub struct Asides {
    regions: HashMap<Region, Queue>,
}

#[derive(Debug)]
struct Queue {
    flows: VecDeque<FlowId>,
    /// No other one is brought back for a trial before.
    trial_ms: Millis,
}

impl Default for Queue {
    fn default() -> Self {
        Self { flows: VecDeque::new(), trial_ms: NEVER }
    }
}

impl Asides {
    fn push(&mut self, region: Region, flow: FlowId) {
        self.regions.entry(region).or_default().flows.push_back(flow);
    }

    fn regions(&self) -> Vec<Region> {
        self.regions.keys().cloned().collect()
    }

    /// How many flows may go on by a region now.
    fn count(&mut self, now: Millis, region: &Region, gate: Gate) -> usize {
        match (gate, self.regions.get_mut(region)) {
            (Gate::Open, _) => usize::MAX,
            (Gate::Trial, Some(queue)) if queue.trial_ms <= now => {
                queue.trial_ms = now + TRIAL_MS;
                1
            }
            (Gate::Trial | Gate::Shut, _) => 0,
        }
    }

    /// The flow that has waited longest for a region; it may have gone meanwhile.
    fn take(&mut self, region: &Region) -> Option<FlowId> {
        let queue = self.regions.get_mut(region)?;
        let flow = queue.flows.pop_front();
        if queue.flows.is_empty() {
            self.regions.remove(region);
        }
        flow
    }

    pub fn clear(&mut self) {
        self.regions.clear();
    }
}

impl Frontier {
    /// Brings back what stepped aside where its region is open again; for a trial one flow, and if its job does not leave at
    /// once, then another.
    pub(super) fn wake_asides(&mut self, now: Millis) {
        for region in self.asides.regions() {
            let mut count = self.asides.count(now, &region, self.exits.gate(now, &region));
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
    pub(super) fn step_aside(&mut self, id: FlowId, region: Region, suspects_too: bool) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        let Some(job) = flow.queue(suspects_too).pop_front() else { return };
        // While there are more flows than are held, nothing stays for it.
        if !self.crowded && flow.step_aside(region.clone(), job) {
            self.asides.push(region, id);
        }
    }

    /// What has stepped aside makes room for flows that need not wait.
    pub(super) fn drop_asides(&mut self) {
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
}
