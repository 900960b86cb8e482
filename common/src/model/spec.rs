//! What a crawl, or a burst of no-op jobs, was asked to do: the `spec` of its dispatch.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::model::media::MediaTypes;
use crate::model::pattern::Patterns;
use crate::model::proxy_pool::{REGION_BYTES_MAX, is_region};
use crate::model::revisit::Revisit;
use crate::model::scope::{Scope, ScopeKind};
use crate::model::trap::Traps;
use crate::model::url_rules::{UrlRule, UrlRules};

/// Seeds of one crawl.
pub const SEEDS_MAX: usize = 10_000;
/// The depth of links followed when nothing is said.
pub const DEPTH_DEFAULT: i16 = 100;
/// The delay between two requests to one host when nothing is said, milliseconds.
pub const DELAY_MS_DEFAULT: i64 = 1000;
/// The longest delay one may ask for, milliseconds.
pub const DELAY_MS_MAX: i64 = 3_600_000;
/// The most requests in flight to one host that one may ask for.
pub const HOST_CONCURRENCY_MAX: i32 = 1024;

/// What a crawl may call itself, bytes.
pub const USER_AGENT_BYTES_MAX: usize = 200;

/// What becomes of links that ask not to be followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Nofollow {
    /// They are listed, not followed.
    #[default]
    Honour,
    /// They are followed like all others.
    Ignore,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CrawlSpec {
    pub seeds: Vec<String>,
    #[serde(default = "depth_default")]
    pub depth: i16,
    /// Pages fetched before the rest of the crawl is skipped; none means no budget.
    #[serde(default)]
    pub max_pages: Option<i64>,
    /// Pages of one host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_pages_per_host: Option<i64>,
    /// By so many pages those of a host that say nothing new may outnumber those that do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_allowance: Option<i64>,
    /// Pages with nearly the same words as another of their host are told and counted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub near_duplicates: bool,
    #[serde(default = "scope_default")]
    pub scope: ScopeKind,
    #[serde(default = "delay_default")]
    pub delay_ms: i64,
    #[serde(default = "host_concurrency_default")]
    pub host_concurrency: i32,
    /// The sitemaps that the robots.txt of a seed's host names are fetched like pages.
    #[serde(default = "sitemaps_default")]
    pub sitemaps: bool,
    #[serde(default)]
    pub nofollow: Nofollow,
    /// Pages that ask not to be indexed are not kept: fetched, read for their links, and left out of the archive.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub noindex: bool,
    /// What a page says that its own URL is, by a `link` element or a `Link` header, is a link of it, and is noted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub follow_canonical: bool,
    /// What pages are shown with counts as a link: images, media, scripts, style sheets.
    #[serde(default)]
    pub assets: bool,
    /// Rules by which two spellings are one URL, beside the canonical form.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub url_rules: Vec<UrlRule>,
    /// Query parameters that are dropped from every URL.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drop_params: Vec<String>,
    /// Patterns of which a URL within the scope must match one; none are no condition.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<String>,
    /// Patterns of which it may match none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// What of a URL's shape makes it a trap.
    #[serde(default, skip_serializing_if = "Traps::is_default")]
    pub traps: Traps,
    /// Media types that are kept, all where none is named: of anything else the body is not read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub content_types: Vec<String>,
    /// Each worker sends the cookies again that it was sent.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cookies: bool,
    /// What it calls itself instead of Dodo. It begins with the product token that robots.txt groups are matched against.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<String>,
    /// Its requests leave by a proxy of this region; of any when none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Pages are visited again and again, until the crawl is ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revisit: Option<Revisit>,
}

impl CrawlSpec {
    /// It keeps a tally of its hosts.
    pub fn counts_hosts(&self) -> bool {
        self.max_pages_per_host.is_some() || self.tells_near_duplicates()
    }

    pub fn tells_near_duplicates(&self) -> bool {
        self.near_duplicates || self.host_allowance.is_some()
    }

    /// The rules of its URLs, or one clear line.
    pub fn rules(&self) -> Result<UrlRules, String> {
        UrlRules::new(&self.url_rules, &self.drop_params)
    }

    /// Its scope, ready to judge URLs, or one clear line.
    pub fn judge(&self) -> Result<Scope, String> {
        let seeds = self.seeds.iter().map(|seed| Url::parse(seed).map_err(|error| format!("{seed:?}: {error}")));
        let scope = Scope::new(self.scope, seeds.collect::<Result<_, _>>()?);
        let (include, exclude) = (Patterns::new("include", &self.include)?, Patterns::new("exclude", &self.exclude)?);
        Ok(scope.with_patterns(include, exclude).with_traps(self.traps))
    }

