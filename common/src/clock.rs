//! The one place where time is read, so that a test can set it.
//!
//! Two readings: the wall clock is for what is written and for what other machines compare; it may be put forward or back at
//! any moment. The steady clock is for deadlines and durations within this process.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch.
pub type Millis = i64;

/// The steady clock began as the wall clock was then.
static BEGAN: LazyLock<(Instant, Millis)> = LazyLock::new(|| (Instant::now(), wall_ms()));

/// The machine's clock, or one that a test moves by hand.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    #[default]
    System,
    Manual(Arc<AtomicI64>),
    /// The machine's clock, but that a test has put the wall clock forward by so many milliseconds, or back.
    Stepped(Arc<AtomicI64>),
}

impl Clock {
    /// The wall clock.
    pub fn now_ms(&self) -> Millis {
        match self {
            Clock::System => wall_ms(),
            Clock::Manual(at) => at.load(Ordering::Relaxed),
            Clock::Stepped(by_ms) => wall_ms() + by_ms.load(Ordering::Relaxed),
        }
    }

    /// The steady clock: no step of the wall clock moves it, so that a deadline comes neither early nor never. After a step it
    /// differs from the wall clock, and from that of every other process: never write it down.
    pub fn steady_ms(&self) -> Millis {
        match self {
            Clock::System | Clock::Stepped(_) => BEGAN.1 + BEGAN.0.elapsed().as_millis() as Millis,
            Clock::Manual(at) => at.load(Ordering::Relaxed),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the one place")]
fn wall_ms() -> Millis {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as Millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_of_the_wall_clock_does_not_move_the_steady_one() {
        const HOUR_MS: Millis = 3_600_000;
        let by_ms = Arc::new(AtomicI64::new(0));
        let clock = Clock::Stepped(Arc::clone(&by_ms));
        let (wall_ms, steady_ms) = (clock.now_ms(), clock.steady_ms());
        for step_ms in [-HOUR_MS, HOUR_MS] {
            by_ms.store(step_ms, Ordering::Relaxed);
            assert!((clock.now_ms() - wall_ms - step_ms).abs() < HOUR_MS / 2);
            assert!((0..HOUR_MS / 2).contains(&(clock.steady_ms() - steady_ms)));
        }
    }
}
