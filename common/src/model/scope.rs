//! How far from its seeds a crawl may go.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::str::FromStr;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use url::{Host, Position, Url};

use crate::model::pattern::Patterns;
use crate::model::trap::Traps;

/// How far from its seeds a crawl may go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ScopeKind {
    /// The host name and port of a seed, with `www.` in front or without; http and https count as one when both ports are
    /// default.
    #[default]
    Host,
    /// The registrable domain of a seed (Public Suffix List), any port.
    Domain,
    /// The host of a seed, in the same sense, and a path that starts with the seed's up to its last `/`.
    Prefix,
    /// Everything.
    Any,
}

/// The scope of one crawl, ready to judge many URLs: a call is a look-up or two, and a match for each list of patterns.
#[derive(Clone, Debug)]
pub struct Scope {
    pub kind: ScopeKind,
    /// In scope whatever `include` and `traps` say; `exclude` holds for them, too.
    seeds: HashSet<Url>,
    /// `host[:port]` of the seeds for Host, registrable domains for Domain.
    hosts: HashSet<String>,
    /// Host to its path prefixes, sorted, none a prefix of another.
    prefixes: HashMap<String, Vec<String>>,
    include: Patterns,
    exclude: Patterns,
    traps: Traps,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScopeDecision {
    pub allowed: bool,
    pub reason: Cow<'static, str>,
    /// What the kind of scope allows was refused for a pattern, or as a trap.
    pub by_rule: bool,
}

impl ScopeKind {
    pub fn as_str(self) -> &'static str {
        match self {
            ScopeKind::Host => "host",
            ScopeKind::Domain => "domain",
            ScopeKind::Prefix => "prefix",
            ScopeKind::Any => "any",
        }
    }
}

impl FromStr for ScopeKind {
    type Err = String;

    fn from_str(text: &str) -> Result<ScopeKind, String> {
        [ScopeKind::Host, ScopeKind::Domain, ScopeKind::Prefix, ScopeKind::Any]
            .into_iter()
            .find(|kind| kind.as_str().eq_ignore_ascii_case(text))
            .ok_or_else(|| format!("the scope is host, domain, prefix or any, not {text:?}"))
    }
}

impl std::fmt::Display for ScopeKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Scope {
    /// `seeds` are canonical URLs.
    pub fn new(kind: ScopeKind, seeds: Vec<Url>) -> Scope {
        let mut hosts = HashSet::new();
        let mut prefixes: HashMap<String, Vec<String>> = HashMap::new();
        for seed in &seeds {
            match kind {
                ScopeKind::Host => drop(hosts.insert(authority(seed).to_owned())),
                ScopeKind::Domain => drop(hosts.insert(registrable(seed).to_owned())),
                ScopeKind::Prefix => {
                    prefixes.entry(authority(seed).to_owned()).or_default().push(directory(seed).to_owned())
                }
                ScopeKind::Any => {}
            }
        }
        for paths in prefixes.values_mut() {
            // After sorting, what a prefix covers follows it directly.
            paths.sort_unstable();
            paths.dedup_by(|path, kept| path.starts_with(kept.as_str()));
        }
        let (include, exclude, traps) = Default::default();
        Scope { kind, seeds: seeds.into_iter().collect(), hosts, prefixes, include, exclude, traps }
    }

    /// Of what `kind` allows, only what `include` matches, if it is there; and nothing that `exclude` matches.
    pub fn with_patterns(self, include: Patterns, exclude: Patterns) -> Scope {
        Scope { include, exclude, ..self }
    }

    /// And nothing that is a trap by these bounds.
    pub fn with_traps(self, traps: Traps) -> Scope {
        Scope { traps, ..self }
    }

    /// A seed that is excluded, and why.
    pub fn excluded_seed(&self) -> Option<(&Url, Cow<'static, str>)> {
        self.seeds.iter().find_map(|seed| Some((seed, self.excluded(seed)?)))
    }

