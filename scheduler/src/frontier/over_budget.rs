//! Jobs for which a budget has no room: they end without being issued, and are taken until they have.

use dodo_common::model::job::JobKey;

use crate::frontier::Frontier;
use crate::frontier::flow::FlowId;
use crate::frontier::host_budget::Over;

/// Jobs that wait for their end at once. What is over a budget beyond them stays in its buffer, where it is not read again.
pub const OVER_BUDGET_MAX: usize = 4_000;

/// In the order in which they end: those together that end for the same reason, and are of the same tenant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OverBudget {
    pub over: Over,
    pub key: JobKey,
    flow: FlowId,
}

impl Frontier {
    /// At most `count` jobs of one tenant that end for one reason. Each stays taken until [`Frontier::skipped`].
    pub fn take_over_budget(&mut self, count: usize) -> Vec<OverBudget> {
        let mut batch: Vec<OverBudget> = Vec::new();
        while batch.len() < count
            && let Some(next) = self.over_budget.first()
            && batch.first().is_none_or(|first| (first.over, &first.key.tenant) == (next.over, &next.key.tenant))
        {
            batch.extend(self.over_budget.pop_first());
        }
        batch
    }

    /// It is gone from the schedule.
    pub fn skipped(&mut self, job: &OverBudget) {
        self.taken.remove(&job.key.id);
        if let Some(flow) = self.flows.get_mut(job.flow) {
            flow.taken = flow.taken.saturating_sub(1);
        }
        self.enqueue(job.flow);
    }

    /// Takes a job out of its flow, which has just seen that a budget has no room for it.
    pub(super) fn put_over_budget(&mut self, over: Over, key: JobKey, flow: FlowId) {
        self.taken.insert(key.id);
        if let Some(flow) = self.flows.get_mut(flow) {
            flow.taken += 1;
        }
        self.over_budget.insert(OverBudget { over, key, flow });
    }

    /// Flows that wait with more of them go on, as many as there is room for.
    pub(super) fn wake_over_budget(&mut self) {
        for _ in self.over_budget.len()..OVER_BUDGET_MAX {
            let Some(flow) = self.over_budget_waiters.pop_first() else { return };
            self.enqueue(flow);
        }
    }
}
