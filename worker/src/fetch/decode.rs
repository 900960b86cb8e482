//! Undoes the `Content-Encoding` of a response (RFC 9110 8.4), within a bound.

use std::borrow::Cow;
use std::io::{self, Read};

/// What a request says that we can undo.
pub const ACCEPTED: &str = "gzip, deflate, br, zstd";
/// Encodings on top of each other; nobody honest uses more than one.
pub const ENCODINGS_MAX: usize = 3;
/// The largest window that zstd may ask for, as a power of two: 8 MiB, what RFC 9659 allows.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;
/// What is decoded at a time, bytes.
const BUFFER_BYTES: usize = 16 * 1024;
/// What [`head`] shows, and what it decodes of each layer for that, bytes: a block of zstd, of which nothing shows before
/// it is whole, has up to 128 KiB (RFC 8878 3.1.1.2.3).
pub const HEAD_BYTES: usize = 16 * 1024;
const HEAD_LAYER_BYTES: usize = 256 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("the decoded body is larger than {bytes_max} bytes")]
    TooLarge { bytes_max: usize },
    #[error("the content encoding {0:?} is not supported")]
    Unsupported(String),
    #[error("more than {ENCODINGS_MAX} content encodings")]
    TooMany,
    #[error("the body is not sound {encoding}: {source}")]
    Corrupt { encoding: &'static str, source: io::Error },
}

/// `encoding` is the header's value; several are undone from the last to the first. At most
/// `bytes_max` bytes and a buffer are held of each layer, so a bomb costs no more than a page. Of a
/// body that is not whole, what can be decoded is.
pub fn decode<'b>(
    encoding: Option<&str>,
    body: &'b [u8],
    is_whole: bool,
    bytes_max: usize,
) -> Result<Cow<'b, [u8]>, DecodeError> {
    let (body, is_all) = prefix(encoding, body, is_whole, bytes_max)?;
    if is_all { Ok(body) } else { Err(DecodeError::TooLarge { bytes_max }) }
}

/// The same, but of a body that is larger its first `bytes_max` bytes; and whether that is all of it.
pub fn prefix<'b>(
    encoding: Option<&str>,
    body: &'b [u8],
    mut is_whole: bool,
    bytes_max: usize,
) -> Result<(Cow<'b, [u8]>, bool), DecodeError> {
    let mut body = Cow::Borrowed(body);
    let mut is_all = true;
    let codings = match codings(encoding) {
        // "utf-8", "none": as browsers do, unless it is packed in a way that we do not know.
        Err(DecodeError::Unsupported(_)) if is_plain(&body) => Vec::new(),
        codings => codings?,
    };
    for coding in codings.iter().rev() {
        // An answer without a body may still name an encoding: nothing to undo.
        if !body.is_empty() {
            let mut out = Vec::new();
            match coding.undo(&body, &mut out, bytes_max) {
                Err(DecodeError::Corrupt { .. }) if !is_whole => {}
                // What is within it is cut.
                Err(DecodeError::TooLarge { .. }) => (is_all, is_whole) = (false, false),
                undone => undone?,
            }
            body = Cow::Owned(out);
        }
    }
    if body.len() > bytes_max {
        is_all = false;
        match &mut body {
            Cow::Borrowed(body) => *body = &body[..bytes_max],
            Cow::Owned(body) => body.truncate(bytes_max),
        }
    }
    Ok((body, is_all))
}

/// The first bytes of what [`decode`] makes, at most [`HEAD_BYTES`], for little time; of what is not sound, those
/// before the fault.
pub fn head<'b>(encoding: Option<&str>, body: &'b [u8]) -> Cow<'b, [u8]> {
    let mut head = Cow::Borrowed(body);
    for coding in codings(encoding).unwrap_or_default().iter().rev() {
        let mut out = Vec::new();
        // That there is more, or that it breaks off, is no matter here.
        let _ = coding.undo(&head, &mut out, HEAD_LAYER_BYTES);
        head = Cow::Owned(out);
    }
    match head {
        Cow::Borrowed(head) => Cow::Borrowed(&head[..head.len().min(HEAD_BYTES)]),
        Cow::Owned(mut head) => {
            head.truncate(HEAD_BYTES);
            Cow::Owned(head)
        }
    }
}

