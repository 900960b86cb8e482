//! robots.txt: a decision whatever the file, and the one that RFC 9309 asks for where the file is sound.

use dodo_common::model::robots::{CRAWL_DELAY_MS_MAX, LINE_BYTES_MAX, Robots};
use rand::Rng;

use crate::mangle::pick;
use crate::run::{Draw, Target, run};

/// RFC 9309 5.1 and 5.2, and what files of the web add to it.
const SEEDS: &[&[u8]] = &[
    b"User-Agent: *\nDisallow: *.gif$\nDisallow: /example/\nAllow: /publications/\n\nUser-Agent: foobot\nDisallow:/\n\
      Allow:/example/page.html\nAllow:/example/allowed.gif\n\nUser-Agent: barbot\nUser-Agent: bazbot\n\
      Disallow: /example/page.html\n\nUser-Agent: quxbot\n",
    b"User-Agent: foobot\nAllow: /example/page/\nDisallow: /example/page/disallowed.gif\n",
    b"# a comment\r\nuser-agent: dodo # ours\r\ncrawl-delay: 2.5\r\ndisallow: /a%2fb?c=*&d$\r\n\r\nsitemap: http://a.test/s.xml\r\n",
    b"\xef\xbb\xbfUser-agent: *\nDisallow:\nAllow: /*/%7Euser/*.php$\nHost: a.test\n",
    b"User-agent: dodo\nAllow: /$\nDisallow: /\nCrawl-delay: 1e3\nUser-agent: *\nDisallow: /*a*a*a*a*b",
];
#[rustfmt::skip]
const WORDS: &[&str] = &[
    "User-agent: *\n", "User-agent: dodo\n", "\nuseragent:DODO/2", "Disallow: /", "\nAllow:", "Disallow:\n",
    "disalow: /x\n", "Crawl-delay: 1e308\n", "crawl-delay:-1", "Crawl-delay: nan", "Sitemap: ", ":", "#", "*", "$",
    "**", "*$", "$*", "%2a", "%24", "%", "%e3%83%84", "%7e", "ツ", "/", "?", "/robots.txt", "/a/b.gif", "=", "\u{85}",
];

#[test]
fn robots_always_decide() {
    run(Target { name: "robots_always_decide", seeds: SEEDS, words: WORDS, cases: 3000, check });
}

fn check(input: &[u8], mut draw: Draw) {
    let robots = Robots::parse(input);
    assert!(robots.sitemaps().iter().all(|sitemap| !sitemap.chars().any(char::is_control)));
    // Paths that have to do with the file: parts of it.
    let lines: Vec<&[u8]> = input.split(|byte| matches!(byte, b'\r' | b'\n')).collect();
    let line = lines[draw.random_range(0..lines.len())];
    let text = String::from_utf8_lossy(&line[line.iter().position(|byte| *byte == b'/').unwrap_or(0)..]).into_owned();
    let text: String = text.chars().take(2000).collect();
    for path in ["/", "/a/b.gif?c=d", "", &text, &text.replace(['*', '$'], "a")] {
        for agent in ["dodo", "Dodo/1.0 (+http://a.test)", "foobot", "*", ""] {
            let verdict = robots.decide(agent, path);
            let Some(rule) = verdict.rule else {
                assert!(verdict.allowed, "nothing forbids {path}");
                continue;
            };
            let written = lines.get(rule.line as usize - 1).is_some() && rule.text.len() <= 3 * LINE_BYTES_MAX;
            assert!(written && !rule.text.chars().any(char::is_control), "{rule:?}");
            let (key, value) =
                rule.text.split_once(':').or_else(|| rule.text.split_once(' ')).expect("a rule has a key and a value");
            let allows = key.trim().eq_ignore_ascii_case("allow") || value.trim().is_empty();
            assert_eq!(verdict.allowed, allows, "{rule:?} decides {path}");
        }
        assert!(robots.decide("dodo", "/robots.txt").allowed);
        assert!(robots.crawl_delay_ms("dodo").is_none_or(|ms| ms <= CRAWL_DELAY_MS_MAX));
    }
    // How lines end is no matter.
    if !input.contains(&b'\r') && input.len() < 100_000 {
        let others = Robots::parse(&lines.join(&b"\r\n"[..]));
        assert_eq!(robots.decide("dodo", &text), others.decide("dodo", &text), "with CRLF {text} is decided otherwise");
    }
}

#[test]
fn robots_decide_as_a_plain_matcher_does() {
    let name = "robots_decide_as_a_plain_matcher_does";
    run(Target { name, seeds: &[b""], words: &[""], cases: 10_000, check: check_rules });
}

/// Rules of few letters, so that many match: the longest of them decides, and of equals the one that allows.
fn check_rules(_: &[u8], mut draw: Draw) {
    const LETTERS: [&str; 7] = ["a", "b", "/", "*", "?", "-", "ab"];
    let mut text = |stars: bool, length: usize| -> String {
        let letters = (0..draw.random_range(0..=length)).map(|_| pick(&mut draw, &LETTERS));
        format!("/{}", letters.filter(|letter| stars || *letter != "*").collect::<String>())
    };
    let rules: Vec<(bool, String)> = (0..6)
        .map(|_| {
            let rule = text(true, 6);
            let allows = rule.len() % 2 == 0;
            (allows, if text(true, 2).len() == 3 { format!("{rule}$") } else { rule })
        })
        .collect();
    let path = text(false, 12);
    let mut file = "User-agent: dodo\n".to_owned();
    for (allows, rule) in &rules {
        file += &format!("{}: {rule}\n", if *allows { "Allow" } else { "Disallow" });
    }
    let decides = rules
        .iter()
        .filter(|(_, rule)| matches(rule.as_bytes(), path.as_bytes()))
        .max_by_key(|(allows, rule)| (rule.len(), *allows));
    let expected = decides.is_none_or(|(allows, _)| *allows);
    assert_eq!(Robots::parse(file.as_bytes()).decide("dodo", &path).allowed, expected, "{path} by\n{file}");
}

/// Letter by letter, every way a star may go.
fn matches(rule: &[u8], path: &[u8]) -> bool {
    match rule {
        [] => true,
        [b'$'] => path.is_empty(),
        [b'*', rest @ ..] => (0..=path.len()).any(|at| matches(rest, &path[at..])),
        [letter, rest @ ..] => path.first() == Some(letter) && matches(rest, &path[1..]),
    }
}
