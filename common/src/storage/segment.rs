//! A segment: the entries of one range of one stream, encoded, put and verified.
//!
//! Encoding is deterministic, so that a successor of a dead archiver finds either nothing or its own bytes.

use bytes::Bytes;
use data_encoding::HEXLOWER;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::model::stream_id::StreamId;
use crate::storage::cdxj::{self, CdxFields, Place};
use crate::storage::key::{Codec, KeyError, SegmentKey};
use crate::storage::object::{PutOutcome, Store, StoreError};
use crate::storage::packing::{FRAME_MEMBERS_MAX, Frame, PackError, Packer, SIDECAR_VERSION, Sidecar, unpack_frame};
use crate::storage::warc::warcinfo_member;

/// First bytes of a gzip member (RFC 1952, 2.3.1): magic number and method.
const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b, 8];

/// One entry of `pages`.
#[derive(Clone, Debug)]
pub struct PageEntry<'a> {
    pub id: StreamId,
    /// The WARC record as the worker encoded it: one gzip member.
    pub member: &'a [u8],
    pub cdx: CdxFields,
}

/// The objects of one segment, ready to be put.
#[derive(Clone, Debug)]
pub struct Encoded {
    pub key: SegmentKey,
    pub data: Bytes,
    pub sidecar: Sidecar,
    /// The CDXJ lines of a WARC.
    pub index: Option<Bytes>,
}

#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Pack(#[from] PackError),
    #[error("a segment without entries")]
    Empty,
    #[error("entry {0} does not ascend")]
    Order(StreamId),
    #[error("entry {0} is not a gzip member")]
    Member(StreamId),
    #[error("{key}: {what}")]
    Mismatch { key: String, what: String },
}

