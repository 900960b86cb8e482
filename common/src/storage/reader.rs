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
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::storage::cdxj::CdxFields;
    use crate::storage::segment::{Encoded, PageEntry, encode_ndjson, encode_warc, put_segment};

    fn id(ms: u64) -> StreamId {
        StreamId::new(ms, 0)
    }

    fn items(generation: u64, range: std::ops::Range<u64>) -> Encoded {
        let entries: Vec<_> = range.map(|ms| (id(ms), json!({"n": ms}))).collect();
        encode_ndjson("acme", "items", generation, &entries).expect("lines")
    }

    /// Members that say no more than which they are.
    fn pages(range: std::ops::Range<u64>) -> Encoded {
        let page = |ms: u64| PageEntry {
            id: id(ms),
            member: [&[0x1f, 0x8b, 8][..], &ms.to_be_bytes()].concat().leak(),
            cdx: CdxFields {
                surt: format!("com,example)/{ms}"),
                url: format!("http://example.com/{ms}"),
                date_ms: 0,
                mime: Some("text/html".to_owned()),
                status: 200,
                digest: "sha1:X".to_owned(),
            },
        };
        encode_warc("acme", "pages", 1, &range.map(page).collect::<Vec<_>>()).expect("a warc")
    }

    async fn bucket() -> Store {
        let store = Store::memory();
        for encoded in [items(1, 1..2501), items(1, 2501..2601), items(2, 1..11), pages(1..251)] {
            put_segment(&store, &encoded).await.expect("put");
        }
        store
    }

    fn select(stream: &str, from: u64, to: u64) -> Selection {
        Selection {
            tenant: "acme".to_owned(),
            stream: Some(stream.to_owned()),
            generation: Some(1),
            from: Some(id(from)),
            to: Some(id(to)),
        }
    }

    async fn read(store: &Store, selection: &Selection, form: PageForm) -> Vec<Line> {
        let mut lines = Vec::new();
        let sink = |line| {
            lines.push(line);
            Ok(())
        };
        cat(store, selection, form, sink).await.expect("readable");
        lines
    }

    #[tokio::test]
    async fn a_listing_tells_complete_segments_and_their_ranges() {
        let store = bucket().await;
        let torn = items(1, 9000..9001);
        store.put(&torn.key.data(), torn.data.clone()).await.expect("data without a sidecar");
        let all = Selection { tenant: "acme".to_owned(), ..Selection::default() };
        let names = list(&store, &all).await.expect("list");
        let told: Vec<_> =
            names.iter().map(|n| (&*n.segment.stream, n.segment.generation, n.segment.last.ms)).collect();
        assert_eq!(told, [("items", 1, 2500), ("items", 1, 2600), ("items", 2, 10), ("pages", 1, 250)]);
        assert_eq!(list(&store, &select("items", 2501, 2501)).await.expect("list").len(), 1);
        let json = serde_json::to_value(&names[3]).expect("a name is JSON");
        assert_eq!(
            (&json["stream"], &json["first"], &json["codec"]),
            (&json!("pages"), &json!("1-0"), &json!("warc.gz"))
        );
    }

    #[tokio::test]
    async fn lines_come_from_the_needed_frames_across_segments() {
        let store = bucket().await;
        let lines = read(&store, &select("items", 1999, 2502), PageForm::Json).await;
        assert_eq!(lines.len(), 504);
        assert_eq!(
            lines[0],
            Line { generation: 1, id: id(1999), bytes: Bytes::from("{\"id\":\"1999-0\",\"n\":1999}") }
        );
        assert_eq!(lines[503].id, id(2502));
        let every = Selection { generation: None, from: None, to: None, ..select("items", 0, 0) };
        assert_eq!(read(&store, &every, PageForm::Json).await.len(), 2610);
    }

    #[tokio::test]
    async fn pages_come_as_json_or_as_members() {
        let store = bucket().await;
        let lines = read(&store, &select("pages", 99, 101), PageForm::Json).await;
        let first: Value = serde_json::from_slice(&lines[0].bytes).expect("JSON");
        assert_eq!((&first["id"], &first["status"], &first["length"]), (&json!("99-0"), &json!(200), &json!(11)));
        assert_eq!(first["url"], "http://example.com/99");
        let members = read(&store, &select("pages", 99, 101), PageForm::Member).await;
        assert_eq!(members.iter().map(|line| line.bytes[10]).collect::<Vec<_>>(), [99, 100, 101]);
    }

    #[tokio::test]
    async fn a_closed_output_ends_the_reading() {
        let store = bucket().await;
        let mut seen = 0;
        let sink = |_| {
            seen += 1;
            Err(io::Error::from(io::ErrorKind::BrokenPipe))
        };
        let outcome = cat(&store, &select("items", 1, 5), PageForm::Json, sink).await;
        assert!(matches!(outcome, Err(ReadError::Output(_))));
        assert_eq!(seen, 1);
    }

    #[tokio::test]
    async fn verify_all_names_every_fault() {
        let store = bucket().await;
        let report = verify_all(&store, "acme").await.expect("listed");
        assert!(report.len() == 4 && report.iter().all(|(_, outcome)| outcome.is_ok()), "{report:?}");

        put_segment(&store, &items(1, 2400..2411)).await.expect("an overlap");
        put_segment(&store, &items(1, 2550..2560)).await.expect("an overlap");
        let (torn, lost) = (items(3, 1..5), items(3, 5..9));
        store.put(&torn.key.data(), torn.data.clone()).await.expect("data without a sidecar");
        put_segment(&store, &lost).await.expect("put");
        store.delete(&lost.key.data()).await.expect("a sidecar without data");
        store.delete(&pages(1..251).key.index()).await.expect("a WARC without an index");
        let damaged = items(2, 1..11).key.data();
        store.put(&damaged, Bytes::from_static(b"damage")).await.expect("damage");

        let report = verify_all(&store, "acme").await.expect("listed");
        let faults: Vec<String> = report
            .iter()
            .filter_map(|(name, outcome)| {
                let segment = &name.segment;
                outcome.as_ref().err().map(|what| format!("{} {} {what}", segment.generation, segment.first.ms))
            })
            .collect();
        assert_eq!(faults.len(), 6, "{faults:#?}");
        for (fault, expected) in faults.iter().zip([
            "1 2400 overlaps the segment that ends at 2500-0",
            "1 2550 overlaps the segment that ends at 2600-0",
            "2 1 archive/acme/items/0000000002",
            "3 1 data without a sidecar",
            "3 5 a sidecar without its data",
            "1 1 a WARC without its index",
        ]) {
            assert!(fault.starts_with(expected), "{fault}");
        }
    }
}
