//! Rules and files as RFC 9309 and Google's parser have them.

use super::*;

fn allowed(robots: &str, agent: &str, path: &str) -> bool {
    Robots::parse(robots.as_bytes()).decide(agent, path).allowed
}

/// RFC 9309 5.1.
const SIMPLE: &str = "User-Agent: *
Disallow: *.gif$
Disallow: /example/
Allow: /publications/

User-Agent: foobot
Disallow:/
Allow:/example/page.html
Allow:/example/allowed.gif

User-Agent: barbot
User-Agent: bazbot
Disallow: /example/page.html

User-Agent: quxbot
";

#[test]
fn rfc_simple_example() {
    for (agent, path, expected) in [
        ("foobot", "/example/page.html", true),
        ("FooBot/1.0", "/example/allowed.gif", true),
        ("foobot", "/", false),
        ("barbot", "/example/page.html", false),
        ("bazbot", "/example/page.html", false),
        ("barbot", "/x.gif", true),
        ("quxbot", "/example/", true),
        ("dodo", "/x.gif", false),
        ("dodo", "/x.gif?y", true),
        ("dodo", "/example/a", false),
        ("dodo", "/publications/a", true),
        ("foobots", "/", true),
    ] {
        assert_eq!(allowed(SIMPLE, agent, path), expected, "{agent} {path}");
    }
}

/// RFC 9309 5.2.
#[test]
fn rfc_longest_match() {
    let robots = "User-Agent: foobot\nAllow: /example/page/\nDisallow: /example/page/disallowed.gif\n";
    let verdict = Robots::parse(robots.as_bytes()).decide("foobot", "/example/page/disallowed.gif");
    assert_eq!(
        verdict,
        Verdict { allowed: false, rule: Some(Rule { line: 3, text: "Disallow: /example/page/disallowed.gif".into() }) }
    );
}

/// developers.google.com, "How Google interprets the robots.txt specification", path matches.
#[test]
fn google_path_table() {
    for (pattern, yes, no) in [
        (
            "/fish",
            &["/fish", "/fish.html", "/fish/salmon.html", "/fishheads", "/fish.php?id=anything"][..],
            &["/Fish.asp", "/catfish", "/?id=fish", "/desert/fish"][..],
        ),
        (
            "/fish*",
            &["/fish", "/fish.html", "/fish/salmon.html", "/fishheads/yummy.html"],
            &["/Fish.asp", "/catfish", "/?id=fish"],
        ),
        ("/fish/", &["/fish/", "/animals/fish/"][..1], &["/fish", "/fish.html", "/animals/fish/", "/Fish/Salmon.asp"]),
        (
            "/*.php",
            &[
                "/index.php",
                "/filename.php",
                "/folder/filename.php",
                "/folder/filename.php?parameters",
                "/folder/any.php.file.html",
                "/filename.php/",
            ],
            &["/", "/windows.PHP"],
        ),
        (
            "/*.php$",
            &["/filename.php", "/folder/filename.php"],
            &["/filename.php?parameters", "/filename.php/", "/filename.php5", "/windows.PHP"],
        ),
        ("/fish*.php", &["/fish.php", "/fishheads/catfish.php?parameters"], &["/Fish.PHP"]),
    ] {
        let robots = format!("User-agent: *\nDisallow: {pattern}");
        yes.iter().for_each(|path| assert!(!allowed(&robots, "dodo", path), "{pattern} {path}"));
        no.iter().for_each(|path| assert!(allowed(&robots, "dodo", path), "{pattern} {path}"));
    }
}

/// The same page, order of precedence for rules.
#[test]
fn google_precedence_table() {
    for (allow, disallow, path, expected) in [
        ("/p", "/", "/page", true),
        ("/folder", "/folder", "/folder/page", true),
        ("/page", "/*.htm", "/page.htm", false),
        ("/page", "/*.ph", "/page.php5", true),
        ("/$", "/", "/", true),
        ("/$", "/", "/page.htm", false),
    ] {
        let robots = format!("User-agent: *\nAllow: {allow}\nDisallow: {disallow}\n");
        assert_eq!(allowed(&robots, "dodo", path), expected, "{allow} {disallow} {path}");
    }
}

