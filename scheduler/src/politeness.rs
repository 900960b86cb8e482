//! The clocks of politeness: how many requests are under way at a host or an address, when the last one ended, and how
//! fast a host answers.

use dodo_common::clock::Millis;
use dodo_common::model::cause::Cause;

/// Longer ago than any delay.
pub const NEVER: Millis = Millis::MIN / 2;
/// The longest delay that follows from slow answers, milliseconds.
const PACE_MS_MAX: Millis = 60_000;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Without a moment it waits for a completion, the row of its host, or a report.
    pub until: Option<Millis>,
    pub cause: Cause,
}

impl Wait {
    pub fn until(at: Millis, cause: Cause) -> Self {
        Self { until: Some(at), cause }
    }

    pub fn event(cause: Cause) -> Self {
        Self { until: None, cause }
    }
}

impl Clock {
    /// As if the last request had ended then.
    pub fn since(last_completion_ms: Millis) -> Self {
        Self { in_flight: 0, last_completion_ms }
    }

    pub fn allows(&self, limit: &Limit, now: Millis) -> Result<(), Wait> {
        if self.in_flight >= limit.concurrency {
            return Err(Wait::event(Cause::Busy));
        }
        let next = self.last_completion_ms.saturating_add(limit.delay_ms);
        if limit.delay_ms > 0 && next > now {
            return Err(Wait::until(next, Cause::Delay));
        }
        Ok(())
    }

    /// A request has ended then, or was never sent. What is told late does not turn the clock back.
    pub fn leave(&mut self, ended_ms: Millis, requested: bool) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if requested {
            self.last_completion_ms = self.last_completion_ms.max(ended_ms);
        }
    }
}

/// How fast a host answers, smoothed: a delay follows it, so that a host that grows slow is asked less often.
///
/// The rule is that of Scrapy's AutoThrottle extension (its manual, "Throttling algorithm"): the target is the latency
/// by the requests allowed at a time, the next value lies half-way there, and an error never lowers it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    latency_ms: u32,
    /// As it was asked for last.
    told_ms: u32,
}

/// A delay, and what asks for it.
#[derive(Debug, PartialEq, Eq)]
pub struct Delay {
    pub ms: Millis,
    pub cause: Cause,
}

impl Pace {
    /// An answer came after so long; an error, which servers are quick to give, does not make it faster.
    pub fn answered(&mut self, latency_ms: Millis, well: bool) {
        let latency_ms = latency_ms.clamp(0, PACE_MS_MAX) as u32;
        let smoothed = if self.latency_ms == 0 { latency_ms } else { self.latency_ms.midpoint(latency_ms) };
        if well || smoothed > self.latency_ms {
            self.latency_ms = smoothed;
        }
    }

    /// The longest of what the dispatch, robots.txt and the pace ask for. Without a delay of the dispatch, which has been
    /// switched off then, the pace asks for none.
    pub fn delay(&self, limit: &Limit, crawl_delay_ms: Millis) -> Delay {
        let pace_ms = if limit.delay_ms > 0 { i64::from(self.latency_ms / limit.concurrency.max(1)) } else { 0 };
        let asked = [(limit.delay_ms, Cause::Delay), (crawl_delay_ms, Cause::CrawlDelay), (pace_ms, Cause::Pace)];
        // Of equals the first, which is the plainer reason.
        let (ms, cause) = asked.into_iter().rev().max_by_key(|(ms, _)| *ms).unwrap_or_default();
        Delay { ms, cause }
    }

    /// As it was written down, unless more is known by now.
    pub fn restore(&mut self, latency_ms: Option<i64>) {
        if self.latency_ms == 0 {
            self.latency_ms = latency_ms.unwrap_or(0).clamp(0, PACE_MS_MAX) as u32;
            self.told_ms = self.latency_ms;
        }
    }

    /// The pace, if it differs by more than a quarter from what was told last, and is no small matter.
    pub fn take_changed(&mut self) -> Option<i64> {
        const NOTABLE_MS: u32 = 200;
        let (now, told) = (self.latency_ms, self.told_ms);
        let changed = now.abs_diff(told) > told / 4 && now.max(told) >= NOTABLE_MS;
        changed.then(|| {
            self.told_ms = now;
            i64::from(now)
        })
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::since(NEVER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_follows_the_answers_and_no_error_lowers_it() {
        let mut pace = Pace::default();
        let delay = |pace: &Pace, concurrency| pace.delay(&Limit { concurrency, delay_ms: 1000 }, 0);
        pace.answered(400, true);
        assert_eq!(delay(&pace, 1), Delay { ms: 1000, cause: Cause::Delay }, "never below what is asked for");
        for _ in 0..20 {
            pace.answered(8000, true);
        }
        let slow = delay(&pace, 1);
        assert!((7900..=8000).contains(&slow.ms) && slow.cause == Cause::Pace, "{slow:?}");
        assert!((3900..=4000).contains(&delay(&pace, 2).ms));
        pace.answered(1, false);
        assert_eq!(delay(&pace, 1), slow);
        pace.answered(20_000, false);
        assert!(delay(&pace, 1).ms > slow.ms, "a slow error counts");
        for _ in 0..40 {
            pace.answered(10, true);
        }
        assert_eq!(delay(&pace, 1).ms, 1000);
        for _ in 0..40 {
            pace.answered(Millis::MAX, true);
        }
        assert_eq!(delay(&pace, 1).ms, PACE_MS_MAX - 1);
        assert_eq!(pace.delay(&Limit { concurrency: 1, delay_ms: 0 }, 0).ms, 0, "switched off");
        assert_eq!(
            pace.delay(&Limit { concurrency: 1, delay_ms: 1 }, 90_000),
            Delay { ms: 90_000, cause: Cause::CrawlDelay }
        );
    }

    #[test]
    fn a_pace_is_told_when_it_has_changed() {
        let mut pace = Pace::default();
        pace.answered(100, true);
        assert_eq!(pace.take_changed(), None, "no small matter");
        for _ in 0..20 {
            pace.answered(3000, true);
        }
        let told = pace.take_changed().expect("changed");
        assert_eq!(pace.take_changed(), None);
        let mut restored = Pace::default();
        restored.restore(Some(told));
        assert_eq!(restored.take_changed(), None);
        let limit = Limit { concurrency: 1, delay_ms: 1 };
        assert_eq!(restored.delay(&limit, 0), pace.delay(&limit, 0));
        for _ in 0..20 {
            pace.answered(10, true);
        }
        assert!(pace.take_changed().is_some_and(|ms| ms < 20), "that it is fast again is told, too");
    }
}
