//! Visiting pages again: how often, what is kept of the visits before, and when the next one is due.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::clock::Millis;
use crate::model::stream_id::StreamId;

/// What a crawl may ask for, seconds.
pub const REVISIT_S_MIN: i64 = 1;
pub const REVISIT_S_MAX: i64 = 366 * 86_400;
/// Bytes of an ETag or a Last-Modified; a longer one is not kept.
pub const VALIDATOR_BYTES_MAX: usize = 1024;
/// A page that is gone (404, 410, another media type) at so many visits in a row is not visited any more.
pub const FAILURES_MAX: i16 = 3;
/// What an interval becomes, in tenths, where the page had changed, and where it had not: the rule of Apache Nutch's
/// `AdaptiveFetchSchedule`, at the highest rate of which it says that intervals still follow the page (0.4).
const CHANGED_TENTHS: i64 = 6;
const UNCHANGED_TENTHS: i64 = 14;

/// How often a crawl visits its pages again: never sooner and never later than this, seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Revisit {
    pub min_s: i64,
    pub max_s: i64,
}

impl Revisit {
    /// One clear line about the first thing that is wrong.
    pub fn check(&self) -> Result<(), String> {
        let Self { min_s, max_s } = *self;
        if min_s < REVISIT_S_MIN || max_s > REVISIT_S_MAX || min_s > max_s {
            return Err(format!(
                "revisit must lie between {REVISIT_S_MIN} and {REVISIT_S_MAX} seconds, the shortest first, not {min_s} to {max_s}"
            ));
        }
        Ok(())
    }

    /// From the first visit to the second: what a sitemap hints at, or the geometric mean of the bounds.
    fn first_ms(&self, hint_ms: Option<i64>) -> i64 {
        let mean = || ((self.min_s as f64 * 1000.0) * (self.max_s as f64 * 1000.0)).sqrt() as i64;
        self.bounded(hint_ms.unwrap_or_else(mean))
    }

    fn adapted_ms(&self, interval_ms: i64, changed: bool) -> i64 {
        let tenths = if changed { CHANGED_TENTHS } else { UNCHANGED_TENTHS };
        self.bounded(interval_ms.saturating_mul(tenths) / 10)
    }

    fn bounded(&self, interval_ms: i64) -> i64 {
        interval_ms.max(self.min_s * 1000).min(self.max_s * 1000)
    }
}

/// How often a page changes, as a sitemap says (sitemaps.org, `changefreq`): a hint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeFrequency {
    Always,
    Hourly,
    Daily,
    Weekly,
    Monthly,
    Yearly,
    Never,
}

impl ChangeFrequency {
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text.trim().to_ascii_lowercase().as_str() {
            "always" => Self::Always,
            "hourly" => Self::Hourly,
            "daily" => Self::Daily,
            "weekly" => Self::Weekly,
            "monthly" => Self::Monthly,
            "yearly" => Self::Yearly,
            "never" => Self::Never,
            _ => return None,
        })
    }

    /// Within the bounds of its crawl, that is; milliseconds.
    pub fn interval_ms(self) -> i64 {
        const HOUR_MS: i64 = 3_600_000;
        match self {
            Self::Always => 0,
            Self::Hourly => HOUR_MS,
            Self::Daily => 24 * HOUR_MS,
            Self::Weekly => 7 * 24 * HOUR_MS,
            Self::Monthly => 30 * 24 * HOUR_MS,
            Self::Yearly => 365 * 24 * HOUR_MS,
            Self::Never => REVISIT_S_MAX * 1000,
        }
    }
}

/// What a visit is told: the payload of a crawl's job, where its crawl visits pages again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Plan {
    /// From the visit before to this one, milliseconds; before the first visit what a sitemap hints at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<i64>,
    /// A sitemap says that the page was modified then, later than the visit before: this one was brought forward.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modified_ms: Option<Millis>,
    /// The visits before, if there were any. `refill-hosts` tells by it that this is not the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Last>,
}

/// What is kept of the visits before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Last {
    /// How many there were.
    pub visits: i64,
    /// The job of the last one, and when it asked, milliseconds since the epoch.
    pub job: Uuid,
    pub at_ms: Millis,
    /// The page as it was seen last.
    #[serde(flatten)]
    pub seen: Seen,
    /// Visits since then that have found it gone.
    #[serde(default)]
    pub failures: i16,
}

