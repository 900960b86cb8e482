//! Rules: one YAML file, read strictly, every complaint naming its rule.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::sentinel::metric::Metric;

/// The rules of a sentinel that was given none.
pub const DEFAULT_RULES: &str = include_str!("rules.yaml");
const FILE_BYTES_MAX: u64 = 1 << 20;
const RULES_MAX: usize = 1000;
const WINDOW_MAX: Span = Span(24 * 3_600_000);

/// A stretch of time as a person writes it: `500ms`, `10s`, `5m`, `2h`, `1d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Span(pub i64);

impl Span {
    const UNITS: [(&'static str, i64); 5] =
        [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let unit = Self::UNITS.iter().find(|(unit, _)| *unit == text[digits..].trim());
        text[..digits]
            .parse::<i64>()
            .ok()
            .zip(unit)
            .and_then(|(count, (_, ms))| count.checked_mul(*ms))
            .map(Span)
            .ok_or_else(|| format!("{text:?} is no time; write one as 500ms, 10s, 5m, 2h or 1d"))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = Self::UNITS.iter().rev().find(|(_, ms)| self.0 != 0 && self.0 % ms == 0);
        match whole {
            Some((unit, ms)) => write!(f, "{} {unit}", self.0 / ms),
            None => f.write_str("0 s"),
        }
    }
}

impl Serialize for Span {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_string().replace(' ', ""))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // An untyped read: a bare number must be answered with how to write it.
        match yaml_serde::Value::deserialize(deserializer)? {
            yaml_serde::Value::String(text) => text.parse().map_err(serde::de::Error::custom),
            other => {
                let text = yaml_serde::to_string(&other).unwrap_or_default();
                Err(serde::de::Error::custom(format!(
                    "{:?} is no time; write one as 500ms, 10s, 5m, 2h or 1d",
                    text.trim()
                )))
            }
        }
    }
}

/// How the samples of a window become one figure.
///
/// Of a level: the mean, least, greatest, last or sum of its samples; `rate` is its change in each `per`.
/// Of an event: `sum` is how many happened in the window; `avg` and `rate` how many on average in each `per`; `min`, `max` and
/// `last` the least, the most and the latest count of one `per`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aggregate {
    Avg,
    Min,
    Max,
    Last,
    Sum,
    Rate,
}

impl Aggregate {
    pub fn as_str(self) -> &'static str {
        match self {
            Aggregate::Avg => "avg",
            Aggregate::Min => "min",
            Aggregate::Max => "max",
            Aggregate::Last => "last",
            Aggregate::Sum => "sum",
            Aggregate::Rate => "rate",
        }
    }
}

/// On which side of the threshold it is wrong to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Comparison {
    Below,
    Above,
}

impl Comparison {
    pub fn as_str(self) -> &'static str {
        match self {
            Comparison::Below => "below",
            Comparison::Above => "above",
        }
    }

    pub fn is_wrong(self, value: f64, threshold: f64) -> bool {
        match self {
            Comparison::Below => value < threshold,
            Comparison::Above => value > threshold,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Info,
    Warning,
    Critical,
}

impl Severity {
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        }
    }
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Names its incidents; small letters, digits and hyphens.
    pub name: String,
    pub metric: Metric,
    pub aggregate: Aggregate,
    /// Samples as old as this count.
    pub window: Span,
    /// What `avg`, `min`, `max`, `last` and `rate` of an event, and `rate` of a level, are counted in.
    #[serde(default = "per_default")]
    pub per: Span,
    pub comparison: Comparison,
    pub threshold: f64,
    /// It fires after it has been wrong for this long,
    #[serde(rename = "for")]
    pub wrong_for: Span,
    /// and is resolved after it has been right again for this long.
    #[serde(default = "clear_for_default")]
    pub clear_for: Span,
    /// As long as it has not been right once, it does not fire before the sentinel has run for this long.
    #[serde(default)]
    pub grace: Span,
    pub severity: Severity,
    /// Said to the person who reads the alert.
    #[serde(default)]
    pub advice: String,
}

fn per_default() -> Span {
    Span(60_000)
}

fn clear_for_default() -> Span {
    Span(5000)
}

/// Every rule, and what a metric without samples means.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rules {
    /// A metric without a sample for longer than this alerts.
    pub absent_after: Span,
    pub absent_severity: Severity,
    pub rules: Vec<Rule>,
}

/// The file, with its rules read or not read yet.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document<R> {
    absent_after: Span,
    absent_severity: Severity,
    rules: Vec<R>,
}

impl Rules {
    /// The rules of a file, or the default ones.
    ///
    /// # Errors
    /// One line that names the file and, where there is one, the rule.
    pub fn load(file: Option<&Path>) -> Result<Self, String> {
        let Some(file) = file else { return Self::parse(DEFAULT_RULES) };
        let read = || {
            let length = std::fs::metadata(file).map_err(|error| error.to_string())?.len();
            if length > FILE_BYTES_MAX {
                return Err(format!("it is longer than {FILE_BYTES_MAX} bytes"));
            }
            std::fs::read_to_string(file).map_err(|error| error.to_string())
        };
        let text = read().map_err(|error| {
            format!(
                "cannot read the rules {}: {error}; `dodo sentinel --print-rules` prints an example",
                file.display()
            )
        })?;
        Self::parse(&text).map_err(|error| format!("the rules {} are wrong: {error}", file.display()))
    }

