//! Decides what fires and what is resolved. Pure: it is given samples with their time and does no I/O.

use std::collections::{HashMap, VecDeque};

use dodo_common::clock::Millis;

use crate::sentinel::metric::{Look, Metric};
use crate::sentinel::rule::{Aggregate, Comparison, Rule, Rules, Severity, Span};

/// Begins the name of a rule that watches whether a metric is there; no rule of a file has a colon.
const VANISHED: &str = "vanished:";

/// What a look has changed.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    Fire { rule: String, metric: Metric, severity: Severity, summary: String, advice: String },
    Resolve { rule: String, outcome: String },
}

/// Every rule and what it has seen.
pub struct Judge {
    rules: Rules,
    since: Millis,
    series: HashMap<Metric, Series>,
    watches: HashMap<String, Watch>,
}

/// The samples of one metric, no older than the longest window of its rules.
#[derive(Default)]
struct Series {
    /// The last look that found a sample.
    seen_at: Option<Millis>,
    levels: VecDeque<(Millis, f64)>,
    events: Vec<(i64, i64)>,
    /// Why the latest look found none.
    absent: Option<String>,
    window_ms: i64,
}

/// How a rule stands.
#[derive(Default)]
struct Watch {
    wrong_since: Option<Millis>,
    right_since: Option<Millis>,
    /// It has been right once, so its grace is over.
    armed: bool,
    fired: bool,
}

/// What one look says of a rule.
struct Verdict {
    wrong: bool,
    text: String,
}

/// When a look was taken, and when the first one was.
#[derive(Clone, Copy)]
struct Time {
    now: Millis,
    first: Millis,
}

impl Judge {
    pub fn new(rules: Rules, now: Millis) -> Self {
        let mut series: HashMap<Metric, Series> = Metric::ALL.map(|metric| (metric, Series::default())).into();
        for rule in &rules.rules {
            let series = series.entry(rule.metric).or_default();
            series.window_ms = series.window_ms.max(rule.window.0);
        }
        Self { rules, since: now, series, watches: HashMap::new() }
    }

    /// The longest window in which a metric's events are asked about.
    pub fn window_ms(&self, metric: Metric) -> i64 {
        self.series.get(&metric).map_or(0, |series| series.window_ms)
    }

    /// Goes on with an open incident: it is resolved in due time and not fired again. False when no rule
    /// has its name any more.
    pub fn adopt(&mut self, rule: &str) -> bool {
        let known = self.rules.rules.iter().any(|known| known.name == rule)
            || Metric::ALL.iter().any(|metric| vanished(*metric) == rule);
        if known {
            let watch = self.watches.entry(rule.to_owned()).or_default();
            watch.fired = true;
            watch.armed = true;
        }
        known
    }

    /// Takes one look at every metric and tells what it changes.
    pub fn take(&mut self, now: Millis, looks: &[(Metric, Look)]) -> Vec<Change> {
        let time = Time { now, first: self.since };
        for (metric, look) in looks {
            self.series.entry(*metric).or_default().push(now, look);
        }
        let mut changes = Vec::new();
        for rule in &self.rules.rules {
            let Some(series) = self.series.get(&rule.metric).filter(|series| series.seen_at == Some(now)) else {
                // Without a sample nothing can be said: neither that it is wrong nor that it is right again.
                continue;
            };
            let Some(value) = figure(rule, series, now) else { continue };
            let verdict = Verdict {
                wrong: rule.comparison.is_wrong(value, rule.threshold),
                text: format!("{} is {}", subject(rule), number(value)),
            };
            let watch = self.watches.entry(rule.name.clone()).or_default();
            changes.extend(weigh(rule, watch, &verdict, time));
        }
        for metric in Metric::ALL {
            let Some(series) = self.series.get(&metric) else { continue };
            let watch = self.watches.entry(vanished(metric)).or_default();
            changes.extend(miss(metric, series, watch, &self.rules, time));
        }
        changes
    }
}

impl Series {
    fn push(&mut self, now: Millis, look: &Look) {
        self.absent = None;
        match look {
            Look::Level(value) => {
                self.levels.push_back((now, *value));
                let oldest = now - self.window_ms;
                while self.levels.front().is_some_and(|(at, _)| *at <= oldest) && self.levels.len() > 1 {
                    self.levels.pop_front();
                }
            }
            Look::Events(events) => self.events.clone_from(events),
            Look::Absent(why) => {
                self.absent = Some(why.clone());
                return;
            }
        }
        self.seen_at = Some(now);
    }
}

