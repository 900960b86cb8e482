//! A manifest: a list of jobs as a file, and when each of its entries is due.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::clock::Millis;
use crate::model::header::{check_crawl_headers, check_headers, texts};
use crate::model::record::has_nul;
use crate::model::revisit::Revisit;
use crate::model::scope::ScopeKind;
use crate::model::source::SPAN_S_MAX;
use crate::model::spec::{CrawlSpec, DELAY_MS_MAX, Nofollow};
use crate::model::terms::Terms;
use crate::model::trap::Traps;
use crate::model::url::{Canonical, has_userinfo, ruled};
use crate::model::url_rules::UrlRule;

/// Entries of one manifest.
pub const ENTRIES_MAX: usize = 100_000;
/// Bytes of one manifest.
pub const BYTES_MAX: u64 = 64 << 20;
/// Reasons that are kept of a malformed one; the rest is counted.
pub const REASONS_MAX: usize = 100;
/// The end of the year 9999, milliseconds: RFC 3339 says nothing later.
const LAST_MS: Millis = 253_402_300_799_000;
/// The version of the format that this Dodo reads.
pub const VERSION: i64 = 1;

/// One entry, as the file has it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// `crawl` (the URL and what it links to), `page` (the URL alone), or the name of a source.
    pub service: String,
    pub url: String,
    #[serde(default, deserialize_with = "texts")]
    pub headers: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "texts")]
    pub cookies: BTreeMap<String, String>,
    /// RFC 3339 or Unix seconds; at once when not given.
    #[serde(default)]
    pub start: Option<Start>,
    /// How often it is run at most.
    #[serde(default)]
    pub count: Option<i64>,
    /// Seconds from one run to the next.
    #[serde(default)]
    pub interval: Option<i64>,
    /// Seconds after `start` beyond which it is not run.
    #[serde(default)]
    pub duration: Option<i64>,
    #[serde(default)]
    pub version: Option<i64>,
    #[serde(default)]
    pub options: Options,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Start {
    Seconds(i64),
    Text(String),
}

/// What an entry may say beside: those of a crawl, or the subject of a source.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<i16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_pages: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_pages_per_host: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_allowance: Option<i64>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub near_duplicates: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<ScopeKind>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_concurrency: Option<i32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub url_rules: Vec<UrlRule>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drop_params: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_path_segments: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_repeats: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_query_params: Option<u16>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub content_types: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sitemaps: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nofollow: Option<Nofollow>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub noindex: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub follow_canonical: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assets: Option<bool>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cookies: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revisit: Option<Revisit>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub subject: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_seconds: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<i16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i16>,
}

impl Options {
    /// The terms of each dispatch that the entry starts.
    pub fn terms(&self) -> Terms {
        Terms {
            max_bytes: self.max_bytes,
            max_seconds: self.max_seconds,
            retries: self.retries,
            priority: self.priority.unwrap_or_default(),
            start_at: None,
        }
    }
}

/// An entry that can be scheduled.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked {
    pub service: String,
    pub url: String,
    /// Cookies are among them.
    pub headers: BTreeMap<String, String>,
    pub options: Options,
    pub schedule: Schedule,
}

/// When an entry runs: at `start`, then every `interval_s`, `count` times, and only within `duration_s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    pub start_ms: Millis,
    pub interval_s: i64,
    pub count: i64,
    pub duration_s: Option<i64>,
}

/// What is wrong with an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Reason {
    /// From 0; none when the file as a whole is at fault.
    pub entry: Option<usize>,
    pub reason: String,
}

