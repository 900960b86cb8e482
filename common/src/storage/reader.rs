//! Reads the archive back from the bucket alone: without Postgres, without Redis, by listing keys and reading ranges.

use std::collections::{BTreeMap, HashMap};
use std::io;

use bytes::Bytes;
use serde::Serialize;
use serde_json::json;

use crate::model::stream_id::StreamId;
use crate::storage::cdxj;
use crate::storage::key::{Codec, Part, SegmentKey, generation_prefix, stream_prefix, tenant_prefix};
use crate::storage::object::{Store, StoreError};
use crate::storage::packing::{Frame, PackError, Sidecar, unpack_frame};
use crate::storage::segment::{self, SegmentError};

/// What of a tenant's archive is meant. Bounds of ids are inclusive; `None` means all.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    pub tenant: String,
    pub stream: Option<String>,
    /// Used only together with `stream`.
    pub generation: Option<u64>,
    pub from: Option<StreamId>,
    pub to: Option<StreamId>,
}

/// One archived segment as a listing tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SegmentName {
    /// Tenant, stream, generation, first, last and codec.
    #[serde(flatten)]
    pub segment: SegmentKey,
    /// Of the data object.
    pub key: String,
    /// Of the data object; 0 if it is missing.
    pub bytes: u64,
}

/// What `cat` gives of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageForm {
    /// A line of JSON: id, url, status, mime, digest, length.
    Json,
    /// The WARC record's gzip member; members in a row are a WARC file.
    Member,
}

/// One archived entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub generation: u64,
    pub id: StreamId,
    /// JSON without a newline, or a gzip member.
    pub bytes: Bytes,
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Segment(#[from] SegmentError),
    #[error("{key}: {source}")]
    Frame { key: String, source: PackError },
    #[error("{key}: {what}")]
    Broken { key: String, what: String },
    /// The reader of the output went away, as `head` does.
    #[error("output: {0}")]
    Output(#[from] io::Error),
}

/// The complete segments that overlap a selection, by stream, generation and first id. An upload under way has no
/// sidecar and is not among them.
pub async fn list(store: &Store, selection: &Selection) -> Result<Vec<SegmentName>, ReadError> {
    let Selection { tenant, stream, generation, from, to } = selection;
    let prefix = match (stream, generation) {
        (Some(stream), Some(generation)) => generation_prefix(tenant, stream, *generation),
        (Some(stream), None) => stream_prefix(tenant, stream),
        (None, _) => tenant_prefix(tenant),
    };
    let found = survey(store, &prefix).await?.into_values().filter(|found| found.data.is_some() && found.sidecar);
    let overlaps =
        |segment: &SegmentKey| from.is_none_or(|from| segment.last >= from) && to.is_none_or(|to| segment.first <= to);
    Ok(found.map(|found| found.name).filter(|name| overlaps(&name.segment)).collect())
}

/// Gives every selected entry to `sink`, oldest first within each stream and generation. Reads only the frames that
/// hold one, and of a WARC whose lines are asked for only its tables.
///
/// # Errors
/// The first segment that cannot be read ends it; so does an error of the sink.
pub async fn cat(
    store: &Store,
    selection: &Selection,
    form: PageForm,
    mut sink: impl FnMut(Line) -> io::Result<()>,
) -> Result<(), ReadError> {
    for SegmentName { segment, .. } in list(store, selection).await? {
        let sidecar = segment::read_sidecar(store, &segment).await?;
        let from = selection.from.unwrap_or(StreamId::MIN);
        let to = selection.to.unwrap_or(StreamId::MAX);
        let wanted = Wanted { store, segment: &segment, sidecar: &sidecar, from, to };
        match (segment.codec, form) {
            (Codec::NdjsonZst, _) => wanted.lines(&mut sink).await?,
            (Codec::WarcGz, PageForm::Json) => wanted.page_lines(&mut sink).await?,
            (Codec::WarcGz, PageForm::Member) => wanted.members(&mut sink).await?,
        }
    }
    Ok(())
}

/// Checks everything a tenant has archived: hashes and counts of each segment, that the ranges of one stream and
/// generation are disjoint, and that no object is without its companion.
///
/// # Errors
/// Only if the listing fails; what is wrong with a segment stands beside it.
pub async fn verify_all(store: &Store, tenant: &str) -> Result<Vec<(SegmentName, Result<(), String>)>, ReadError> {
    let mut report = Vec::new();
    let mut before: Option<SegmentKey> = None;
    for found in survey(store, &tenant_prefix(tenant)).await?.into_values() {
        let mut outcome = match (found.data, found.sidecar, found.index, found.name.segment.codec) {
            (None, true, ..) => Err("a sidecar without its data".to_owned()),
            (None, false, ..) => Err("an index without its data".to_owned()),
            (Some(_), false, ..) => Err("data without a sidecar: an upload under way, or a torn one".to_owned()),
            (Some(_), true, false, Codec::WarcGz) => Err("a WARC without its index".to_owned()),
            _ => segment::verify(store, &found.name.segment).await.map(drop).map_err(|error| error.to_string()),
        };
        let segment = &found.name.segment;
        let reaches =
            before.filter(|before| before.stream == segment.stream && before.generation == segment.generation);
        if let Some(reaches) = reaches.as_ref().filter(|before| before.last >= segment.first) {
            let note = format!("overlaps the segment that ends at {}", reaches.last);
            outcome = Err(outcome.err().map_or(note.clone(), |error| format!("{error}; {note}")));
        }
        // What reaches furthest, so that a long range is compared with every one that begins inside it.
        before = Some(reaches.filter(|before| before.last > segment.last).unwrap_or_else(|| segment.clone()));
        report.push((found.name, outcome));
    }
    Ok(report)
}

/// What a listing shows of one segment.
struct Found {
    name: SegmentName,
    /// Size in bytes.
    data: Option<u64>,
    sidecar: bool,
    index: bool,
}

/// Groups a listing by segment, in key order. Objects of other names are none of ours.
async fn survey(store: &Store, prefix: &str) -> Result<BTreeMap<String, Found>, StoreError> {
    let mut segments: BTreeMap<String, Found> = BTreeMap::new();
    for (key, size_bytes) in store.list(prefix, None).await? {
        let Some((segment, part)) = SegmentKey::parse(&key) else { continue };
        let found = segments.entry(segment.data()).or_insert_with_key(|data| Found {
            name: SegmentName { segment, key: data.clone(), bytes: 0 },
            data: None,
            sidecar: false,
            index: false,
        });
        match part {
            Part::Data => (found.data, found.name.bytes) = (Some(size_bytes), size_bytes),
            Part::Sidecar => found.sidecar = true,
            Part::Index => found.index = true,
        }
    }
    Ok(segments)
}

/// The selected part of one segment.
struct Wanted<'a> {
    store: &'a Store,
    segment: &'a SegmentKey,
    sidecar: &'a Sidecar,
    from: StreamId,
    to: StreamId,
}

