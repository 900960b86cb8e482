//! Traps: URLs that a site makes without end, told by their shape.

use serde::{Deserialize, Serialize};
use url::Url;

use crate::model::url::URL_BYTES_MAX;

/// Segments of a path when nothing is said: the bound of Heritrix's `TooManyPathSegmentsDecideRule`.
pub const SEGMENTS_DEFAULT: u16 = 20;
/// How often one of them may stand there when nothing is said. Heritrix's `PathologicalPathDecideRule` refuses the third
/// in a row, the URL filter that Nutch comes with the third at all; but `/000/000/000/1` is an honest path.
pub const REPEATS_DEFAULT: u16 = 3;
/// Parameters of a query when nothing is said.
pub const PARAMS_DEFAULT: u16 = 32;
/// With this, a bound is none.
const UNBOUNDED: u16 = URL_BYTES_MAX as u16;

/// The bounds of one crawl. The length of a URL has one of its own, [`URL_BYTES_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traps {
    pub segments_max: u16,
    /// Of one segment in a path, and of one parameter, with its value, in a query. A link that leads from `a/b/` to `a/b/`
    /// makes both more and more.
    pub repeats_max: u16,
    pub params_max: u16,
}

impl Default for Traps {
    fn default() -> Self {
        Self { segments_max: SEGMENTS_DEFAULT, repeats_max: REPEATS_DEFAULT, params_max: PARAMS_DEFAULT }
    }
}

impl Traps {
    /// What is not given is as when nothing is said.
    pub fn of(segments: Option<u16>, repeats: Option<u16>, params: Option<u16>) -> Self {
        Self {
            segments_max: segments.unwrap_or(SEGMENTS_DEFAULT),
            repeats_max: repeats.unwrap_or(REPEATS_DEFAULT),
            params_max: params.unwrap_or(PARAMS_DEFAULT),
        }
    }

    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// One clear line about the first bound that is wrong.
    pub fn check(&self) -> Result<(), String> {
        let bounds = [
            ("max_path_segments", self.segments_max),
            ("max_repeats", self.repeats_max),
            ("max_query_params", self.params_max),
        ];
        match bounds.into_iter().find(|(_, bound)| !(1..=UNBOUNDED).contains(bound)) {
            Some((name, bound)) => Err(format!("{name} must be between 1 and {UNBOUNDED}, not {bound}")),
            None => Ok(()),
        }
    }

    /// Why a canonical URL looks like a trap, if it does.
    pub fn refuse(&self, url: &Url) -> Option<String> {
        let path = url.path().strip_prefix('/').unwrap_or(url.path());
        let path = path.strip_suffix('/').unwrap_or(path);
        let segments = parts(path, b'/');
        if segments > usize::from(self.segments_max) {
            let max = self.segments_max;
            return Some(format!("its path has {segments} segments, more than the {max} of max_path_segments"));
        }
        if let Some(why) = self.repeated("segment", path.split('/'), segments) {
            return Some(why);
        }
        let query = url.query()?;
        let params = parts(query, b'&');
        if params > usize::from(self.params_max) {
            let max = self.params_max;
            return Some(format!("its query has {params} parameters, more than the {max} of max_query_params"));
        }
        self.repeated("parameter", query.split('&'), params)
    }

    fn repeated<'u>(&self, what: &str, parts: impl Iterator<Item = &'u str>, count: usize) -> Option<String> {
        let max = usize::from(self.repeats_max);
        // Most URLs have fewer than may be the same.
        if count <= max {
            return None;
        }
        let mut parts: Vec<&str> = parts.collect();
        parts.sort_unstable();
        let same = parts.chunk_by(|a, b| a == b).find(|same| same.len() > max)?;
        Some(format!("the {what} {:?} stands {} times in it, more than the {max} of max_repeats", same[0], same.len()))
    }
}

fn parts(text: &str, separator: u8) -> usize {
    1 + text.bytes().filter(|byte| *byte == separator).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::url::canonical;

    fn refused(traps: &Traps, url: &str) -> Option<String> {
        traps.refuse(&canonical(url, None).unwrap().url)
    }

    #[test]
    fn honest_urls_pass_and_the_rule_is_named() {
        let deep = format!("http://a.test/{}", (0..20).map(|n| format!("{n}/")).collect::<String>());
        let many = format!("http://a.test/?{}", (0..32).map(|n| format!("p{n}=1&")).collect::<String>());
        let many = many.trim_end_matches('&');
        for (url, rule) in [
            ("http://a.test/", None),
            ("http://a.test/a/a/a/", None),
            ("http://a.test/000/000/000/1.jpg", None),
            ("http://a.test/2026/11/11/11/x", None),
            ("http://a.test/?x=1&x=2&x=3&x=4&y&y&y", None),
            (&deep, None),
            (many, None),
            ("http://a.test/a/a/a/a", Some("the segment \"a\" stands 4 times")),
            ("http://a.test/a/b/a/b/a/b/a/b.html", Some("the segment \"a\" stands 4 times")),
            ("http://a.test/a/x/a/y/b/a/z/a", Some("the segment \"a\" stands 4 times")),
            ("http://a.test/a/////", Some("the segment \"\" stands 4 times")),
            ("http://a.test/x?p=1&q&p=1&p=1&p=1", Some("the parameter \"p=1\" stands 4 times")),
            (&format!("{deep}x"), Some("21 segments, more than the 20 of max_path_segments")),
            (&format!("{many}&x"), Some("33 parameters, more than the 32 of max_query_params")),
        ] {
            let why = refused(&Traps::default(), url);
            assert_eq!(why.is_some(), rule.is_some(), "{url}: {why:?}");
            assert!(why.unwrap_or_default().contains(rule.unwrap_or_default()), "{url}");
        }
        let wide = Traps::of(Some(UNBOUNDED), Some(UNBOUNDED), Some(UNBOUNDED));
        assert_eq!(refused(&wide, &format!("http://a.test{}?{}", "/a".repeat(500), "&b".repeat(500))), None);
        assert!(refused(&Traps::of(None, Some(1), None), "http://a.test/a/a/").is_some());
    }

    #[test]
    fn a_link_that_adds_to_its_own_page_comes_to_an_end() {
        for (start, reference) in [
            ("http://a.test/", "a/"),
            ("http://a.test/", "a/b/c/d/e/"),
            ("http://a.test/x/y/", "../a/b/../c/"),
            ("http://a.test/", ".//"),
        ] {
            let (mut url, mut steps) = (canonical(start, None).unwrap().url, 0);
            while Traps::default().refuse(&url).is_none() {
                url = canonical(reference, Some(&url)).unwrap().url;
                steps += 1;
                assert!(steps <= usize::from(SEGMENTS_DEFAULT), "{url}");
            }
        }
    }

    #[test]
    fn bounds_have_bounds() {
        assert_eq!(Traps::of(Some(1), Some(UNBOUNDED), None).check(), Ok(()));
        for (traps, name) in [
            (Traps::of(Some(0), None, None), "max_path_segments"),
            (Traps::of(None, Some(0), None), "max_repeats"),
            (Traps::of(None, None, Some(UNBOUNDED + 1)), "max_query_params"),
        ] {
            assert!(traps.check().unwrap_err().contains(name));
        }
    }
}