/// A page as a visit has found it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Seen {
    /// The digest of its payload, or where it redirects to: what has changed is what differs here.
    pub content: String,
    /// Its validators, as they came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_modified: Option<String>,
    /// The record of the archive that holds its body; none for a redirect, for a body that is not whole, and for one that
    /// is not kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original: Option<Original>,
}

/// The record that a revisit record refers to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Original {
    /// The job that fetched it: the id of the record, too.
    pub job: Uuid,
    /// Its WARC-Date, milliseconds since the epoch.
    pub date_ms: Millis,
    /// Its WARC-Payload-Digest.
    pub digest: String,
    /// Of its body, as transferred.
    pub body_bytes: i64,
    /// Where it lay before it was archived; the entry is known when it was appended.
    pub generation: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub entry: Option<StreamId>,
}

impl Plan {
    /// The plan of the visit after this one, by `job` at `at_ms`, which has `seen` the page, or has found it gone. Nothing
    /// where there is to be none: the first has found no page, or one too many in a row has not.
    pub fn after(&self, bounds: &Revisit, job: Uuid, at_ms: Millis, seen: Option<Seen>) -> Option<Plan> {
        let interval_ms = self.interval_ms.map_or_else(|| bounds.first_ms(None), |ms| bounds.bounded(ms));
        let (interval_ms, last) = match (seen, &self.last) {
            (Some(seen), None) => {
                (bounds.first_ms(self.interval_ms), Last { visits: 1, job, at_ms, seen, failures: 0 })
            }
            (Some(seen), Some(last)) => {
                let interval_ms = bounds.adapted_ms(interval_ms, seen.content != last.seen.content);
                (interval_ms, Last { visits: last.visits + 1, job, at_ms, seen, failures: 0 })
            }
            (None, Some(last)) if last.failures + 1 < FAILURES_MAX => {
                let (seen, failures) = (last.seen.clone(), last.failures + 1);
                let last = Last { visits: last.visits + 1, job, at_ms, seen, failures };
                (bounds.adapted_ms(interval_ms, false), last)
            }
            (None, _) => return None,
        };
        Some(Plan { interval_ms: Some(interval_ms), modified_ms: None, last: Some(last) })
    }

