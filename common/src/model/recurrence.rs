//! When something recurs: a cron pattern in a time zone.

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};

/// A pattern of five or six fields (the first of six are seconds) on the clock of a time zone.
///
/// Where the clock is put forward, a time of day that is left out comes at the first one after the gap, and what
/// recurs all the time just misses; where it is put back, a time of day comes once, what recurs all the time twice.
#[derive(Clone, Debug)]
pub struct Recurrence {
    cron: Cron,
    zone: Tz,
}

impl Recurrence {
    /// One clear line about what is wrong.
    pub fn parse(cron: &str, timezone: Option<&str>) -> Result<Self, String> {
        let name = timezone.unwrap_or("UTC");
        let zone = name.parse().map_err(|_| format!("timezone {name:?} is none of the IANA time zone database"))?;
        let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        let parsed = parser.parse(cron).map_err(|error| {
            let why = error.to_string().replace('\n', " ");
            format!("cron {cron:?} is no pattern of five or six fields: {why}")
        })?;
        Ok(Self { cron: parsed, zone })
    }

    /// The first occurrence after `at`; nothing when there is none.
    pub fn after(&self, at: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let next = self.cron.find_next_occurrence(&at.with_timezone(&self.zone), false).ok()?;
        Some(next.to_utc())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The next `count` occurrences after a time, in UTC.
    fn next(cron: &str, zone: &str, after: &str, count: usize) -> Vec<String> {
        let recurrence = Recurrence::parse(cron, Some(zone)).unwrap();
        let mut at = DateTime::parse_from_rfc3339(after).unwrap().to_utc();
        (0..count)
            .map(|_| {
                at = recurrence.after(at).unwrap();
                at.format("%m-%dT%H:%M:%SZ").to_string()
            })
            .collect()
    }

    #[test]
    fn five_fields_or_six() {
        assert_eq!(next("30 3 * * *", "UTC", "2026-01-01T03:30:00Z", 2), ["01-02T03:30:00Z", "01-03T03:30:00Z"]);
        assert_eq!(next("*/20 * * * * *", "UTC", "2026-01-01T00:00:05Z", 2), ["01-01T00:00:20Z", "01-01T00:00:40Z"]);
        assert_eq!(next("0 9 * * MON", "UTC", "2026-11-21T00:00:00Z", 1), ["11-23T09:00:00Z"]);
    }

    #[test]
    fn a_time_of_day_follows_the_clock_of_its_zone() {
        // Berlin: UTC+1 until 2026-03-29 01:00 UTC, then UTC+2 until 2026-10-25 01:00 UTC.
        let daily = next("0 8 * * *", "Europe/Berlin", "2026-03-28T00:00:00Z", 2);
        assert_eq!(daily, ["03-28T07:00:00Z", "03-29T06:00:00Z"]);
    }

    #[test]
    fn a_time_that_the_clock_leaves_out_comes_right_after_the_gap_and_once() {
        let night = next("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", 2);
        assert_eq!(night, ["03-29T01:00:00Z", "03-30T00:30:00Z"], "02:30 is left out: 03:00 by the new clock");
        let often = next("*/30 * * * *", "Europe/Berlin", "2026-03-29T00:00:00Z", 3);
        assert_eq!(often, ["03-29T00:30:00Z", "03-29T01:00:00Z", "03-29T01:30:00Z"], "every half hour of real time");
    }

    #[test]
    fn a_time_that_the_clock_shows_twice_comes_once() {
        let night = next("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", 2);
        assert_eq!(night, ["10-25T00:30:00Z", "10-26T01:30:00Z"]);
        let often = next("0 * * * *", "Europe/Berlin", "2026-10-24T23:30:00Z", 3);
        assert_eq!(often, ["10-25T00:00:00Z", "10-25T01:00:00Z", "10-25T02:00:00Z"], "each hour of real time");
    }

    #[test]
    fn what_never_comes_is_nothing() {
        let never = Recurrence::parse("0 0 30 2 *", None).unwrap();
        assert_eq!(never.after(DateTime::UNIX_EPOCH), None);
    }

    #[test]
    fn wrong_ones_are_named_in_one_line() {
        let cases = [("soon", None), ("* * * *", None), ("61 * * * *", None), ("* * * * * * *", None), ("", None)];
        for (cron, zone) in cases.into_iter().chain([("* * * * *", Some("Europe/Atlantis"))]) {
            let why = Recurrence::parse(cron, zone).map(|_| ()).unwrap_err();
            assert!(why.lines().count() == 1 && (why.contains("cron ") || why.contains("Atlantis")), "{why}");
        }
    }
}
