//! Pressure: how much of what jobs have made still waits to be committed, and what it waits for.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use dodo_common::clock::Millis;

/// A step of the committer that lasts longer than this is worth telling, milliseconds.
const SLOW_MS: Millis = 1000;

#[derive(Debug, Default)]
pub struct Pressure {
    held_bytes: Arc<AtomicU64>,
    serial: AtomicU64,
    /// Steps under way: what each waits for, and since when.
    steps: Mutex<BTreeMap<u64, (&'static str, Millis)>>,
}

/// Bytes that are held.
#[derive(Debug)]
pub struct Held {
    bytes: u64,
    all: Arc<AtomicU64>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A step under way; it ends with this.
pub struct Step<'a> {
    pressure: &'a Pressure,
    serial: u64,
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        self.pressure.steps.lock().expect("no panic under this lock").remove(&self.serial);
    }
}

impl Pressure {
    /// Counts so many bytes until what it returns is dropped.
    pub fn hold(&self, bytes: u64) -> Held {
        self.held_bytes.fetch_add(bytes, Ordering::Relaxed);
        Held { bytes, all: Arc::clone(&self.held_bytes) }
    }

    pub fn held_bytes(&self) -> u64 {
        self.held_bytes.load(Ordering::Relaxed)
    }

    /// A step begins that needs `server`.
    pub fn step(&self, server: &'static str, now: Millis) -> Step<'_> {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        self.steps.lock().expect("no panic under this lock").insert(serial, (server, now));
        Step { pressure: self, serial }
    }

    /// Why this worker is slow, in one line; nothing when it is not.
    pub fn says(&self, held_bytes_max: u64, now: Millis) -> Option<String> {
        let oldest = self.steps.lock().expect("no panic under this lock").values().min_by_key(|step| step.1).copied();
        let held = self.held_bytes();
        let waits = oldest.filter(|(_, since)| now - since > SLOW_MS);
        let wait = waits.map(|(server, since)| {
            format!("its results wait for {server} since {:.1} s", (now - since) as f64 / 1000.0)
        });
        let full = (held > held_bytes_max)
            .then(|| format!("it reads no jobs: it holds {held} bytes of results, and its bound is {held_bytes_max}"));
        match (wait, full) {
            (Some(wait), Some(full)) => Some(format!("{wait}; {full}")),
            (wait, full) => wait.or(full),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_lasts_and_what_is_full() {
        let pressure = Pressure::default();
        assert_eq!(pressure.says(10, 0), None);
        let step = pressure.step("Postgres", 1000);
        assert_eq!(pressure.says(10, 2000), None);
        assert_eq!(pressure.says(10, 3500).as_deref(), Some("its results wait for Postgres since 2.5 s"));
        let held = pressure.hold(11);
        assert!(pressure.says(10, 3500).is_some_and(|why| why.contains("Postgres") && why.contains("11 bytes")));
        drop(step);
        assert!(pressure.says(10, 9000).is_some_and(|why| why.starts_with("it reads no jobs")));
        drop(held);
        assert_eq!(pressure.says(10, 9000), None);
    }
}
