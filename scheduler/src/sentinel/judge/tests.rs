//! Rules at set times: when they fire, when they are resolved, and what they say.

use super::*;

fn rules(changes: &[(&str, &str)]) -> Rules {
    let mut text = "absent_after: 10s\nabsent_severity: warning\nrules:\n- name: r\n  metric: lag\n  aggregate: last\n  \
                    window: 10s\n  comparison: above\n  threshold: 5\n  for: 2s\n  clear_for: 1s\n  severity: critical\n  \
                    advice: look\n"
        .to_owned();
    for (from, to) in changes {
        text = text.replace(from, to);
    }
    Rules::parse(&text).expect("a rule")
}

/// Every metric but the one of the test has a sample.
fn looks(metric: Metric, look: Look) -> Vec<(Metric, Look)> {
    let usual = |metric: Metric| if metric.event().is_some() { Look::Events(Vec::new()) } else { Look::Level(0.0) };
    Metric::ALL.into_iter().map(|m| (m, if m == metric { look.clone() } else { usual(m) })).collect()
}

/// What happens at which second.
fn run(judge: &mut Judge, metric: Metric, levels: &[(i64, Option<f64>)]) -> Vec<(i64, String)> {
    let mut seen = Vec::new();
    for (second, level) in levels {
        let look = level.map_or(Look::Absent("gone".to_owned()), Look::Level);
        for change in judge.take(second * 1000, &looks(metric, look)) {
            seen.push((
                *second,
                match change {
                    Change::Fire { summary, .. } => format!("! {summary}"),
                    Change::Resolve { outcome, .. } => format!("ok {outcome}"),
                },
            ));
        }
    }
    seen
}

#[test]
fn it_fires_after_its_time_and_is_resolved_after_its_time() {
    let mut judge = Judge::new(rules(&[]), 0);
    let levels = [
        (1, Some(9.0)),
        (2, Some(9.0)),
        (3, Some(6.5)),
        (4, Some(9.0)),
        (5, Some(5.0)),
        (6, Some(4.0)),
        (7, Some(9.0)),
        (8, Some(1.0)),
    ];
    let seen = run(&mut judge, Metric::Lag, &levels);
    assert_eq!(
        seen,
        [
            (3, "! lag: last over 10 s is 6.5, above 5 for 2 s".to_owned()),
            (6, "ok lag: last over 10 s is 4, not above 5".to_owned()),
        ]
    );
}

#[test]
fn a_flap_shorter_than_its_time_is_nothing() {
    let mut judge = Judge::new(rules(&[]), 0);
    let levels: Vec<_> = (1..40).map(|second| (second, Some(if second % 2 == 0 { 9.0 } else { 0.0 }))).collect();
    assert_eq!(run(&mut judge, Metric::Lag, &levels), []);
}

#[test]
fn grace_ends_with_the_first_good_look_or_with_its_time() {
    let below = [
        ("comparison: above", "comparison: below"),
        ("for: 2s", "for: 2s\n  grace: 20s"),
        ("metric: lag", "metric: leader"),
        ("threshold: 5", "threshold: 1"),
    ];
    let mut judge = Judge::new(rules(&below), 0);
    let never: Vec<_> = (1..30).map(|second| (second, Some(0.0))).collect();
    let seen = run(&mut judge, Metric::Leader, &never);
    assert_eq!(seen, [(20, "! leader: last over 10 s is 0, below 1 for 2 s".to_owned())]);

    let mut judge = Judge::new(rules(&below), 0);
    let once: Vec<_> = (1..10).map(|second| (second, Some(if second == 3 { 1.0 } else { 0.0 }))).collect();
    assert_eq!(run(&mut judge, Metric::Leader, &once).first().map(|seen| seen.0), Some(6));
}

#[test]
fn a_metric_that_vanishes_alerts_and_its_rules_stay_as_they_are() {
    let mut judge = Judge::new(rules(&[("for: 2s", "for: 0s")]), 0);
    let mut levels = vec![(1, Some(9.0))];
    levels.extend((2..20).map(|second| (second, None)));
    levels.push((20, Some(9.0)));
    assert_eq!(
        run(&mut judge, Metric::Lag, &levels),
        [
            (1, "! lag: last over 10 s is 9, above 5".to_owned()),
            (12, "! lag has vanished: no sample for 11 s (gone)".to_owned()),
            (20, "ok lag has samples again, after 19 s without".to_owned()),
        ]
    );
}

