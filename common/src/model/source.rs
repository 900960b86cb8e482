//! A source: how to read a JSON API page by page, as a document, and how its items become records.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use serde_json_path::JsonPath;
use url::Url;

use crate::model::header::check_headers;
use crate::model::record::Fields;
use crate::model::spec::{DELAY_MS_DEFAULT, DELAY_MS_MAX, HOST_CONCURRENCY_MAX};
use crate::model::terms::Terms;

/// The longest span from one run to another: a hundred years, in seconds.
pub const SPAN_S_MAX: i64 = 3_155_760_000;
/// The document of a source, version after version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// URL of a page. `{page}`, `{page_size}`, `{offset}`, `{cursor}`, `{base}` and the names of the subject in
    /// braces are replaced.
    pub url: String,
    /// What `{base}` stands for when the dispatch says nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    pub paging: Paging,
    /// JSONPath (RFC 9535) of the list of items in an answer; `$` when the answer is the list.
    pub items: String,
    /// JSONPath of an item's own id, within the item.
    pub id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<Auth>,
    /// Headers sent with each request; none of them secret.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
    /// Milliseconds between two requests to the API.
    #[serde(default = "delay_default")]
    pub delay_ms: i64,
    /// Requests to the API at a time.
    #[serde(default = "concurrency_default")]
    pub concurrency: i32,
    /// A call is never repeated: one whose worker dies ends as `unknown`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub at_most_once: bool,
    /// How often a request is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<i16>,
    /// A timer starts a dispatch this often, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_s: Option<i64>,
    /// Where the common attributes of a record are in an item.
    #[serde(default)]
    pub fields: Fields,
}

/// How the pages of an answer follow one another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "style", rename_all = "snake_case", deny_unknown_fields)]
pub enum Paging {
    /// The count says how many pages there are; they are fetched side by side.
    Numbered {
        /// Items of a page.
        size: i64,
        /// Number of the first page.
        #[serde(default = "first_default")]
        first: i64,
        count: Count,
    },
    /// Each page names the next one.
    Cursor {
        #[serde(default = "size_default")]
        size: i64,
        /// JSONPath of the next page's cursor; absent, null or empty on the last page.
        next: String,
    },
}

/// Where the number of items is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Count {
    /// JSONPath of the number.
    pub path: String,
    /// URL of the answer that has it; the first page when not given, and then every page says it again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    #[serde(default)]
    pub of: CountOf,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CountOf {
    #[default]
    Items,
    Pages,
}

/// Where a named secret goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    /// Name of the secret.
    pub secret: String,
    /// Header that carries it, after `prefix`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prefix: String,
    /// Query parameter that carries it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
}

/// Headers by which an API says what is left: at none left, it is not asked again before the reset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    pub remaining: String,
    /// Seconds from now, or a Unix time.
    pub reset: String,
}

impl Document {
    /// One clear line about the first thing that is wrong.
    pub fn check(&self) -> Result<(), String> {
        let mut paths = vec![("items", &self.items), ("id", &self.id)];
        match &self.paging {
            Paging::Numbered { size, first, count } => {
                check_size(*size)?;
                if !(0..=1).contains(first) {
                    return Err(format!("paging.first must be 0 or 1, not {first}"));
                }
                if !self.url.contains("{page}") && !self.url.contains("{offset}") {
                    return Err("url of numbered paging must hold {page} or {offset}".to_owned());
                }
                paths.push(("paging.count.path", &count.path));
            }
            Paging::Cursor { size, next } => {
                check_size(*size)?;
                if !self.url.contains("{cursor}") {
                    return Err("url of cursor paging must hold {cursor}".to_owned());
                }
                paths.push(("paging.next", next));
            }
        }
        for (name, path) in paths.into_iter().chain(self.fields.paths()) {
            JsonPath::parse(path).map_err(|error| format!("{name}: {path:?} is no JSONPath: {error}"))?;
        }
        if let Some(auth) = &self.auth
            && auth.header.is_some() == auth.query.is_some()
        {
            return Err("auth needs either header or query".to_owned());
        }
        if !(0..=DELAY_MS_MAX).contains(&self.delay_ms) {
            return Err(format!("delay_ms must be between 0 and {DELAY_MS_MAX}, not {}", self.delay_ms));
        }
        if !(1..=HOST_CONCURRENCY_MAX).contains(&self.concurrency) {
            return Err(format!("concurrency must be between 1 and {HOST_CONCURRENCY_MAX}, not {}", self.concurrency));
        }
        if self.every_s.is_some_and(|every| !(1..=SPAN_S_MAX).contains(&every)) {
            return Err(format!("every_s must be between 1 and {SPAN_S_MAX}"));
        }
        // Without a URL of its own the count is page 1: that call would be made twice, and again when the count changes.
        if self.at_most_once && matches!(&self.paging, Paging::Numbered { count, .. } if count.url.is_none()) {
            return Err(
                "at_most_once with numbered paging needs paging.count.url: else page 1 is asked for twice".to_owned()
            );
        }
        Terms { retries: self.retries, ..Terms::default() }.check()?;
        check_headers(
            self.headers.iter().chain(self.auth.iter().filter_map(|auth| Some((auth.header.as_ref()?, &auth.prefix)))),
        )
    }

    pub fn page_size(&self) -> i64 {
        match &self.paging {
            Paging::Numbered { size, .. } | Paging::Cursor { size, .. } => *size,
        }
    }
}

fn check_size(size: i64) -> Result<(), String> {
    if (1..=100_000).contains(&size) {
        return Ok(());
    }
    Err(format!("paging.size must be between 1 and 100000, not {size}"))
}

/// `api:scheme://authority#credential`: an API is no web site; it has a clock of its own and no robots.txt.
pub fn api_host(url: &Url, credential: Option<&str>) -> String {
    let credential = credential.map_or(String::new(), |name| format!("#{name}"));
    format!("api:{}://{}{credential}", url.scheme(), authority(url))
}

/// The origin of a host that [`api_host`] made; nothing for a web site.
pub fn api_origin(host: &str) -> Option<&str> {
    let rest = host.strip_prefix("api:")?;
    Some(rest.split_once('#').map_or(rest, |(origin, _)| origin))
}

/// Host and port of a URL, the port where it is none of the scheme's own.
pub fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// The one value at a path, if any.
pub fn one<'a>(value: &'a Value, path: &str) -> Result<Option<&'a Value>, String> {
    let path = JsonPath::parse(path).map_err(|error| format!("{path:?} is no JSONPath: {error}"))?;
    Ok(path.query(value).first())
}

/// A value as an error line shows it.
pub fn shortened(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// An item as an object: others are wrapped.
pub fn object_of(item: &Value) -> Map<String, Value> {
    match item {
        Value::Object(map) => map.clone(),
        other => Map::from_iter([("value".to_owned(), other.clone())]),
    }
}

fn delay_default() -> i64 {
    DELAY_MS_DEFAULT
}

fn concurrency_default() -> i32 {
    1
}

fn first_default() -> i64 {
    1
}

fn size_default() -> i64 {
    100
}

#[cfg(test)]
mod tests;