    /// The same where nothing says that the page is gone: its host cannot be reached, its server is out of order or turns us
    /// away.
    pub fn after_silence(&self, bounds: &Revisit, job: Uuid, at_ms: Millis) -> Option<Plan> {
        let mut plan = self.clone();
        let failures = std::mem::take(&mut plan.last.as_mut()?.failures);
        let next = plan.after(bounds, job, at_ms, None)?;
        Some(Plan { last: next.last.map(|last| Last { failures, ..last }), ..next })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(content: &str) -> Option<Seen> {
        Some(Seen { content: content.to_owned(), etag: None, last_modified: None, original: None })
    }

    fn interval(plan: Option<&Plan>) -> i64 {
        plan.and_then(|plan| plan.interval_ms).expect("there is a next visit")
    }

    /// Every bound, hint and course of changes and failures, from a generator with a fixed seed.
    #[test]
    fn an_interval_stays_within_its_bounds() {
        let mut state = 7_u64;
        let mut random = |below: i64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) as i64) % below
        };
        for _ in 0..2_000 {
            let below = [60, REVISIT_S_MAX][random(2) as usize];
            let min_s = 1 + random(below);
            let max_s = min_s + random(REVISIT_S_MAX - min_s + 1);
            let bounds = Revisit { min_s, max_s };
            bounds.check().expect("they are right");
            let hints = [None, Some(0), Some(i64::MAX), Some(i64::MIN), Some(random(1 << 40))];
            let hint = hints[random(5) as usize];
            let mut plan = Plan { interval_ms: hint, ..Plan::default() };
            for step in 0..60 {
                let seen = if step > 0 && random(8) == 0 { None } else { page(["a", "b"][random(2) as usize]) };
                let Some(next) = plan.after(&bounds, Uuid::nil(), step, seen) else { break };
                let ms = interval(Some(&next));
                assert!((min_s * 1000..=max_s * 1000).contains(&ms), "{bounds:?} {hint:?}: {ms} at step {step}");
                plan = next;
            }
        }
    }

    #[test]
    fn what_changes_is_visited_sooner_and_what_does_not_later() {
        let bounds = Revisit { min_s: 100, max_s: 10_000 };
        let visit = |plan: &Plan, seen| plan.after(&bounds, Uuid::nil(), 5, seen);
        let first = visit(&Plan::default(), page("a")).expect("it goes on");
        assert_eq!(interval(Some(&first)), 1_000_000, "the geometric mean");
        assert_eq!(interval(visit(&first, page("b")).as_ref()), 600_000);
        let second = visit(&first, page("a")).expect("it goes on");
        assert_eq!(interval(Some(&second)), 1_400_000);
        let last = second.last.expect("it was visited");
        assert_eq!((last.visits, last.at_ms), (2, 5));
    }

    #[test]
    fn silence_gives_up_no_page() {
        let bounds = Revisit { min_s: 100, max_s: 10_000 };
        let mut plan = Plan::default().after(&bounds, Uuid::nil(), 0, page("a")).expect("it goes on");
        for step in 1..20 {
            plan = plan.after_silence(&bounds, Uuid::nil(), step).expect("it goes on");
        }
        assert_eq!(interval(Some(&plan)), 10_000_000, "but less and less often");
        assert_eq!(plan.last.as_ref().map(|last| (last.visits, last.failures)), Some((20, 0)));
        // What was missed before counts on.
        let missed = |plan: &Plan| plan.after(&bounds, Uuid::nil(), 30, None);
        let twice = missed(&missed(&plan).expect("once")).expect("twice");
        assert!(missed(&twice.after_silence(&bounds, Uuid::nil(), 31).expect("it goes on")).is_none());
        assert!(Plan::default().after_silence(&bounds, Uuid::nil(), 0).is_none(), "no first visit found a page");
    }

    #[test]
    fn a_sitemap_hints_at_the_first_interval_only() {
        let bounds = Revisit { min_s: 60, max_s: 86_400 * 7 };
        for (text, first_s) in
            [("always", 60), (" Hourly\n", 3600), ("daily", 86_400), ("monthly", 604_800), ("never", 604_800)]
        {
            let hint = ChangeFrequency::parse(text).expect("it is one").interval_ms();
            let plan = Plan { interval_ms: Some(hint), ..Plan::default() };
            let first = plan.after(&bounds, Uuid::nil(), 0, page("a"));
            assert_eq!(interval(first.as_ref()), first_s * 1000, "{text}");
        }
        assert_eq!(ChangeFrequency::parse("sometimes"), None);
        let hourly = Plan { interval_ms: Some(3_600_000), ..Plan::default() };
        let first = hourly.after(&bounds, Uuid::nil(), 0, page("a")).expect("it goes on");
        assert_eq!(interval(first.after(&bounds, Uuid::nil(), 0, page("a")).as_ref()), 5_040_000);
    }

    #[test]
    fn a_page_that_is_gone_is_given_up_and_one_that_comes_back_is_not() {
        let bounds = Revisit { min_s: 1, max_s: 1000 };
        let visit = |plan: &Plan, seen| plan.after(&bounds, Uuid::nil(), 0, seen);
        assert_eq!(visit(&Plan::default(), None), None, "it was never there");
        let there = visit(&Plan::default(), page("a")).expect("it goes on");
        let missed = visit(&there, None).expect("once is not for good");
        let last = missed.last.as_ref().expect("it was visited");
        assert_eq!((last.failures, last.visits, last.seen.content.as_str()), (1, 2, "a"));
        assert!(interval(Some(&missed)) > interval(Some(&there)));
        let twice = visit(&missed, None).expect("nor is twice");
        assert_eq!(visit(&twice, None), None);
        let back = visit(&twice, page("a")).expect("it goes on");
        assert_eq!(back.last.expect("it was visited").failures, 0);
    }

    #[test]
    fn what_is_no_bound_is_said_in_one_line() {
        for (min_s, max_s) in [(0, 10), (-1, -1), (10, 9), (1, REVISIT_S_MAX + 1), (i64::MIN, i64::MAX)] {
            let error = Revisit { min_s, max_s }.check().expect_err("it is none");
            assert!(error.contains("seconds") && error.lines().count() == 1, "{error}");
        }
    }

    #[test]
    fn a_plan_is_the_payload_of_its_job() {
        let hint = Plan { interval_ms: Some(5), ..Plan::default() };
        assert_eq!(serde_json::to_value(&hint).expect("it becomes JSON"), serde_json::json!({ "interval_ms": 5 }));
        let plan = hint.after(&Revisit { min_s: 1, max_s: 9 }, Uuid::nil(), 3, page("a")).expect("it goes on");
        let value = serde_json::to_value(&plan).expect("it becomes JSON");
        assert_eq!(value["last"]["content"], "a");
        assert_eq!(serde_json::from_value::<Plan>(value).expect("it is one"), plan);
    }
}
