//! A record: the standard shape of what sources call a review, a post, a ticket; and how an item becomes one.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json_path::JsonPath;

use crate::model::source::{object_of, shortened};

/// Bytes of an external id: it is part of a key, and Postgres bounds those.
const ID_BYTES_MAX: usize = 500;
/// A Unix time beyond this is in milliseconds.
const SECONDS_MAX: f64 = 1e11;

/// Where the common attributes are in an item, as JSONPath; what is not named goes to the metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Fields {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// A number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rating: Option<String>,
    /// RFC 3339, or a Unix time in seconds or milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<String>,
}

impl Fields {
    pub fn paths(&self) -> impl Iterator<Item = (&'static str, &String)> {
        [
            ("fields.author", &self.author),
            ("fields.text", &self.text),
            ("fields.language", &self.language),
            ("fields.url", &self.url),
            ("fields.rating", &self.rating),
            ("fields.created_at", &self.created_at),
            ("fields.updated_at", &self.updated_at),
        ]
        .into_iter()
        .filter_map(|(name, path)| Some((name, path.as_ref()?)))
    }
}

/// One record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Record {
    pub source: String,
    pub instance: String,
    pub external_id: String,
    pub author: Option<String>,
    pub text: Option<String>,
    pub language: Option<String>,
    pub url: Option<String>,
    pub rating: Option<f64>,
    pub created_at: Option<DateTime<Utc>>,
    pub updated_at: Option<DateTime<Utc>>,
    /// What the item has beside.
    #[schema(value_type = Object)]
    pub metadata: Value,
    pub fetched_at: DateTime<Utc>,
}

/// Makes records of a source's items: the paths are read once.
#[derive(Clone, Debug)]
pub struct Mapper {
    source: String,
    instance: String,
    id: Path,
    author: Option<Path>,
    text: Option<Path>,
    language: Option<Path>,
    url: Option<Path>,
    rating: Option<Path>,
    created_at: Option<Path>,
    updated_at: Option<Path>,
    /// Members of an item that become attributes.
    taken: Vec<String>,
}

#[derive(Clone, Debug)]
struct Path {
    text: String,
    path: JsonPath,
}

impl Path {
    fn parse(text: &str) -> Result<Self, String> {
        let path = JsonPath::parse(text).map_err(|error| format!("{text:?} is no JSONPath: {error}"))?;
        Ok(Self { text: text.to_owned(), path })
    }

    fn wrong(&self, what: &str, value: &Value) -> String {
        format!("{} is no {what}: {}", self.text, shortened(value))
    }
}

impl Mapper {
    pub fn new(source: &str, instance: &str, id: &str, fields: &Fields) -> Result<Self, String> {
        let path = |text: &Option<String>| text.as_deref().map(Path::parse).transpose();
        let paths = fields.paths().map(|(_, path)| path.as_str()).chain([id]);
        Ok(Self {
            source: source.to_owned(),
            instance: instance.to_owned(),
            id: Path::parse(id)?,
            author: path(&fields.author)?,
            text: path(&fields.text)?,
            language: path(&fields.language)?,
            url: path(&fields.url)?,
            rating: path(&fields.rating)?,
            created_at: path(&fields.created_at)?,
            updated_at: path(&fields.updated_at)?,
            taken: paths.filter_map(|path| path.strip_prefix("$.")).map(str::to_owned).collect(),
        })
    }

    /// The record of an item, or in one line why it does not fit.
    pub fn record(&self, item: &Value, fetched_at: DateTime<Utc>) -> Result<Record, String> {
        let external_id = match self.id.path.query(item).first() {
            Some(Value::String(text)) if !text.trim().is_empty() => text.clone(),
            Some(Value::Number(number)) => number.to_string(),
            Some(other) => return Err(self.id.wrong("id", other)),
            None => return Err(format!("it has no {}", self.id.text)),
        };
        if external_id.len() > ID_BYTES_MAX {
            return Err(format!("{} has more than {ID_BYTES_MAX} bytes", self.id.text));
        }
        // Postgres holds no NUL, in text or in jsonb.
        if has_nul(item) {
            return Err("it has a NUL character".to_owned());
        }
        let mut rest = object_of(item);
        rest.retain(|name, _| !self.taken.contains(name));
        Ok(Record {
            source: self.source.clone(),
            instance: self.instance.clone(),
            external_id,
            author: attribute(item, self.author.as_ref(), "text", text)?,
            text: attribute(item, self.text.as_ref(), "text", text)?,
            language: attribute(item, self.language.as_ref(), "text", text)?,
            url: attribute(item, self.url.as_ref(), "text", text)?,
            rating: attribute(item, self.rating.as_ref(), "number", number)?,
            created_at: attribute(item, self.created_at.as_ref(), "time", time)?,
            updated_at: attribute(item, self.updated_at.as_ref(), "time", time)?,
            metadata: Value::Object(rest),
            fetched_at,
        })
    }
}

