//! The rules on published examples and on pseudo-random URLs.

use super::*;
use crate::model::url::{canonical, ruled, steps};

fn rules(names: &[UrlRule], drop: &[&str]) -> UrlRules {
    UrlRules::new(names, &drop.iter().map(|&name| name.to_owned()).collect::<Vec<_>>()).unwrap()
}

fn spelt(raw: &str, rules: &UrlRules) -> String {
    ruled(raw, None, rules).unwrap().url.to_string()
}

#[test]
fn session_ids() {
    let rules = rules(&[UrlRule::Sessions], &[]);
    for (raw, expected) in [
        // The Servlet specification's rewriting, SRV.7.1.3.
        ("http://a.test/catalog/index.html;jsessionid=1234", "http://a.test/catalog/index.html"),
        ("http://a.test/a;JSESSIONID=0A1B.node1;v=1/b;x?q=1", "http://a.test/a;v=1/b;x?q=1"),
        ("http://a.test/x;;jsessionid=1", "http://a.test/x;"),
        ("http://a.test/a/..;jsessionid=1/b", "http://a.test/b"),
        // Microsoft's and its books' examples of cookieless sessions.
        ("http://a.test/(S(lit3py55t21z5v55vlm25s55))/orderform.aspx", "http://a.test/orderform.aspx"),
        ("http://a.test/inproc/(S(tuucni55xfzj2xqx1mnqdg55))/Default.aspx", "http://a.test/inproc/Default.aspx"),
        ("http://a.test/(X(1)S(cp53yq30mtagv555unhr0t45))/system/", "http://a.test/system/"),
        ("http://a.test/(A(x_-)F(0F))/", "http://a.test/"),
        ("http://a.test/(S(1)", "http://a.test/(S(1)"),
        ("http://a.test/(S(1))", "http://a.test/(S(1))"),
        ("http://a.test/(S())/(1)/(S(1)a)/()/(S(a.b))/", "http://a.test/(S())/(1)/(S(1)a)/()/(S(a.b))/"),
        // Those of Heritrix and of the archive's key, and values that only look like one.
        ("http://a.test/?PHPSESSID=9682993c8daa2c5497996114facdc805&x=1", "http://a.test/?x=1"),
        ("http://a.test/?x=1&sid=9682993c8daa2c5497996114facdc805", "http://a.test/?x=1"),
        ("http://a.test/?sessionid=0123456789abcdeF", "http://a.test/"),
        (
            "http://a.test/?sid=0123456789abcde&sid=news-of-the-whole-day",
            "http://a.test/?sid=0123456789abcde&sid=news-of-the-whole-day",
        ),
        ("http://a.test/?ASPSESSIONIDAQBSDSRT=EOHBLBDDPFCLHKPGGKLILNAM&y", "http://a.test/?y"),
        ("http://a.test/i.cfm?CFID=123&a=1&CFTOKEN=4&jsessionid=5", "http://a.test/i.cfm?a=1"),
        ("http://a.test/?cfid=7&sid=internationalization", "http://a.test/?cfid=7&sid=internationalization"),
        ("http://a.test/?phpsessid", "http://a.test/"),
    ] {
        assert_eq!(spelt(raw, &rules), expected, "{raw}");
    }
}

#[test]
fn tracking_named_and_sorted_parameters() {
    let track = rules(&[UrlRule::Tracking], &[]);
    for (raw, expected) in [
        (
            "http://www.example.com/test.html?utm_source=test&utm_medium=test&utm_campaign=test&utm_term=test",
            "http://www.example.com/test.html",
        ),
        ("http://a.test/?q=1&fbclid=IwAR0&&UTM%5fSource=x&gclid", "http://a.test/?q=1&"),
        ("http://a.test/?a=utm_source&utmost=1&c=gclid&_gax=2", "http://a.test/?a=utm_source&utmost=1&c=gclid&_gax=2"),
        ("http://a.test/gclid=1;utm_source=2", "http://a.test/gclid=1;utm_source=2"),
    ] {
        assert_eq!(spelt(raw, &track), expected, "{raw}");
    }
    let drop = rules(&[], &["ref", "filter[x]", "view*", "größe"]);
    for (raw, expected) in [
        ("http://a.test/?Ref=1&reference=2&view=3&viewer=4&x=view", "http://a.test/?reference=2&x=view"),
        ("http://a.test/?filter%5Bx%5D=1&filter[x]=2&filter[y]=3&gr%C3%B6%C3%9Fe=4", "http://a.test/?filter[y]=3"),
    ] {
        assert_eq!(spelt(raw, &drop), expected, "{raw}");
    }
    assert_eq!(spelt("http://a.test/?b=1&a", &rules(&[], &["*"])), "http://a.test/");
    let sort = rules(&[UrlRule::Sort], &[]);
    for (raw, expected) in [
        ("http://a.test/?b=2&a=%2f&b=1&a=%26", "http://a.test/?a=%2F&a=%26&b=2&b=1"),
        ("http://a.test/?a-b=1&a=2&&a", "http://a.test/?&a=2&a&a-b=1"),
    ] {
        assert_eq!(spelt(raw, &sort), expected, "{raw}");
    }
}

