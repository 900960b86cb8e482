//! What this worker knows to be in the seen-set: a filter of certain knowledge in front of Postgres.
//!
//! An entry is put here only after a commit held it, this worker's own or that of the job it was given, so a hit needs
//! no question; a miss asks Postgres, whose answer is the exact one.

use std::collections::HashSet;
use std::sync::Mutex;

use dodo_common::model::url::UrlHash;
use foldhash::fast::RandomState;
use uuid::Uuid;

/// Entries of one half; the older half is dropped when the younger is full. 16 bytes each and the
/// set's own share: about 50 MB for both.
const HALF_MAX: usize = 750_000;

/// Its hasher is a quick one: each link of each page is looked up.
type Half = HashSet<u128, RandomState>;

#[derive(Debug, Default)]
pub struct Seen {
    halves: Mutex<(Half, Half)>,
}

impl Seen {
    /// Which of `hashes` are not known; the order is kept.
    pub fn unknown(&self, dispatch: Uuid, hashes: impl Iterator<Item = UrlHash>) -> Vec<bool> {
        let halves = self.halves.lock().expect("no panic under this lock");
        hashes
            .map(|hash| {
                let key = key(dispatch, hash);
                !halves.0.contains(&key) && !halves.1.contains(&key)
            })
            .collect()
    }

    /// Takes out of `links` what is known; the order is kept. Returns how many there were.
    pub fn drop_known<T>(&self, dispatch: Uuid, links: &mut Vec<T>, hash: impl Fn(&T) -> UrlHash) -> usize {
        let count = links.len();
        let mut unknown = self.unknown(dispatch, links.iter().map(hash)).into_iter();
        links.retain(|_| unknown.next().is_some_and(|unknown| unknown));
        count - links.len()
    }

    /// Remembers what a commit has put into the seen-set, or found there.
    pub fn remember(&self, dispatch: Uuid, hashes: impl Iterator<Item = UrlHash>) {
        let mut halves = self.halves.lock().expect("no panic under this lock");
        for hash in hashes {
            if halves.0.len() >= HALF_MAX {
                halves.1 = std::mem::take(&mut halves.0);
            }
            halves.0.insert(key(dispatch, hash));
        }
    }
}

fn key(dispatch: Uuid, hash: UrlHash) -> u128 {
    // A dispatch's id has 74 random bits: mixing it in keeps the crawls apart.
    dispatch.as_u128().rotate_left(64) ^ hash.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_only_what_it_was_told_and_only_for_that_crawl() {
        let seen = Seen::default();
        let (one, two) = (Uuid::now_v7(), Uuid::now_v7());
        let hashes = [UrlHash(1), UrlHash(2)];
        seen.remember(one, [hashes[0]].into_iter());
        assert_eq!(seen.unknown(one, hashes.into_iter()), [false, true]);
        assert_eq!(seen.unknown(two, hashes.into_iter()), [true, true]);
    }
}
