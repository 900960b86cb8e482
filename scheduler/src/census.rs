//! The census: what the jobs of each dispatch wait for, looked at again and again.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use dodo_common::db::wait::Waited;
use dodo_common::model::cause::Cause;
use dodo_common::model::stream_id::StreamId;
use rand::Rng as _;
use tokio::time::Instant;
use uuid::Uuid;

use crate::frontier::Frontier;

/// Between two looks, milliseconds: by chance, or a delay of a second would be met in the same phase each time.
const EVERY_MS: std::ops::Range<u64> = 100..900;
/// (tenant, dispatch, cause) noted between two tellings.
const WAITED_MAX: usize = 10_000;

#[derive(Debug)]
pub struct Census {
    looked: Instant,
    next: Instant,
    /// Milliseconds since they were told last.
    waited: HashMap<(String, Uuid, Cause), i64>,
}

impl Default for Census {
    fn default() -> Self {
        let now = Instant::now();
        Self { looked: now, next: now, waited: HashMap::new() }
    }
}

impl Census {
    /// Looks, if it is time. What waits for its turn only waits for what keeps the window `full`; `unread` is
    /// what no worker had taken when that was looked at.
    pub fn tick(&mut self, frontier: &Frontier, full: Cause, unread: &RangeInclusive<StreamId>) {
        let now = Instant::now();
        if now < self.next {
            return;
        }
        let ms = now.duration_since(self.looked).as_millis() as i64;
        self.looked = now;
        self.next = now + Duration::from_millis(rand::rng().random_range(EVERY_MS));
        for ((tenant, dispatch, cause), count) in frontier.census(unread) {
            let key = (tenant.to_owned(), dispatch, if cause == Cause::Turn { full } else { cause });
            if self.waited.len() < WAITED_MAX || self.waited.contains_key(&key) {
                *self.waited.entry(key).or_default() += count * ms;
            }
        }
    }

    /// What was seen since this was asked last.
    pub fn take(&mut self) -> Vec<Waited> {
        let waited = self.waited.drain();
        waited.map(|((tenant, dispatch, cause), ms)| Waited { tenant, dispatch, cause, ms }).collect()
    }
}