impl Wanted<'_> {
    async fn lines(&self, sink: &mut impl FnMut(Line) -> io::Result<()>) -> Result<(), ReadError> {
        let key = self.segment.data();
        for Frame { offset, bytes, .. } in self.frames() {
            let packed = self.store.get_range(&key, self.range(*offset, *bytes)?).await?;
            let plain = unpack_frame(&packed).map_err(|source| ReadError::Frame { key: key.clone(), source })?;
            let plain = Bytes::from(plain);
            for line in plain.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
                let id = line_id(line).ok_or_else(|| self.broken(&key, "a line does not begin with its id"))?;
                self.give(id, plain.slice_ref(line), sink)?;
            }
        }
        Ok(())
    }

    async fn page_lines(&self, sink: &mut impl FnMut(Line) -> io::Result<()>) -> Result<(), ReadError> {
        let key = self.segment.index();
        let index = self.store.get(&key).await?;
        let text = std::str::from_utf8(&index).map_err(|_| self.broken(&key, "the index is not text"))?;
        let mut pages = HashMap::new();
        for entry in cdxj::parse(text) {
            let entry = entry.ok_or_else(|| self.broken(&key, "a line is not CDXJ"))?;
            pages.insert(entry.offset.clone(), entry);
        }
        for &(id, offset, length) in &self.sidecar.entries {
            let page = pages.get(&offset.to_string());
            let page = page.ok_or_else(|| self.broken(&key, &format!("no line for the member at {offset}")))?;
            let status: Option<u16> = page.status.parse().ok();
            let line = json!({
                "id": id, "url": page.url, "status": status, "mime": page.mime, "digest": page.digest, "length": length,
            });
            self.give(id, Bytes::from(line.to_string()), sink)?;
        }
        Ok(())
    }

    async fn members(&self, sink: &mut impl FnMut(Line) -> io::Result<()>) -> Result<(), ReadError> {
        let key = self.segment.data();
        for frame in self.frames() {
            let inside = |id: StreamId| self.selects(id) && frame.first <= id && id <= frame.last;
            let members: Vec<_> = self.sidecar.entries.iter().filter(|(id, ..)| inside(*id)).collect();
            // Members lie in the order of their ids, so that what is wanted of a frame is one range.
            let (Some(&&(_, start, _)), Some(&&(_, last, length))) = (members.first(), members.last()) else {
                continue;
            };
            let bytes = last.saturating_add(length).saturating_sub(start);
            let run = self.store.get_range(&key, self.range(start, bytes)?).await?;
            for &&(id, offset, length) in &members {
                let member = offset.checked_sub(start).and_then(|at| {
                    let at = usize::try_from(at).ok()?;
                    let end = at.checked_add(usize::try_from(length).ok()?)?;
                    (end <= run.len()).then(|| run.slice(at..end))
                });
                let member = member.ok_or_else(|| self.broken(&key, "the table of entries is out of order"))?;
                self.give(id, member, sink)?;
            }
        }
        Ok(())
    }

    fn frames(&self) -> impl Iterator<Item = &Frame> {
        self.sidecar.frames.iter().filter(|frame| frame.last >= self.from && frame.first <= self.to)
    }

    fn selects(&self, id: StreamId) -> bool {
        self.from <= id && id <= self.to
    }

    fn give(&self, id: StreamId, bytes: Bytes, sink: &mut impl FnMut(Line) -> io::Result<()>) -> Result<(), ReadError> {
        if self.selects(id) {
            sink(Line { generation: self.segment.generation, id, bytes })?;
        }
        Ok(())
    }

    /// The sidecar is only as good as the bucket it lies in.
    fn range(&self, offset: u64, bytes: u64) -> Result<std::ops::Range<u64>, ReadError> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.sidecar.bytes => Ok(offset..end),
            _ => Err(self.broken(&self.segment.sidecar(), "a row lies outside the data")),
        }
    }

    fn broken(&self, key: &str, what: &str) -> ReadError {
        ReadError::Broken { key: key.to_owned(), what: what.to_owned() }
    }
}

/// The id that every line was packed with, read without parsing the rest.
fn line_id(line: &[u8]) -> Option<StreamId> {
    let rest = line.strip_prefix(b"{\"id\":\"")?;
    let end = rest.iter().position(|&byte| byte == b'"')?;
    std::str::from_utf8(&rest[..end]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests;