/// Concatenates the members behind a warcinfo record and writes their index.
///
/// # Errors
/// No entries, ids that do not ascend, bytes that are no gzip member, or a name no key can hold.
pub fn encode_warc(
    tenant: &str,
    stream: &str,
    generation: u64,
    entries: &[PageEntry<'_>],
) -> Result<Encoded, SegmentError> {
    let range = ascending(entries.iter().map(|entry| entry.id))?;
    let key = SegmentKey::new(tenant, stream, generation, range, Codec::WarcGz)?;
    let filename = key.data();
    let date_ms = i64::try_from(range.0.ms).unwrap_or(i64::MAX);
    let mut data = warcinfo_member(&filename, date_ms);
    data.reserve(entries.iter().map(|entry| entry.member.len()).sum());

    let mut table = Vec::with_capacity(entries.len());
    let mut frames = Vec::new();
    for chunk in entries.chunks(FRAME_MEMBERS_MAX) {
        let offset = data.len() as u64;
        for PageEntry { id, member, .. } in chunk {
            if !member.starts_with(GZIP_MAGIC) {
                return Err(SegmentError::Member(*id));
            }
            table.push((*id, data.len() as u64, member.len() as u64));
            data.extend_from_slice(member);
        }
        let (first, last) = (chunk[0].id, chunk[chunk.len() - 1].id);
        frames.push(Frame { offset, bytes: data.len() as u64 - offset, first, last, count: chunk.len() as u64 });
    }
    let places = entries
        .iter()
        .zip(&table)
        .map(|(entry, &(_, offset, length))| (&entry.cdx, Place { offset, length, filename: &filename }));
    let index = Bytes::from(cdxj::index(places));
    let mut encoded = describe(key, data, frames);
    encoded.sidecar.index_sha256 = Some(sha256_hex(&index));
    encoded.sidecar.entries = table;
    encoded.index = Some(index);
    Ok(encoded)
}

/// Packs one line an entry: its fields behind its id, `{"id":"ms-seq", ..}`. A value that is no object, or has an
/// `id` of its own, is kept whole as the line's `value`.
///
/// # Errors
/// No entries, ids that do not ascend, a record above the bound, or a name no key can hold.
pub fn encode_ndjson(
    tenant: &str,
    stream: &str,
    generation: u64,
    entries: &[(StreamId, Value)],
) -> Result<Encoded, SegmentError> {
    let range = ascending(entries.iter().map(|(id, _)| *id))?;
    let key = SegmentKey::new(tenant, stream, generation, range, Codec::NdjsonZst)?;
    let mut packer = Packer::new()?;
    for (id, value) in entries {
        packer.push(*id, json_line(*id, value).as_bytes())?;
    }
    let (data, frames) = packer.finish()?;
    Ok(describe(key, data, frames))
}

/// Puts the data, then the index, and the sidecar last: a segment exists once its sidecar does. Putting the same
/// segment again changes nothing; an object left by somebody else under one of its keys is replaced.
pub async fn put_segment(store: &Store, encoded: &Encoded) -> Result<(), SegmentError> {
    let Encoded { key, data, sidecar, index } = encoded;
    settle_object(store, &key.data(), data).await?;
    if let Some(index) = index {
        settle_object(store, &key.index(), index).await?;
    }
    settle_object(store, &key.sidecar(), &sidecar_json(sidecar)).await
}

/// Reads back what [`put_segment`] has put and compares it, byte by byte. Only after this may its entries leave the stream.
///
/// # Errors
/// `Mismatch` names the object that is another one; `Store` if one is missing or unreadable.
pub async fn verify_put(store: &Store, encoded: &Encoded) -> Result<(), SegmentError> {
    let Encoded { key, data, sidecar, index } = encoded;
    let index = index.as_ref().map(|index| (key.index(), index.clone()));
    for (key, bytes) in [(key.sidecar(), sidecar_json(sidecar)), (key.data(), data.clone())].into_iter().chain(index) {
        if !store.equals(&key, &bytes).await? {
            return Err(SegmentError::Mismatch { key, what: "is not what was written".to_owned() });
        }
    }
    Ok(())
}

/// Reads a segment back and compares it with its sidecar, which is returned: what [`verify_put`] is for whoever has not
/// encoded it.
///
/// # Errors
/// `Mismatch` names the object and what is wrong with it; `Store` if one is missing or unreadable.
pub async fn verify(store: &Store, key: &SegmentKey) -> Result<Sidecar, SegmentError> {
    let sidecar = read_sidecar(store, key).await?;
    let data = store.get(&key.data()).await?;
    let wrong = |key: String| move |what: String| SegmentError::Mismatch { key, what };
    check_data(&sidecar, &data).map_err(wrong(key.data()))?;
    if let Some(expected) = &sidecar.index_sha256 {
        let index = store.get(&key.index()).await?;
        check_hash(&index, expected).map_err(wrong(key.index()))?;
    }
    Ok(sidecar)
}

/// The sidecar of a segment, checked against the key it lies under.
pub async fn read_sidecar(store: &Store, key: &SegmentKey) -> Result<Sidecar, SegmentError> {
    let bytes = store.get(&key.sidecar()).await?;
    let wrong = |what: String| SegmentError::Mismatch { key: key.sidecar(), what };
    let sidecar: Sidecar = serde_json::from_slice(&bytes).map_err(|error| wrong(format!("no sidecar: {error}")))?;
    if sidecar.version != SIDECAR_VERSION {
        return Err(wrong(format!("version {}, of which this program knows nothing", sidecar.version)));
    }
    let Sidecar { tenant, stream, generation, first, last, codec, .. } = sidecar.clone();
    if (SegmentKey { tenant, stream, generation, first, last, codec }) != *key {
        return Err(wrong("describes another segment".to_owned()));
    }
    Ok(sidecar)
}

/// Hash, size, and that the tables cover the data without a gap and count what is there.
fn check_data(sidecar: &Sidecar, data: &[u8]) -> Result<(), String> {
    if data.len() as u64 != sidecar.bytes {
        return Err(format!("{} bytes, the sidecar says {}", data.len(), sidecar.bytes));
    }
    check_hash(data, &sidecar.sha256)?;
    let mut end = sidecar.frames.first().map_or(0, |frame| frame.offset);
    let mut count = 0;
    for frame in &sidecar.frames {
        let records = match sidecar.codec {
            Codec::NdjsonZst => {
                let lines = unpack_frame(part(data, frame.offset, frame.bytes)?).map_err(|error| error.to_string())?;
                lines.iter().filter(|&&byte| byte == b'\n').count() as u64
            }
            Codec::WarcGz => {
                let inside = |id: StreamId| frame.first <= id && id <= frame.last;
                sidecar.entries.iter().filter(|(id, ..)| inside(*id)).count() as u64
            }
        };
        if frame.offset != end || records != frame.count {
            return Err(format!("the frame at {} does not hold what the sidecar says", frame.offset));
        }
        end = frame.offset.saturating_add(frame.bytes);
        count += records;
    }
    if end != sidecar.bytes || count != sidecar.count {
        return Err(format!("{count} entries in {end} bytes, the sidecar says {} in {}", sidecar.count, sidecar.bytes));
    }
    let mut end = sidecar.entries.first().map_or(sidecar.bytes, |&(_, offset, _)| offset);
    for &(id, offset, length) in &sidecar.entries {
        if offset != end || !part(data, offset, length)?.starts_with(GZIP_MAGIC) {
            return Err(format!("entry {id} is not at {offset}"));
        }
        end = offset.saturating_add(length);
    }
    if end == sidecar.bytes { Ok(()) } else { Err(format!("the table of entries ends at {end}")) }
}

fn part(data: &[u8], offset: u64, length: u64) -> Result<&[u8], String> {
    let range = usize::try_from(offset).ok().zip(offset.checked_add(length).and_then(|end| usize::try_from(end).ok()));
    range.and_then(|(start, end)| data.get(start..end)).ok_or_else(|| format!("no {length} bytes at {offset}"))
}

fn check_hash(bytes: &[u8], expected: &str) -> Result<(), String> {
    let found = sha256_hex(bytes);
    if found == expected { Ok(()) } else { Err(format!("sha256 is {found}, the sidecar says {expected}")) }
}

/// Makes an object be these bytes. One that exists is compared, and replaced if it differs: the plan of the range is
/// ours (invariant 9), so what else lies there is a torn or tampered upload, or that of another encoder version.
async fn settle_object(store: &Store, key: &str, body: &Bytes) -> Result<(), SegmentError> {
    if store.put_new(key, body.clone()).await? == PutOutcome::Created {
        return Ok(());
    }
    match store.equals(key, body).await {
        Ok(true) => return Ok(()),
        // Gone again: the other put was withdrawn.
        Ok(false) | Err(StoreError::NotFound { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    tracing::warn!(object.key = key, "archive object differs from what its plan encodes to: replaced");
    Ok(store.put(key, body.clone()).await?)
}

fn describe(key: SegmentKey, data: Vec<u8>, frames: Vec<Frame>) -> Encoded {
    let sidecar = Sidecar {
        version: SIDECAR_VERSION,
        tenant: key.tenant.clone(),
        stream: key.stream.clone(),
        generation: key.generation,
        first: key.first,
        last: key.last,
        count: frames.iter().map(|frame| frame.count).sum(),
        bytes: data.len() as u64,
        sha256: sha256_hex(&data),
        codec: key.codec,
        frames,
        entries: Vec::new(),
        index_sha256: None,
    };
    Encoded { key, data: Bytes::from(data), sidecar, index: None }
}

fn ascending(ids: impl Iterator<Item = StreamId>) -> Result<(StreamId, StreamId), SegmentError> {
    let mut range: Option<(StreamId, StreamId)> = None;
    for id in ids {
        range = match range {
            Some((_, last)) if id <= last => return Err(SegmentError::Order(id)),
            Some((first, _)) => Some((first, id)),
            None => Some((id, id)),
        };
    }
    range.ok_or(SegmentError::Empty)
}

fn json_line(id: StreamId, value: &Value) -> String {
    match value {
        Value::Object(fields) if fields.is_empty() => format!("{{\"id\":\"{id}\"}}"),
        Value::Object(fields) if !fields.contains_key("id") => {
            let json = value.to_string();
            format!("{{\"id\":\"{id}\",{}", &json[1..])
        }
        other => format!("{{\"id\":\"{id}\",\"value\":{other}}}"),
    }
}

fn sidecar_json(sidecar: &Sidecar) -> Bytes {
    let mut json = serde_json::to_vec(sidecar).expect("numbers, strings and arrays always become JSON");
    json.push(b'\n');
    Bytes::from(json)
}

fn sha256_hex(bytes: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use uuid::Uuid;

    use super::*;
    use crate::storage::warc::{Response, response_member};

    fn pages(count: u64) -> Vec<PageEntry<'static>> {
        let page = |n: u64| {
            let url = format!("http://example.com/{n}");
            let date_ms = 1_700_000_000_000 + n as i64;
            let member = response_member(&Response {
                record_id: Uuid::from_u128(u128::from(n)),
                url: &url,
                date_ms,
                http_head: b"HTTP/1.1 200 OK\r\n\r\n",
                body: format!("page {n}").as_bytes(),
                truncated: None,
                ip: None,
            });
            let cdx = CdxFields {
                surt: format!("com,example)/{n}"),
                url,
                date_ms,
                mime: None,
                status: 200,
                digest: member.payload_digest,
            };
            PageEntry { id: StreamId::new(date_ms as u64, 0), member: member.bytes.leak(), cdx }
        };
        (0..count).map(page).collect()
    }

    fn items(count: u64) -> Vec<(StreamId, Value)> {
        (0..count).map(|n| (StreamId::new(n + 1, n), json!({"n": n}))).collect()
    }

    #[tokio::test]
    async fn segments_verify_and_put_again_without_change() {
        let store = Store::memory();
        for encoded in [
            encode_warc("acme", "pages", 1, &pages(250)).expect("a warc"),
            encode_ndjson("acme", "items", 1, &items(2500)).expect("lines"),
        ] {
            assert_eq!(encoded.sidecar.frames.len(), 3);
            put_segment(&store, &encoded).await.expect("put");
            put_segment(&store, &encoded).await.expect("put again");
            verify_put(&store, &encoded).await.expect("it is there");
            assert_eq!(verify(&store, &encoded.key).await.expect("verified"), encoded.sidecar);
        }
        assert_eq!(store.list("archive/acme", None).await.expect("list").len(), 5);
    }

    #[tokio::test]
    async fn a_torn_object_is_replaced_and_later_damage_is_seen() {
        let store = Store::memory();
        let encoded = encode_warc("acme", "pages", 1, &pages(3)).expect("a warc");
        store.put(&encoded.key.data(), encoded.data.slice(..40)).await.expect("a torn upload");
        assert!(verify(&store, &encoded.key).await.is_err(), "no sidecar yet");
        assert!(verify_put(&store, &encoded).await.is_err());
        put_segment(&store, &encoded).await.expect("put");
        verify(&store, &encoded.key).await.expect("verified");
        for (key, whole) in [
            (encoded.key.data(), encoded.data.clone()),
            (encoded.key.index(), encoded.index.clone().expect("a warc has an index")),
            (encoded.key.sidecar(), sidecar_json(&encoded.sidecar)),
        ] {
            let mut damaged = whole.to_vec();
            damaged[20] ^= 1;
            store.put(&key, Bytes::from(damaged)).await.expect("damage");
            let error = verify(&store, &encoded.key).await.expect_err("damage is seen").to_string();
            assert!(error.contains(&key), "{error}");
            let error = verify_put(&store, &encoded).await.expect_err("damage is seen").to_string();
            assert!(error.contains(&key), "{error}");
            store.put(&key, whole).await.expect("repair");
        }
    }

    #[test]
    fn encoding_is_deterministic_and_refuses_nonsense() {
        let encode = || encode_warc("acme", "pages", 1, &pages(5)).expect("a warc");
        assert_eq!(encode().data, encode().data);
        assert!(matches!(encode_ndjson("acme", "items", 1, &[]), Err(SegmentError::Empty)));
        let twice = [items(1), items(1)].concat();
        assert!(matches!(encode_ndjson("acme", "items", 1, &twice), Err(SegmentError::Order(_))));
        assert!(matches!(encode_ndjson("a/b", "items", 1, &items(1)), Err(SegmentError::Key(_))));
        let mut entries = pages(1);
        entries[0].member = b"plain";
        assert!(matches!(encode_warc("acme", "pages", 1, &entries), Err(SegmentError::Member(_))));
    }

    #[test]
    fn a_line_begins_with_its_id() {
        let id = StreamId::new(7, 1);
        assert_eq!(json_line(id, &json!({"a": "ü\n"})), "{\"id\":\"7-1\",\"a\":\"ü\\n\"}");
        assert_eq!(json_line(id, &json!({})), "{\"id\":\"7-1\"}");
        assert_eq!(json_line(id, &json!({"id": 3})), "{\"id\":\"7-1\",\"value\":{\"id\":3}}");
        assert_eq!(json_line(id, &json!([1])), "{\"id\":\"7-1\",\"value\":[1]}");
    }
}