/// Packed files have bytes among their first that no text has.
fn is_plain(body: &[u8]) -> bool {
    let head = &body[..body.len().min(HEAD_BYTES)];
    !head.iter().any(|byte| byte.is_ascii_control() && !byte.is_ascii_whitespace())
}

fn codings(encoding: Option<&str>) -> Result<Vec<Coding>, DecodeError> {
    let codings = encoding
        .unwrap_or_default()
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty() && !name.eq_ignore_ascii_case("identity"))
        .map(Coding::named)
        .collect::<Result<Vec<Coding>, DecodeError>>()?;
    if codings.len() > ENCODINGS_MAX { Err(DecodeError::TooMany) } else { Ok(codings) }
}

#[derive(Clone, Copy)]
enum Coding {
    Gzip,
    Deflate,
    Brotli,
    Zstd,
}

impl Coding {
    fn named(name: &str) -> Result<Coding, DecodeError> {
        match name.to_ascii_lowercase().as_str() {
            "gzip" | "x-gzip" => Ok(Coding::Gzip),
            "deflate" => Ok(Coding::Deflate),
            "br" => Ok(Coding::Brotli),
            "zstd" => Ok(Coding::Zstd),
            other => Err(DecodeError::Unsupported(other.to_owned())),
        }
    }

    /// Onto `out`, which keeps what came before an error.
    fn undo(self, body: &[u8], out: &mut Vec<u8>, bytes_max: usize) -> Result<(), DecodeError> {
        match self {
            Coding::Gzip => gunzip(body, out, bytes_max),
            // "deflate" means zlib (RFC 9110 8.4.1.2), and some servers send it bare.
            Coding::Deflate if is_zlib(body) => {
                pour("deflate", flate2::bufread::ZlibDecoder::new(body), out, bytes_max)
            }
            Coding::Deflate => pour("deflate", flate2::bufread::DeflateDecoder::new(body), out, bytes_max),
            Coding::Brotli if has_large_window(body) => {
                let source = io::Error::new(io::ErrorKind::InvalidData, "a window larger than brotli's");
                Err(DecodeError::Corrupt { encoding: "br", source })
            }
            Coding::Brotli => pour("br", brotli::Decompressor::new(body, BUFFER_BYTES), out, bytes_max),
            Coding::Zstd => {
                let corrupt = |source| DecodeError::Corrupt { encoding: "zstd", source };
                let mut decoder = zstd::stream::read::Decoder::with_buffer(body).map_err(corrupt)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(corrupt)?;
                pour("zstd", decoder, out, bytes_max)
            }
        }
    }
}

/// A gzip file is one or more members (RFC 1952 2.2). What follows them and is none is ignored,
/// as browsers do: servers pad.
fn gunzip(mut body: &[u8], out: &mut Vec<u8>, bytes_max: usize) -> Result<(), DecodeError> {
    loop {
        let mut member = flate2::bufread::GzDecoder::new(body);
        pour("gzip", &mut member, out, bytes_max)?;
        body = member.into_inner();
        if !body.starts_with(&[0x1f, 0x8b]) {
            return Ok(());
        }
    }
}

/// RFC 1950 2.2: method 8, and a checksum of the first two bytes.
fn is_zlib(body: &[u8]) -> bool {
    matches!(body, [method, flags, ..] if method & 0x0f == 8 && (u16::from(*method) << 8 | u16::from(*flags)) % 31 == 0)
}

/// RFC 7932 9.1: these seven bits are no window size. The decoder takes them for that of "large window brotli", allocates up
/// to 1 GiB for it, and shows nothing before that is full.
fn has_large_window(body: &[u8]) -> bool {
    body.first().is_some_and(|first| first & 0x7f == 0b001_0001)
}

