//! The spool: incidents of the time in which Postgres is away, one JSON line each, on disk before anybody is told.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use chrono::{DateTime, Utc};
use dodo_common::clock::Millis;
use dodo_common::db::incident::{Claim, Incident, Kept, NoticeEvent, NoticeKey};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

const FILE: &str = "incidents.ndjson";
/// Beyond this many lines, incidents that are over and were told everywhere are forgotten, oldest first.
const LINES_MAX: usize = 5000;

/// One line of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "snake_case")]
pub enum Line {
    /// An incident as it was at this event, and the channels that are to tell of it.
    Event {
        event: NoticeEvent,
        incident: Incident,
        channels: Vec<String>,
    },
    Delivered(Told),
}

/// A notice that was delivered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Told {
    pub key: NoticeKey,
    pub at: DateTime<Utc>,
}

/// What one incident's part of the spool comes to.
#[derive(Debug)]
pub struct Held {
    pub incident: Incident,
    pub pending: Vec<Kept>,
    pub told: Vec<Told>,
}

pub struct Spool {
    path: PathBuf,
    lines: Vec<Line>,
    /// How often a notice was tried, and when it is due again.
    tries: HashMap<NoticeKey, (i32, Millis)>,
    /// The last write failed, perhaps half-way: the file must be written anew.
    torn: bool,
    _lock: Flock<File>,
}

