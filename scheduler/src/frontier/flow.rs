//! A flow: the due jobs of one tenant at one host, as far as they are buffered. The unit of turns.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use dodo_common::clock::Millis;
use dodo_common::db::schedule::{DueJob, Position, Refill};
use dodo_common::model::cause::Cause;
use slotmap::new_key_type;
use uuid::Uuid;

use crate::frontier::aside::Aside;
use crate::frontier::exits::Region;
use crate::frontier::place::HostId;
use crate::frontier::walk::Walk;
use crate::politeness::NEVER;

/// Due ids asked for and buffered: a few, and more the faster they go.
pub const BUFFER_MIN: usize = 32;
pub const BUFFER_MAX: usize = 4096;
/// A buffer that lasts less than this is doubled, one that lasts more than that is halved, milliseconds.
const BUFFER_SHORT_MS: Millis = 1_000;
const BUFFER_LONG_MS: Millis = 30_000;
/// With enough in the buffer, what came meanwhile with a higher priority waits this long, milliseconds: looking for it
/// reads past all that is buffered or issued.
pub const STALE_MS: Millis = 1_000;

new_key_type! {
    pub struct FlowId;
}

#[derive(Debug)]
pub struct Flow {
    pub tenant: Arc<str>,
    pub host: HostId,
    buffer: VecDeque<DueJob>,
    /// Those that run alone: few at a time are issued, and nobody waits behind them.
    suspects: VecDeque<DueJob>,
    /// One for each region that is shut and has jobs here; what stands behind them is not buffered.
    asides: Vec<Aside>,
    /// More jobs are passed over at the head than a refill looks at.
    walk: Option<Box<Walk>>,
    /// How many the next refill asks for.
    pub room: usize,
    refilled_ms: Millis,
    /// It is refilled at [`STALE_MS`] after the last time.
    stale: bool,
    /// Jobs of this flow that are issued, or end without being issued: a refill must look past them.
    pub taken: usize,
    /// Moments at which it is to be refilled.
    pub timers: u32,
    /// The number of its last pick, of all picks; 0 before the first.
    pub picked: u64,
    /// The schedule may hold more due jobs than the buffer took.
    pub more: bool,
    pub in_ring: bool,
    /// Of the last job that is to be tried again: its dispatch, and what it waits for until a refill brings it back.
    pub again: Option<Box<(Uuid, Cause)>>,
    /// What it waited for when it was looked at last.
    pub waits: Cause,
}

impl Flow {
    pub fn new(tenant: Arc<str>, host: HostId) -> Self {
        Self {
            tenant,
            host,
            buffer: VecDeque::new(),
            suspects: VecDeque::new(),
            asides: Vec::new(),
            walk: None,
            room: BUFFER_MIN,
            refilled_ms: NEVER,
            stale: false,
            taken: 0,
            timers: 0,
            picked: 0,
            more: false,
            in_ring: false,
            again: None,
            waits: Cause::Turn,
        }
    }

    /// As if it were new: nothing is buffered, and nothing taken.
    pub fn clear(&mut self) {
        *self = Self::new(Arc::clone(&self.tenant), self.host);
    }

