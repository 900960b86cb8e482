//! Manifests: checked or refused with reasons, and an entry that is taken is the same when it is written down and read again.

use std::collections::BTreeMap;

use dodo_common::clock::Millis;
use dodo_common::model::manifest::{Checked, Options, REASONS_MAX, crawl_spec, parse};
use rand::Rng;
use serde_json::{Value, json};

use crate::run::{Draw, Target, run};

/// Those of the README, and one with every option.
const SEEDS: &[&[u8]] = &[
    br#"[{ "service": "crawl", "url": "https://example.org/", "options": { "depth": 3, "delay_ms": 2000 } },
  { "service": "page", "url": "https://example.org/prices", "interval": 3600, "count": 24,
    "headers": { "authorization": "Bearer x" }, "cookies": { "session": "a", "b": "c" } },
  { "service": "reviews", "url": "https://api.example.org", "start": "2027-01-01T00:00:00Z", "interval": 86400,
    "count": 1000000000, "duration": 31536000, "version": 1, "options": { "subject": { "app": "com.example" } } }]"#,
    br#"[{"service":"crawl","url":"http://a.test/x?b=1&a=2","start":1800000000,"options":{"depth":1,"max_pages":10,"scope":"prefix",
    "delay_ms":0,"host_concurrency":4,"url_rules":["sessions","tracking","sort"],"drop_params":["ref","x*"],"include":["/x"],
    "exclude":["/cal(endar)?/","\\?page=\\d{3}"],"sitemaps":false,"nofollow":"ignore","noindex":true,"follow_canonical":true,"assets":true,"cookies":true,
    "user_agent":"examplebot/1.0","max_bytes":1000,"max_seconds":60,"retries":2,"priority":-100}}]"#,
    br#"[{"service":"reviews","url":"http://api.test","start":0,"options":{"instance":"one","subject":{"a":"b","c":"d"},"priority":1}}]"#,
];
/// Mostly what keeps it JSON.
#[rustfmt::skip]
const WORDS: &[&str] = &[
    "0", "1", "-1", "9", "1e999", "1.5", "9223372036854775807", "253402300799", "31536000", "null", "true", "false",
    "\"\"", "[]", "{}", "\"a\"", "\\u0000", "\\ud800", "\\n", "\u{e9}", "\"", ",", ":", "[", "]", "{", "}",
    "\"depth\":", "\"count\":5,\"interval\":1,", "\"duration\":10,", "\"start\":\"9999-12-31T23:59:59.999Z\",",
    "\"options\":{},", "\"cookies\":{\"a\":\"b;c\"},", "crawl", "page", "reviews", "http://", "/../", "ftp:", "#",
    "%41", ";jsessionid=1", "domain", "host", "(?i)", "a{1000}", "(", "*", "Sort", "2027-13-01",
];
const NOW: Millis = 1_795_000_000_000;

#[test]
fn manifest_is_the_same_written_down() {
    run(Target { name: "manifest_is_the_same_written_down", seeds: SEEDS, words: WORDS, cases: 3000, check });
}

fn check(input: &[u8], mut draw: Draw) {
    read(input);
    // What is no JSON any more says little: an example with other values says more.
    let mut value: Value =
        serde_json::from_slice(SEEDS[draw.random_range(0..SEEDS.len())]).expect("the seeds are JSON");
    for _ in 0..draw.random_range(1..4) {
        let word = String::from_utf8_lossy(&input[..input.len().min(40)]).into_owned();
        turn(&mut value, &word, &mut draw);
    }
    read(value.to_string().as_bytes());
}

fn read(bytes: &[u8]) {
    let known = |name: &str| name == "reviews";
    let entries = match parse(bytes, NOW, &known) {
        Ok(entries) => entries,
        Err(reasons) => {
            assert!(!reasons.is_empty() && reasons.len() <= REASONS_MAX + 1);
            return;
        }
    };
    let written: Vec<Value> = entries.iter().map(written).collect();
    let again = parse(Value::from(written).to_string().as_bytes(), NOW, &known);
    assert_eq!(again.as_ref(), Ok(&entries));
    for entry in &entries {
        if entry.service != "reviews" {
            let (spec, seed) = crawl_spec(&entry.service, &entry.url, &entry.options).expect("it was checked");
            assert_eq!(spec.check(), Ok(()));
            assert_eq!(spec.seeds, [seed.url.to_string()]);
        }
        let stored = serde_json::to_value(&entry.options).expect("options are JSON");
        assert_eq!(serde_json::from_value::<Options>(stored).expect("as they were written"), entry.options);
        goes_on(entry);
    }
}

/// An entry as a manifest has it.
fn written(entry: &Checked) -> Value {
    let Checked { service, url, headers, options, schedule } = entry;
    let start = chrono::DateTime::from_timestamp_millis(schedule.start_ms).expect("it is in range").to_rfc3339();
    let mut value = json!({ "service": service, "url": url, "headers": headers, "options": options, "start": start,
        "interval": schedule.interval_s, "count": schedule.count });
    if let Some(duration) = schedule.duration_s {
        value["duration"] = json!(duration);
    }
    value
}

/// Its occurrences come one after the other, and not more of them than it has.
fn goes_on(entry: &Checked) {
    let schedule = entry.schedule;
    let (mut last, mut at) = (-1, Millis::MIN);
    for turn in 0..20 {
        // Every other time late, so that some are missed.
        let now =
            if turn % 2 == 0 { schedule.start_ms } else { at.saturating_add(schedule.interval_s.saturating_mul(2500)) };
        let Some((next, due)) = schedule.next(last, now) else { return };
        assert!(
            next > last && next < schedule.count && due >= schedule.start_ms && due > at,
            "{next} at {due} after {last} at {at}"
        );
        let duration_ms = schedule.duration_s.map_or(Millis::MAX, |duration| duration.saturating_mul(1000));
        assert!(due - schedule.start_ms <= duration_ms, "{due} is beyond {duration_ms}");
        (last, at) = (next, due);
    }
}

/// Another value at a place of the document.
fn turn(value: &mut Value, word: &str, draw: &mut Draw) {
    let stops = draw.random_ratio(1, 4);
    match value {
        Value::Array(values) if !values.is_empty() && !stops => {
            let at = draw.random_range(0..values.len());
            turn(&mut values[at], word, draw);
        }
        Value::Object(map) if !map.is_empty() && !stops => {
            let at = draw.random_range(0..map.len());
            if let Some(value) = map.values_mut().nth(at) {
                turn(value, word, draw);
            }
        }
        value => {
            let odd = [
                json!(word),
                json!(draw.random::<i64>() >> draw.random_range(0..64)),
                json!(draw.random::<f64>()),
                json!(null),
                json!([word, word]),
                json!(BTreeMap::from([(word, word)])),
                json!(""),
                json!(true),
            ];
            *value = odd[draw.random_range(0..odd.len())].clone();
        }
    }
}
