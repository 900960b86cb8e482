//! What a crawl was asked to do: the `spec` of its dispatch.

use serde::{Deserialize, Serialize};

use crate::model::scope::ScopeKind;

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

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CrawlSpec {
    pub seeds: Vec<String>,
    #[serde(default = "depth_default")]
    pub depth: i16,
    /// Pages fetched before the rest of the crawl is skipped; none means no budget.
    #[serde(default)]
    pub max_pages: Option<i64>,
    #[serde(default = "scope_default")]
    pub scope: ScopeKind,
    #[serde(default = "delay_default")]
    pub delay_ms: i64,
    #[serde(default = "host_concurrency_default")]
    pub host_concurrency: i32,
}

impl CrawlSpec {
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
        if !(0..=DELAY_MS_MAX).contains(&self.delay_ms) {
            return Err(format!("delay_ms must be between 0 and {DELAY_MS_MAX}, not {}", self.delay_ms));
        }
        if !(1..=HOST_CONCURRENCY_MAX).contains(&self.host_concurrency) {
            return Err(format!(
                "host_concurrency must be between 1 and {HOST_CONCURRENCY_MAX}, not {}",
                self.host_concurrency
            ));
        }
        Ok(())
    }
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