    /// It is time for a refill, which reads again what is buffered and issued; before, there is enough.
    pub fn is_low(&self) -> bool {
        self.buffer.len() <= self.room / 8
    }

    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty() && self.suspects.is_empty()
    }

    /// Nothing waits here, nothing of it is under way, and it is not known to be refilled.
    pub fn is_idle(&self) -> bool {
        let walks = self.walk.as_ref().is_some_and(|walk| !walk.has_ended());
        self.is_empty() && self.asides.is_empty() && self.taken == 0 && self.timers == 0 && !walks
    }

    pub fn has_suspects(&self) -> bool {
        !self.suspects.is_empty()
    }

    /// Where its next job comes from: suspects have waited longer.
    pub fn queue(&mut self, suspects_too: bool) -> &mut VecDeque<DueJob> {
        if suspects_too && !self.suspects.is_empty() { &mut self.suspects } else { &mut self.buffer }
    }

    /// A job steps aside; true: it is the first one of its region.
    pub fn step_aside(&mut self, region: Region, job: DueJob) -> bool {
        let first = self.asides.iter().all(|aside| aside.region != region);
        if first {
            self.asides.push(Aside { region, job });
        }
        first
    }

    /// The job of this region that stepped aside comes back before all others; false: there is none.
    pub fn come_back(&mut self, region: &Region) -> bool {
        let Some(job) = self.take_aside(region) else { return false };
        // Others of its region were passed over.
        self.came_back();
        let queue = if job.alone { &mut self.suspects } else { &mut self.buffer };
        queue.push_front(job);
        true
    }

    pub fn take_aside(&mut self, region: &Region) -> Option<DueJob> {
        let at = self.asides.iter().position(|aside| aside.region == *region)?;
        Some(self.asides.swap_remove(at).job)
    }

    pub fn asides(&self) -> &[Aside] {
        &self.asides
    }

    /// The first job that waits.
    pub fn front(&self) -> Option<&DueJob> {
        self.buffer.front().or_else(|| self.suspects.front())
    }

    /// The schedule may hold something that the buffer does not. When to look, if that is not now; none if that is known
    /// already.
    pub fn look_again(&mut self) -> Option<Millis> {
        let known = std::mem::replace(&mut self.stale, true);
        (!known).then_some(self.refilled_ms + STALE_MS)
    }

    /// How many rows a refill is to ask for: what is issued has not left the schedule; what is buffered is read anew.
    pub fn asks(&mut self, now: Millis) -> usize {
        let lasted = now - self.refilled_ms;
        // A walk is no sign that they go fast.
        if self.more && self.is_low() && lasted < BUFFER_SHORT_MS && self.walk.is_none() {
            self.room = (self.room * 2).min(BUFFER_MAX);
        } else if lasted > BUFFER_LONG_MS {
            self.room = (self.room / 2).max(BUFFER_MIN);
        }
        self.taken + self.buffer.len() + self.suspects.len() + self.room
    }

    /// Where a refill is to look beside the head, and for how many: the walk goes on, unless there is enough behind.
    pub fn asks_behind(&mut self, now: Millis, resumptions: u64) -> Option<(Position, usize)> {
        let walk = self.walk.as_mut()?;
        if walk.is_over(now, resumptions) {
            // This refill looks at the head alone.
            walk.begin_again(now, resumptions);
            return None;
        }
        let room = self.room.saturating_sub(walk.behind.min(self.buffer.len()));
        (room > 0).then(|| (walk.ask(), room))
    }

    /// The walk that is not at its end.
    pub fn walk(&mut self) -> Option<&mut Walk> {
        self.walk.as_deref_mut().filter(|walk| !walk.has_ended())
    }

    /// Its walk waits for its turn no more, whether it is at its end by now or not.
    pub fn leave_queue(&mut self) {
        if let Some(walk) = &mut self.walk {
            walk.queued = false;
        }
    }

    /// A job is back where it stood, or more than one where a walk has been: it begins again.
    pub fn came_back(&mut self) {
        if let Some(walk) = &mut self.walk {
            walk.set_stale();
        }
    }

    /// It walks, or has come to the end: what comes behind is found at once.
    pub fn has_walk(&self) -> bool {
        self.walk.is_some()
    }

    /// Forgets a walk that is over, while nothing waits here.
    pub fn forget_walk(&mut self, now: Millis, resumptions: u64) {
        if self.is_empty() && self.walk.as_ref().is_some_and(|walk| walk.is_over(now, resumptions)) {
            self.walk = None;
        }
    }

    /// The refill under way has looked at the head, and another answer is to come.
    pub fn is_asked(&self) -> bool {
        self.walk.as_ref().is_some_and(|walk| walk.is_asked())
    }

    /// Takes what a refill found at the head in place of what was buffered: what came later with a higher priority goes
    /// first. What a walk has found stands behind that.
    pub fn refill(&mut self, now: Millis, refill: Refill, limit: usize, taken: &HashSet<Uuid>, resumptions: u64) {
        if let Some(after) = refill.after {
            return self.refill_behind(now, after, refill, taken);
        }
        let full = refill.due.len() >= limit;
        let (mut behind, mut alone) = (VecDeque::new(), VecDeque::new());
        match refill.upto.filter(|_| !full) {
            Some(at) => {
                let walk = self.walk.get_or_insert_with(|| Box::new(Walk::new(now, at, resumptions)));
                walk.pass(at);
                behind = self.buffer.split_off(self.buffer.len() - walk.behind.min(self.buffer.len()));
                alone = std::mem::take(&mut self.suspects);
            }
            None => self.walk = None,
        }
        self.more = full || self.walk().is_some();
        self.stale = false;
        self.refilled_ms = now;
        self.buffer.clear();
        self.suspects.clear();
        for job in refill.due.into_iter().filter(|job| !taken.contains(&job.id)) {
            let queue = if job.alone { &mut self.suspects } else { &mut self.buffer };
            if queue.len() < BUFFER_MAX {
                queue.push_back(job);
            } else {
                self.more = true;
            }
        }
        if let Some(mut walk) = self.walk.take() {
            walk.behind = self.append(behind.into_iter().chain(alone), taken);
            self.walk = Some(walk);
        }
        if self.buffer.capacity() > 2 * self.buffer.len().max(BUFFER_MIN) {
            self.buffer.shrink_to_fit();
        }
    }

    /// Takes what the walk has found, behind all that is buffered.
    fn refill_behind(&mut self, now: Millis, after: Position, refill: Refill, taken: &HashSet<Uuid>) {
        // The head has ended it where less is passed over by now.
        let Some(mut walk) = self.walk.take() else { return };
        let suspects = self.suspects.len();
        let buffered = self.append(refill.due, taken);
        let found = buffered > 0 || self.suspects.len() > suspects;
        walk.behind = walk.behind.min(self.buffer.len() - buffered) + buffered;
        if walk.answer(now, after, refill.upto, found) {
            self.more = refill.upto.is_some() || self.buffer.len() >= BUFFER_MAX;
        }
        self.walk = Some(walk);
    }

    /// Buffers those that are not, and not taken; returns how many of them are no suspects.
    fn append(&mut self, jobs: impl IntoIterator<Item = DueJob>, taken: &HashSet<Uuid>) -> usize {
        let mut jobs = jobs.into_iter().filter(|job| !taken.contains(&job.id)).peekable();
        if jobs.peek().is_none() {
            return 0;
        }
        let known: HashSet<Uuid> = self.buffer.iter().chain(&self.suspects).map(|job| job.id).collect();
        let before = self.buffer.len();
        for job in jobs.filter(|job| !known.contains(&job.id)) {
            let queue = if job.alone { &mut self.suspects } else { &mut self.buffer };
            // What is left out is found by the next walk.
            if queue.len() < 2 * BUFFER_MAX {
                queue.push_back(job);
            }
        }
        self.buffer.len() - before
    }

    /// Every dispatch that a buffered job belongs to.
    pub fn dispatches(&self) -> impl Iterator<Item = Uuid> {
        self.buffer.iter().chain(&self.suspects).map(|job| job.dispatch)
    }
}