/// RFC 9309 2.2.2 and 2.2.3.
#[test]
fn percent_encoding_is_one_on_both_sides() {
    for (pattern, path, matches) in [
        ("/foo/bar?baz=quz", "/foo/bar?baz=quz", true),
        ("/foo/bar?baz=https://foo.bar", "/foo/bar?baz=https://foo.bar", true),
        ("/foo/bar/\u{30c4}", "/foo/bar/%E3%83%84", true),
        ("/foo/bar/%e3%83%84", "/foo/bar/%E3%83%84", true),
        ("/foo/bar/%62%61%7A", "/foo/bar/baz", true),
        ("/path/file-with-a-%2A.html", "/path/file-with-a-*.html", true),
        ("/path/foo-%24", "/path/foo-$", true),
        ("/path/foo-%24", "/path/foo-", false),
        ("/a$b", "/a$b", true),
        ("/a b", "/a%20b", true),
        ("/a%2Fb", "/a/b", false),
    ] {
        assert_eq!(!allowed(&format!("user-agent:*\ndisallow:{pattern}"), "dodo", path), matches, "{pattern} {path}");
    }
}

#[test]
fn stars_and_the_anchor() {
    for (pattern, path, matches) in [
        ("/a*b*c$", "/abcbc", true),
        ("/a*b*c$", "/abcb", false),
        ("/a*a$", "/a", false),
        ("/*$", "/x", true),
        ("*", "/x", true),
        ("$", "/", false),
        ("/a**b", "/axxb", true),
        ("/ab*bc$", "/abc", false),
        ("a", "/a", false),
    ] {
        assert_eq!(!allowed(&format!("user-agent: *\ndisallow: {pattern}"), "dodo", path), matches, "{pattern} {path}");
    }
}

#[test]
fn a_hostile_pattern_is_cheap() {
    let robots = format!("user-agent: *\ndisallow: /{}z$", "*a".repeat(7000));
    let path = format!("/{}", "a".repeat(2000));
    let start = std::time::Instant::now();
    assert!(allowed(&robots, "dodo", &path));
    assert!(start.elapsed().as_millis() < 500);
}

#[test]
fn groups() {
    let merged = "disallow: /early\nuser-agent: a\ndisallow: /1\nuser-agent: *\ndisallow: /\nuser-agent: A # again\ncrawl-delay: 2\nsitemap: x\nuser-agent: b/2.0\nDisallow: /2\n";
    assert!(allowed(merged, "a", "/early"));
    assert!(!allowed(merged, "a", "/1") && !allowed(merged, "a", "/2"));
    assert!(allowed(merged, "b", "/1") && !allowed(merged, "b", "/2"));
    assert!(!allowed(merged, "c", "/early"));
    assert!(allowed("user-agent: a\ndisallow: /", "c", "/"));
    assert!(allowed(merged, "c", "/robots.txt"));
}

#[test]
fn an_empty_disallow_allows_and_is_named() {
    let verdict =
        Robots::parse(b"user-agent: dodo\nDisallow:   # nothing\nuser-agent: *\ndisallow: /").decide("dodo", "/");
    assert_eq!(verdict, Verdict { allowed: true, rule: Some(Rule { line: 2, text: "Disallow:".into() }) });
    assert_eq!(Robots::default().decide("dodo", "/"), Verdict { allowed: true, rule: None });
}

#[test]
fn lines_end_in_three_ways_and_bytes_may_be_broken() {
    let robots = Robots::parse(b"\xef\xbb\xbfUser-Agent : *\r\n\r\n\xff\xfe: x\rdisallow: /a\xff\ndisallow: /b\x00");
    assert_eq!(robots.decide("dodo", "/a%FFx").rule.map(|rule| rule.line), Some(4));
    assert_eq!(robots.decide("dodo", "/b%00").rule, Some(Rule { line: 5, text: "disallow: /b".into() }));
}