/// Fires, resolves, or waits.
fn weigh(rule: &Rule, watch: &mut Watch, verdict: &Verdict, time: Time) -> Option<Change> {
    let now = time.now;
    if verdict.wrong {
        watch.right_since = None;
        let wrong_ms = now - *watch.wrong_since.get_or_insert(now);
        let graced = !watch.armed && now - time.first < rule.grace.0;
        if watch.fired || wrong_ms < rule.wrong_for.0 || graced {
            return None;
        }
        watch.fired = true;
        let held = if rule.wrong_for.0 > 0 { format!(" for {}", rule.wrong_for) } else { String::new() };
        return Some(Change::Fire {
            rule: rule.name.clone(),
            metric: rule.metric,
            severity: rule.severity,
            summary: format!("{}, {} {}{held}", verdict.text, rule.comparison.as_str(), number(rule.threshold)),
            advice: rule.advice.clone(),
        });
    }
    watch.wrong_since = None;
    watch.armed = true;
    let right_ms = now - *watch.right_since.get_or_insert(now);
    if !watch.fired || right_ms < rule.clear_for.0 {
        return None;
    }
    watch.fired = false;
    let not = match rule.comparison {
        Comparison::Below => "not below",
        Comparison::Above => "not above",
    };
    Some(Change::Resolve {
        rule: rule.name.clone(),
        outcome: format!("{}, {not} {}", verdict.text, number(rule.threshold)),
    })
}

/// A metric that has no sample for too long fires by itself, and is resolved by its next sample.
fn miss(metric: Metric, series: &Series, watch: &mut Watch, rules: &Rules, time: Time) -> Option<Change> {
    let now = time.now;
    let silent_ms = now - series.seen_at.unwrap_or(time.first);
    if series.seen_at == Some(now) {
        let gone_ms = now - watch.wrong_since.take().unwrap_or(now);
        return std::mem::take(&mut watch.fired).then(|| Change::Resolve {
            rule: vanished(metric),
            outcome: format!("{} has samples again, after {} without", metric.as_str(), seconds(gone_ms)),
        });
    }
    watch.wrong_since.get_or_insert(now - silent_ms);
    if watch.fired || silent_ms <= rules.absent_after.0 {
        return None;
    }
    watch.fired = true;
    let why = series.absent.as_deref().unwrap_or("it was not looked at");
    Some(Change::Fire {
        rule: vanished(metric),
        metric,
        severity: rules.absent_severity,
        summary: format!("{} has vanished: no sample for {} ({why})", metric.as_str(), seconds(silent_ms)),
        advice: "What cannot be measured is not watched: until it is back, its rules stay silent.".to_owned(),
    })
}

/// The rule's figure over its window; nothing where the samples do not make one.
fn figure(rule: &Rule, series: &Series, now: Millis) -> Option<f64> {
    if rule.metric.event().is_some() {
        return Some(count(rule, &series.events));
    }
    let oldest = now - rule.window.0;
    let values: Vec<(Millis, f64)> = series.levels.iter().copied().filter(|(at, _)| *at > oldest).collect();
    let (first, last) = (values.first()?, values.last()?);
    let numbers = values.iter().map(|(_, value)| *value);
    match rule.aggregate {
        Aggregate::Avg => Some(numbers.sum::<f64>() / values.len() as f64),
        Aggregate::Min => numbers.reduce(f64::min),
        Aggregate::Max => numbers.reduce(f64::max),
        Aggregate::Last => Some(last.1),
        Aggregate::Sum => Some(numbers.sum()),
        Aggregate::Rate if last.0 > first.0 => Some((last.1 - first.1) * rule.per.0 as f64 / (last.0 - first.0) as f64),
        Aggregate::Rate => None,
    }
}

/// Events of the window, in all or by `per`.
fn count(rule: &Rule, events: &[(i64, i64)]) -> f64 {
    let inside = || events.iter().filter(|(age, _)| *age < rule.window.0);
    let periods = rule.window.0 / rule.per.0;
    let of = |period: i64| inside().filter(|(age, _)| age / rule.per.0 == period).map(|(_, n)| n).sum::<i64>() as f64;
    let sum = inside().map(|(_, n)| n).sum::<i64>() as f64;
    match rule.aggregate {
        Aggregate::Sum => sum,
        Aggregate::Avg | Aggregate::Rate => sum * rule.per.0 as f64 / rule.window.0 as f64,
        Aggregate::Min => (0..periods).map(of).reduce(f64::min).unwrap_or(0.0),
        Aggregate::Max => (0..periods).map(of).reduce(f64::max).unwrap_or(0.0),
        Aggregate::Last => of(0),
    }
}

/// `lag: min over 2 m`, `manifest_refreshes: avg per 5 m over 10 m`.
fn subject(rule: &Rule) -> String {
    let counted = rule.metric.event().is_some() && rule.aggregate != Aggregate::Sum;
    let per = if counted || rule.aggregate == Aggregate::Rate { format!(" per {}", rule.per) } else { String::new() };
    format!("{}: {}{per} over {}", rule.metric.as_str(), rule.aggregate.as_str(), rule.window)
}

fn vanished(metric: Metric) -> String {
    format!("{VANISHED}{}", metric.as_str())
}

fn seconds(ms: i64) -> String {
    if ms < 10_000 { Span(ms).to_string() } else { Span(ms / 1000 * 1000).to_string() }
}

/// At most two decimals, none where there are none.
fn number(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
#[path = "judge/tests.rs"]
mod tests;
