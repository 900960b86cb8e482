//! What happened in a schedule, and when: kept for its report, and written into a file.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use anyhow::Result;
use dodo_common::clock::Clock;

pub struct Timeline(Mutex<Lines>);

struct Lines {
    began: Instant,
    lines: Vec<(u64, String)>,
    file: File,
}

impl Timeline {
    pub fn create(path: &Path) -> Result<Self> {
        Ok(Self(Mutex::new(Lines { began: Instant::now(), lines: Vec::new(), file: File::create(path)? })))
    }

    /// A new schedule begins.
    pub fn begin(&self, what: &str) {
        {
            let mut timeline = self.0.lock().expect("no panic under this lock");
            timeline.began = Instant::now();
            timeline.lines.clear();
        }
        self.note(what);
    }

    pub fn note(&self, what: &str) {
        let mut timeline = self.0.lock().expect("no panic under this lock");
        let ms = timeline.began.elapsed().as_millis() as u64;
        let now = chrono::DateTime::from_timestamp_millis(Clock::System.now_ms()).unwrap_or_default();
        // The report has it all the same.
        let _ = writeln!(timeline.file, "{} +{ms} {what}", now.format("%H:%M:%S%.3f"));
        timeline.lines.push((ms, what.to_owned()));
    }

    /// What was noted of this schedule, with the milliseconds since it began.
    pub fn lines(&self) -> Vec<(u64, String)> {
        self.0.lock().expect("no panic under this lock").lines.clone()
    }
}