/// Reads a manifest: every entry checked, or the reasons, entry by entry. `services` are the sources that are
/// known; `contact` is false when none is configured: then only what `is_local` says may be asked.
pub fn parse(bytes: &[u8], now: Millis, known: &dyn Fn(&str) -> bool) -> Result<Vec<Checked>, Vec<Reason>> {
    let whole = |reason: String| vec![Reason { entry: None, reason }];
    let values: Vec<Value> = serde_json::from_slice(bytes)
        .map_err(|error| whole(format!("it is no JSON list of entries: {}", place_of(&error))))?;
    if values.len() > ENTRIES_MAX {
        return Err(whole(format!("it has {} entries; at most {ENTRIES_MAX} are allowed", values.len())));
    }
    let (mut checked, mut reasons) = (Vec::with_capacity(values.len()), Vec::new());
    for (index, value) in values.into_iter().enumerate() {
        let entry = match has_nul(&value) {
            true => Err("it holds a NUL character, which cannot be stored".to_owned()),
            false => serde_json::from_value::<Entry>(value).map_err(|error| error.to_string()),
        };
        match entry.and_then(|entry| entry.check(now, known)) {
            Ok(entry) => checked.push(entry),
            Err(reason) => reasons.push(Reason { entry: Some(index), reason }),
        }
    }
    if reasons.is_empty() {
        return Ok(checked);
    }
    let more = reasons.len().saturating_sub(REASONS_MAX);
    reasons.truncate(REASONS_MAX);
    if more > 0 {
        reasons.extend(whole(format!("{more} more entries are wrong")));
    }
    Err(reasons)
}

/// Where JSON is at fault; data of the wrong shape is not quoted.
fn place_of(error: &serde_json::Error) -> String {
    match error.is_data() {
        true => format!("another shape at line {} column {}", error.line(), error.column()),
        false => error.to_string(),
    }
}

/// A URL without what may be a password: reasons are for everybody.
fn shown(url: &str) -> &str {
    url.rsplit_once('@').map_or(url, |(_, rest)| rest)
}

impl Entry {
    fn check(self, now: Millis, known: &dyn Fn(&str) -> bool) -> Result<Checked, String> {
        if self.version.is_some_and(|version| version != VERSION) {
            return Err(format!("version must be {VERSION}, not {}", self.version.unwrap_or_default()));
        }
        self.options.terms().check()?;
        match self.service.as_str() {
            "crawl" | "page" => {
                crawl_spec(&self.service, &self.url, &self.options)?.0.check()?;
                if self.options.revisit.is_some() && self.count.unwrap_or(1) > 1 {
                    return Err("a crawl with the option revisit goes on by itself: leave out count".to_owned());
                }
                if !self.options.subject.is_empty() || self.options.instance.is_some() {
                    return Err("options subject and instance belong to a source".to_owned());
                }
            }
            name if known(name) => {
                let url = url::Url::parse(&self.url).map_err(|error| format!("url {:?}: {error}", shown(&self.url)))?;
                if has_userinfo(&url) {
                    return Err("url holds a user name or a password: the source's auth is for that".to_owned());
                }
                if !matches!(url.scheme(), "http" | "https") {
                    return Err(format!("url {:?} is no http or https URL", shown(&self.url)));
                }
                if self.options
                    != (Options {
                        subject: self.options.subject.clone(),
                        instance: self.options.instance.clone(),
                        max_bytes: self.options.max_bytes,
                        max_seconds: self.options.max_seconds,
                        retries: self.options.retries,
                        priority: self.options.priority,
                        ..Options::default()
                    })
                {
                    return Err("a source takes the options subject, instance, max_bytes, max_seconds, retries and priority only".to_owned());
                }
            }
            name => return Err(format!("service {name:?} is neither crawl nor page nor a stored source")),
        }
        let schedule = self.schedule(now)?;
        let mut headers = self.headers;
        if !self.cookies.is_empty() {
            let cookies: Vec<String> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
            if headers.keys().any(|name| name.eq_ignore_ascii_case("cookie")) {
                return Err("give cookies or a Cookie header, not both".to_owned());
            }
            headers.insert("cookie".to_owned(), cookies.join("; "));
        }
        match self.service.as_str() {
            "crawl" | "page" => check_crawl_headers(&headers)?,
            _ => check_headers(&headers)?,
        }
        Ok(Checked { service: self.service, url: self.url, headers, options: self.options, schedule })
    }

