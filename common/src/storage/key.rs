//! Names of archive objects: `archive/<tenant>/<stream>/<generation>/<first>_<last>.<extension>`.
//!
//! Numbers are zero-padded so that a listing in byte order is a listing in id order, and a key says its range:
//! archived entries are found without Postgres. A key holds no hash and no clock, so that a successor writes the
//! very object its predecessor had begun (invariant 9).

use serde::{Deserialize, Serialize};

use crate::model::stream_id::StreamId;

/// First path segment of everything archived.
pub const ROOT: &str = "archive";

/// A generation or an id wider than its padding still parses, but no longer sorts: that is the year 33658 for
/// milliseconds, 10^10 entries within one of them for the counter.
const GENERATION_DIGITS: usize = 10;
const MS_DIGITS: usize = 15;
const SEQ_DIGITS: usize = 10;

/// Longest tenant or stream name. S3 allows a key of 1024 bytes, but an endpoint on a directory (s3s-fs) makes one file
/// name of base64 of bucket and key, and a file name ends at 255 bytes: beside a tenant this long, that leaves room for
/// about 30 bytes of stream and bucket.
pub const NAME_BYTES_MAX: usize = 40;

/// How the entries of a segment are encoded; also the extension of its data object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Codec {
    /// One JSON object a line, about 1000 lines a zstd frame.
    #[serde(rename = "ndjson.zst")]
    NdjsonZst,
    /// WARC 1.1, one gzip member a record.
    #[serde(rename = "warc.gz")]
    WarcGz,
}

impl Codec {
    pub const fn extension(self) -> &'static str {
        match self {
            Codec::NdjsonZst => "ndjson.zst",
            Codec::WarcGz => "warc.gz",
        }
    }
}

/// One archived range of one stream. Ids mean something only within their generation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SegmentKey {
    pub tenant: String,
    pub stream: String,
    pub generation: u64,
    /// Id of the first entry.
    pub first: StreamId,
    /// Id of the last entry, inclusive.
    pub last: StreamId,
    pub codec: Codec,
}

/// Which of a segment's objects a key names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The entries.
    Data,
    /// Counts, hash and tables; written last, so that a segment exists once its sidecar does.
    Sidecar,
    /// The CDXJ lines of a WARC. Its key does not tell the codec, since only one has an index.
    Index,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("`{0}` cannot be part of an object key: 1 to {NAME_BYTES_MAX} letters, digits, `-`, `_` or `.` expected")]
    Name(String),
    #[error("a segment cannot begin at {first} and end at {last}")]
    Range { first: StreamId, last: StreamId },
}

impl SegmentKey {
    /// # Errors
    /// A name that would change the shape of the key, or a range that ends before it begins.
    pub fn new(
        tenant: &str,
        stream: &str,
        generation: u64,
        (first, last): (StreamId, StreamId),
        codec: Codec,
    ) -> Result<SegmentKey, KeyError> {
        for name in [tenant, stream] {
            if !is_name(name) {
                return Err(KeyError::Name(name.to_owned()));
            }
        }
        if first > last {
            return Err(KeyError::Range { first, last });
        }
        Ok(SegmentKey { tenant: tenant.to_owned(), stream: stream.to_owned(), generation, first, last, codec })
    }

    pub fn data(&self) -> String {
        format!("{}.{}", self.stem(), self.codec.extension())
    }

    pub fn sidecar(&self) -> String {
        format!("{}.json", self.data())
    }

    pub fn index(&self) -> String {
        format!("{}.cdxj", self.stem())
    }

    /// Reads a key back; `None` for every object that this scheme did not name.
    pub fn parse(key: &str) -> Option<(SegmentKey, Part)> {
        let parts: Vec<&str> = key.split('/').collect();
        let [ROOT, tenant, stream, generation, file] = parts[..] else { return None };
        let (range, extension) = file.split_once('.')?;
        let (first, last) = range.split_once('_')?;
        let (codec, part) = match extension {
            "ndjson.zst" => (Codec::NdjsonZst, Part::Data),
            "ndjson.zst.json" => (Codec::NdjsonZst, Part::Sidecar),
            "warc.gz" => (Codec::WarcGz, Part::Data),
            "warc.gz.json" => (Codec::WarcGz, Part::Sidecar),
            "cdxj" => (Codec::WarcGz, Part::Index),
            _ => return None,
        };
        let range = (padded_id(first)?, padded_id(last)?);
        let segment = SegmentKey::new(tenant, stream, padded(generation, GENERATION_DIGITS)?, range, codec).ok()?;
        Some((segment, part))
    }

