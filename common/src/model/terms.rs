//! What any dispatch may ask for beside its work: budgets, tries, a priority, a start.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::clock::Millis;

/// Priorities lie between this and its negative.
pub const PRIORITY_MAX: i16 = 100;
/// Further tries that one may ask for.
pub const RETRIES_MAX: i16 = 100;
/// A start lies at most this far ahead: ten years, milliseconds.
pub const AHEAD_MS_MAX: Millis = 10 * 365 * 24 * 3_600_000;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Terms {
    /// Body bytes received before the rest is skipped; what is in flight then comes on top.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<i64>,
    /// Seconds after its submission, or its `start_at`, after which the rest is skipped; a pause does not stop the clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_seconds: Option<i64>,
    /// How often a job is tried again; each kind of job has its own number when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<i16>,
    /// Between -100 and 100; at one host the higher goes first.
    #[serde(default)]
    pub priority: i16,
    /// Nothing of it begins before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_at: Option<DateTime<Utc>>,
}

impl Terms {
    /// One clear line about the first thing that is wrong.
    pub fn check(&self) -> Result<(), String> {
        for (name, value) in [("max_bytes", self.max_bytes), ("max_seconds", self.max_seconds)] {
            if value.is_some_and(|value| value < 1) {
                return Err(format!("{name} must be at least 1"));
            }
        }
        if let Some(retries) = self.retries.filter(|retries| !(0..=RETRIES_MAX).contains(retries)) {
            return Err(format!("retries must be between 0 and {RETRIES_MAX}, not {retries}"));
        }
        if !(-PRIORITY_MAX..=PRIORITY_MAX).contains(&self.priority) {
            return Err(format!("priority must be between -{PRIORITY_MAX} and {PRIORITY_MAX}, not {}", self.priority));
        }
        Ok(())
    }

    /// The schedule's column, which sorts ascending: the higher priority is the lower number.
    pub fn rank(&self) -> i16 {
        -self.priority
    }
}

/// When a dispatch is to begin, said as a time or as a wait; nothing said is at once.
pub fn start_of(
    start_at: Option<&str>,
    start_in_ms: Option<i64>,
    now: Millis,
) -> Result<Option<DateTime<Utc>>, String> {
    let at = match (start_at, start_in_ms) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => return Err("give start_at or start_in_ms, not both".to_owned()),
        (Some(text), None) => {
            DateTime::parse_from_rfc3339(text).map_err(|_| format!("start_at {text:?} is not RFC 3339"))?.to_utc()
        }
        (None, Some(ms)) => Some(ms)
            .filter(|ms| (0..=AHEAD_MS_MAX).contains(ms))
            .and_then(|ms| DateTime::from_timestamp_millis(now.saturating_add(ms)))
            .ok_or_else(|| format!("start_in_ms must be between 0 and {AHEAD_MS_MAX}, not {ms}"))?,
    };
    if at.timestamp_millis() > now.saturating_add(AHEAD_MS_MAX) {
        return Err(format!("start_at {at} is more than ten years ahead"));
    }
    Ok(Some(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_a_time_or_a_wait() {
        let now = 1_800_000_000_000;
        let start = |at, wait| start_of(at, wait, now).map(|at| at.map(|at| at.timestamp_millis()));
        assert_eq!(start(None, None), Ok(None));
        assert_eq!(start(None, Some(1500)), Ok(Some(now + 1500)));
        assert_eq!(start(Some("2027-01-15T09:00:01+01:00"), None), Ok(Some(now + 1000)));
        for (at, wait, word) in [
            (Some("soon"), None, "RFC 3339"),
            (Some("2027-01-15T09:00:01Z"), Some(1), "both"),
            (None, Some(-1), "start_in_ms"),
            (None, Some(i64::MAX), "start_in_ms"),
            (Some("2047-01-15T09:00:01Z"), None, "ten years"),
        ] {
            let why = start(at, wait).unwrap_err();
            assert!(why.contains(word) && why.lines().count() == 1, "{why}");
        }
    }

    #[test]
    fn wrong_terms_are_named() {
        let check = |change: fn(&mut Terms)| {
            let mut terms = Terms::default();
            change(&mut terms);
            terms.check().err().unwrap_or_default()
        };
        assert_eq!(check(|_| {}), "");
        assert!(check(|t| t.max_bytes = Some(0)).contains("max_bytes"));
        assert!(check(|t| t.max_seconds = Some(-5)).contains("max_seconds"));
        assert!(check(|t| t.retries = Some(101)).contains("retries"));
        assert!(check(|t| t.priority = -101).contains("priority"));
    }
}
