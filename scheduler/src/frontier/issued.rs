//! Issued jobs: what each occupies from its pick to its settlement.

use std::sync::Arc;

use dodo_common::clock::Millis;
use dodo_common::model::cause::Cause;
use dodo_common::model::job::JobKey;
use dodo_common::model::proxy::ProxyWord;
use dodo_common::model::stream_id::StreamId;
use uuid::Uuid;

use crate::frontier::pick::Pick;
use crate::frontier::place::{HostId, Stay};
use crate::frontier::{CROWDED_WAIT_MS, Frontier};

/// An issued job: what it occupies until it is settled.
#[derive(Clone, Debug)]
pub struct Issued {
    pub key: JobKey,
    pub host: HostId,
    pub stay: Stay,
    pub proxy: Option<Arc<str>>,
    pub dispatch: Uuid,
    pub alone: bool,
    pub exempt: bool,
    pub issued_ms: Millis,
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
    /// That is another try; what it waits for meanwhile.
    pub again: Option<Cause>,
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

impl Frontier {
    pub fn in_flight(&self) -> usize {
        self.issued.len()
    }

    /// The last of the entries that are not settled.
    pub fn newest_issued(&self) -> StreamId {
        self.issued.keys().max().copied().unwrap_or_default()
    }

    /// Records the stream entry of a picked job.
    pub fn issued(&mut self, now: Millis, entry: StreamId, pick: Pick) {
        let Pick { key, host, dispatch, alone, proxy, exempt, stay } = pick;
        let host = stay.host().unwrap_or_else(|| self.places.id_or_new(&host));
        self.issued.insert(entry, Issued { key, host, stay, proxy, dispatch, alone, exempt, issued_ms: now });
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
        // Its address is known when the row of its host has been read. Whether a budget holds it is not known, and what
        // is in flight may be a page.
        let exempt = false;
        self.issued.insert(entry, Issued { key, host, stay, proxy, dispatch, alone, exempt, issued_ms: now });
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
        if issued.exempt {
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
                Some(id) if in_ms <= 0 => {
                    if let Some(flow) = self.flows.get_mut(id) {
                        flow.came_back();
                    }
                    self.look_again(id);
                }
                // The scan brings it back.
                Some(_) if self.crowded && in_ms > CROWDED_WAIT_MS => {}
                Some(id) => {
                    if let Some(flow) = self.flows.get_mut(id) {
                        flow.again = settled.again.map(|cause| Box::new((issued.dispatch, cause)));
                    }
                    self.refill_at(now + in_ms + 1, id);
                }
                None => {}
            }
        }
        woken.extend(id);
        // They wait for the same place: whoever was picked longest ago takes it.
        woken.sort_by_key(|id| self.flows.get(*id).map_or(0, |flow| flow.picked));
        self.enqueue_all(woken);
    }

    /// Entries issued before `before`, for the audit.
    pub fn issued_before(&self, before: Millis) -> Vec<StreamId> {
        self.issued.iter().filter(|(_, issued)| issued.issued_ms < before).map(|(entry, _)| *entry).collect()
    }
}