    /// `url` is canonical.
    pub fn allows(&self, url: &Url) -> ScopeDecision {
        let (allowed, yes, no) = match self.kind {
            ScopeKind::Host => (self.hosts.contains(authority(url)), "the host of a seed", "not the host of a seed"),
            ScopeKind::Domain => {
                (self.hosts.contains(registrable(url)), "the domain of a seed", "not the domain of a seed")
            }
            ScopeKind::Prefix => (self.under_prefix(url), "under the path of a seed", "not under the path of a seed"),
            ScopeKind::Any => (true, "everything is in scope", ""),
        };
        if !allowed {
            return ScopeDecision { allowed, reason: no.into(), by_rule: false };
        }
        match self.refused(url) {
            Some(reason) => ScopeDecision { allowed: false, reason, by_rule: true },
            None => ScopeDecision { allowed, reason: yes.into(), by_rule: false },
        }
    }

    /// Why a pattern or the shape of the URL refuses it, if one does.
    fn refused(&self, url: &Url) -> Option<Cow<'static, str>> {
        let trap = || self.traps.refuse(url).map(|why| format!("a trap: {why}").into());
        let not_included = || {
            let included = self.include.is_empty() || self.include.is_match(url);
            (!included).then_some("not matched by any include pattern".into())
        };
        self.excluded(url).or_else(|| trap().or_else(not_included).filter(|_| !self.seeds.contains(url)))
    }

    /// Why an `exclude` pattern refuses it, whatever else holds, if one does.
    pub fn excluded(&self, url: &Url) -> Option<Cow<'static, str>> {
        self.exclude.first_match(url).map(|pattern| format!("excluded by {pattern}").into())
    }

    fn under_prefix(&self, url: &Url) -> bool {
        let Some(paths) = self.prefixes.get(authority(url)) else { return false };
        // No path is a prefix of another, so only the last one not above this path can cover it.
        let after = paths.partition_point(|path| path.as_str() <= url.path());
        after > 0 && url.path().starts_with(&paths[after - 1])
    }
}

/// `host[:port]`. A site whose start page redirects to its name with `www.`, or from it, is one (as the scopes of Heritrix, and
/// a browser's address bar, have it).
fn authority(url: &Url) -> &str {
    let authority = &url[Position::BeforeHost..Position::BeforePath];
    authority.strip_prefix("www.").filter(|rest| rest.contains('.')).unwrap_or(authority)
}

/// The registrable domain, or the whole host where there is none: an IP literal, `localhost`, a
/// public suffix itself.
fn registrable(url: &Url) -> &str {
    match url.host() {
        Some(Host::Domain(name)) => psl::domain_str(name).unwrap_or(name),
        _ => url.host_str().unwrap_or_default(),
    }
}

