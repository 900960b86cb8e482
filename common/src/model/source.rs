//! A source: how to read a JSON API page by page, as a document, and how its items become records.

use std::collections::BTreeMap;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use serde_json_path::JsonPath;
use url::Url;

use crate::model::header::check_headers;
use crate::model::record::Fields;
use crate::model::spec::{DELAY_MS_DEFAULT, DELAY_MS_MAX, HOST_CONCURRENCY_MAX};
use crate::model::terms::Terms;

/// Pages of one dispatch.
pub const PAGES_MAX: i64 = 1_000_000;
/// The longest span from one run to another: a hundred years, in seconds.
pub const SPAN_S_MAX: i64 = 3_155_760_000;
/// Times the count of a dispatch may change before it is taken as it is.
pub const ROUNDS_MAX: i32 = 4;
/// What RFC 3986 2.3 leaves as it is in a value that is put into a URL.
const VALUE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

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

/// What a page dispatch was asked to do: the `spec` of its dispatch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PagedSpec {
    pub source: String,
    pub version: i32,
    pub document: Document,
    pub base: String,
    /// Which of several installations of the platform: the authority of its URL unless named.
    pub instance: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub subject: BTreeMap<String, String>,
    /// What the caller knows of the count: an answer as the API would give it. Asked for when missing or malformed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Value>,
}

/// How many items and pages an API says it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    pub total_items: i64,
    pub total_pages: i32,
}

/// What stands in for the braces of a URL.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place<'a> {
    /// From 1, whatever the API calls it.
    pub page: i64,
    pub cursor: Option<&'a str>,
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

impl PagedSpec {
    /// Puts a dispatch together; one clear line when its URLs cannot be built.
    pub fn new(
        source: &str,
        version: i32,
        document: Document,
        base: Option<&str>,
        instance: Option<&str>,
        subject: BTreeMap<String, String>,
    ) -> Result<Self, String> {
        let base = base.or(document.base.as_deref()).unwrap_or_default().trim_end_matches('/').to_owned();
        if document.url.contains("{base}") && base.is_empty() {
            return Err(format!("source {source} needs a base URL: its url holds {{base}}"));
        }
        let mut spec = Self {
            source: source.to_owned(),
            version,
            document,
            base,
            instance: String::new(),
            subject,
            metadata: None,
        };
        let first = spec.page_url(Place { page: 1, cursor: None })?;
        spec.instance = match instance {
            Some(name) => name.to_owned(),
            None => authority(&first),
        };
        if spec.instance.is_empty() || spec.instance.len() > 200 {
            return Err("instance must have between 1 and 200 characters".to_owned());
        }
        spec.count_url()?;
        Ok(spec)
    }

    pub fn page_url(&self, place: Place<'_>) -> Result<Url, String> {
        self.expand(&self.document.url, place)
    }

    /// Where the count is asked for.
    pub fn count_url(&self) -> Result<Url, String> {
        match &self.document.paging {
            Paging::Numbered { count: Count { url: Some(url), .. }, .. } => {
                self.expand(url, Place { page: 1, cursor: None })
            }
            _ => self.page_url(Place { page: 1, cursor: None }),
        }
    }

    /// True when every page says the count again.
    pub fn counts_in_pages(&self) -> bool {
        matches!(&self.document.paging, Paging::Numbered { count, .. } if count.url.is_none())
    }

    /// The count in an answer; one line when it is missing or no count.
    pub fn metadata(&self, answer: &Value) -> Result<Metadata, String> {
        let Paging::Numbered { size, count, .. } = &self.document.paging else {
            return Err("a source with a cursor has no count".to_owned());
        };
        let found = one(answer, &count.path)?.ok_or_else(|| format!("the answer has no {}", count.path))?;
        let number = found
            .as_i64()
            .or_else(|| found.as_str().and_then(|text| text.trim().parse().ok()))
            .ok_or_else(|| format!("{} is no whole number: {}", count.path, shortened(found)))?;
        let pages = match count.of {
            CountOf::Items => number.div_euclid(*size) + i64::from(number.rem_euclid(*size) > 0),
            CountOf::Pages => number,
        };
        if number < 0 || pages > PAGES_MAX {
            return Err(format!("{} is {number}: not between 0 and {PAGES_MAX} pages", count.path));
        }
        let total_items = match count.of {
            CountOf::Items => number,
            CountOf::Pages => number * size,
        };
        Ok(Metadata { total_items, total_pages: pages as i32 })
    }

    /// The items of an answer.
    pub fn items(&self, answer: &Value) -> Result<Vec<Value>, String> {
        match one(answer, &self.document.items)? {
            Some(Value::Array(items)) => Ok(items.clone()),
            Some(other) => Err(format!("{} is no list: {}", self.document.items, shortened(other))),
            None => Err(format!("the answer has no {}", self.document.items)),
        }
    }

    /// The cursor of the next page; nothing on the last one.
    pub fn next_cursor(&self, answer: &Value) -> Result<Option<String>, String> {
        let Paging::Cursor { next, .. } = &self.document.paging else { return Ok(None) };
        Ok(match one(answer, next)? {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(text.clone()).filter(|text| !text.is_empty()),
            Some(Value::Number(number)) => Some(number.to_string()),
            Some(Value::Bool(false)) => None,
            Some(other) => return Err(format!("{next} is no cursor: {}", shortened(other))),
        })
    }

    /// The unit of politeness of a URL of this source: its origin and the credential it is asked with.
    pub fn host(&self, url: &Url) -> String {
        api_host(url, self.document.auth.as_ref().map(|auth| auth.secret.as_str()))
    }