/// google/robotstxt, robots_test.cc, ID_UTF8ByteOrderMarkIsSkipped.
#[test]
fn a_byte_order_mark_may_be_cut_short() {
    for (start, is_mark) in [
        (&b"\xef\xbb\xbf"[..], true),
        (b"\xef\xbb", true),
        (b"\xef", true),
        (b"\xef\x11\xbf", false),
        (b"\xbb\xbf", false),
        (b"\xef\xbb\xbf\xef\xbb\xbf", false),
        (b"\n\xef\xbb\xbf", false),
    ] {
        let robots = Robots::parse(&[start, b"user-agent: *\ndisallow: /"].concat());
        let line = robots.decide("dodo", "/x").rule.map(|rule| rule.line);
        assert_eq!(line, is_mark.then_some(2), "{start:?}");
    }
}

/// google/robotstxt, robots_test.cc, ID_LineSyntax_Line; and what is not as obvious.
#[test]
fn between_two_words_the_colon_may_be_missing() {
    assert!(!allowed("user-agent FooBot\ndisallow /\n", "FooBot", "/x/y"));
    let robots = Robots::parse(
        b"user-agent dodo # ours\ndisallow\t/a # no\ndisallow\nallow   /a/b\ndisallow /c d\nfoo /\nCrawl-Delay 2",
    );
    let rule = |path: &str| robots.decide("dodo", path).rule;
    assert_eq!(rule("/a/x"), Some(Rule { line: 2, text: "disallow /a".into() }));
    assert_eq!(rule("/a/b"), Some(Rule { line: 4, text: "allow   /a/b".into() }));
    assert_eq!((rule("/c"), rule("/c%20d"), rule("/x")), (None, None, None));
    assert_eq!(robots.crawl_delay_ms("dodo"), Some(2000));
}

/// google/robotstxt, robots_test.cc, GoogleOnly_LineTooLong.
#[test]
fn a_long_line_is_cut() {
    let path = format!("/x/{}", "a".repeat(LINE_BYTES_MAX - "disallow: /x//".len()));
    let comment = "#".repeat(LINE_BYTES_MAX);
    let robots = format!("user-agent: FooBot\ndisallow: {path}/qux\ndisallow: /y {comment}\n");
    let rule = |path: &str| Robots::parse(robots.as_bytes()).decide("FooBot", path).rule;
    assert_eq!((rule("/fux"), rule(&path)), (None, None));
    let found = rule(&format!("{path}/fux"));
    assert_eq!(found, Some(Rule { line: 2, text: format!("disallow: {path}/") }));
    assert_eq!(rule("/y"), Some(Rule { line: 3, text: "disallow: /y".into() }));
}

#[test]
fn what_is_too_long_is_not_read() {
    let long = format!("user-agent: *\ndisallow: /{}\ndisallow: /x\n", "a*".repeat(LINE_BYTES_MAX));
    assert_eq!(Robots::parse(long.as_bytes()).decide("dodo", "/x").rule.map(|rule| rule.line), Some(3));
    let mut large = b"user-agent: *\n".to_vec();
    large.resize(ROBOTS_BYTES_MAX - "disallow: /".len() - 1, b'\n');
    large.extend_from_slice(b"\ndisallow: /private\n");
    assert!(Robots::parse(&large).decide("dodo", "/x").allowed);
}

#[test]
fn delays_and_sitemaps() {
    let robots = Robots::parse(
        b"Crawl-delay: 9\nSitemap: https://a.example/s.xml\nuser-agent: a\nuser-agent: b\ncrawl-delay: 1.5\n\nuser-agent: *\ncrawl-delay: 99999999\ndisallow: /x\n",
    );
    assert_eq!(robots.crawl_delay_ms("a"), Some(1500));
    assert_eq!(robots.crawl_delay_ms("b"), Some(1500));
    assert_eq!(robots.crawl_delay_ms("dodo"), Some(CRAWL_DELAY_MS_MAX));
    assert!(!robots.decide("a", "/x").allowed, "a Crawl-delay ends no group");
    assert_eq!(
        Robots::parse(b"user-agent: a\ncrawl-delay: -1\ncrawl-delay: inf\ncrawl-delay: x").crawl_delay_ms("a"),
        None
    );
    assert_eq!(Robots::parse(b"user-agent: *\ncrawl-delay: 5\nuser-agent: a\nallow: /").crawl_delay_ms("a"), None);
    assert_eq!(robots.sitemaps(), ["https://a.example/s.xml"]);
}