fn directory(url: &Url) -> &str {
    let path = url.path();
    path.rfind('/').map_or(path, |slash| &path[..=slash])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::url::canonical;

    fn allows(kind: ScopeKind, seeds: &[&str], text: &str) -> bool {
        let seeds = seeds.iter().map(|seed| canonical(seed, None).unwrap().url).collect();
        Scope::new(kind, seeds).allows(&canonical(text, None).unwrap().url).allowed
    }

    #[test]
    fn scopes() {
        use ScopeKind::{Any, Domain, Host, Prefix};
        for (kind, seeds, text, expected) in [
            (Host, &["http://example.com/"][..], "https://example.com/x", true),
            (Host, &["http://example.com/"], "http://www.example.com/", true),
            (Host, &["https://www.example.com/"], "http://example.com/", true),
            (Host, &["http://example.com/"], "http://www2.example.com/", false),
            (Host, &["http://www.com/"], "http://com/", false),
            (Host, &["http://example.com/"], "http://example.com:81/", false),
            (Domain, &["http://www.example.co.uk/"], "https://a.b.example.co.uk:99/", true),
            (Domain, &["http://www.example.co.uk/"], "http://other.co.uk/", false),
            (Domain, &["http://me.github.io/"], "http://you.github.io/", false),
            (Domain, &["http://127.0.0.1:1/"], "http://127.0.0.1:2/", true),
            (Domain, &["http://127.0.0.1/"], "http://126.0.0.1/", false),
            (Domain, &["http://localhost/"], "http://localhost:1/", true),
            (Prefix, &["http://a.example/docs/index.html"], "http://a.example/docs/x/y?z", true),
            (Prefix, &["http://a.example/docs/index.html"], "http://a.example/docs", false),
            (Prefix, &["http://a.example/docs/"], "https://www.a.example/docs/", true),
            (Prefix, &["http://a.example/docs/"], "https://a.example:8443/docs/", false),
            (
                Prefix,
                &["http://a.example/a/", "http://a.example/a/b/", "http://a.example/c/"],
                "http://a.example/a/z",
                true,
            ),
            (Prefix, &["http://a.example/a/", "http://a.example/c/"], "http://a.example/b/", false),
            (Prefix, &["http://a.example/a/", "http://a.example/c/"], "http://a.example/", false),
            (Any, &[], "http://b.example/", true),
        ] {
            assert_eq!(allows(kind, seeds, text), expected, "{kind} {seeds:?} {text}");
        }
    }

    #[test]
    fn patterns_narrow_a_scope() {
        let list = |texts: &[&str]| {
            Patterns::new("list", &texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>()).unwrap()
        };
        let seed = canonical("http://a.test/", None).unwrap().url;
        let scope = Scope::new(ScopeKind::Host, vec![seed]);
        let both = scope.clone().with_patterns(list(&["/shop/", "/blog/"]), list(&["/calendar/", r"\?page=\d{3}"]));
        for (url, allowed, reason) in [
            ("http://a.test/shop/1", true, "the host of a seed"),
            ("http://a.test/shop/calendar/1", false, "excluded by /calendar/"),
            ("http://a.test/blog/?page=100", false, r"excluded by \?page=\d{3}"),
            ("http://a.test/about", false, "not matched by any include pattern"),
            ("http://a.test/", true, "the host of a seed"),
            ("http://b.test/shop/", false, "not the host of a seed"),
        ] {
            let decision = both.allows(&canonical(url, None).unwrap().url);
            assert_eq!((decision.allowed, decision.reason.as_ref()), (allowed, reason), "{url}");
            assert_eq!(decision.by_rule, !allowed && reason != "not the host of a seed", "{url}");
        }
        assert_eq!(both.excluded_seed(), None);
        let (seed, why) = scope
            .with_patterns(Patterns::default(), list(&["test/$"]))
            .excluded_seed()
            .map(|(s, w)| (s.to_string(), w))
            .unwrap();
        assert_eq!((seed.as_str(), why.as_ref()), ("http://a.test/", "excluded by test/$"));
    }

    #[test]
    fn a_trap_is_out_of_scope_unless_it_is_a_start() {
        let (seed, trap) = ("http://a.test/b/b/b/b/", "http://a.test/b/b/b/b/b/");
        let scope = Scope::new(ScopeKind::Host, vec![canonical(seed, None).unwrap().url]);
        let of = |scope: &Scope, url| scope.allows(&canonical(url, None).unwrap().url);
        assert!(of(&scope, seed).allowed);
        let decision = of(&scope, trap);
        assert!(!decision.allowed && decision.by_rule && decision.reason.contains("max_repeats"), "{decision:?}");
        assert!(of(&scope.with_traps(Traps::of(None, Some(5), None)), trap).allowed);
    }

    #[test]
    fn scope_kind_is_spelt_one_way() {
        assert_eq!("Domain".parse::<ScopeKind>(), Ok(ScopeKind::Domain));
        assert!("x".parse::<ScopeKind>().is_err());
        assert_eq!(serde_json::to_string(&ScopeKind::Prefix).unwrap(), "\"prefix\"");
    }
}
