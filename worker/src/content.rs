//! What this worker has seen of the content of pages, by crawl and host: whether a page says anything new.
//!
//! A memory, not the truth: each worker has its own, it forgets the oldest, and a restart forgets all. So a page may count as new
//! once for each of them. No page is dropped for what it says.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use dodo_common::db::tally::Novelty;
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_128;

/// Fingerprints that differ in so many bits are those of near duplicates.
const NEAR_BITS_MAX: u32 = 3;
/// New pages of one half, and bytes of their URLs; the older half is dropped when the younger is full. About 50 MB for both.
const HALF_PAGES_MAX: usize = 100_000;
const HALF_BYTES_MAX: usize = 12 << 20;
/// Fingerprints of one host that a page is compared with in each half, the latest ones: some twenty microseconds.
const COMPARED_MAX: usize = 4096;

/// A page that was fetched.
#[derive(Clone, Copy, Debug)]
pub struct Page<'p> {
    pub dispatch: Uuid,
    pub host: &'p str,
    pub url: &'p str,
    /// Of its body.
    pub digest: &'p str,
    /// Of its words, where it has one.
    pub print: Option<u64>,
}

#[derive(Debug, Default)]
pub struct Contents {
    halves: Mutex<(Half, Half)>,
}

/// New pages: where each content was first seen.
#[derive(Debug, Default)]
struct Half {
    digests: HashMap<u128, Arc<str>>,
    prints: HashMap<u128, Vec<(u64, Arc<str>)>>,
    bytes: usize,
}

impl Contents {
    /// Whether it is new, and if not, what it repeats; what is new is remembered. The same URL again repeats nothing.
    pub fn look(&self, page: Page) -> (Novelty, Option<Arc<str>>) {
        let place = page.dispatch.as_u128().rotate_left(64) ^ xxh3_128(page.host.as_bytes());
        let digest = place.rotate_left(1) ^ xxh3_128(page.digest.as_bytes());
        let mut halves = self.halves.lock().expect("no panic under this lock");
        let (young, old) = &*halves;
        let same = young.digests.get(&digest).or_else(|| old.digests.get(&digest)).cloned();
        if let Some(url) = same.as_ref().filter(|url| ***url != *page.url) {
            return (Novelty::Duplicate, Some(Arc::clone(url)));
        }
        let near = page.print.and_then(|print| young.near(place, print).or_else(|| old.near(place, print))).cloned();
        let original = near.clone().filter(|url| **url != *page.url);
        if same.is_none() && (near.is_none() || original.is_some()) {
            if young.is_full() {
                halves.1 = std::mem::take(&mut halves.0);
            }
            // What repeats another page nearly may be repeated exactly. By its words the first one is told.
            let print = page.print.filter(|_| original.is_none());
            halves.0.remember(place, digest, Page { print, ..page });
        }
        (if original.is_some() { Novelty::NearDuplicate } else { Novelty::Fresh }, original)
    }
}

impl Half {
    fn is_full(&self) -> bool {
        self.digests.len() >= HALF_PAGES_MAX || self.bytes >= HALF_BYTES_MAX
    }

    fn near(&self, place: u128, print: u64) -> Option<&Arc<str>> {
        let latest = self.prints.get(&place)?.iter().rev().take(COMPARED_MAX);
        latest
            .map(|(known, url)| (known ^ print, url))
            .find(|(bits, _)| bits.count_ones() <= NEAR_BITS_MAX)
            .map(|found| found.1)
    }

    fn remember(&mut self, place: u128, digest: u128, page: Page) {
        let url: Arc<str> = Arc::from(page.url);
        self.bytes += url.len();
        if let Some(print) = page.print {
            self.prints.entry(place).or_default().push((print, Arc::clone(&url)));
        }
        self.digests.insert(digest, url);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page<'p>(dispatch: Uuid, host: &'p str, url: &'p str, digest: &'p str, print: Option<u64>) -> Page<'p> {
        Page { dispatch, host, url, digest, print }
    }

    #[test]
    fn a_repetition_is_told_by_what_it_repeats() {
        let (contents, one, two) = (Contents::default(), Uuid::now_v7(), Uuid::now_v7());
        let look = |page| {
            let (novelty, original) = contents.look(page);
            (novelty, original.map(|url| url.to_string()))
        };
        let fresh = (Novelty::Fresh, None);
        let of_a = |novelty| (novelty, Some("a".to_owned()));
        assert_eq!(look(page(one, "h", "a", "x", Some(0b1111))), fresh);
        assert_eq!(look(page(one, "h", "b", "x", None)), of_a(Novelty::Duplicate));
        assert_eq!(look(page(one, "h", "c", "y", Some(0b0001))), of_a(Novelty::NearDuplicate));
        assert_eq!(look(page(one, "h", "d", "w", Some(0b1111_0000))), fresh, "eight bits away");
        let of_c = (Novelty::Duplicate, Some("c".to_owned()));
        assert_eq!(look(page(one, "h", "f", "y", Some(0b0001))), of_c, "the same bytes as those of a near duplicate");
        assert_eq!(look(page(one, "h", "c", "y", Some(0b0001))), of_a(Novelty::NearDuplicate), "again, by another try");
        assert_eq!(look(page(one, "h", "e", "z", None)), fresh);
        // The same page by another try, another host, another crawl.
        assert_eq!(look(page(one, "h", "a", "x", Some(0b1111))), fresh);
        assert_eq!(look(page(one, "h", "a", "x2", Some(0b1110))), fresh);
        assert_eq!(look(page(one, "i", "b", "x", Some(0b1111))), fresh);
        assert_eq!(look(page(two, "h", "b", "x", Some(0b1111))), fresh);
    }

    #[test]
    fn it_holds_no_more_than_its_bounds() {
        let (contents, dispatch, long) = (Contents::default(), Uuid::now_v7(), "u".repeat(2000));
        for n in 0..5 * HALF_BYTES_MAX / long.len() {
            contents.look(page(dispatch, "h", &format!("{long}{n}"), &n.to_string(), None));
        }
        let halves = contents.halves.lock().unwrap();
        for half in [&halves.0, &halves.1] {
            assert!(half.bytes <= HALF_BYTES_MAX + long.len() + 10 && half.digests.len() < HALF_PAGES_MAX);
        }
    }
}