/// Absent and null are nothing; what cannot be read is an error.
fn attribute<T>(
    item: &Value,
    path: Option<&Path>,
    what: &str,
    read: fn(&Value) -> Option<T>,
) -> Result<Option<T>, String> {
    let Some(path) = path else { return Ok(None) };
    match path.path.query(item).first().filter(|value| !value.is_null()) {
        None => Ok(None),
        Some(value) => read(value).map(Some).ok_or_else(|| path.wrong(what, value)),
    }
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn number(value: &Value) -> Option<f64> {
    let number = value.as_f64().or_else(|| value.as_str().and_then(|text| text.trim().parse().ok()));
    number.filter(|number: &f64| number.is_finite())
}

fn time(value: &Value) -> Option<DateTime<Utc>> {
    let at = match value {
        Value::String(text) => DateTime::parse_from_rfc3339(text.trim()).ok()?.with_timezone(&Utc),
        Value::Number(number) => {
            let number = number.as_f64()?;
            let seconds = if number.abs() > SECONDS_MAX { number / 1000.0 } else { number };
            DateTime::from_timestamp_millis((seconds * 1000.0).round() as i64)?
        }
        _ => return None,
    };
    // Nobody means a time outside these, and Postgres does not hold all of them.
    (0..=253_402_300_799).contains(&at.timestamp()).then_some(at)
}

/// A value that Postgres can hold: NUL becomes the replacement character.
pub fn without_nul(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::String(text.replace('\0', "\u{fffd}")),
        Value::Array(values) => Value::Array(values.iter().map(without_nul).collect()),
        Value::Object(map) => Value::Object(
            map.iter().map(|(name, value)| (name.replace('\0', "\u{fffd}"), without_nul(value))).collect(),
        ),
        other => other.clone(),
    }
}

/// True where Postgres could not hold the value as it is.
pub fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(values) => values.iter().any(has_nul),
        Value::Object(map) => map.iter().any(|(name, value)| name.contains('\0') || has_nul(value)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn make(item: Value) -> Result<Record, String> {
        let fields: Fields = serde_json::from_value(json!({
            "author": "$.user.name", "text": "$.body", "rating": "$.stars", "created_at": "$.at", "language": "$.lang",
        }))
        .unwrap();
        let mapper = Mapper::new("shop", "eu", "$.id", &fields).unwrap();
        mapper.record(&item, DateTime::from_timestamp_millis(5).unwrap())
    }

    #[test]
    fn attributes_are_taken_and_the_rest_kept() {
        let made = make(
            json!({ "id": 7, "user": { "name": "Ann" }, "body": "hi", "stars": "4.5", "at": 1_700_000_000, "x": [1] }),
        )
        .unwrap();
        assert_eq!((made.external_id.as_str(), made.author.as_deref(), made.rating), ("7", Some("Ann"), Some(4.5)));
        assert_eq!(made.created_at.unwrap().to_rfc3339(), "2023-11-14T22:13:20+00:00");
        assert_eq!(made.metadata, json!({ "user": { "name": "Ann" }, "x": [1] }));
        let ms = make(json!({ "id": "a", "at": 1_700_000_000_000_i64 })).unwrap();
        assert_eq!(ms.created_at, made.created_at);
    }

    #[test]
    fn what_does_not_fit_says_why() {
        for (item, why) in [
            (json!({ "body": "x" }), "it has no $.id"),
            (json!({ "id": "" }), "$.id is no id"),
            (json!({ "id": {} }), "$.id is no id"),
            (json!({ "id": 1, "stars": "many" }), "$.stars is no number"),
            (json!({ "id": 1, "at": "yesterday" }), "$.at is no time"),
            (json!({ "id": 1, "at": 1e300 }), "$.at is no time"),
            (json!({ "id": 1, "body": ["x"] }), "$.body is no text"),
            (json!({ "id": 1, "more": "a\0b" }), "NUL"),
            (json!("just text"), "it has no $.id"),
        ] {
            let said = make(item.clone()).unwrap_err();
            assert!(said.contains(why), "{item}: {said}");
        }
    }
}
