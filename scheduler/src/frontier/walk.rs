//! A walk: how far a flow has come past jobs that are passed over, where more of them stand in front than a refill looks at.
//!
//! Each refill looks at the head anew, and from where the walk is at what stands behind. So a job behind a million of a
//! paused dispatch is found after some refills, each of them short, and one that is due before all others at once.

use chrono::{DateTime, Utc};
use dodo_common::clock::Millis;
use dodo_common::db::schedule::Position;
use uuid::Uuid;

/// A walk that has found something, or come to the end, begins again after this long, milliseconds: jobs may have come, or
/// come back, where it has been.
pub const WALK_MS: Millis = 30_000;

#[derive(Debug)]
pub struct Walk {
    /// All before it has been looked at.
    at: Position,
    /// When it had found nothing yet, and not come to the end, for the last time.
    since_ms: Millis,
    /// How many dispatches had been resumed when it began.
    resumed: u64,
    found: bool,
    ended: bool,
    /// From where the refill under way looks.
    asked: Option<Position>,
    /// So many of the last jobs of the buffer were found by it.
    pub behind: usize,
    /// It waits for its turn among the walks.
    pub queued: bool,
    /// It is to begin again.
    stale: bool,
}

impl Walk {
    pub fn new(now: Millis, at: Position, resumed: u64) -> Self {
        Self {
            at,
            since_ms: now,
            resumed,
            found: false,
            ended: false,
            asked: None,
            behind: 0,
            queued: false,
            stale: false,
        }
    }

    /// Goes back to the head. What it has found stays buffered.
    pub fn begin_again(&mut self, now: Millis, resumed: u64) {
        let first = Position { priority: i16::MIN, run_at: DateTime::<Utc>::MIN_UTC, id: Uuid::nil() };
        *self = Self { behind: self.behind, queued: self.queued, ..Self::new(now, first, resumed) };
    }

    /// A job has come back where it may have been already.
    pub fn set_stale(&mut self) {
        self.stale = true;
    }

    /// Where it goes on.
    pub fn ask(&mut self) -> Position {
        self.asked = Some(self.at);
        self.at
    }

    /// A refill is under way that goes on with it.
    pub fn is_asked(&self) -> bool {
        self.asked.is_some()
    }

    /// Takes the answer of a refill from `after`; false: it was not asked for.
    pub fn answer(&mut self, now: Millis, after: Position, upto: Option<Position>, found: bool) -> bool {
        if self.asked.take() != Some(after) {
            return false;
        }
        if !self.found && !self.ended {
            self.since_ms = now;
        }
        self.found |= found;
        self.ended = upto.is_none();
        if let Some(upto) = upto {
            self.pass(upto);
        }
        true
    }

    /// All before this has been looked at.
    pub fn pass(&mut self, at: Position) {
        self.at = self.at.max(at);
    }

    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// It is to begin again: a dispatch was resumed, whose jobs it may have passed over, or it was long ago. One that has
    /// found nothing yet goes on first.
    pub fn is_over(&self, now: Millis, resumed: u64) -> bool {
        self.stale || self.resumed != resumed || ((self.found || self.ended) && now - self.since_ms >= WALK_MS)
    }
}
