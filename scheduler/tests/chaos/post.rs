//! A place for a process of ours: its role, who has it now, and when it is filled again.

use std::process::Child;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Scheduler,
    Worker,
    Sentinel,
}

/// A place for a process, which is started again when it dies.
pub struct Post {
    pub role: Role,
    pub number: usize,
    /// Of a scheduler's API.
    pub port: u16,
    pub child: Option<Child>,
    /// None: it is not wanted any more.
    pub start_at: Option<Instant>,
    /// What the next start is armed with.
    pub fail_point: Option<String>,
    /// The running process is armed.
    pub armed: bool,
}

impl Post {
    pub fn new(role: Role, number: usize, port: u16) -> Self {
        let start_at = Some(Instant::now());
        Self { role, number, port, child: None, start_at, fail_point: None, armed: false }
    }

    pub fn name(&self) -> String {
        format!("{:?}-{}", self.role, self.number).to_lowercase()
    }

    pub fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            // It may have died a moment ago; it is not reaped, so the id is still its own.
            let _ = kill(Pid::from_raw(child.id() as i32), signal);
        }
    }
}
