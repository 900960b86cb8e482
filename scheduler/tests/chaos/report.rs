//! What a campaign says: a line a schedule, and all about one that failed.

use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

use crate::schedule::Outcome;
use crate::world::World;

/// Violations of one schedule that are shown.
const SHOWN_MAX: usize = 40;

pub struct Report {
    json: bool,
    long: bool,
    began: Instant,
    right: usize,
    failed: Vec<u64>,
    slowest: Duration,
    bar: ProgressBar,
}

impl Report {
    pub fn new(json: bool, long: bool) -> Self {
        let bar = if json { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
        if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { json, long, began: Instant::now(), right: 0, failed: Vec::new(), slowest: Duration::ZERO, bar }
    }

    pub fn schedule(&mut self, seed: u64, outcome: &Outcome, world: &World) {
        let ok = outcome.violations.is_empty();
        if ok {
            self.right += 1;
        } else {
            self.failed.push(seed);
        }
        self.slowest = self.slowest.max(outcome.settled);
        let dir = world.dir.path().display();
        if self.json {
            let line = serde_json::json!({
                "seed": seed, "ok": ok, "faults": outcome.faults, "seconds": outcome.lasted.as_secs_f64(),
                "settled_s": outcome.settled.as_secs_f64(), "checked": outcome.counts, "notes": outcome.notes,
                "violations": outcome.violations, "timeline": world.timeline.lines(), "dir": dir.to_string(),
            });
            println!("{line}");
            return;
        }
        let verdict = if ok { "ok" } else { "FAILED" };
        let mut text = format!(
            "seed {seed:<7} {:>5.1} s, settled in {:>4.1} s  {verdict}  {}  {}",
            outcome.lasted.as_secs_f64(),
            outcome.settled.as_secs_f64(),
            outcome.faults.join(", "),
            outcome.notes.join("; ")
        );
        if !ok {
            for violation in outcome.violations.iter().take(SHOWN_MAX) {
                text.push_str(&format!("\n  {violation}"));
            }
            let more = outcome.violations.len().saturating_sub(SHOWN_MAX);
            if more > 0 {
                text.push_str(&format!("\n  and {more} more"));
            }
            text.push_str("\n  timeline, milliseconds:");
            for (ms, what) in world.timeline.lines() {
                text.push_str(&format!("\n  {ms:>7} {what}"));
            }
            let long = if self.long { " --long" } else { "" };
            text.push_str(&format!("\n  kept: {dir}\n  again: scripts/chaos --seed {seed}{long}"));
        }
        self.bar.suspend(|| println!("{text}"));
        let (right, failed) = (self.right, self.failed.len());
        self.bar.set_message(format!("{right} right, {failed} failed"));
    }

    /// Says how it went; whether all were right.
    pub fn end(&self) -> Result<bool> {
        self.bar.finish_and_clear();
        let minutes = self.began.elapsed().as_secs_f64() / 60.0;
        if !self.json {
            println!(
                "{} schedules in {minutes:.1} minutes: {} right, {} failed {:?}; the slowest came to its end {:.1} s after the last fault",
                self.right + self.failed.len(),
                self.right,
                self.failed.len(),
                self.failed,
                self.slowest.as_secs_f64()
            );
        }
        Ok(self.failed.is_empty())
    }
}