/// Reads all of `from` onto `out`, and stops with an error at the first byte too many.
fn pour(encoding: &'static str, mut from: impl Read, out: &mut Vec<u8>, bytes_max: usize) -> Result<(), DecodeError> {
    let mut buffer = [0; BUFFER_BYTES];
    loop {
        let bytes = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(DecodeError::Corrupt { encoding, source }),
        };
        let kept = bytes.min(bytes_max.saturating_sub(out.len()));
        if out.capacity() - out.len() < kept {
            // Doubling, but never past the bound, which a plain Vec would pass by up to twice.
            out.reserve_exact(out.len().max(kept).min(bytes_max - out.len()));
        }
        out.extend_from_slice(&buffer[..kept]);
        if kept < bytes {
            return Err(DecodeError::TooLarge { bytes_max });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};

    use super::*;

    const PAGE: &[u8] = b"<p>one page, one page, one page</p>";

    fn gzip(body: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(body).unwrap();
        encoder.finish().unwrap()
    }

    fn zlib(body: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(body).unwrap();
        encoder.finish().unwrap()
    }

    fn raw(body: &[u8]) -> Vec<u8> {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(body).unwrap();
        encoder.finish().unwrap()
    }

    fn brotli(body: &[u8]) -> Vec<u8> {
        let mut encoder = brotli::CompressorWriter::new(Vec::new(), 4096, 5, 22);
        encoder.write_all(body).unwrap();
        encoder.into_inner()
    }

    fn zstd(body: &[u8]) -> Vec<u8> {
        zstd::encode_all(body, 3).unwrap()
    }

    #[test]
    fn each_encoding_is_undone() {
        for (name, body) in [
            ("gzip", gzip(PAGE)),
            ("X-GZIP", gzip(PAGE)),
            ("deflate", zlib(PAGE)),
            ("deflate", raw(PAGE)),
            ("br", brotli(PAGE)),
            ("zstd", zstd(PAGE)),
            ("gzip, identity, br", brotli(&gzip(PAGE))),
            ("gzip,br,zstd", zstd(&brotli(&gzip(PAGE)))),
        ] {
            assert_eq!(decode(Some(name), &body, true, 100).expect(name), PAGE, "{name}");
        }
    }

    #[test]
    fn identity_is_not_copied() {
        for encoding in [None, Some(""), Some("identity")] {
            assert!(matches!(decode(encoding, PAGE, true, 100).unwrap(), Cow::Borrowed(_)));
        }
        assert_eq!(decode(Some("gzip"), b"", true, 100).unwrap(), b"".as_slice());
    }

    #[test]
    fn gzip_members_are_joined_and_padding_is_ignored() {
        let mut body = gzip(b"one ");
        body.extend(gzip(b"two"));
        body.extend(b"\0\0\0");
        assert_eq!(decode(Some("gzip"), &body, true, 100).unwrap(), b"one two".as_slice());
    }

    #[test]
    fn a_bomb_stops_at_the_bound() {
        let zeros = vec![0; 20_000_000];
        for (name, body) in [
            ("gzip", gzip(&zeros)),
            ("deflate", zlib(&zeros)),
            ("br", brotli(&zeros)),
            ("zstd", zstd(&zeros)),
            ("", zeros.clone()),
        ] {
            let error = decode(Some(name), &body, true, 1_000_000).unwrap_err();
            assert_eq!(error.to_string(), "the decoded body is larger than 1000000 bytes", "{name}");
        }
        // A window of 1 GiB.
        let error = decode(Some("br"), b"\x11\x1e\xff\xff\xff\x01", true, 1000).unwrap_err();
        assert!(matches!(error, DecodeError::Corrupt { encoding: "br", .. }), "{error}");
        // The inner layer of two is bounded as well.
        let error = decode(Some("gzip, gzip"), &gzip(&gzip(&zeros)), true, 1000).unwrap_err();
        assert!(matches!(error, DecodeError::TooLarge { .. }));
    }

    #[test]
    fn a_prefix_is_as_long_as_the_bound() {
        let text: Vec<u8> = (0..5000_u32).flat_map(|n| format!("Disallow: /{n}\n").into_bytes()).collect();
        for (name, body) in
            [("", text.clone()), ("gzip", gzip(&text)), ("br", brotli(&text)), ("gzip, zstd", zstd(&gzip(&text)))]
        {
            assert_eq!(prefix(Some(name), &body, true, 1000).expect(name), (text[..1000].into(), false), "{name}");
            assert_eq!(prefix(Some(name), &body, true, text.len()).expect(name), ((&text[..]).into(), true), "{name}");
        }
        // The outer layer holds more than the bound as well.
        let noise: Vec<u8> = (0..4000_u64).flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect();
        let packed = gzip(&gzip(&noise));
        let (start, is_all) = prefix(Some("gzip, gzip"), &packed, true, 1000).unwrap();
        assert!(!is_all && !start.is_empty() && noise.starts_with(&start));
    }

    #[test]
    fn a_head_is_the_beginning_of_what_is_decoded() {
        let body: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
        for (name, packed) in [
            ("", body.clone()),
            ("gzip", gzip(&body)),
            ("deflate", zlib(&body)),
            ("br", brotli(&body)),
            ("zstd", zstd(&body)),
            ("zstd, gzip", gzip(&zstd(&body))),
        ] {
            let whole = head(Some(name), &packed);
            assert!(!whole.is_empty() && whole.len() <= HEAD_BYTES && body.starts_with(&whole), "{name}");
            let cut = head(Some(name), &packed[..packed.len() / 2]);
            assert!(!cut.is_empty() && body.starts_with(&cut), "{name}");
        }
        assert_eq!(head(Some("gzip"), &gzip(PAGE)), PAGE);
        assert!(head(Some("gzip"), PAGE).is_empty());
        assert_eq!(head(Some("utf-8"), PAGE), PAGE, "an encoding that nobody knows is none");
    }

    #[test]
    fn what_is_broken_is_an_error() {
        for (name, body) in [("gzip", gzip(PAGE)), ("deflate", zlib(PAGE)), ("br", brotli(PAGE)), ("zstd", zstd(PAGE))]
        {
            let cut = &body[..body.len() - 6];
            assert!(matches!(decode(Some(name), cut, true, 1000), Err(DecodeError::Corrupt { .. })), "{name}");
            assert!(
                matches!(decode(Some(name), b"\xff\xfe plain text", true, 1000), Err(DecodeError::Corrupt { .. })),
                "{name}"
            );
        }
        assert_eq!(decode(Some("utf-8"), PAGE, true, 1000).unwrap(), PAGE, "it is none, and nothing is packed");
        assert_eq!(
            decode(Some("compress"), b"\x1f\x9d\x90a page", true, 9).unwrap_err().to_string(),
            "the content encoding \"compress\" is not supported"
        );
        assert!(matches!(decode(Some("gzip,gzip,gzip,gzip"), PAGE, true, 9), Err(DecodeError::TooMany)));
    }

    #[test]
    fn of_a_body_that_is_cut_what_came_is_decoded() {
        // Incompressible, so that half of the bytes hold half of the text.
        let text: Vec<u8> =
            (0..200_000_u64).flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect();
        for (name, body) in
            [("gzip", gzip(&text)), ("deflate", zlib(&text)), ("br", brotli(&text)), ("zstd", zstd(&text))]
        {
            let decoded = decode(Some(name), &body[..body.len() / 2], false, 10_000_000).expect(name);
            assert!(decoded.len() > text.len() / 3 && text.starts_with(&decoded), "{name}: {}", decoded.len());
            let error = decode(Some(name), &body[..body.len() / 2], false, 1000).unwrap_err();
            assert!(matches!(error, DecodeError::TooLarge { .. }), "{name}: the bound holds");
        }
    }

    #[test]
    fn what_is_asked_for_can_be_undone() {
        for name in ACCEPTED.split(", ") {
            assert!(Coding::named(name).is_ok(), "{name}");
        }
    }
}
