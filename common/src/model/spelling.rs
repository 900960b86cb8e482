//! The spelling of a link without parsing it, where that can be seen at a glance: what nearly all links look like.

use url::{Position, Url};

use crate::model::url::{Canonical, URL_BYTES_MAX, UrlError, UrlHash, ruled};
use crate::model::url_rules::UrlRules;

/// A URL in the only spelling that a crawl knows, not taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spelt {
    pub text: String,
    pub hash: UrlHash,
}

impl From<Canonical> for Spelt {
    fn from(canonical: Canonical) -> Self {
        Self { text: canonical.url.into(), hash: canonical.hash }
    }
}

impl Spelt {
    /// The same, taken apart.
    ///
    /// # Errors
    /// It was not spelt here.
    pub fn canonical(&self) -> Result<Canonical, UrlError> {
        let url = Url::parse(&self.text)?;
        Ok(Canonical { host: url[..Position::BeforePath].to_owned(), url, hash: self.hash })
    }
}

/// What [`ruled`] makes of a reference on a page, or beside a canonical `base`.
///
/// # Errors
/// Those of [`ruled`].
pub fn spell(raw: &str, base: &Url, rules: &UrlRules) -> Result<Spelt, UrlError> {
    match plain(raw, base, rules) {
        Some(text) => Ok(Spelt { hash: UrlHash::of(&text), text }),
        None => ruled(raw, Some(base), rules).map(Spelt::from),
    }
}

/// The reference behind its origin or its directory, if nothing of it would be changed: no dot segment, no escape, nothing
/// that the WHATWG parser escapes or strips, nothing that a rule looks at.
fn plain(raw: &str, base: &Url, rules: &UrlRules) -> Option<String> {
    // Most are a path and nothing else.
    let is_path = raw.bytes().all(is_kept);
    let reference = if is_path { raw } else { trimmed(raw)? };
    let origin = &base[..Position::BeforePath];
    let (start, rest) = match reference.strip_prefix(origin) {
        Some(path) if path.starts_with('/') => (origin, path),
        _ if reference.starts_with("//") => return None,
        _ if reference.starts_with('/') => (origin, reference),
        _ => (directory(base), reference),
    };
    let split = if is_path { None } else { rest.split_once('?') };
    let (path, query) = split.map_or((rest, None), |(path, query)| (path, Some(query)));
    // A colon in the first segment ends a scheme. A path that begins so is empty otherwise: the reference is a query.
    let has_dot = path.starts_with('.') || path.as_bytes().windows(2).any(|two| two == b"/.");
    if path.is_empty() || has_dot || !path.starts_with('/') && path.contains(':') {
        return None;
    }
    let is_plain = is_path
        || path.bytes().all(is_kept)
            && query.is_none_or(|query| !query.is_empty() && query.bytes().all(is_kept_in_query));
    let is_ruled = rules.may_change(path, query.is_some()) || rules.may_change(start, false);
    if !is_plain || is_ruled || start.len() + rest.len() > URL_BYTES_MAX {
        return None;
    }
    let mut text = String::with_capacity(start.len() + rest.len());
    text.push_str(start);
    text.push_str(rest);
    Some(text)
}

/// As `ruled` begins: no NUL, what the WHATWG parser trims, and the fragment.
fn trimmed(raw: &str) -> Option<&str> {
    if raw.contains('\0') {
        return None;
    }
    let trimmed = raw.trim_matches(|c| c <= ' ');
    Some(trimmed.split_once('#').map_or(trimmed, |(reference, _)| reference))
}

/// What relative references stand behind.
fn directory(base: &Url) -> &str {
    let path = &base[..Position::AfterPath];
    // The path of http and https begins with a slash.
    path.rfind('/').map_or(path, |slash| &path[..=slash])
}

/// By byte, those that are neither escaped in a path (WHATWG URL, "path percent-encode set") nor of a meaning to its parser.
const KEPT: [bool; 256] = {
    let mut kept = [false; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        kept[byte as usize] = byte.is_ascii_alphanumeric();
        byte += 1;
    }
    let marks = b"-._~/!$&()*+,;=:@";
    let mut n = 0;
    while n < marks.len() {
        kept[marks[n] as usize] = true;
        n += 1;
    }
    kept
};

