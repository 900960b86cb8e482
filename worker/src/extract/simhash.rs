//! The fingerprint of a page's words: pages that say nearly the same have nearly the same one.
//!
//! SimHash (M. Charikar, "Similarity estimation techniques from rounding algorithms", STOC 2002) of 64 bits, of which near
//! duplicates differ in 3 at most (G. S. Manku, A. Jain, A. Das Sarma, "Detecting near-duplicates for web crawling", WWW 2007).

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::extract::text;

/// Words that are one feature of a page, in their order.
const SHINGLE: usize = 3;
/// A page with fewer words is near to none but those with just the same ones: a word more or less is much of it.
const WORDS_MIN: usize = 32;
/// Words that are read of a page: they bound the time.
const WORDS_MAX: usize = 50_000;
/// The lowest bit of each byte.
const LANES: u64 = 0x0101_0101_0101_0101;

/// The fingerprint of what is read of an HTML page, unless that has no words. A word is a run of letters (Unicode's
/// Alphabetic): the months of a calendar, which differ in their numbers, say the same.
pub fn simhash(html: &str) -> Option<u64> {
    let words = text::visible(html).flat_map(|text| text.split(|c: char| !c.is_alphabetic()));
    let (mut counts, mut shingle, mut seen) = (Counts::default(), [0; SHINGLE], 0);
    // Of the first ones, as they stand.
    let mut exact = 0;
    for word in words.filter(|word| !word.is_empty()).take(WORDS_MAX) {
        shingle.rotate_left(1);
        shingle[SHINGLE - 1] = xxh3_64(word.as_bytes());
        seen += 1;
        if seen < WORDS_MIN {
            exact = xxh3_64_with_seed(&shingle[SHINGLE - 1].to_le_bytes(), exact);
        }
        if seen >= SHINGLE {
            // Rotated, so that their order counts.
            counts.add(shingle.iter().fold(0, |mixed: u64, word| mixed.rotate_left(21) ^ word));
        }
    }
    match seen {
        0 => None,
        WORDS_MIN.. => Some(counts.majority()),
        _ => Some(exact),
    }
}

/// How many of the hashes had each bit set.
struct Counts {
    /// Of the last hashes, a byte a bit: lane k holds the bits k, k + 8, ..
    lanes: [u64; 8],
    pending: u32,
    ones: [u32; 64],
    hashes: u32,
}

impl Default for Counts {
    fn default() -> Self {
        Self { lanes: [0; 8], pending: 0, ones: [0; 64], hashes: 0 }
    }
}

impl Counts {
    fn add(&mut self, hash: u64) {
        for (k, lane) in self.lanes.iter_mut().enumerate() {
            *lane += (hash >> k) & LANES;
        }
        self.hashes += 1;
        self.pending += 1;
        // A byte holds no more.
        if self.pending == u32::from(u8::MAX) {
            self.flush();
        }
    }

    fn flush(&mut self) {
        for (k, lane) in self.lanes.iter_mut().enumerate() {
            for (byte, count) in std::mem::take(lane).to_le_bytes().into_iter().enumerate() {
                self.ones[k + 8 * byte] += u32::from(count);
            }
        }
        self.pending = 0;
    }

    /// Each bit as most of the hashes had it.
    fn majority(mut self) -> u64 {
        self.flush();
        let hashes = self.hashes;
        self.ones.iter().enumerate().filter(|(_, ones)| 2 * **ones > hashes).fold(0, |bits, (bit, _)| bits | 1 << bit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words that nobody has written, always the same ones.
    fn words(seed: u64, count: usize) -> Vec<String> {
        let letters = |mut n: u64| {
            let letter = |_| {
                n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                char::from(b'a' + (n >> 33) as u8 % 26)
            };
            (0..6).map(letter).collect()
        };
        (0..count as u64).map(|n| letters(seed << 32 | n)).collect()
    }

    fn of(words: &[String]) -> u64 {
        simhash(&format!("<html><title>t</title><p>{}</p>", words.join(" "))).unwrap()
    }

    #[test]
    fn the_counts_are_those_of_the_plain_sum() {
        let hashes: Vec<u64> = (0..1000_u64).map(|n| xxh3_64(&n.to_le_bytes())).collect();
        for count in [1, 2, 254, 255, 256, 511, 1000] {
            let (mut counts, mut sums) = (Counts::default(), [0_i64; 64]);
            for hash in &hashes[..count] {
                counts.add(*hash);
                for (bit, sum) in sums.iter_mut().enumerate() {
                    *sum += if hash >> bit & 1 == 1 { 1 } else { -1 };
                }
            }
            let expected = (0..64).filter(|bit| sums[*bit] > 0).fold(0, |bits, bit| bits | 1 << bit);
            assert_eq!(counts.majority(), expected, "{count}");
        }
    }

    #[test]
    fn nearly_the_same_is_near_and_anything_else_is_far() {
        let (mut near, mut far) = (0, u32::MAX);
        for seed in 0..50 {
            let text = words(seed, 500);
            let mut changed = text.clone();
            changed[(seed * 7) as usize] = "another".to_owned();
            near += (of(&text) ^ of(&changed)).count_ones();
            far = far.min((of(&text) ^ of(&words(seed + 1000, 500))).count_ones());
        }
        assert!(f64::from(near) / 50.0 <= 3.0, "{near} bits of 50 pages");
        assert!(far > 10, "{far} bits");
    }

    #[test]
    fn only_the_words_and_their_order_count() {
        let text = words(1, 100);
        let marked: String = text.iter().map(|word| format!("<b class='{word}'>{word}</b> 7 &#183;\n")).collect();
        let marked = format!("<!doctype html><style>p {{}}</style>2026-11 {marked}<script>let x = 1</script>");
        assert_eq!(simhash(&marked), Some(of(&text)));
        let mut turned = text.clone();
        turned.reverse();
        assert_ne!(of(&turned), of(&text));
        let few = |words: &[String]| simhash(&words.join(" 7 ")).unwrap();
        let some = &text[..WORDS_MIN - 1];
        assert_eq!(few(some), few(some));
        for others in [&some[1..], &some[..WORDS_MIN - 2], &text[1..WORDS_MIN]] {
            assert!((few(some) ^ few(others)).count_ones() > 10, "{others:?}");
        }
        assert_eq!(simhash("<p>2026 - 7 <img src=a>"), None);
        assert_eq!(simhash(&format!("<p>{}", "1 2 3 4 ".repeat(100))), None);
        assert_eq!(simhash(""), None);
    }

    #[test]
    fn the_same_in_every_version() {
        assert_eq!(of(&words(3, 200)), 0x689e_3648_6a95_921b);
    }

    #[test]
    fn a_page_without_end_is_read_to_its_bound() {
        let text = "word ".repeat(WORDS_MAX);
        assert_eq!(simhash(&text), simhash(&format!("{text}{}", words(1, 1000).join(" "))));
    }
}