    fn stem(&self) -> String {
        let StreamId { ms: first_ms, seq: first_seq } = self.first;
        let StreamId { ms: last_ms, seq: last_seq } = self.last;
        format!(
            "{}/{first_ms:0MS_DIGITS$}-{first_seq:0SEQ_DIGITS$}_{last_ms:0MS_DIGITS$}-{last_seq:0SEQ_DIGITS$}",
            generation_prefix(&self.tenant, &self.stream, self.generation),
        )
    }
}

/// Where a tenant's archive lies. Prefixes end without a slash and match whole path segments.
pub fn tenant_prefix(tenant: &str) -> String {
    format!("{ROOT}/{tenant}")
}

/// Where one stream of a tenant lies, over all generations.
pub fn stream_prefix(tenant: &str, stream: &str) -> String {
    format!("{ROOT}/{tenant}/{stream}")
}

/// Where one generation of a stream lies.
pub fn generation_prefix(tenant: &str, stream: &str, generation: u64) -> String {
    format!("{ROOT}/{tenant}/{stream}/{generation:0GENERATION_DIGITS$}")
}

/// Letters, digits, `-`, `_` and `.`, but neither `.` nor `..`: such a name means the same in a URL, in a shell and
/// in a path on disk.
pub fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
        && !name.bytes().all(|byte| byte == b'.')
}

fn padded_id(text: &str) -> Option<StreamId> {
    let (ms, seq) = text.split_once('-')?;
    Some(StreamId { ms: padded(ms, MS_DIGITS)?, seq: padded(seq, SEQ_DIGITS)? })
}

/// Only the one spelling that `format!` writes, so that no two keys name the same segment.
fn padded(digits: &str, width: usize) -> Option<u64> {
    let number: u64 = digits.parse().ok()?;
    (format!("{number:0width$}") == digits).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(first: StreamId, codec: Codec) -> SegmentKey {
        SegmentKey::new("acme", "pages", 3, (first, StreamId::new(1_700_000_000_999, 41)), codec).expect("a good key")
    }

    #[test]
    fn keys_are_padded_and_parse_back() {
        let warc = segment(StreamId::new(1_700_000_000_000, 0), Codec::WarcGz);
        let stem = "archive/acme/pages/0000000003/001700000000000-0000000000_001700000000999-0000000041";
        assert_eq!(warc.data(), format!("{stem}.warc.gz"));
        assert_eq!(warc.sidecar(), format!("{stem}.warc.gz.json"));
        assert_eq!(warc.index(), format!("{stem}.cdxj"));
        let lines = segment(StreamId::new(5, 7), Codec::NdjsonZst);
        for (key, part) in [(lines.data(), Part::Data), (lines.sidecar(), Part::Sidecar)] {
            assert_eq!(SegmentKey::parse(&key), Some((lines.clone(), part)));
        }
        for (key, part) in [(warc.data(), Part::Data), (warc.sidecar(), Part::Sidecar), (warc.index(), Part::Index)] {
            assert_eq!(SegmentKey::parse(&key), Some((warc.clone(), part)));
        }
    }

    #[test]
    fn byte_order_is_id_order() {
        let early = segment(StreamId::new(999, 10), Codec::NdjsonZst);
        let later = segment(StreamId::new(1000, 9), Codec::NdjsonZst);
        assert!(early.data() < later.data());
        assert!(generation_prefix("t", "s", 9) < generation_prefix("t", "s", 10));
    }

    #[test]
    fn foreign_keys_are_no_segments() {
        let key = segment(StreamId::new(5, 7), Codec::NdjsonZst).data();
        for other in [
            "archive/acme/pages/0000000003",
            "manifests/a.json",
            &key.replace("archive", "exports"),
            &key.replace("0000000003", "3"),
            &key.replace("ndjson.zst", "ndjson"),
            &format!("{key}/x"),
        ] {
            assert_eq!(SegmentKey::parse(other), None, "{other}");
        }
    }

    #[test]
    fn names_keep_the_shape_of_a_key() {
        let range = (StreamId::MIN, StreamId::MIN);
        for bad in ["", ".", "..", "a/b", "a b", "ü", &"x".repeat(NAME_BYTES_MAX + 1)] {
            assert!(SegmentKey::new(bad, "pages", 0, range, Codec::WarcGz).is_err(), "{bad}");
        }
        assert!(SegmentKey::new("a", "b", 0, (StreamId::new(1, 0), StreamId::MIN), Codec::WarcGz).is_err());
    }
}