    fn expand(&self, template: &str, place: Place<'_>) -> Result<Url, String> {
        let (first, size) = match &self.document.paging {
            Paging::Numbered { first, size, .. } => (*first, *size),
            Paging::Cursor { size, .. } => (1, *size),
        };
        let mut text = String::with_capacity(template.len() + 32);
        let mut rest = template;
        while let Some(open) = rest.find('{') {
            text.push_str(&rest[..open]);
            let close =
                rest[open..].find('}').ok_or_else(|| format!("{template:?} has a brace that is not closed"))? + open;
            match &rest[open + 1..close] {
                "base" => text.push_str(&self.base),
                "page" => text.push_str(&(place.page - 1 + first).to_string()),
                "page_size" => text.push_str(&size.to_string()),
                "offset" => text.push_str(&((place.page - 1) * size).to_string()),
                "cursor" => text.extend(utf8_percent_encode(place.cursor.unwrap_or_default(), VALUE)),
                name => {
                    let value = self
                        .subject
                        .get(name)
                        .ok_or_else(|| format!("nothing says what {{{name}}} of {template:?} is"))?;
                    text.extend(utf8_percent_encode(value, VALUE));
                }
            }
            rest = &rest[close + 1..];
        }
        text.push_str(rest);
        let url = Url::parse(&text).map_err(|error| format!("{text:?} is no URL: {error}"))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(format!("{text:?} is no http or https URL"));
        }
        Ok(url)
    }
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

fn authority(url: &Url) -> String {
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
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(paging: Value, url: &str) -> PagedSpec {
        let document: Document = serde_json::from_value(json!({
            "url": url, "paging": paging, "items": "$.items", "id": "$.id",
            "auth": { "secret": "shop", "query": "key" },
        }))
        .unwrap();
        document.check().unwrap();
        let subject = BTreeMap::from([("app".to_owned(), "a/b c".to_owned())]);
        PagedSpec::new("shop", 1, document, Some("http://api.test:81/v1/"), None, subject).unwrap()
    }

    fn numbered() -> PagedSpec {
        let count = json!({ "path": "$.total" });
        spec(
            json!({ "style": "numbered", "size": 10, "first": 0, "count": count }),
            "{base}/{app}?p={page}&o={offset}&n={page_size}",
        )
    }

    #[test]
    fn braces_are_replaced_and_values_escaped() {
        let url = numbered().page_url(Place { page: 3, cursor: None }).unwrap();
        assert_eq!(url.as_str(), "http://api.test:81/v1/a%2Fb%20c?p=2&o=20&n=10");
        assert_eq!(numbered().instance, "api.test:81");
        assert_eq!(numbered().host(&url), "api:http://api.test:81#shop");
        assert_eq!(api_origin("api:http://api.test:81#shop"), Some("http://api.test:81"));
        assert_eq!(api_origin("http://api.test:81"), None);
    }

    #[test]
    fn a_count_is_a_whole_number_however_it_is_written() {
        let spec = numbered();
        let of = |answer: Value| spec.metadata(&answer);
        assert_eq!(of(json!({ "total": 401 })), Ok(Metadata { total_items: 401, total_pages: 41 }));
        assert_eq!(of(json!({ "total": "400" })), Ok(Metadata { total_items: 400, total_pages: 40 }));
        assert_eq!(of(json!({ "total": 0 })), Ok(Metadata { total_items: 0, total_pages: 0 }));
        for bad in [
            json!({}),
            json!({ "total": null }),
            json!({ "total": -1 }),
            json!({ "total": 1.5 }),
            json!({ "total": 1e15 }),
            json!([]),
        ] {
            assert!(of(bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_cursor_ends_with_null_empty_or_absent() {
        let spec = spec(json!({ "style": "cursor", "next": "$.next" }), "{base}/x?c={cursor}");
        assert_eq!(spec.next_cursor(&json!({ "next": "a b" })), Ok(Some("a b".to_owned())));
        assert_eq!(spec.page_url(Place { page: 2, cursor: Some("a b") }).unwrap().query(), Some("c=a%20b"));
        for end in [json!({ "next": null }), json!({ "next": "" }), json!({}), json!({ "next": false })] {
            assert_eq!(spec.next_cursor(&end), Ok(None), "{end}");
        }
        assert!(spec.next_cursor(&json!({ "next": {} })).is_err());
    }

    #[test]
    fn a_wrong_document_is_named() {
        let good = json!({ "url": "http://a.test/?p={page}", "paging": { "style": "numbered", "size": 10, "count": { "path": "$.n" } },
            "items": "$", "id": "$.id" });
        let check = |change: fn(&mut Value)| {
            let mut value = good.clone();
            change(&mut value);
            serde_json::from_value::<Document>(value).map_err(|error| error.to_string()).and_then(|d| d.check())
        };
        assert_eq!(check(|_| {}), Ok(()));
        assert!(check(|v| v["items"] = json!("items")).unwrap_err().contains("JSONPath"));
        assert!(check(|v| v["url"] = json!("http://a.test/")).unwrap_err().contains("{page}"));
        assert!(check(|v| v["paging"]["size"] = json!(0)).unwrap_err().contains("paging.size"));
        assert!(check(|v| v["typo"] = json!(0)).unwrap_err().contains("typo"));
        assert!(check(|v| v["headers"] = json!({ "a b": "c" })).unwrap_err().contains("header name"));
        assert!(check(|v| v["headers"] = json!({ "Host": "c" })).unwrap_err().contains("own"));
        assert!(check(|v| v["auth"] = json!({ "secret": "s" })).unwrap_err().contains("either"));
    }
}
