//! Inputs: an example, changed here and there.

use std::ops::Range;

use rand::Rng;
use rand::seq::IndexedRandom;

/// Long enough for a time that grows with the square of the length to be felt.
const BYTES_MAX: usize = 128 << 10;
/// What is usual: most changes are small ones, and most inputs stay short.
const PIECE_BITS_MAX: u32 = 7;
const CHANGES_BITS_MAX: u32 = 5;
/// Bytes at which parsers part ways: NUL, white space, quotes, half characters of UTF-8, byte order marks.
#[rustfmt::skip]
const ODD: [&[u8]; 20] = [
    b"\0", b"\n", b"\r", b"\r\n", b"\t", b" ", b"\"", b"'", b"<", b"&", b"\x7f", b"\x80", b"\xc0\xaf", b"\xc3",
    b"\xe2\x80\xa8", b"\xed\xa0\x80", b"\xf0\x9f", b"\xef\xbb\xbf", b"\xff\xfe", b"\xff",
];

/// One of `seeds`, changed up to 32 times.
pub fn mangle(draw: &mut impl Rng, seeds: &[&[u8]], words: &[&str]) -> Vec<u8> {
    let mut input = pick(draw, seeds).to_vec();
    for _ in 0..below_power(draw, CHANGES_BITS_MAX) {
        change(draw, &mut input, seeds, words);
        input.truncate(BYTES_MAX);
    }
    input
}

/// One of `all`, which are not none.
pub fn pick<'a, T: ?Sized>(draw: &mut impl Rng, all: &[&'a T]) -> &'a T {
    all.choose(draw).expect("there is one to choose")
}

fn change(draw: &mut impl Rng, input: &mut Vec<u8>, seeds: &[&[u8]], words: &[&str]) {
    let place = piece(draw, input.len());
    let at = place.start..place.start;
    match draw.random_range(0..20) {
        0..=1 => drop(input.drain(place)),
        2..=5 => replace(input, at, pick(draw, words).as_bytes()),
        6..=8 => replace(input, place, pick(draw, words).as_bytes()),
        9..=10 => replace(input, at, pick(draw, &ODD)),
        11 => replace(input, place, pick(draw, &ODD)),
        12 => input[place].iter_mut().take(1).for_each(|byte| *byte = draw.random()),
        13..=14 => {
            let copy = input[place].to_vec();
            let at = piece(draw, input.len()).start;
            replace(input, at..at, &copy);
        }
        15..=16 => {
            let other = pick(draw, seeds);
            let place = piece(draw, other.len());
            replace(input, at, &other[place]);
        }
        17 => input.truncate(place.start),
        18 => input[place].iter_mut().for_each(|byte| *byte ^= 0x20),
        _ => {
            let times = below_power(draw, BYTES_MAX.ilog2()).min(BYTES_MAX / place.len().max(1));
            let many = input[place].repeat(times);
            replace(input, at, &many);
        }
    }
}

fn replace(input: &mut Vec<u8>, place: Range<usize>, with: &[u8]) {
    input.splice(place, with.iter().copied());
}

/// A part of so many bytes, short as a rule.
fn piece(draw: &mut impl Rng, len: usize) -> Range<usize> {
    let start = draw.random_range(0..=len);
    start..len.min(start + below_power(draw, PIECE_BITS_MAX))
}

/// At least 1 and less than a power of 2, each order of magnitude as often as the others.
fn below_power(draw: &mut impl Rng, bits: u32) -> usize {
    let bits = draw.random_range(0..bits);
    draw.random_range(1 << bits..2 << bits)
}