impl Spool {
    /// Reads what an earlier sentinel left in `dir`.
    ///
    /// # Errors
    /// One line: the directory cannot be used, or another sentinel uses it.
    pub fn open(dir: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(dir)
            .with_context(|| format!("cannot make the spool {}; set DODO_SENTINEL_SPOOL", dir.display()))?;
        let file = OpenOptions::new().create(true).append(true).open(dir.join("lock"));
        let file = file.with_context(|| format!("cannot write to the spool {}", dir.display()))?;
        let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
            bail!("the spool {} is in use by another sentinel; give each its own DODO_SENTINEL_SPOOL", dir.display());
        };
        let path = dir.join(FILE);
        let text = match fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let mut lines = Vec::new();
        for line in text.lines() {
            match serde_json::from_str(line) {
                Ok(line) => lines.push(line),
                // The last line of a process that was killed while it wrote: it told nobody of it.
                Err(error) => tracing::warn!(%error, "a damaged line of the spool is left out"),
            }
        }
        let mut spool = Self { path, lines, tries: HashMap::new(), torn: false, _lock: lock };
        spool.rewrite().with_context(|| format!("cannot write {}", spool.path.display()))?;
        Ok(spool)
    }

    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// How many lines [`Spool::held`] speaks of.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Adds a line and has it on disk. A disk that is full is logged: the line counts all the same, so that
    /// its alert is sent.
    pub fn push(&mut self, line: Line) {
        let mut text = serde_json::to_string(&line).expect("a line is plain data");
        text.push('\n');
        self.lines.push(line);
        if self.lines.len() > LINES_MAX {
            self.forget_told();
            self.torn = true;
        }
        let written = if self.torn {
            self.rewrite()
        } else {
            OpenOptions::new().create(true).append(true).open(&self.path).and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                file.sync_data()
            })
        };
        self.torn = written.is_err();
        if let Err(error) = written {
            tracing::error!(%error, "cannot write to the spool {}", self.path.display());
        }
    }

    /// The open incidents of the spool.
    pub fn unresolved(&self) -> Vec<Incident> {
        self.held(0).into_iter().map(|held| held.incident).filter(|incident| incident.resolved_at.is_none()).collect()
    }

    /// Takes the next due notice of a channel for `lease_ms`.
    pub fn claim(&mut self, channel: &str, now: Millis, lease_ms: i64) -> Option<Claim> {
        let claim = self.held(now).into_iter().find_map(|held| {
            // An alarm comes before its resolution.
            let next = held.pending.into_iter().find(|kept| kept.key.channel == channel)?;
            let claim = Claim { incident: held.incident, key: next.key, attempts: next.attempts + 1 };
            (next.wait_ms == 0).then_some(claim)
        })?;
        self.tries.insert(claim.key.clone(), (claim.attempts, now + lease_ms));
        Some(claim)
    }

    /// Puts a notice off that could not be delivered.
    pub fn put_off(&mut self, key: &NoticeKey, until: Millis) {
        if let Some(tried) = self.tries.get_mut(key) {
            tried.1 = until;
        }
    }

    /// Every incident of the spool, with what was told of it and what is still to be told. What was told of
    /// incidents that are in Postgres only is not among it; see [`Spool::strays`].
    pub fn held(&self, now: Millis) -> Vec<Held> {
        let mut all: Vec<Held> = Vec::new();
        for line in &self.lines {
            match line {
                Line::Event { event, incident, channels } => {
                    let kept = channels.iter().map(|channel| {
                        let key = NoticeKey { incident: incident.id, event: *event, channel: channel.clone() };
                        let (attempts, due_at) = self.tries.get(&key).copied().unwrap_or((0, now));
                        Kept { key, attempts, wait_ms: (due_at - now).max(0) }
                    });
                    match all.iter_mut().find(|held| held.incident.id == incident.id) {
                        Some(held) => {
                            held.incident = incident.clone();
                            held.pending.extend(kept);
                        }
                        None => {
                            all.push(Held { incident: incident.clone(), pending: kept.collect(), told: Vec::new() });
                        }
                    }
                }
                Line::Delivered(told) => {
                    if let Some(held) = all.iter_mut().find(|held| held.incident.id == told.key.incident) {
                        held.pending.retain(|kept| kept.key != told.key);
                        held.told.push(told.clone());
                    }
                }
            }
        }
        all
    }

    /// What was told of incidents that are in Postgres only.
    pub fn strays(&self) -> Vec<Told> {
        let held: HashSet<Uuid> = self
            .lines
            .iter()
            .filter_map(|line| match line {
                Line::Event { incident, .. } => Some(incident.id),
                Line::Delivered(_) => None,
            })
            .collect();
        let stray = |line: &Line| match line {
            Line::Delivered(told) if !held.contains(&told.key.incident) => Some(told.clone()),
            _ => None,
        };
        self.lines.iter().filter_map(stray).collect()
    }

    /// Forgets the first `count` lines: Postgres has them.
    pub fn settle(&mut self, count: usize) {
        self.lines.drain(..count);
        if let Err(error) = self.rewrite() {
            tracing::error!(%error, "cannot shorten the spool; it will be replayed again, which changes nothing");
        }
        if self.lines.is_empty() {
            self.tries.clear();
        }
    }

    fn forget_told(&mut self) {
        let told = |held: &Held| held.incident.resolved_at.is_some() && held.pending.is_empty();
        let all = self.held(0);
        let gone: Vec<Uuid> = all.iter().filter(|held| told(held)).map(|held| held.incident.id).collect();
        let gone = &gone[..gone.len().div_ceil(2)];
        self.lines.retain(|line| match line {
            Line::Event { incident, .. } => !gone.contains(&incident.id),
            Line::Delivered(told) => !gone.contains(&told.key.incident),
        });
        tracing::warn!(incidents = gone.len(), "the spool is full: incidents that are over are forgotten");
    }

    /// Writes the file anew, whole or not at all.
    fn rewrite(&mut self) -> std::io::Result<()> {
        let draft = self.path.with_extension("draft");
        let mut file = File::create(&draft)?;
        for line in &self.lines {
            let mut text = serde_json::to_string(line).expect("a line is plain data");
            text.push('\n');
            file.write_all(text.as_bytes())?;
        }
        file.sync_all()?;
        fs::rename(&draft, &self.path)?;
        // The new name must survive a power cut as well.
        self.path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    }
}

#[cfg(test)]
#[path = "spool/tests.rs"]
mod tests;
