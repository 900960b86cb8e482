//! Patterns of a crawl: lists of regular expressions that are matched on canonical URLs.

use regex::bytes::{RegexSet, RegexSetBuilder};
use url::Url;

/// Patterns of one list.
pub const PATTERNS_MAX: usize = 100;
/// The longest pattern, bytes.
pub const PATTERN_BYTES_MAX: usize = 500;
/// A compiled list, bytes. It bounds the time, too: a match takes at worst its size times the length of the URL.
const COMPILED_BYTES_MAX: usize = 256 << 10;
/// What a thread remembers of its matches with one list, bytes.
const CACHE_BYTES_MAX: usize = 1 << 20;

/// A list, compiled: its length costs a match next to nothing.
#[derive(Clone, Debug, Default)]
pub struct Patterns {
    texts: Vec<String>,
    set: RegexSet,
}

impl Patterns {
    /// The `regex` crate's syntax, without what is of Unicode only: a canonical URL is ASCII. One clear line about the
    /// first that is wrong; `list` is its name.
    pub fn new(list: &str, texts: &[String]) -> Result<Patterns, String> {
        if texts.is_empty() {
            return Ok(Patterns::default());
        }
        if texts.len() > PATTERNS_MAX {
            return Err(format!("{list} takes at most {PATTERNS_MAX} patterns, not {}", texts.len()));
        }
        for text in texts {
            check(text).map_err(|why| format!("{list}: {why}"))?;
        }
        match compile(texts) {
            Ok(set) => Ok(Patterns { texts: texts.to_vec(), set }),
            Err(_) => Err(texts
                .iter()
                .find_map(|text| Some(format!("{list}: {text}: {}", compile(std::slice::from_ref(text)).err()?)))
                .unwrap_or_else(|| {
                    format!("{list}: together the patterns are too large: give fewer, or simpler ones")
                })),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// Whether any matches anywhere in the URL.
    pub fn is_match(&self, url: &Url) -> bool {
        !self.is_empty() && self.set.is_match(url.as_str().as_bytes())
    }

    /// The first of the list that matches.
    pub fn first_match(&self, url: &Url) -> Option<&str> {
        if !self.is_match(url) {
            return None;
        }
        let first = self.set.matches(url.as_str().as_bytes()).iter().next()?;
        Some(&self.texts[first])
    }
}

fn check(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("an empty pattern matches every URL".to_owned());
    }
    if text.len() > PATTERN_BYTES_MAX {
        return Err(format!("a pattern has {} bytes, more than {PATTERN_BYTES_MAX}", text.len()));
    }
    if !text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err(format!("{text:?} is not plain ASCII, as canonical URLs are: write %C3%A9 for é"));
    }
    if asks_for_unicode(text) {
        return Err(format!("{text}: canonical URLs are ASCII, and the flag u is not taken"));
    }
    Ok(())
}

/// Whether a group sets the flag `u`. Its classes are so large that 500 bytes of them take a second to compile.
/// Blanks are left out since they may stand between with the flag `x`.
fn asks_for_unicode(text: &str) -> bool {
    let text: String = text.chars().filter(|c| *c != ' ').collect();
    text.split("(?").skip(1).any(|rest| {
        let flags = rest.split(|c: char| !c.is_ascii_alphabetic() && c != '-').next().unwrap_or_default();
        flags.contains('u')
    })
}

fn compile(texts: &[String]) -> Result<RegexSet, String> {
    RegexSetBuilder::new(texts)
        .unicode(false)
        .size_limit(COMPILED_BYTES_MAX)
        .dfa_size_limit(CACHE_BYTES_MAX)
        .build()
        .map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => "the pattern is too large: give a simpler one".to_owned(),
            // Many lines with a picture of the place; the last one says what is wrong.
            error => {
                let text = error.to_string();
                let last = text.lines().last().unwrap_or_default();
                last.strip_prefix("error: ").unwrap_or(last).to_owned()
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(texts: &[&str]) -> Result<Patterns, String> {
        Patterns::new("exclude", &texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn the_first_that_matches_is_named() {
        let list = patterns(&[r"\.(jpe?g|png)$", "/calendar/", "(?i)/CAL", r"^https://a\.test/\w+/$"]).unwrap();
        for (url, expected) in [
            ("http://a.test/x.jpg", Some(r"\.(jpe?g|png)$")),
            ("http://a.test/calendar/1.png?x", Some("/calendar/")),
            ("http://a.test/Calendar/", Some("(?i)/CAL")),
            ("https://a.test/abc/", Some(r"^https://a\.test/\w+/$")),
            ("https://a.test/a-b/", None),
        ] {
            let url = Url::parse(url).unwrap();
            assert_eq!((list.first_match(&url), list.is_match(&url)), (expected, expected.is_some()), "{url}");
        }
        assert!(!Patterns::default().is_match(&Url::parse("http://a.test/").unwrap()));
    }

    #[test]
    fn wrong_and_hostile_patterns_are_refused_in_one_line() {
        let long = "a".repeat(PATTERN_BYTES_MAX + 1);
        let classes = format!("(?iu){}", r"[\w\W]".repeat(80));
        for (texts, word) in [
            (&["/ok", "/calendar(/"][..], "/calendar(/: unclosed group"),
            (&["a{2"], "a{2: "),
            (&["(?=a)"], "look-around"),
            (&[r"(a)\1"], "backreferences"),
            (&[r"\p{Greek}"], "Unicode"),
            (&["é"], "%C3%A9"),
            (&["a\nb"], "ASCII"),
            (&[""], "empty"),
            (&[&long], "501 bytes"),
            (&[&classes], "flag u"),
            (&["(?x)( ?i-s u:a)"], "flag u"),
            (&["((a{100}){100}){100}"], "too large"),
            (&["[ab]*a[ab]{900}"; 9], "together"),
            (&["a"; PATTERNS_MAX + 1], "at most 100"),
        ] {
            let why = patterns(texts).map(drop).unwrap_err();
            assert!(why.starts_with("exclude") && why.contains(word) && why.lines().count() == 1, "{word}: {why}");
        }
        for sound in ["(?P<url>u)", "(?<u>a)", "(?i)u", r"\(u", "((){1000}){1000}", "(a*)*b", "(?-i:a)"] {
            assert!(patterns(&[sound]).is_ok(), "{sound}");
        }
    }

    #[test]
    fn a_match_that_doubles_at_each_step_elsewhere_ends() {
        let list = patterns(&["(a*)*b$", "(a|aa)+$c", "[ab]*a[ab]{300}c"]).unwrap();
        let url = Url::parse(&format!("http://a.test/{}", "a".repeat(2000))).unwrap();
        assert_eq!(list.first_match(&url), None);
    }
}
