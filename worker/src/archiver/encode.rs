//! A segment made of what stands in a stream.

use std::collections::BTreeMap;

use anyhow::bail;
use dodo_common::db::segment::Segment;
use dodo_common::model::surt::surt;
use dodo_common::storage::cdxj::CdxFields;
use dodo_common::storage::segment::{self, Encoded, PageEntry};
use dodo_common::stream::names::{PAGES, archive_name};
use dodo_common::stream::raw::Stored;
use serde_json::Value;
use url::Url;

/// Each tenant has segments of its own.
pub fn by_tenant(entries: Vec<Stored>) -> BTreeMap<String, Vec<Stored>> {
    let mut tenants = BTreeMap::<String, Vec<Stored>>::new();
    for stored in entries {
        tenants.entry(stored.entry.tenant.clone()).or_default().push(stored);
    }
    tenants
}

/// Deterministic: the same entries give the same bytes. Nothing for no entries.
pub fn encode_segment(
    stream: &str,
    tenant: &str,
    generation: i64,
    entries: &[Stored],
) -> anyhow::Result<Option<Encoded>> {
    if entries.is_empty() {
        return Ok(None);
    }
    let (name, generation) = (archive_name(stream), generation as u64);
    let encoded = if stream == PAGES {
        let pages = entries.iter().map(page_of).collect::<anyhow::Result<Vec<_>>>()?;
        segment::encode_warc(tenant, name, generation, &pages)?
    } else {
        let items = entries.iter().map(|stored| (stored.id, value_of(&stored.entry.about))).collect::<Vec<_>>();
        segment::encode_ndjson(tenant, name, generation, &items)?
    };
    Ok(Some(encoded))
}

/// What cannot be read is kept as the text that it is: it holds up nothing that stands behind it.
fn value_of(about: &[u8]) -> Value {
    serde_json::from_slice(about).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(about).into_owned()))
}

fn page_of(stored: &Stored) -> anyhow::Result<PageEntry<'_>> {
    let about: Value = serde_json::from_slice(&stored.entry.about)?;
    let text = |name: &str| about[name].as_str().map(str::to_owned);
    let Some(url) = text("url") else { bail!("entry {} of pages has no URL", stored.id) };
    let cdx = CdxFields {
        surt: surt(&Url::parse(&url)?),
        url,
        date_ms: about["date_ms"].as_i64().unwrap_or_default(),
        mime: text("mime"),
        status: about["status"].as_u64().unwrap_or_default() as u16,
        digest: text("digest").unwrap_or_default(),
    };
    Ok(PageEntry { id: stored.id, member: &stored.entry.body, cdx })
}

pub fn plan_of(stream: &str, tenant: &str, generation: i64, encoded: &Encoded) -> Segment {
    Segment {
        tenant: tenant.to_owned(),
        generation,
        stream: archive_name(stream).to_owned(),
        first: encoded.sidecar.first,
        last: encoded.sidecar.last,
        key: encoded.key.data(),
        entries: encoded.sidecar.count as i32,
        bytes: encoded.sidecar.bytes as i64,
        sha256: encoded.sidecar.sha256.clone(),
    }
}
