//! The clock of one host or one address: how many requests are under way, and when the last one ended.

use dodo_common::clock::Millis;

/// Longer ago than any delay.
pub const NEVER: Millis = Millis::MIN / 2;

#[derive(Debug)]
pub struct Clock {
    pub in_flight: u32,
    pub last_completion_ms: Millis,
}

/// What a job's dispatch and its host ask for.
#[derive(Debug)]
pub struct Limit {
    pub concurrency: u32,
    /// Between a completion and the next request.
    pub delay_ms: Millis,
}

/// Why a job cannot be issued now.
#[derive(Debug, PartialEq, Eq)]
pub enum Wait {
    Until(Millis),
    /// For a completion, the row of the host, or a refill.
    Event,
}

impl Clock {
    /// As if the last request had ended then.
    pub fn since(last_completion_ms: Millis) -> Self {
        Self { in_flight: 0, last_completion_ms }
    }

    pub fn allows(&self, limit: &Limit, now: Millis) -> Result<(), Wait> {
        if self.in_flight >= limit.concurrency {
            return Err(Wait::Event);
        }
        let next = self.last_completion_ms.saturating_add(limit.delay_ms);
        if limit.delay_ms > 0 && next > now {
            return Err(Wait::Until(next));
        }
        Ok(())
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::since(NEVER)
    }
}