    fn schedule(&self, now: Millis) -> Result<Schedule, String> {
        let start_ms = match &self.start {
            None => now,
            Some(Start::Seconds(seconds)) => seconds.checked_mul(1000).ok_or("start is out of range")?,
            Some(Start::Text(text)) => DateTime::parse_from_rfc3339(text)
                .map_err(|_| format!("start {text:?} is neither RFC 3339 nor Unix seconds"))?
                .timestamp_millis(),
        };
        if !(0..=LAST_MS).contains(&start_ms) {
            return Err("start is out of range".to_owned());
        }
        let count = self.count.unwrap_or(1);
        if count < 1 {
            return Err(format!("count must be at least 1, not {count}"));
        }
        let interval_s = self.interval.unwrap_or(0);
        if interval_s < 0 || (count > 1 && interval_s < 1) {
            return Err("interval must be at least 1 second where count is above 1".to_owned());
        }
        if interval_s > SPAN_S_MAX {
            return Err(format!("interval must be at most {SPAN_S_MAX} seconds, not {interval_s}"));
        }
        if self.duration.is_some_and(|duration| !(0..=SPAN_S_MAX).contains(&duration)) {
            return Err(format!("duration must be between 0 and {SPAN_S_MAX} seconds"));
        }
        Ok(Schedule { start_ms, interval_s, count, duration_s: self.duration })
    }
}

/// The crawl of an entry, and its seed.
pub fn crawl_spec(service: &str, url: &str, options: &Options) -> Result<(CrawlSpec, Canonical), String> {
    let mut spec: CrawlSpec =
        serde_json::from_value(serde_json::json!({ "seeds": [url] })).map_err(|error| error.to_string())?;
    spec.depth = if service == "page" { 0 } else { options.depth.unwrap_or(spec.depth) };
    spec.max_pages = options.max_pages;
    (spec.max_pages_per_host, spec.host_allowance) = (options.max_pages_per_host, options.host_allowance);
    spec.near_duplicates = options.near_duplicates;
    spec.scope = options.scope.unwrap_or(spec.scope);
    spec.delay_ms = options.delay_ms.unwrap_or(spec.delay_ms).min(DELAY_MS_MAX + 1);
    spec.host_concurrency = options.host_concurrency.unwrap_or(spec.host_concurrency);
    spec.sitemaps = options.sitemaps.unwrap_or(spec.sitemaps);
    spec.nofollow = options.nofollow.unwrap_or(spec.nofollow);
    (spec.noindex, spec.follow_canonical) = (options.noindex, options.follow_canonical);
    spec.assets = options.assets.unwrap_or(spec.assets);
    spec.url_rules.clone_from(&options.url_rules);
    spec.drop_params.clone_from(&options.drop_params);
    spec.include.clone_from(&options.include);
    spec.exclude.clone_from(&options.exclude);
    spec.traps = Traps::of(options.max_path_segments, options.max_repeats, options.max_query_params);
    spec.content_types.clone_from(&options.content_types);
    (spec.cookies, spec.user_agent) = (options.cookies, options.user_agent.clone());
    spec.region.clone_from(&options.region);
    spec.revisit = options.revisit;
    let seed = ruled(url, None, &spec.rules()?).map_err(|error| format!("url {:?}: {error}", shown(url)))?;
    spec.seeds = vec![seed.url.to_string()];
    Ok((spec, seed))
}

impl Schedule {
    /// The occurrence after `last` (-1 before the first) and when it is due; those that were missed coalesce into
    /// the latest of them. Nothing when the entry is over.
    pub fn next(&self, last: i64, now: Millis) -> Option<(i64, Millis)> {
        let step = self.interval_s.saturating_mul(1000);
        let bound = match (self.duration_s, step) {
            // An occurrence exactly at the end of the duration still is within it.
            (Some(duration), 1..) => (duration.saturating_mul(1000) / step).saturating_add(1).min(self.count),
            (_, 0) => 1,
            _ => self.count,
        };
        let passed = if step > 0 && now > self.start_ms { (now - self.start_ms) / step } else { 0 };
        let next = (last + 1).max(passed.min(bound - 1));
        let at = self.start_ms.saturating_add(next.saturating_mul(step));
        (next < bound && at <= LAST_MS).then_some((next, at))
    }

    pub fn of_parts(start: DateTime<Utc>, interval_s: i64, count: i64, duration_s: Option<i64>) -> Self {
        Self { start_ms: start.timestamp_millis(), interval_s, count, duration_s }
    }
}

#[cfg(test)]
mod tests;
