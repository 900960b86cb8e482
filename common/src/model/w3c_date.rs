//! Dates as sitemaps write them: those of W3C's note "Date and Time Formats", from the year alone to fractions of a second.

use chrono::{DateTime, NaiveDate, NaiveDateTime};

use crate::clock::Millis;

/// Far longer than a date is, bytes.
const DATE_BYTES_MAX: usize = 64;

/// The earliest moment that a date may mean. Without a zone, which the note does not allow and many leave out, it is UTC.
/// Nothing for what is no date.
pub fn date_ms(text: &str) -> Option<Millis> {
    let text = text.trim();
    if text.len() > DATE_BYTES_MAX {
        return None;
    }
    // A zone without its colon is none of the note's forms, and PHP's and Java's.
    let mut forms = ["%Y-%m-%dT%H:%M%#z", "%Y-%m-%dT%H:%M:%S%.f%#z"].into_iter();
    let zoned = DateTime::parse_from_rfc3339(text).ok();
    let zoned = zoned.or_else(|| forms.find_map(|form| DateTime::parse_from_str(text, form).ok()));
    if let Some(at) = zoned {
        return Some(at.timestamp_millis());
    }
    let mut forms = ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M"].into_iter();
    let local = forms.find_map(|form| NaiveDateTime::parse_from_str(text, form).ok());
    let day = |rest: &str| NaiveDate::parse_from_str(&format!("{text}{rest}"), "%Y-%m-%d").ok();
    let local = local.or_else(|| ["", "-01", "-01-01"].into_iter().find_map(day)?.and_hms_opt(0, 0, 0));
    local.map(|at| at.and_utc().timestamp_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_the_note_is_read_and_what_is_none_is_not() {
        const DAY_MS: i64 = 86_400_000;
        // 1997-07-16 was day 10,058.
        let day = 10_058 * DAY_MS;
        for (text, expected) in [
            ("1997", Some(9_862 * DAY_MS)),
            ("1997-07", Some(10_043 * DAY_MS)),
            (" 1997-07-16\n", Some(day)),
            ("1997-07-16T19:20+01:00", Some(day + 66_000_000)),
            ("1997-07-16T18:20Z", Some(day + 66_000_000)),
            ("1997-07-16T19:20:30+01:00", Some(day + 66_030_000)),
            ("1997-07-16T19:20:30.45+01:00", Some(day + 66_030_450)),
            ("1997-07-16T19:20:30+0100", Some(day + 66_030_000)),
            ("1997-07-16T19:20:30.450+0100", Some(day + 66_030_450)),
            ("1997-07-16T18:20:30", Some(day + 66_030_000)),
            ("1997-07-16 18:20:30", Some(day + 66_030_000)),
            ("1997-07-16T18:20", Some(day + 66_000_000)),
            ("", None),
            ("yesterday", None),
            ("1997-13", None),
            ("1997-02-30", None),
            ("1997-07-16T25:00Z", None),
            ("16.07.1997", None),
            ("Wed, 16 Jul 1997 18:20:30 GMT", None),
            ("99999999999999999999", None),
            ("-", None),
        ] {
            assert_eq!(date_ms(text), expected, "{text:?}");
        }
        assert_eq!(date_ms(&"1".repeat(1 << 20)), None);
    }
}
