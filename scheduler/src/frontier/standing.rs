//! What jobs wait for: of one dispatch at one host, and counted over all.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use dodo_common::clock::Millis;
use dodo_common::db::schedule::DueJob;
use dodo_common::model::cause::Cause;
use dodo_common::model::stream_id::StreamId;
use dodo_common::stream::question::{Standing, Waiting};
use uuid::Uuid;

use crate::frontier::Frontier;
use crate::frontier::budget::Room;
use crate::frontier::host_budget::HostRoom;
use crate::politeness::{NEVER, Wait};

impl Frontier {
    /// What the jobs of each (tenant, dispatch) wait for: one for each request under way, one for each flow whose next job
    /// waits for something else or has stepped aside, and one for each flow that has nothing but tries to repeat. Of the
    /// issued entries those that are `unread` wait for a worker.
    pub fn census(&self, unread: &RangeInclusive<StreamId>) -> HashMap<(&str, Uuid, Cause), i64> {
        let mut census = HashMap::new();
        let mut count = |tenant, dispatch, cause| *census.entry((tenant, dispatch, cause)).or_default() += 1;
        for (entry, issued) in &self.issued {
            let cause = if unread.contains(entry) { Cause::Workers } else { Cause::Request };
            count(issued.key.tenant.as_str(), issued.dispatch, cause);
        }
        for flow in self.flows.values() {
            let is_active = |job: &DueJob| self.budgets.get(job.dispatch).is_some_and(|rules| !rules.passes_over(job));
            for aside in flow.asides().iter().filter(|aside| is_active(&aside.job)) {
                count(&flow.tenant, aside.job.dispatch, Cause::Quarantine);
            }
            let cause = if flow.in_ring { Cause::Turn } else { flow.waits };
            match flow.front() {
                Some(job) if cause != Cause::Busy => count(&flow.tenant, job.dispatch, cause),
                Some(_) => {}
                // Nothing else is to be done there meanwhile.
                None if flow.taken == 0 && flow.timers > 0 => {
                    let is_issued = |id| self.budgets.get(id).is_some_and(|rules| !rules.idle && !rules.spent);
                    if let Some(again) = flow.again.as_ref().filter(|again| is_issued(again.0)) {
                        count(&flow.tenant, again.0, again.1);
                    }
                }
                None => {}
            }
        }
        census
    }

    /// How things stand for this job, in the order in which [`Frontier::pick`] asks.
    pub fn standing(&self, now: Millis, of: &Waiting) -> Standing {
        let known = self.places.id(&of.host);
        let clock = known.and_then(|host| self.places.clock(host));
        let wait = if of.alone && self.suspects >= self.suspects_max {
            Some(Wait::event(Cause::Suspects))
        } else {
            self.budgets.get(of.dispatch).and_then(|rules| {
                if !of.exempt && rules.room() != Room::Some {
                    return Some(Wait::event(Cause::Budget));
                }
                let given =
                    rules.host.zip(known).map(|(rules, host)| self.host_budgets.room(&rules, (of.dispatch, host)));
                if !of.exempt && matches!(given, Some(HostRoom::Later | HostRoom::None(_))) {
                    return Some(Wait::event(Cause::Budget));
                }
                if of.host.is_empty() {
                    return None;
                }
                let exit = match self.exits.choose(now, &of.host, &rules.region) {
                    Ok(exit) => exit,
                    Err(wait) => return Some(wait),
                };
                let allowed = self.places.would_allow(now, known?, &rules.limit());
                // A place at a proxy is asked for last.
                allowed.err().or_else(|| self.exits.would_allow(now, exit?).err())
            })
        };
        Standing {
            cause: wait.map_or(Cause::Turn, |wait| wait.cause),
            until_ms: wait.and_then(|wait| wait.until),
            in_flight: clock.map_or(0, |clock| clock.in_flight),
            last_completion_ms: clock.map(|clock| clock.last_completion_ms).filter(|at| *at > NEVER),
        }
    }
}
