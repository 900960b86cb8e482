//! A page dispatch: one reading of a source, from the URL of a page to the items, the count and the cursor in its answer.

use std::collections::BTreeMap;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use url::Url;

use crate::model::source::{Count, CountOf, Document, Paging, api_host, authority, one, shortened};
use crate::model::url::has_userinfo;

/// Pages of one dispatch.
pub const PAGES_MAX: i64 = 1_000_000;
/// Times the count of a dispatch may change before it is taken as it is.
pub const ROUNDS_MAX: i32 = 4;
/// What RFC 3986 2.3 leaves as it is in a value that is put into a URL.
const VALUE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

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
        if has_userinfo(&url) {
            return Err("a URL of a source holds a user name or a password: say auth, which nobody reads".to_owned());
        }
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(format!("{text:?} is no http or https URL"));
        }
        Ok(url)
    }
}
