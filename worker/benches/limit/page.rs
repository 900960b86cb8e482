//! What is done with a page, each step as cheap as it can be and still right for the generated site.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt::Write as _;

use foldhash::fast::RandomState;
use isal::{Codec, CompressionLevel};
use memchr::{memchr, memmem};
use sha1::{Digest as _, Sha1};
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_128;

const HREF: &[u8] = b"href=\"";
/// That of Dodo's own records.
const GZIP_LEVEL: CompressionLevel = CompressionLevel::One;

/// The URLs that were ever found, by their hashes.
pub type Seen = HashSet<Uuid, RandomState>;

pub fn hash(url: &str) -> Uuid {
    Uuid::from_u128(xxh3_128(url.as_bytes()))
}

/// What the page's links say, as it is written.
pub fn references(body: &[u8]) -> impl Iterator<Item = &[u8]> {
    memmem::find_iter(body, HREF).filter_map(|at| {
        let rest = &body[at + HREF.len()..];
        Some(&rest[..memchr(b'"', rest)?])
    })
}

/// Full URLs, each with its hash. Absolute paths in canonical form are all that the site has: another link is left out,
/// and the count at the end shows it.
pub fn links(body: &[u8], origin: &str) -> Vec<(Uuid, String)> {
    let paths =
        references(body).filter_map(|reference| str::from_utf8(reference).ok()).filter(|to| to.starts_with('/'));
    let urls = paths.map(|path| [origin, path].concat());
    urls.map(|url| (hash(&url), url)).collect()
}

/// In hexadecimal digits.
pub fn digest(body: &[u8]) -> String {
    format!("{:x}", Sha1::digest(body))
}

/// The WARC record as one gzip member. `http_head` is the status line and the headers.
pub fn member(url: &str, http_head: &str, body: &[u8], digest: &str) -> Vec<u8> {
    thread_local! {
        static SCRATCH: RefCell<(Vec<u8>, String)> = RefCell::default();
    }
    SCRATCH.with_borrow_mut(|(plain, head)| {
        head.clear();
        write!(
            head,
            "WARC/1.1\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:{}>\r\nWARC-Target-URI: {url}\r\n\
             WARC-Payload-Digest: sha1:{digest}\r\nContent-Type: application/http;msgtype=response\r\n\
             Content-Length: {}\r\n\r\n{http_head}",
            Uuid::now_v7(),
            http_head.len() + body.len(),
        )
        .expect("a String takes every write");
        plain.clear();
        plain.extend_from_slice(head.as_bytes());
        plain.extend_from_slice(body);
        plain.extend_from_slice(b"\r\n\r\n");
        let mut packed = vec![0; plain.len() + 1024];
        let length =
            isal::compress_into(plain, &mut packed, GZIP_LEVEL, Codec::Gzip).expect("there is room for all of it");
        packed.truncate(length);
        packed
    })
}