    /// # Errors
    /// One line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let document: Document<yaml_serde::Value> = yaml_serde::from_str(text).map_err(|error| one_line(&error))?;
        if document.rules.len() > RULES_MAX {
            return Err(format!("there are more than {RULES_MAX} rules"));
        }
        if document.absent_after.0 == 0 {
            return Err("absent_after must be more than 0s".to_owned());
        }
        let mut rules: Vec<Rule> = Vec::new();
        for (index, value) in document.rules.into_iter().enumerate() {
            let name = value.get("name").and_then(|name| name.as_str()).map(str::to_owned);
            let name = name.unwrap_or_else(|| format!("number {}", index + 1));
            let rule: Rule = yaml_serde::from_value(value).map_err(|error| {
                // Read whole, the first rule that is wrong is complained about with its field and line.
                let placed = yaml_serde::from_str::<Document<Rule>>(text).err().unwrap_or(error);
                format!("rule {name}: {}", one_line(&placed))
            })?;
            check(&rule).map_err(|error| format!("rule {name}: {error}"))?;
            if rules.iter().any(|other| other.name == rule.name) {
                return Err(format!("rule {name}: there are two of this name"));
            }
            rules.push(rule);
        }
        Ok(Self { absent_after: document.absent_after, absent_severity: document.absent_severity, rules })
    }
}

fn check(rule: &Rule) -> Result<(), String> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if rule.name.is_empty() || rule.name.len() > 63 || !rule.name.bytes().all(plain) {
        return Err("a name has small letters, digits and hyphens, at most 63".to_owned());
    }
    if rule.window.0 == 0 || rule.window > WINDOW_MAX {
        return Err(format!("window must be more than 0s and at most {WINDOW_MAX}"));
    }
    if rule.per.0 == 0 {
        return Err("per must be more than 0s".to_owned());
    }
    let counted = matches!(rule.aggregate, Aggregate::Min | Aggregate::Max | Aggregate::Last);
    if rule.metric.event().is_some() && counted && rule.per > rule.window {
        return Err(format!("per ({}) must not be longer than window ({})", rule.per, rule.window));
    }
    if !rule.threshold.is_finite() {
        return Err("threshold must be a number".to_owned());
    }
    Ok(())
}

fn one_line(error: &yaml_serde::Error) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: &str = "absent_after: 60s\nabsent_severity: warning\nrules:\n- name: lag\n  metric: lag\n  aggregate: last\n  \
                        window: 10s\n  comparison: above\n  threshold: 5\n  for: 500ms\n  severity: info\n";

    #[test]
    fn the_default_rules_cover_every_metric_once() {
        let rules = Rules::parse(DEFAULT_RULES).expect("the bundled rules are right");
        for metric in Metric::ALL {
            assert!(rules.rules.iter().any(|rule| rule.metric == metric), "{} has no rule", metric.as_str());
        }
        assert!(rules.rules.iter().all(|rule| !rule.advice.is_empty()), "each says what to do");
    }

    #[test]
    fn a_complaint_is_one_line_and_names_the_rule() {
        assert!(Rules::parse(RULE).is_ok());
        for (wrong, expected) in [
            (RULE.replace("threshold: 5", "threshold: much"), "rule lag: rules[0].threshold: invalid type"),
            (RULE.replace("window: 10s", "window: 10"), "\"10\" is no time; write one as 500ms"),
            (RULE.replace("window: 10s", "window: 10 parsecs"), "is no time"),
            (RULE.replace("window: 10s", "window: 2d"), "at most 1 d"),
            (RULE.replace("metric: lag", "metric: leg"), "unknown variant `leg`"),
            (RULE.replace("  for: 500ms\n", ""), "missing field `for`"),
            (RULE.replace("severity: info", "severity: info\n  colour: red"), "unknown field `colour`"),
            (RULE.replace("name: lag", "name: Lag!"), "rule Lag!: a name has small letters"),
            (RULE.replace("- name: lag\n ", "-"), "rule number 1: "),
            (RULE.replace("absent_after: 60s\n", ""), "missing field `absent_after`"),
            (format!("{RULE}{}", &RULE[RULE.find('-').expect("a rule")..]), "two of this name"),
            ("rules: [".to_owned(), "at line 2 column 1"),
        ] {
            let error = Rules::parse(&wrong).expect_err(expected);
            assert!(error.contains(expected) && error.lines().count() == 1, "{error}");
        }
    }

    #[test]
    fn a_span_is_read_and_written() {
        for (text, ms, shown) in [("500ms", 500, "500 ms"), ("90s", 90_000, "90 s"), ("2h", 7_200_000, "2 h")] {
            let span: Span = text.parse().expect(text);
            assert_eq!((span.0, span.to_string().as_str()), (ms, shown));
        }
        assert_eq!(Span(0).to_string(), "0 s");
        for wrong in ["", "s", "-1s", "1.5s", "10", "99999999999999999d"] {
            assert!(wrong.parse::<Span>().is_err(), "{wrong}");
        }
    }
}