#[test]
fn steps_in_their_order() {
    let rules = rules(&[UrlRule::Sort, UrlRule::Tracking, UrlRule::Sessions], &["ref"]);
    let steps = steps("http://a.test/x;jsessionid=1?b=1&utm_source=2&ref=3&a=4", None, &rules);
    let (names, values): (Vec<&str>, Vec<&str>) = steps.iter().map(|(n, v)| (n.as_str(), v.as_str())).unzip();
    assert_eq!(
        names,
        [
            "given",
            "session ids dropped",
            "tracking parameters dropped",
            "named parameters dropped",
            "parameters sorted"
        ]
    );
    assert_eq!(
        values[1..],
        [
            "http://a.test/x?b=1&utm_source=2&ref=3&a=4",
            "http://a.test/x?b=1&ref=3&a=4",
            "http://a.test/x?b=1&a=4",
            "http://a.test/x?a=4&b=1"
        ]
    );
}

#[test]
fn wrong_names_are_said_to_be() {
    for name in ["", "a*b", "**", "a\0", "a\n", &"x".repeat(DROP_PARAM_BYTES_MAX + 1)] {
        let why = UrlRules::new(&[], &[name.to_owned()]).unwrap_err();
        assert!(why.contains("drop_params") && why.lines().count() == 1 && why.len() < 300, "{why}");
    }
    assert!(UrlRules::new(&[], &vec!["a".to_owned(); DROP_PARAMS_MAX + 1]).is_err());
    assert!(UrlRules::new(&[UrlRule::Sort; 4], &[]).is_err());
    assert_eq!(serde_json::from_str::<UrlRule>("\"tracking\"").unwrap(), UrlRule::Tracking);
}

/// Pseudo-random numbers below a bound.
fn random() -> impl FnMut(usize) -> usize {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    }
}

const REMOVED: [&str; 8] = [
    "utm_source=%4",
    "UTM%5Fterm",
    "gclid=a%",
    "sid=0123456789abcdef",
    "PHPSESSID=1",
    "drop=%zz",
    "prefix-x=1",
    "cftoken=1",
];

#[test]
fn idempotent_on_pseudo_random_strings() {
    const PIECES: [&str; 30] = [
        "%",
        "4",
        "1",
        "%34",
        "%2e",
        "%2E",
        "%25",
        "%zz",
        ".",
        "..",
        "/",
        "/",
        "?",
        "&",
        "&",
        "=",
        "a",
        "B",
        "ツ",
        ";",
        ";",
        "jsessionid=",
        "(S(a))",
        "(S(",
        "))",
        "/(A(b)S(c))/",
        "sid=0123456789abcdef",
        "cfid=1",
        "'",
        "\\",
    ];
    let mut next = random();
    let mut changed = 0;
    for n in 0..30_000 {
        let names: Vec<UrlRule> = UrlRule::value_variants().iter().filter(|_| next(4) > 0).copied().collect();
        let rules = rules(&names, if next(2) == 0 { &[] } else { &["drop", "prefix*", "a"] });
        let mut raw = "http://a.test/".to_owned();
        for _ in 0..next(14) {
            let pieces = if next(4) == 0 { &REMOVED[..] } else { &PIECES[..] };
            raw.push_str(pieces[next(pieces.len())]);
        }
        let once = ruled(&raw, None, &rules).expect(&raw);
        assert_eq!(ruled(once.url.as_str(), None, &rules).as_ref(), Ok(&once), "{n} {raw:?} {rules:?}");
        assert_eq!(canonical(once.url.as_str(), None).as_ref(), Ok(&once), "{n} {raw:?} {rules:?}");
        let plain = canonical(&raw, None).unwrap();
        assert_eq!(ruled(plain.url.as_str(), None, &rules).as_ref(), Ok(&once), "{n} {raw:?} {rules:?}");
        changed += usize::from(plain != once);
    }
    assert!(changed > 3_000, "{changed}");
}

#[test]
fn spellings_that_differ_by_what_is_removed_are_one() {
    const SEGMENTS: [&str; 9] = ["a", "%", "4%", "%41", "b;v=1", ";", "", "(S)", "c%2F"];
    const PARAMS: [&str; 9] = ["a=1", "%", "%41=%", "4=%34", "", "b", "sid=short", "cfid=1", "a=0"];
    let mut next = random();
    let all = rules(UrlRule::value_variants(), &["drop", "prefix*"]);
    for n in 0..20_000 {
        let segments: Vec<&str> = (0..=next(4)).map(|_| SEGMENTS[next(SEGMENTS.len())]).collect();
        let mut params: Vec<&str> = (0..next(5)).map(|_| PARAMS[next(PARAMS.len())]).collect();
        let spell = |path: &str, params: &[&str]| {
            let mark = if params.is_empty() { "" } else { "?" };
            ruled(&format!("http://a.test/{path}{mark}{}", params.join("&")), None, &all).unwrap()
        };
        // A CFTOKEN in the second spelling would take a CFID along, which says more than the first.
        let removed = if params.contains(&"cfid=1") { &REMOVED[..7] } else { &REMOVED[..] };
        let first = spell(&segments.join("/"), &params);
        let mut path = Vec::new();
        for segment in segments {
            if next(4) == 0 {
                path.push("(X(1)S(lit3py55t21z5v55vlm25s55))".to_owned());
            }
            let session = ["", ";jsessionid=%4", ";phpsessid=a;sid=0123456789abcdef"][next(3)];
            path.push(format!("{segment}{session}"));
        }
        for _ in 0..next(4) {
            let at = next(params.len() + 1);
            params.insert(at, removed[next(removed.len())]);
        }
        let second = spell(&path.join("/"), &params);
        assert_eq!(first.hash, second.hash, "{n} {} {}", first.url, second.url);
    }
}
