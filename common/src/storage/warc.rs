//! WARC 1.1 records, each as one gzip member (ISO 28500:2017, annex D: a record may be read by itself).
//!
//! Nothing here reads a clock, and no gzip header carries a time. What is encoded once, a page, is encoded fast, and may come
//! out differently on a processor of another kind; what a successor may have to write again, the record that opens a file,
//! comes out of the same input as the same bytes everywhere.

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::net::IpAddr;

use chrono::{DateTime, SecondsFormat, Utc};
use data_encoding::BASE32;
use flate2::Compression;
use flate2::write::GzEncoder;
use isal::write::Encoder;
use isal::{Codec, CompressionLevel};
use sha1::{Digest as _, Sha1};
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_128;

/// A page is compressed on the worker's way from fetch to commit: ISA-L takes about half of the time that the fastest level of
/// libdeflate takes for as many bytes (55 and 102 us for a page of 20 KB), and costs little more space than zlib's default.
const GZIP_LEVEL: CompressionLevel = CompressionLevel::One;
/// What is packed at a time, bytes: the encoder keeps room for what comes of it.
const PACKED_AT_ONCE: usize = 64 << 10;
/// What a thread keeps allocated between two members; a larger one gives its memory back.
const MEMBER_BYTES_KEPT: usize = 1 << 20;

/// What wrote the file. It counts the layout of our records, not releases, so that a successor of another release
/// writes the same bytes.
const SOFTWARE: &str = "dodo-archive/1";
const CONFORMS_TO: &str = "http://iipc.github.io/warc-specifications/specifications/warc-format/warc-1.1/";

/// One fetched page.
#[derive(Clone, Copy, Debug)]
pub struct Response<'a> {
    pub record_id: Uuid,
    /// As it was asked for.
    pub url: &'a str,
    /// When the fetch began, in milliseconds since the Unix epoch.
    pub date_ms: i64,
    /// Status line and headers up to and with the empty line. They must describe `body` as it is given here: of a
    /// body that was unchunked or decoded, the transfer or content encoding belongs under another name.
    pub http_head: &'a [u8],
    pub body: &'a [u8],
    /// Why the body ends early: `length`, `time` or `disconnect` (WARC 1.1, 5.13).
    pub truncated: Option<&'static str>,
    /// The address that answered.
    pub ip: Option<IpAddr>,
}

/// A page that is as it was when another record was made of it (WARC 1.1, 6.7): what came of the visit is its head.
#[derive(Clone, Copy, Debug)]
pub struct Visit<'a> {
    pub record_id: Uuid,
    pub url: &'a str,
    pub date_ms: i64,
    pub http_head: &'a [u8],
    pub ip: Option<IpAddr>,
    pub profile: Profile,
    /// The record that holds the body: a response of the same URL.
    pub original_id: Uuid,
    pub original_date_ms: i64,
    pub original_digest: &'a str,
}

/// How one knows that a page is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// The body came, with the same digest (6.7.2). It is left out, which the record must say.
    IdenticalPayloadDigest,
    /// The server said so (6.7.3).
    ServerNotModified,
}

impl Profile {
    fn uri(self) -> &'static str {
        match self {
            Profile::IdenticalPayloadDigest => "http://netpreserve.org/warc/1.1/revisit/identical-payload-digest",
            Profile::ServerNotModified => "http://netpreserve.org/warc/1.1/revisit/server-not-modified",
        }
    }
}

/// What an index says of a revisit record instead of the type of its page, as cdxj-indexer does.
pub const REVISIT_MIME: &str = "warc/revisit";

/// An encoded record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// One whole gzip member.
    pub bytes: Vec<u8>,
    /// `sha1:` and base32, of the body alone: equal for equal pages, and what an index is searched by.
    pub payload_digest: String,
}

/// The record of a fetched page.
pub fn response_member(response: &Response<'_>) -> Member {
    let payload_digest = payload_digest(response.body);
    let mut head = record_head("response", response.record_id, response.date_ms);
    field(&mut head, "WARC-Target-URI", &uri_text(response.url));
    if let Some(ip) = response.ip {
        field(&mut head, "WARC-IP-Address", &ip.to_string());
    }
    if let Some(reason) = response.truncated {
        field(&mut head, "WARC-Truncated", reason);
    }
    // No digest of the whole block: it is the payload's all over again, but for a head that gzip's checksum covers.
    field(&mut head, "WARC-Payload-Digest", &payload_digest);
    field(&mut head, "Content-Type", "application/http;msgtype=response");
    Member { bytes: gzip_record(head, [response.http_head, response.body]), payload_digest }
}