    /// One clear line about the first thing that is wrong.
    pub fn check(&self) -> Result<(), String> {
        if self.seeds.is_empty() || self.seeds.len() > SEEDS_MAX {
            return Err(format!("give between 1 and {SEEDS_MAX} URLs, not {}", self.seeds.len()));
        }
        if self.depth < 0 {
            return Err(format!("depth must be 0 or more, not {}", self.depth));
        }
        if self.max_pages.is_some_and(|pages| pages < 1) {
            return Err("max_pages must be at least 1".to_owned());
        }
        if self.max_pages_per_host.is_some_and(|pages| pages < 1) {
            return Err("max_pages_per_host must be at least 1".to_owned());
        }
        if self.host_allowance.is_some_and(|pages| pages < 1) {
            return Err("host_allowance must be at least 1".to_owned());
        }
        if !(0..=DELAY_MS_MAX).contains(&self.delay_ms) {
            return Err(format!("delay_ms must be between 0 and {DELAY_MS_MAX}, not {}", self.delay_ms));
        }
        if !(1..=HOST_CONCURRENCY_MAX).contains(&self.host_concurrency) {
            return Err(format!(
                "host_concurrency must be between 1 and {HOST_CONCURRENCY_MAX}, not {}",
                self.host_concurrency
            ));
        }
        self.user_agent.as_deref().map_or(Ok(()), check_user_agent)?;
        self.traps.check()?;
        MediaTypes::new(&self.content_types)?;
        if self.region.as_deref().is_some_and(|region| !is_region(region)) {
            return Err(format!(
                "region must be 1 to {REGION_BYTES_MAX} letters, digits, '.', '_' and '-', as DODO_PROXIES names it"
            ));
        }
        self.revisit.map_or(Ok(()), |revisit| revisit.check())?;
        self.rules()?;
        if self.include.is_empty() && self.exclude.is_empty() {
            return Ok(());
        }
        match self.judge()?.excluded_seed() {
            Some((seed, reason)) => Err(format!("{seed} cannot be a start: {reason}")),
            None => Ok(()),
        }
    }
}

/// A product with a token by the grammar of RFC 9110 5.6.2, of which RFC 9309 2.2.1 matches what is letters, `-` and
/// `_`; then anything that fits in a header.
fn check_user_agent(text: &str) -> Result<(), String> {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    let product = text.split(['/', ' ']).next().unwrap_or_default();
    let is_name = product.starts_with(|c: char| c.is_ascii_alphabetic() || matches!(c, '-' | '_'));
    if !is_name || !product.chars().all(is_token) {
        return Err(format!("user_agent must begin with a product such as examplebot/1.0, not {product:?}"));
    }
    if text.len() > USER_AGENT_BYTES_MAX || !text.chars().all(|c| c == ' ' || c.is_ascii_graphic()) {
        return Err(format!("user_agent must be at most {USER_AGENT_BYTES_MAX} printable ASCII characters"));
    }
    Ok(())
}

/// A no-op job holds its permit no longer than this, milliseconds.
pub const NOOP_SLEEP_MS_MAX: u64 = 120_000;
/// Bytes of the text that a no-op job fails with.
pub const NOOP_FAIL_BYTES_MAX: usize = 1000;

/// How no-op jobs behave. No part of their payload: what is archived is what was given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NoopSpec {
    pub jobs: usize,
    /// Each holds its permit for so long, milliseconds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub sleep_ms: u64,
    /// Each try fails with this, until the job is dead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fail: Option<String>,
    /// The process that runs it aborts, where the worker allows that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub abort: bool,
}

impl NoopSpec {
    /// One clear line about the first thing that is wrong.
    pub fn check(&self) -> Result<(), String> {
        if self.sleep_ms > NOOP_SLEEP_MS_MAX {
            return Err(format!("sleep_ms must be between 0 and {NOOP_SLEEP_MS_MAX}, not {}", self.sleep_ms));
        }
        match &self.fail {
            Some(_) if self.abort => Err("give fail or abort, not both".to_owned()),
            Some(why) if why.trim().is_empty() || why.len() > NOOP_FAIL_BYTES_MAX || why.contains('\0') => {
                Err(format!("fail must be a text of 1 to {NOOP_FAIL_BYTES_MAX} bytes without a NUL"))
            }
            _ => Ok(()),
        }
    }
}

// The signature is serde's.
fn is_zero(n: &u64) -> bool {
    *n == 0
}

fn depth_default() -> i16 {
    DEPTH_DEFAULT
}

fn scope_default() -> ScopeKind {
    ScopeKind::Host
}

fn delay_default() -> i64 {
    DELAY_MS_DEFAULT
}

fn host_concurrency_default() -> i32 {
    1
}

fn sitemaps_default() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_agent_begins_with_a_product() {
        let long = "b".repeat(USER_AGENT_BYTES_MAX + 1);
        for (text, is_good) in [
            ("examplebot", true),
            ("ExampleBot/2.1 (for tests; +x) extra/1", true),
            ("_a-b/1", true),
            (&long[1..], true),
            (&long, false),
            ("", false),
            (" examplebot", false),
            ("(examplebot)", false),
            ("2bot/1", false),
            ("bot{}/1", false),
            ("b\u{f6}t/1", false),
            ("bot/1\r\nx: y", false),
            ("bot/1 \u{f6}", false),
        ] {
            assert_eq!(check_user_agent(text).is_ok(), is_good, "{text:?}");
        }
    }
}
