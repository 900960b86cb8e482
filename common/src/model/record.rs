//! A record: the standard shape of what sources call a review, a post, a ticket; and how an item becomes one.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::model::source::{object_of, one, shortened};

/// Characters of an external id.
const ID_CHARS_MAX: usize = 500;
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

/// Makes the record of an item, or says in one line why it does not fit.
pub fn record(
    (source, instance): (&str, &str),
    id_path: &str,
    fields: &Fields,
    item: &Value,
    fetched_at: DateTime<Utc>,
) -> Result<Record, String> {
    let external_id = match one(item, id_path)? {
        Some(Value::String(text)) if !text.trim().is_empty() => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        Some(other) => return Err(format!("{id_path} is no id: {}", shortened(other))),
        None => return Err(format!("it has no {id_path}")),
    };
    if external_id.chars().count() > ID_CHARS_MAX {
        return Err(format!("{id_path} has more than {ID_CHARS_MAX} characters"));
    }
    let record = Record {
        source: source.to_owned(),
        instance: instance.to_owned(),
        external_id,
        author: text(item, fields.author.as_deref())?,
        text: text(item, fields.text.as_deref())?,
        language: text(item, fields.language.as_deref())?,
        url: text(item, fields.url.as_deref())?,
        rating: number(item, fields.rating.as_deref())?,
        created_at: time(item, fields.created_at.as_deref())?,
        updated_at: time(item, fields.updated_at.as_deref())?,
        metadata: Value::Object(rest(item, id_path, fields)),
        fetched_at,
    };
    // Postgres holds no NUL, in text or in jsonb.
    if has_nul(item) {
        return Err("it has a NUL character".to_owned());
    }
    Ok(record)
}

fn found<'a>(item: &'a Value, path: Option<&str>) -> Result<Option<&'a Value>, String> {
    let Some(path) = path else { return Ok(None) };
    Ok(one(item, path)?.filter(|value| !value.is_null()))
}

fn text(item: &Value, path: Option<&str>) -> Result<Option<String>, String> {
    Ok(match found(item, path)? {
        None => None,
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Number(number)) => Some(number.to_string()),
        Some(other) => return Err(format!("{} is no text: {}", path.unwrap_or_default(), shortened(other))),
    })
}

fn number(item: &Value, path: Option<&str>) -> Result<Option<f64>, String> {
    let Some(value) = found(item, path)? else { return Ok(None) };
    let number = value.as_f64().or_else(|| value.as_str().and_then(|text| text.trim().parse().ok()));
    match number.filter(|number| number.is_finite()) {
        Some(number) => Ok(Some(number)),
        None => Err(format!("{} is no number: {}", path.unwrap_or_default(), shortened(value))),
    }
}

fn time(item: &Value, path: Option<&str>) -> Result<Option<DateTime<Utc>>, String> {
    let Some(value) = found(item, path)? else { return Ok(None) };
    let at = match value {
        Value::String(text) => DateTime::parse_from_rfc3339(text.trim()).ok().map(|at| at.with_timezone(&Utc)),
        Value::Number(number) => number.as_f64().and_then(|number| {
            let seconds = if number.abs() > SECONDS_MAX { number / 1000.0 } else { number };
            DateTime::from_timestamp_millis((seconds * 1000.0).round() as i64)
        }),
        _ => None,
    };
    // Postgres ends in the year 294276; nobody means a time outside these.
    match at.filter(|at| (0..=253_402_300_799).contains(&at.timestamp())) {
        Some(at) => Ok(Some(at)),
        None => Err(format!("{} is no time: {}", path.unwrap_or_default(), shortened(value))),
    }
}

/// The item without the members that became attributes.
fn rest(item: &Value, id_path: &str, fields: &Fields) -> Map<String, Value> {
    let mut rest = object_of(item);
    let paths = fields.paths().map(|(_, path)| path.as_str()).chain([id_path]);
    for name in paths.filter_map(|path| path.strip_prefix("$.")) {
        rest.remove(name);
    }
    rest
}

fn has_nul(value: &Value) -> bool {
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
        record(("shop", "eu"), "$.id", &fields, &item, DateTime::from_timestamp_millis(5).unwrap())
    }

    #[test]
    fn attributes_are_taken_and_the_rest_kept() {
        let made = make(json!({ "id": 7, "user": { "name": "Ann" }, "body": "hi", "stars": "4.5", "at": 1_700_000_000, "x": [1] })).unwrap();
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
