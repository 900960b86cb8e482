//! What this worker knows to be in the seen-set: a filter of certain knowledge in front of Postgres.
//!
//! An entry is put here only after a commit held it, this worker's own or that of the job it was given, so a hit needs
//! no question; a miss asks Postgres, whose answer is the exact one.

use std::collections::HashSet;
use std::sync::Mutex;

use dodo_common::model::url::UrlHash;
use foldhash::fast::RandomState;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use uuid::Uuid;

/// Entries of one half; the older half is dropped when the younger is full. 16 bytes each and the
/// set's own share: about 50 MB for both.
const HALF_MAX: usize = 750_000;

/// Its hasher is a quick one: each link of each page is looked up.
type Half = HashSet<u128, RandomState>;

#[derive(Debug, Default)]
pub struct Seen {
    halves: Mutex<(Half, Half)>,
    /// What commits that are under way may put into the seen-set.
    claimed: Mutex<Half>,
    freed: Notify,
}

/// Links that one commit alone may put into the seen-set, as long as this lives.
#[derive(Debug)]
pub struct Claim<'s> {
    seen: &'s Seen,
    keys: Vec<u128>,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut claimed = self.seen.claimed.lock().expect("no panic under this lock");
        for key in &self.keys {
            claimed.remove(key);
        }
        drop(claimed);
        self.seen.freed.notify_waiters();
    }
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

    /// Claims links for a commit; none if another one has claimed any of them. Postgres would let that commit wait for the
    /// other one too, but at its first link of that kind, with those before it locked: for a third one to wait for.
    pub fn claim(&self, links: impl Iterator<Item = (Uuid, UrlHash)>) -> Option<Claim<'_>> {
        let keys: Vec<u128> = links.map(|(dispatch, hash)| key(dispatch, hash)).collect();
        let mut claimed = self.claimed.lock().expect("no panic under this lock");
        if keys.iter().any(|key| claimed.contains(key)) {
            return None;
        }
        claimed.extend(&keys);
        drop(claimed);
        Some(Claim { seen: self, keys })
    }

    /// Ends when a claim has ended that had not when this was called.
    pub fn freed(&self) -> Notified<'_> {
        self.freed.notified()
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

    #[tokio::test]
    async fn a_link_is_claimed_by_one_at_a_time() {
        let seen = Seen::default();
        let (one, two) = (Uuid::now_v7(), Uuid::now_v7());
        let links = |dispatch, hashes: &'static [u128]| hashes.iter().map(move |hash| (dispatch, UrlHash(*hash)));
        let first = seen.claim(links(one, &[1, 2, 2])).expect("nobody has claimed them");
        let other = seen.claim(links(two, &[1, 2])).expect("they are of another crawl");
        assert!(seen.claim(links(one, &[2, 3])).is_none());
        assert!(seen.claim(links(one, &[3])).is_some(), "what was refused as a whole has claimed nothing");
        let freed = seen.freed();
        drop(first);
        freed.await;
        assert!(seen.claim(links(one, &[1, 2, 3])).is_some());
        drop(other);
    }
}
