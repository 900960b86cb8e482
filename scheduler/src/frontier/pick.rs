//! Picks: which jobs are issued now. Every clock, budget and proxy is asked before one is.

use std::sync::Arc;

use dodo_common::clock::Millis;
use dodo_common::db::schedule::DueJob;
use dodo_common::model::cause::Cause;
use dodo_common::model::job::JobKey;
use uuid::Uuid;

use crate::frontier::budget::Room;
use crate::frontier::flow::FlowId;
use crate::frontier::host_budget::{HostRoom, Over};
use crate::frontier::over_budget::OVER_BUDGET_MAX;
use crate::frontier::place::{HostId, Stay};
use crate::frontier::{CROWDED_WAIT_MS, Frontier};
use crate::politeness::Wait;

/// Rules that are not known yet are there after this long, milliseconds.
pub const RULES_MS: Millis = 5;

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
    pub exempt: bool,
    pub stay: Stay,
}

impl Frontier {
    /// Picks at most `count` jobs that may be issued now. Each is in flight from here on; tell
    /// [`Frontier::issued`] its entry, or [`Frontier::complete_all`] if the push failed.
    pub fn pick(&mut self, now: Millis, count: usize) -> Vec<Pick> {
        self.told_ms = now;
        while let Some((at, ..)) = self.timers.first()
            && *at <= now
        {
            if let Some((.., id)) = self.timers.pop_first() {
                self.enqueue(id);
            }
        }
        self.wake_over_budget();
        let woken = self.exits.wake();
        self.enqueue_all(woken);
        if count > 0 {
            self.wake_asides(now);
        }
        let mut picks = Vec::new();
        while picks.len() < count {
            let Some(id) = self.turns.take() else { break };
            let Some(flow) = self.flows.get_mut(id) else { continue };
            flow.in_ring = false;
            match self.pick_one(now, id) {
                Ok(Some(pick)) => {
                    picks.push(pick);
                    self.go_on(now, id);
                }
                Ok(None) => {}
                Err(wait) => self.wait(now, id, wait),
            }
        }
        picks
    }

    fn pick_one(&mut self, now: Millis, id: FlowId) -> Result<Option<Pick>, Wait> {
        let suspects_too = self.suspects < self.suspects_max;
        loop {
            let Some(flow) = self.flows.get_mut(id) else { return Ok(None) };
            let (more, suspects) = (flow.more, flow.has_suspects());
            let (tenant, host) = (Arc::clone(&flow.tenant), flow.host);
            let queue = flow.queue(suspects_too);
            let Some(job) = queue.front() else {
                if more {
                    self.refill_or_leave(id);
                } else {
                    self.forget_if_idle(id);
                }
                if suspects {
                    self.suspect_waiters.insert(id);
                    return Err(Wait::event(Cause::Suspects));
                }
                return Ok(None);
            };
            let Some(rules) = self.budgets.get(job.dispatch) else {
                // It was forgotten with jobs in the buffer, and is read again.
                self.unknown_dispatches.insert((tenant.to_string(), job.dispatch));
                return Err(Wait::until(now + RULES_MS, Cause::Turn));
            };
            if rules.passes_over(job) {
                queue.pop_front();
                continue;
            }
            let (limit, host_rules) = (rules.limit(), rules.host);
            let DueJob { id: job, attempt, dispatch, alone, exempt } = *job;
            let key = || JobKey { tenant: tenant.to_string(), id: job, attempt };
            let host_room = || host_rules.map(|rules| self.host_budgets.room(&rules, (dispatch, host)));
            let over = match (rules.room(), host_room()) {
                _ if exempt => None,
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
                if self.over_budget.len() >= OVER_BUDGET_MAX {
                    self.over_budget_waiters.insert(id);
                    return Err(Wait::event(Cause::Budget));
                }
                queue.pop_front();
                let key = key();
                self.put_over_budget(over, key, id);
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
            self.serial += 1;
            flow.picked = self.serial;
            let low = flow.more && flow.is_low();
            self.taken.insert(job);
            self.suspects += usize::from(alone);
            if low && !self.crowded {
                self.hungry.insert(id);
            }
            if !exempt {
                self.enter_budgets(dispatch, host);
            }
            return Ok(Some(Pick { key: key(), host: name.to_string(), dispatch, alone, proxy, exempt, stay }));
        }
    }

    pub(super) fn enter_budgets(&mut self, dispatch: Uuid, host: HostId) {
        self.budgets.enter(dispatch);
        if self.budgets.get(dispatch).is_some_and(|rules| rules.host.is_some()) {
            self.host_budgets.enter((dispatch, host));
        }
    }

    /// A flow that was picked takes its place behind the others. Where its host or address has no room now, it waits at once:
    /// in the ring it would come before those that are woken when there is some.
    fn go_on(&mut self, now: Millis, id: FlowId) {
        let next = self.flows.get(id).and_then(|flow| Some((flow.host, flow.front()?.dispatch)));
        let limit = next.and_then(|(host, dispatch)| Some((host, self.budgets.get(dispatch)?.limit())));
        let has_name = |id| self.places.get(id).is_some_and(|host| !host.name.is_empty());
        if let Some((host, limit)) = limit.filter(|(host, _)| has_name(*host))
            && let Err(wait) = self.places.allow(now, host, &limit, id)
        {
            return self.wait(now, id, wait);
        }
        self.enqueue(id);
    }

    fn wait(&mut self, now: Millis, id: FlowId, wait: Wait) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        flow.waits = wait.cause;
        let Some(at) = wait.until else { return };
        let picked = flow.picked;
        if self.crowded && at > now + CROWDED_WAIT_MS {
            self.forget_flow(id);
        } else {
            self.timers.insert((at, picked, id));
        }
    }
}
