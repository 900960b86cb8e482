//! Bodies as they are transferred: undone within a bound, whatever they are; and what we pack ourselves comes back.

use std::io::Write;

use dodo_worker::fetch::decode::{DecodeError, HEAD_BYTES, decode, head};
use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use rand::Rng;

use crate::mangle::pick;
use crate::run::{Draw, Target, run};

const SEEDS: &[&[u8]] = &[
    b"",
    b"<p>one page, one page, one page</p>",
    b"hello hello hello hello",
    b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00",
    b"\x28\xb5\x2f\xfd\x04\x58\x01\x00\x00\x99\xe9\xd8\x51",
    b"\x78\x9c\x03\x00\x00\x00\x00\x01",
];
const WORDS: &[&str] =
    &["\x1f", "\x08", "\0\0\0\0", "x", "(", "\x1f\x08", "hello hello", "\x7f\x7f\x7f", "\x01", "\x03\0"];
/// What a server may call an encoding.
#[rustfmt::skip]
const NAMES: [&str; 16] = [
    "gzip", "x-gzip", "deflate", "br", "zstd", "identity", "", "GZIP", " gzip , br", "zstd,zstd", "gzip,deflate,br",
    "gzip,gzip,gzip,gzip", "utf-8", "compress", ",,", "gzip;q=1",
];

#[test]
fn body_stays_within_its_bound() {
    run(Target { name: "body_stays_within_its_bound", seeds: SEEDS, words: WORDS, cases: 1000, check });
}

fn check(input: &[u8], mut draw: Draw) {
    for name in NAMES {
        bounded(name, input, &mut draw);
    }
    for name in [None, Some(""), Some("identity")] {
        let same = decode(name, input, true, input.len()).expect("there is nothing to undo");
        assert_eq!(same, input);
    }
    // Packed once or twice it comes back; and where the end is missing, the beginning.
    let names: Vec<&str> = (0..draw.random_range(1..=2)).map(|_| pick(&mut draw, &NAMES[..5])).collect();
    let mut packed = names.iter().fold(input.to_vec(), |body, name| pack(name, &body));
    let name = names.join(", ");
    let whole = decode(Some(&name), &packed, true, input.len().max(1 << 18)).expect("it is sound");
    assert_eq!(whole, input, "{name}");
    let cut = draw.random_range(0..=packed.len());
    let begin = decode(Some(&name), &packed[..cut], false, 1 << 18).expect("of what is cut, what came is taken");
    assert!(input.starts_with(&begin), "{name} cut at {cut}");
    // The packing itself, mangled.
    for _ in 0..draw.random_range(1..4) {
        let at = draw.random_range(0..packed.len());
        packed[at] ^= 1 << draw.random_range(0..8);
    }
    bounded(&name, &packed, &mut draw);
}

fn bounded(name: &str, body: &[u8], draw: &mut Draw) {
    let bytes_max = [0, 1, 22, 23, 1000, 20_000, 1 << 20][draw.random_range(0..7)];
    let start = head(Some(name), body);
    assert!(start.len() <= HEAD_BYTES);
    for is_whole in [true, false] {
        match decode(Some(name), body, is_whole, bytes_max) {
            Ok(whole) => {
                assert!(whole.len() <= bytes_max, "{} bytes of {name}, more than {bytes_max}", whole.len());
                // Of several layers what is looked at of each may show less.
                let same = start.len() == whole.len().min(HEAD_BYTES) || name.contains(',');
                assert!(same && whole.starts_with(&start), "{name}: another head");
            }
            Err(DecodeError::Corrupt { .. }) => assert!(is_whole, "what came of {name} counts"),
            Err(DecodeError::TooLarge { bytes_max: bound }) => assert_eq!(bound, bytes_max),
            Err(DecodeError::Unsupported(_) | DecodeError::TooMany) => {}
        }
    }
}

fn pack(name: &str, body: &[u8]) -> Vec<u8> {
    let level = Compression::fast();
    let done = "a buffer takes all";
    match name {
        "deflate" if body.len().is_multiple_of(2) => {
            let mut packer = DeflateEncoder::new(Vec::new(), level);
            packer.write_all(body).expect(done);
            packer.finish().expect(done)
        }
        "deflate" => {
            let mut packer = ZlibEncoder::new(Vec::new(), level);
            packer.write_all(body).expect(done);
            packer.finish().expect(done)
        }
        "br" => {
            let mut packer = brotli::CompressorWriter::new(Vec::new(), 4096, 1, 20);
            packer.write_all(body).expect(done);
            packer.into_inner()
        }
        "zstd" => zstd::encode_all(body, 1).expect(done),
        _ => {
            let mut packer = GzEncoder::new(Vec::new(), level);
            packer.write_all(body).expect(done);
            packer.finish().expect(done)
        }
    }
}