fn is_kept(byte: u8) -> bool {
    KEPT[usize::from(byte)]
}

fn is_kept_in_query(byte: u8) -> bool {
    is_kept(byte) || byte == b'?'
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::url::canonical;
    use crate::model::url_rules::UrlRule;

    const BASES: [&str; 6] = [
        "http://a.example/",
        "https://b.example:8080/x/y.html?q=1",
        "http://[::1]/%41%zz/",
        "https://c.example/x;jsessionid=0a1b2c3d4e5f60718293/y/",
        "https://c.example/(S(lit3py55t21z5v55vlm25s55))/y/z",
        "http://d.example//x/.hidden/",
    ];

    fn rules() -> [UrlRules; 2] {
        let all = [UrlRule::Sessions, UrlRule::Tracking, UrlRule::Sort];
        [UrlRules::new(&[], &[]).unwrap(), UrlRules::new(&all, &["drop".to_owned()]).unwrap()]
    }

    #[test]
    fn it_is_what_the_parser_makes_of_it() {
        const STARTS: [&str; 9] =
            ["", "/", "//", "./", "../", "http://a.example", "https://b.example:8080/", "http://A.example/", "mailto:"];
        const PIECES: [&str; 45] = [
            "a",
            "b",
            "C",
            "3",
            "-",
            "_",
            "~",
            "/",
            "/",
            "/",
            ".",
            "..",
            "/.",
            "?",
            "?",
            "&",
            "&",
            "=",
            "=",
            ";",
            ":",
            "@",
            "%",
            "%41",
            "#",
            " ",
            "\\",
            "'",
            "\"",
            "<",
            "^",
            "|",
            "`",
            "{",
            "+",
            "*",
            "!",
            "$",
            "(",
            ",",
            "\t",
            "\u{e9}",
            "utm_source=",
            ";jsessionid=0a1b2c3d4e5f60718293",
            "/(S(lit3py55t21z5v55vlm25s55))/",
        ];
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % below as u64) as usize
        };
        let bases = BASES.map(|base| canonical(base, None).unwrap().url);
        let mut at_a_glance = 0;
        for n in 0..60_000 {
            let mut raw = STARTS[next(STARTS.len())].to_owned();
            // Half of them of what links mostly are.
            let pieces = if n % 2 == 0 { PIECES.len() } else { 20 };
            for _ in 0..next(8) {
                raw.push_str(PIECES[next(pieces)]);
            }
            let base = &bases[next(bases.len())];
            for rules in &rules() {
                let parsed = ruled(&raw, Some(base), rules);
                assert_eq!(spell(&raw, base, rules), parsed.clone().map(Spelt::from), "{raw:?} on {base}");
                if let Ok(parsed) = parsed {
                    assert_eq!(Spelt::from(parsed.clone()).canonical(), Ok(parsed), "{raw:?} on {base}");
                }
                at_a_glance += usize::from(plain(&raw, base, rules).is_some());
            }
        }
        assert!(at_a_glance > 10_000, "{at_a_glance}");
    }

    #[test]
    fn the_usual_link_is_not_parsed() {
        let base = Url::parse("https://a.example/dir/page?x=1").unwrap();
        for (raw, expected) in [
            ("/p1.html", Some("https://a.example/p1.html")),
            (" two#top ", Some("https://a.example/dir/two")),
            ("https://a.example/x//y?a=1&b=2", Some("https://a.example/x//y?a=1&b=2")),
            ("../up", None),
            ("/a/./b", None),
            ("//b.example/", None),
            ("?y=2", None),
            ("https://a.example.org/", None),
            ("mailto:x@y.example", None),
            ("/caf\u{e9}", None),
            ("/%41", None),
            ("/x\0", None),
            ("", None),
        ] {
            assert_eq!(plain(raw, &base, UrlRules::none()).as_deref(), expected, "{raw}");
        }
        let long = format!("/{}", "x".repeat(URL_BYTES_MAX));
        assert_eq!(plain(&long, &base, UrlRules::none()), None);
    }
}