/// The record of a page that is as it was. Its payload is that of the original, and so is its payload digest.
pub fn revisit_member(visit: &Visit<'_>) -> Member {
    let mut head = record_head("revisit", visit.record_id, visit.date_ms);
    let url = uri_text(visit.url);
    field(&mut head, "WARC-Target-URI", &url);
    if let Some(ip) = visit.ip {
        field(&mut head, "WARC-IP-Address", &ip.to_string());
    }
    field(&mut head, "WARC-Profile", visit.profile.uri());
    field(&mut head, "WARC-Refers-To", &format!("<urn:uuid:{}>", visit.original_id));
    field(&mut head, "WARC-Refers-To-Target-URI", &url);
    field(&mut head, "WARC-Refers-To-Date", &date_text(visit.original_date_ms));
    if visit.profile == Profile::IdenticalPayloadDigest {
        field(&mut head, "WARC-Truncated", "length");
    }
    field(&mut head, "WARC-Block-Digest", &labelled(Sha1::new().chain_update(visit.http_head)));
    field(&mut head, "WARC-Payload-Digest", visit.original_digest);
    field(&mut head, "Content-Type", "application/http;msgtype=response");
    Member { bytes: gzip_record(head, [visit.http_head, &[]]), payload_digest: visit.original_digest.to_owned() }
}

/// What [`response_member`] gives as the digest of this body.
pub fn payload_digest(body: &[u8]) -> String {
    labelled(Sha1::new().chain_update(body))
}

/// The record that opens a file. Its id follows from the object's key, and `date_ms` should be that of the first
/// entry's id: who repeats the upload repeats these bytes.
pub fn warcinfo_member(key: &str, date_ms: i64) -> Vec<u8> {
    let block = format!("software: {SOFTWARE}\r\nformat: WARC File Format 1.1\r\nconformsTo: {CONFORMS_TO}\r\n");
    let record_id = uuid::Builder::from_custom_bytes(xxh3_128(key.as_bytes()).to_be_bytes()).into_uuid();
    let mut head = record_head("warcinfo", record_id, date_ms);
    field(&mut head, "WARC-Filename", &uri_text(key.rsplit('/').next().unwrap_or(key)));
    field(&mut head, "WARC-Block-Digest", &labelled(Sha1::new().chain_update(&block)));
    field(&mut head, "Content-Type", "application/warc-fields");
    gzip_anywhere(head, [block.as_bytes(), &[]])
}

/// A URI as one word on one line: what could end a header line or a CDXJ field is percent-encoded.
pub(super) fn uri_text(uri: &str) -> Cow<'_, str> {
    let breaks = |c: char| c.is_control() || c.is_whitespace();
    if !uri.contains(breaks) {
        return Cow::Borrowed(uri);
    }
    let mut text = String::with_capacity(uri.len() + 8);
    let mut utf8 = [0; 4];
    for c in uri.chars() {
        if breaks(c) {
            for byte in c.encode_utf8(&mut utf8).bytes() {
                push(&mut text, format_args!("%{byte:02X}"));
            }
        } else {
            text.push(c);
        }
    }
    Cow::Owned(text)
}

/// A moment in UTC. What lies outside the calendar's range, which no clock shows, becomes the epoch.
pub(super) fn utc(date_ms: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(date_ms).unwrap_or(DateTime::UNIX_EPOCH)
}

fn record_head(kind: &str, record_id: Uuid, date_ms: i64) -> String {
    let mut head = String::with_capacity(640);
    head.push_str("WARC/1.1\r\n");
    field(&mut head, "WARC-Type", kind);
    field(&mut head, "WARC-Record-ID", &format!("<urn:uuid:{record_id}>"));
    field(&mut head, "WARC-Date", &date_text(date_ms));
    head
}

/// Fractions of a second are what 1.1 allows beyond 1.0 (5.4).
fn date_text(date_ms: i64) -> String {
    utc(date_ms).to_rfc3339_opts(SecondsFormat::Millis, true)
}

fn field(head: &mut String, name: &str, value: &str) {
    push(head, format_args!("{name}: {value}\r\n"));
}

