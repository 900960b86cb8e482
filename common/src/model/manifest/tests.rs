use serde_json::json;

use super::*;

const NOW: Millis = 1_000_000;

fn read(value: Value) -> Result<Vec<Checked>, Vec<Reason>> {
    parse(value.to_string().as_bytes(), NOW, &|name| name == "shop")
}

#[test]
fn an_entry_needs_only_a_service_and_a_url() {
    let read = read(json!([{ "service": "crawl", "url": "http://a.test/" }, { "service": "shop", "url": "http://api.test", "cookies": { "a": "1", "b": "2" } }])).unwrap();
    assert_eq!(read[0].schedule, Schedule { start_ms: NOW, interval_s: 0, count: 1, duration_s: None });
    assert_eq!(read[1].headers["cookie"], "a=1; b=2");
}

#[test]
fn options_are_those_of_the_crawl() {
    let spec = |service, options| {
        let read = read(json!([{ "service": service, "url": "http://a.test/", "options": options }])).unwrap();
        crawl_spec(service, &read[0].url, &read[0].options).unwrap().0
    };
    let given = spec(
        "crawl",
        json!({ "depth": 3, "sitemaps": false, "nofollow": "ignore", "noindex": true, "follow_canonical": true, "assets": true, "region": "eu" }),
    );
    assert_eq!((given.depth, given.sitemaps, given.nofollow, given.assets), (3, false, Nofollow::Ignore, true));
    assert!(given.noindex && given.follow_canonical);
    assert_eq!(given.region.as_deref(), Some("eu"));
    let plain = spec("page", json!({}));
    assert_eq!((plain.depth, plain.sitemaps, plain.nofollow, plain.assets), (0, true, Nofollow::Honour, false));
    assert!(!plain.noindex && !plain.follow_canonical);
}

#[test]
fn every_wrong_entry_is_named() {
    let wrong = [
        (json!({ "url": "http://a.test/" }), "service"),
        (json!({ "service": "nobody", "url": "http://a.test/" }), "nobody"),
        (json!({ "service": "crawl", "url": "ftp://a.test/" }), "url"),
        (json!({ "service": "crawl", "url": "http://a.test/", "count": 2 }), "interval"),
        (json!({ "service": "crawl", "url": "http://a.test/", "count": 0 }), "count"),
        (json!({ "service": "crawl", "url": "http://a.test/", "start": "soon" }), "start"),
        (json!({ "service": "crawl", "url": "http://a.test/", "version": 9 }), "version"),
        (json!({ "service": "crawl", "url": "http://a.test/", "headers": { "a": "b\nc" } }), "header"),
        (json!({ "service": "crawl", "url": "http://a.test/", "options": { "dept": 1 } }), "dept"),
        (json!({ "service": "shop", "url": "http://a.test/", "options": { "depth": 1 } }), "subject"),
        (json!({ "service": "crawl", "url": "http://a.test/", "options": { "region": "e u" } }), "region"),
        (
            json!({ "service": "page", "url": "http://a.test/", "options": { "revisit": { "min_s": 9, "max_s": 1 } } }),
            "revisit",
        ),
        (
            json!({ "service": "page", "url": "http://a.test/", "count": 2, "interval": 9, "options": { "revisit": { "min_s": 1, "max_s": 9 } } }),
            "by itself",
        ),
        (json!("text"), "struct"),
        (json!({ "service": "crawl", "url": "http://a.test/", "\u{0}": 1 }), "NUL"),
        (json!({ "service": "shop", "url": "http://a.test/\u{0}" }), "NUL"),
        (json!({ "service": "crawl", "url": "http://a.test/", "count": 2, "interval": i64::MAX }), "interval"),
        (json!({ "service": "crawl", "url": "http://a.test/", "duration": i64::MAX }), "duration"),
        (json!({ "service": "crawl", "url": "http://a.test/", "cookies": "session=abc" }), "objects"),
        (json!({ "service": "crawl", "url": "http://a.test/", "headers": { "token": 1234567 } }), "token"),
    ];
    let list: Vec<Value> = wrong.iter().map(|(entry, _)| entry.clone()).collect();
    let reasons = read(Value::Array(list)).unwrap_err();
    assert_eq!(reasons.len(), wrong.len());
    for (reason, (entry, word)) in reasons.iter().zip(&wrong) {
        assert!(reason.reason.contains(word), "{entry}: {}", reason.reason);
        assert!(!reason.reason.contains("abc") && !reason.reason.contains("1234567"), "a secret: {}", reason.reason);
    }
    for whole in [&b"{}"[..], b"[", b"\xff"] {
        assert_eq!(parse(whole, NOW, &|_| false).unwrap_err()[0].entry, None);
    }
}

#[test]
fn missed_occurrences_coalesce_into_the_latest() {
    let hourly = Schedule { start_ms: 0, interval_s: 3600, count: 1_000_000_000, duration_s: None };
    assert_eq!(hourly.next(-1, 0), Some((0, 0)));
    assert_eq!(hourly.next(0, 1000), Some((1, 3_600_000)));
    assert_eq!(hourly.next(0, 36_000_001), Some((10, 36_000_000)), "the latest missed one, at once");
    assert_eq!(hourly.next(10, 36_000_001), Some((11, 39_600_000)));
}

#[test]
fn an_entry_ends_by_count_or_by_duration() {
    let twice = Schedule { start_ms: 0, interval_s: 10, count: 2, duration_s: None };
    assert_eq!(twice.next(1, 0), None);
    assert_eq!(twice.next(-1, 1_000_000), Some((1, 10_000)), "both missed: one run");
    let within = Schedule { start_ms: 0, interval_s: 10, count: 100, duration_s: Some(25) };
    assert_eq!(within.next(1, 0), Some((2, 20_000)));
    assert_eq!(within.next(2, 0), None);
    let far = Schedule { start_ms: LAST_MS - 5, interval_s: 1, count: 9, duration_s: None };
    assert_eq!(far.next(0, 0), None, "after the year 9999");
    let once = Schedule { start_ms: 5, interval_s: 0, count: 1, duration_s: Some(0) };
    assert_eq!((once.next(-1, 9), once.next(0, 9)), (Some((0, 5)), None));
}
