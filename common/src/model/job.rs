//! A job: its key, its row and the ways it can end.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The tenant that exists from the first migration on.
pub const TENANT_DEFAULT: &str = "default";
/// Tries before a job is dead.
pub const ATTEMPTS_MAX: i16 = 5;
/// Redirect hops before a chain is given up (RFC 9110 15.4 leaves the number to the client).
pub const HOPS_MAX: i16 = 10;

/// What a stream entry of a job carries, and nothing else (invariant 3).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobKey {
    pub tenant: String,
    pub id: Uuid,
    pub attempt: i16,
}

/// What a job does. One file in the worker's `jobs/` each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// Fetch a page, archive it, follow its links.
    Crawl,
    /// Do nothing; a payload, where there is one, becomes an entry of `items`.
    Noop,
}

impl JobKind {
    pub fn as_str(self) -> &'static str {
        match self {
            JobKind::Crawl => "crawl",
            JobKind::Noop => "noop",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "crawl" => Some(JobKind::Crawl),
            "noop" => Some(JobKind::Noop),
            _ => None,
        }
    }
}

/// A row of `crawl_schedule` as the worker loads it.
#[derive(Clone, Debug)]
pub struct Job {
    pub key: JobKey,
    pub dispatch: Uuid,
    pub kind: JobKind,
    /// `scheme://authority`, the unit of robots.txt and politeness; empty for jobs without one.
    pub host: String,
    pub depth: i16,
    pub hops: i16,
    pub url: Option<String>,
    pub payload: Option<serde_json::Value>,
}

/// How a job ended, as `crawl_log.outcome` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Fetched, or done.
    Ok,
    /// A redirect: the hop is a job of its own.
    Redirect,
    /// The server answered with a final error (4xx).
    HttpError,
    /// robots.txt forbids it; nothing was requested.
    Robots,
    /// The address or the URL may not be fetched; nothing was requested.
    Refused,
    /// Its dispatch had reached its budget; nothing was requested.
    Budget,
    /// Out of tries.
    Dead,
    /// Its input cannot be stored or run.
    Failed,
}

impl Outcome {
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::Redirect => "redirect",
            Outcome::HttpError => "http_error",
            Outcome::Robots => "robots",
            Outcome::Refused => "refused",
            Outcome::Budget => "budget",
            Outcome::Dead => "dead",
            Outcome::Failed => "failed",
        }
    }
}