fn push(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).expect("a String takes every write");
}

fn labelled(hash: Sha1) -> String {
    format!("sha1:{}", BASE32.encode(&hash.finalize()))
}

thread_local! {
    // Made once: it has tables of 350 KB, and to set them up takes a sixth of the time in which a page is packed.
    static PACKER: RefCell<Encoder<Vec<u8>>> = RefCell::new(Encoder::new(Vec::new(), GZIP_LEVEL, Codec::Gzip));
}

fn gzip_record(head: String, block: [&[u8]; 2]) -> Vec<u8> {
    PACKER.with_borrow_mut(|packer| {
        // Its flush ends the member, and the next one begins as with a new encoder.
        record(packer, head, block).and_then(|()| packer.flush()).expect("a Vec takes every write");
        let packed = packer.get_ref_mut();
        let member = packed.clone();
        packed.clear();
        packed.shrink_to(MEMBER_BYTES_KEPT);
        member
    })
}

/// The same input gives the same bytes on every machine.
fn gzip_anywhere(head: String, block: [&[u8]; 2]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    record(&mut encoder, head, block).and_then(|()| encoder.finish()).expect("a Vec takes every write")
}

fn record(to: &mut impl Write, mut head: String, [start, rest]: [&[u8]; 2]) -> io::Result<()> {
    field(&mut head, "Content-Length", &(start.len() + rest.len()).to_string());
    head.push_str("\r\n");
    // Together with the start, the head of an answer: of a stream that begins with 288 bytes or fewer ISA-L finds hardly any
    // repetition (a hash mask for a window of no bytes, igzip.c).
    let mut head = head.into_bytes();
    head.extend_from_slice(start);
    for part in [head.as_slice(), rest].into_iter().flat_map(|part| part.chunks(PACKED_AT_ONCE)) {
        to.write_all(part)?;
    }
    to.write_all(b"\r\n\r\n")
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn unpack(member: &[u8]) -> String {
        String::from_utf8(unpack_bytes(member)).expect("text")
    }

    fn unpack_bytes(member: &[u8]) -> Vec<u8> {
        let (mut plain, mut decoder) = (Vec::new(), flate2::bufread::GzDecoder::new(member));
        decoder.read_to_end(&mut plain).expect("a gzip member");
        assert!(decoder.into_inner().is_empty(), "one member, and nothing behind it");
        plain
    }

    fn page() -> Response<'static> {
        Response {
            record_id: Uuid::from_u128(0x0192_3f1c),
            url: "http://example.com/a",
            date_ms: 1_700_000_000_123,
            http_head: b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n",
            body: b"<p>hi</p>",
            truncated: Some("length"),
            ip: Some(IpAddr::from([192, 0, 2, 1])),
        }
    }

    #[test]
    fn a_response_is_one_record_with_the_digest_of_its_payload() {
        let member = response_member(&page());
        assert_eq!(member.payload_digest, "sha1:W3N4WQRZLF5DWDHQ4HCTGEQSOELIOZM2");
        assert_eq!(
            unpack(&member.bytes),
            "WARC/1.1\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-000001923f1c>\r\n\
             WARC-Date: 2023-11-14T22:13:20.123Z\r\nWARC-Target-URI: http://example.com/a\r\n\
             WARC-IP-Address: 192.0.2.1\r\nWARC-Truncated: length\r\n\
             WARC-Payload-Digest: sha1:W3N4WQRZLF5DWDHQ4HCTGEQSOELIOZM2\r\n\
             Content-Type: application/http;msgtype=response\r\nContent-Length: 53\r\n\r\n\
             HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<p>hi</p>\r\n\r\n"
        );
        assert_eq!(member, response_member(&page()));
    }

    #[test]
    fn a_revisit_refers_to_the_record_that_has_the_body() {
        let original = response_member(&page());
        let visit = Visit {
            record_id: Uuid::from_u128(0x0192_4000),
            url: "http://example.com/a",
            date_ms: 1_700_000_600_000,
            http_head: b"HTTP/1.1 304 Not Modified\r\nEtag: \"1\"\r\n\r\n",
            ip: None,
            profile: Profile::ServerNotModified,
            original_id: page().record_id,
            original_date_ms: page().date_ms,
            original_digest: &original.payload_digest,
        };
        let member = revisit_member(&visit);
        assert_eq!(member.payload_digest, payload_digest(page().body));
        assert_eq!(
            unpack(&member.bytes),
            "WARC/1.1\r\nWARC-Type: revisit\r\nWARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-000001924000>\r\n\
             WARC-Date: 2023-11-14T22:23:20.000Z\r\nWARC-Target-URI: http://example.com/a\r\n\
             WARC-Profile: http://netpreserve.org/warc/1.1/revisit/server-not-modified\r\n\
             WARC-Refers-To: <urn:uuid:00000000-0000-0000-0000-000001923f1c>\r\n\
             WARC-Refers-To-Target-URI: http://example.com/a\r\nWARC-Refers-To-Date: 2023-11-14T22:13:20.123Z\r\n\
             WARC-Block-Digest: sha1:FPA3GBVLAFA5YWL44TKDVGFK3ZXKVTQF\r\n\
             WARC-Payload-Digest: sha1:W3N4WQRZLF5DWDHQ4HCTGEQSOELIOZM2\r\n\
             Content-Type: application/http;msgtype=response\r\nContent-Length: 40\r\n\r\n\
             HTTP/1.1 304 Not Modified\r\nEtag: \"1\"\r\n\r\n\r\n\r\n"
        );
        let identical = revisit_member(&Visit { profile: Profile::IdenticalPayloadDigest, ..visit });
        let text = unpack(&identical.bytes);
        assert!(text.contains("/revisit/identical-payload-digest\r\n"), "{text}");
        assert!(text.contains("WARC-Truncated: length\r\n"), "what is left out must be said: {text}");
    }

    #[test]
    fn a_url_cannot_add_a_header() {
        let url = "http://example.com/\r\nWARC-Type: x";
        let text = unpack(&response_member(&Response { url, ..page() }).bytes);
        assert!(text.contains("WARC-Target-URI: http://example.com/%0D%0AWARC-Type:%20x\r\n"), "{text}");
    }

    #[test]
    fn warcinfo_follows_from_the_key_alone() {
        let member = warcinfo_member("archive/t/pages/0000000001/a.warc.gz", 0);
        assert_eq!(member, warcinfo_member("archive/t/pages/0000000001/a.warc.gz", 0));
        assert_ne!(member, warcinfo_member("archive/t/pages/0000000002/a.warc.gz", 0));
        let text = unpack(&member);
        assert!(text.contains("WARC-Date: 1970-01-01T00:00:00.000Z\r\nWARC-Filename: a.warc.gz\r\n"), "{text}");
        assert!(text.contains("software: dodo-archive/1\r\nformat: WARC File Format 1.1\r\n"), "{text}");
    }

    /// Bytes that cannot be packed.
    fn noise(length: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let byte = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        (0..length).map(byte).collect()
    }

    #[test]
    fn every_body_comes_back() {
        // What cannot be packed takes the most room, and what repeats itself the least.
        for length in [0, 1, 2, 3, 100, 1000, 32_767, 32_768, 65_535, 65_536, 200_000, 1 << 20] {
            for body in [noise(length), vec![b'a'; length], b"<p>a link</p>".repeat(length / 13)] {
                let member = response_member(&Response { body: &body, ..page() });
                // As if it were the thread's first.
                let first = std::thread::scope(|scope| {
                    scope.spawn(|| response_member(&Response { body: &body, ..page() })).join().expect("a member")
                });
                assert!(member == first, "{length}");
                let plain = unpack_bytes(&member.bytes);
                let block = plain.strip_suffix(b"\r\n\r\n").expect("the end of a record");
                assert!(block.ends_with(&body), "{length}");
            }
        }
    }

    #[test]
    fn a_small_page_is_packed_well() {
        let body = b"<p>a link</p>".repeat(300);
        for url in ["http://a.b/", "http://example.com/a/page/with/a/longer/name.html"] {
            let response = Response { url, body: &body, ip: None, truncated: None, ..page() };
            let packed = response_member(&response).bytes.len();
            assert!(packed < 600, "{url}: {packed}");
        }
    }

    #[test]
    fn a_large_body_does_not_stay_allocated() {
        let body = noise(4 * MEMBER_BYTES_KEPT);
        response_member(&Response { body: &body, ..page() });
        PACKER.with_borrow(|packer| assert!(packer.get_ref().capacity() <= MEMBER_BYTES_KEPT));
    }
}