#[test]
fn a_metric_that_was_never_there_alerts() {
    let mut judge = Judge::new(rules(&[]), 0);
    let levels: Vec<_> = (1..15).map(|second| (second, None)).collect();
    let seen = run(&mut judge, Metric::PostgresUp, &levels);
    assert_eq!(seen, [(11, "! postgres_up has vanished: no sample for 11 s (gone)".to_owned())]);
}

#[test]
fn an_open_incident_is_continued() {
    let mut judge = Judge::new(rules(&[]), 0);
    assert!(judge.adopt("r") && judge.adopt("vanished:lag"));
    assert!(!judge.adopt("of-another-file"));
    let levels: Vec<_> = (1..10).map(|second| (second, Some(if second < 6 { 9.0 } else { 0.0 }))).collect();
    let seen = run(&mut judge, Metric::Lag, &levels);
    assert_eq!(seen.iter().map(|seen| seen.0).collect::<Vec<_>>(), [1, 7], "{seen:?}");
    assert!(seen[0].1.starts_with("ok lag has samples again") && seen[1].1.starts_with("ok lag: last"), "{seen:?}");
}

#[test]
fn levels_are_aggregated_over_the_window_only() {
    for (aggregate, expected) in
        [("avg", 4.0), ("min", 2.0), ("max", 6.0), ("last", 2.0), ("sum", 12.0), ("rate", -60.0)]
    {
        let rules = rules(&[("aggregate: last", &format!("aggregate: {aggregate}")), ("window: 10s", "window: 3s")]);
        let mut judge = Judge::new(rules.clone(), 0);
        for (second, level) in [(1, 100.0), (2, 4.0), (3, 6.0), (4, 2.0)] {
            judge.take(second * 1000, &looks(Metric::Lag, Look::Level(level)));
        }
        assert_eq!(figure(&rules.rules[0], &judge.series[&Metric::Lag], 4000), Some(expected), "{aggregate}");
    }
}

#[test]
fn events_are_counted_in_the_window_and_by_period() {
    let events = [(0, 2), (9_000, 1), (11_000, 4), (25_000, 1), (31_000, 50)];
    for (aggregate, expected) in
        [("sum", 8.0), ("avg", 8.0 / 3.0), ("rate", 8.0 / 3.0), ("min", 1.0), ("max", 4.0), ("last", 3.0)]
    {
        let rules = rules(&[
            ("aggregate: last", &format!("aggregate: {aggregate}\n  per: 10s")),
            ("window: 10s", "window: 30s"),
            ("metric: lag", "metric: dead_jobs"),
        ]);
        assert!((count(&rules.rules[0], &events) - expected).abs() < 1e-9, "{aggregate}");
    }
    let rules = rules(&[
        ("aggregate: last", "aggregate: avg\n  per: 5m"),
        ("window: 10s", "window: 10m"),
        ("metric: lag", "metric: manifest_refreshes"),
    ]);
    assert_eq!(subject(&rules.rules[0]), "manifest_refreshes: avg per 5 m over 10 m");
}

#[test]
fn too_few_events_are_seen_even_when_there_are_none() {
    let rules = rules(&[
        ("metric: lag", "metric: manifest_refreshes"),
        ("aggregate: last", "aggregate: sum"),
        ("comparison: above", "comparison: below"),
        ("for: 2s", "for: 0s"),
    ]);
    let mut judge = Judge::new(rules, 0);
    let changes = judge.take(1000, &looks(Metric::ManifestRefreshes, Look::Events(Vec::new())));
    assert!(
        matches!(&changes[..], [Change::Fire { summary, .. }] if summary == "manifest_refreshes: sum over 10 s is 0, below 5")
    );
}

