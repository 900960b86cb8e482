//! URLs: one spelling, and a URL all the same.

use std::sync::LazyLock;

use ::url::Url;
use dodo_common::model::spelling::{Spelt, spell};
use dodo_common::model::url::{URL_BYTES_MAX, canonical, ruled, steps};
use dodo_common::model::url_rules::{UrlRule, UrlRules};
use percent_encoding::percent_decode_str;

use crate::mangle::pick;
use crate::run::{Draw, Target, run};

/// RFC 3986 1.1.2 and 5.4, the examples of WHATWG URL 4.1, and URLs with what the rules of a crawl drop.
const SEEDS: &[&[u8]] = &[
    b"http://www.ietf.org/rfc/rfc2396.txt",
    b"ldap://[2001:db8::7]/c=GB?objectClass?one",
    b"telnet://192.0.2.16:80/",
    b"http://a/b/c/d;p?q",
    b"g;x=1/../y",
    b"../../../g",
    b"./g/.",
    b"//g",
    b"?y#s",
    b"https:example.org",
    b"https://////example.com///",
    b"https://example.com/././foo",
    b"hello:world",
    b"https:example.org",
    b"\\example\\..\\demo/.\\",
    b"https://EXAMPLE.com/../x",
    b"https://user:password@example.org:8443/%7Efoo/%2e%2E/b%61r?q=%26&r=a+b#frag",
    b"http://0300.168.0xF0/",
    b"http://[0:0::1]:80/",
    "https://faß.ExAmPlE/ツ?é=ü".as_bytes(),
    b"https://shop.example/a;jsessionid=1/(S(lit3py55t21z5v55vlm25s55))/p.aspx?utm_source=m&b=2&a=1&sid=0123456789abcdef",
    b"http://example.com/?PHPSESSID=1&CFID=1&CFTOKEN=2&sessionid=abcdefghijklmnop1&gclid=x&sort=up",
];
#[rustfmt::skip]
const WORDS: &[&str] = &[
    "http://", "https:", "HTTP:/", "//", "/", "\\", "?", "#", "@", ":", ";", "&", "=", "%", "%2", "%2e", "%2E%2e",
    "%25", "%41", "%zz", "%00", "%c3%a9", "..", ".", "/../", "/./", "[::1]", "]", "xn--", "xn--a", "。", "例え.jp", "ß",
    "\u{200d}", "\u{ad}", "0x7f", "1.2.3", ".", "a..", ":80", ":443", ":0", ":65536", "u:p@", "*", "|", "^",
    "jsessionid=1", ";JSESSIONID=a;b", "/(S(a))", "/(A(b)S(c))/", "utm_source=a", "&phpsessid", "sid=0123456789abcdef",
    "%73id=", "+", " ",
];

static RULES: LazyLock<[UrlRules; 3]> = LazyLock::new(|| {
    use UrlRule::{Sessions, Sort, Tracking};
    let drop = ["ref".to_owned(), "b*".to_owned(), "é".to_owned()];
    [(&[][..], &[][..]), (&[Sessions, Tracking, Sort], &drop), (&[Sessions], &[])]
        .map(|(rules, drop)| UrlRules::new(rules, drop).expect("the rules are sound"))
});

#[test]
fn url_is_spelt_in_one_way() {
    run(Target { name: "url_is_spelt_in_one_way", seeds: SEEDS, words: WORDS, cases: 4000, check });
}

fn check(input: &[u8], mut draw: Draw) {
    let raw = String::from_utf8_lossy(input);
    let base = pick(&mut draw, &["http://a/b/c/d;p?q", "https://example.com:8443/x/..%2f/y/?"]);
    let base = Some(Url::parse(base).expect("a URL")).filter(|_| raw.len().is_multiple_of(2));
    for rules in RULES.iter() {
        let shown = steps(&raw, base.as_ref(), rules);
        let last = shown.last().map(|(step, outcome)| (step.as_str(), outcome.as_str()));
        // A page has a canonical URL.
        if let Some(Ok(base)) = base.as_ref().map(|base| canonical(base.as_str(), None)) {
            let base = &base.url;
            let parsed = ruled(&raw, Some(base), rules).map(Spelt::from);
            assert_eq!(spell(&raw, base, rules), parsed, "at a glance it is another one");
        }
        let once = match ruled(&raw, base.as_ref(), rules) {
            Ok(once) => once,
            Err(error) => {
                assert_eq!(last, Some(("error", error.to_string().as_str())));
                continue;
            }
        };
        let text = once.url.as_str();
        assert_eq!(last.map(|(_, outcome)| outcome), Some(text), "`dodo url` shows another one");
        assert!(text.len() <= URL_BYTES_MAX && text.bytes().all(|byte| byte.is_ascii_graphic()), "{text:?}");
        assert!(matches!(once.url.scheme(), "http" | "https") && once.url.has_host(), "{text}");
        assert!(
            once.url.username().is_empty() && once.url.password().is_none() && once.url.fragment().is_none(),
            "{text}"
        );
        assert!(text.starts_with(&format!("{}/", once.host)), "{text} is not of {}", once.host);
        assert_eq!(Url::parse(text).as_ref(), Ok(&once.url), "it is read as another one");
        assert_eq!(ruled(text, None, rules).as_ref(), Ok(&once), "its canonical form is another one");
        assert_eq!(ruled(text, base.as_ref(), rules).as_ref(), Ok(&once), "the base has a say in a full URL");
    }
    // Without rules it names the same thing as before.
    if let (Ok(once), Ok(parsed)) = (canonical(&raw, base.as_ref()), Url::options().base_url(base.as_ref()).parse(&raw))
    {
        let meant = |url: &Url| {
            let query = url
                .query()
                .filter(|query| !query.is_empty())
                .map(|query| percent_decode_str(query).collect::<Vec<u8>>());
            (percent_decode_str(url.path()).collect::<Vec<u8>>(), query, url.port_or_known_default())
        };
        assert_eq!(meant(&once.url), meant(&parsed), "{} is not {parsed}", once.url);
    }
}