/// A cluster that does well, seen for `seconds` with the bundled rules; one metric is what `other` says at each
/// second. Returns what fires, and when.
fn watch_defaults(seconds: i64, metric: Metric, other: impl Fn(i64) -> Look) -> Vec<(i64, String)> {
    let mut judge = Judge::new(Rules::parse(crate::sentinel::rule::DEFAULT_RULES).expect("the bundled rules"), 0);
    let well = |metric: Metric| match metric {
        Metric::WorkersReady => Look::Level(2.0),
        Metric::HeartbeatAgeMs => Look::Level(400.0),
        Metric::Leader | Metric::PostgresUp | Metric::RedisUp => Look::Level(1.0),
        Metric::Lag | Metric::OldestDueMs | Metric::HorizonAgeMs => Look::Level(0.0),
        Metric::ManifestRefreshes => Look::Events((0..10).map(|minute| (minute * 60_000, 1)).collect()),
        Metric::WorkersLost | Metric::DeadJobs => Look::Events(Vec::new()),
    };
    let mut fired = Vec::new();
    for second in 0..seconds {
        let looks: Vec<_> =
            Metric::ALL.into_iter().map(|m| (m, if m == metric { other(second) } else { well(m) })).collect();
        for change in judge.take(second * 1000, &looks) {
            if let Change::Fire { rule, .. } = change {
                fired.push((second, rule));
            }
        }
    }
    fired
}

#[test]
fn the_default_rules_are_silent_while_all_is_well() {
    assert_eq!(watch_defaults(3600, Metric::Lag, |_| Look::Level(1900.0)), []);
    // Every worker drained, and others in their place within half a minute.
    let drained = |second| Look::Level(if (600..625).contains(&second) { 0.0 } else { 2.0 });
    assert_eq!(watch_defaults(1200, Metric::WorkersReady, drained), []);
    // A cluster that has just begun: no worker, no leader and no refresh yet.
    let later = |after: i64, value: f64| move |second: i64| Look::Level(if second < after { 0.0 } else { value });
    assert_eq!(watch_defaults(300, Metric::WorkersReady, later(59, 2.0)), []);
    assert_eq!(watch_defaults(300, Metric::Leader, later(29, 1.0)), []);
    let refreshes = |second: i64| Look::Events((0..(second / 60).min(10)).map(|minute| (minute * 60_000, 1)).collect());
    assert_eq!(watch_defaults(3600, Metric::ManifestRefreshes, refreshes), []);
}

#[test]
fn each_default_rule_fires_in_its_time() {
    let from = |after: i64, value: f64| move |second: i64| Look::Level(if second < after { 1.0 } else { value });
    let one = |second: i64, rule: &str| vec![(second, rule.to_owned())];
    let begun = |_| Look::Level(0.0);
    assert_eq!(watch_defaults(600, Metric::WorkersReady, begun), one(60, "workers-ready"), "it never gets workers");
    assert_eq!(watch_defaults(600, Metric::WorkersReady, from(300, 0.0)), one(330, "workers-ready"));
    assert_eq!(watch_defaults(600, Metric::HeartbeatAgeMs, from(300, 5001.0)), one(303, "heartbeats-missing"));
    assert_eq!(watch_defaults(600, Metric::Leader, from(300, 0.0)), one(315, "leader"));
    assert_eq!(watch_defaults(900, Metric::Lag, from(300, 2500.0)), one(539, "lag"));
    assert_eq!(watch_defaults(900, Metric::OldestDueMs, from(300, 2.2e7)), one(600, "oldest-due"));
    assert_eq!(watch_defaults(900, Metric::HorizonAgeMs, from(300, 4e5)), one(419, "horizon-stuck"));
    assert_eq!(watch_defaults(600, Metric::PostgresUp, from(300, 0.0)), one(305, "postgres-down"));
    assert_eq!(watch_defaults(600, Metric::RedisUp, from(300, 0.0)), one(305, "redis-down"));
    let event = |count: i64| move |second: i64| Look::Events(if second < 300 { vec![] } else { vec![(0, count)] });
    assert_eq!(watch_defaults(600, Metric::WorkersLost, event(1)), one(300, "workers-lost"));
    assert_eq!(watch_defaults(600, Metric::DeadJobs, event(101)), one(300, "dead-jobs"));
    // Five of ten refreshes fail: two and a half in five minutes.
    let fail = |second: i64| {
        let count = if second < 300 { 10 } else { 5 };
        Look::Events((0..count).map(|minute| (minute * 60_000, 1)).collect())
    };
    assert_eq!(watch_defaults(600, Metric::ManifestRefreshes, fail), one(300, "manifest-refreshes"));
    for metric in Metric::ALL {
        let silent = |_| Look::Absent("gone".to_owned());
        assert_eq!(watch_defaults(600, metric, silent), one(91, &vanished(metric)));
    }
}
