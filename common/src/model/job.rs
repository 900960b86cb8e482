//! A job: its key, its row and the ways it can end.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The tenant that exists from the first migration on.
pub const TENANT_DEFAULT: &str = "default";
/// Workers that may be lost while they hold a job before it is a suspect, which runs alone.
pub const SUSPECT_CRASHES: i16 = 2;
/// Workers that may be lost while they run a suspect alone before it is quarantined.
pub const ALONE_CRASHES_MAX: i16 = 3;
/// Hops before a chain is given up: redirects (RFC 9110 15.4 leaves the number to the client), and sitemaps of an index.
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
    /// Start the dispatch of a manifest's entry.
    Occurrence,
    /// Emit a job for each page of an API.
    PageDispatch,
    /// Ask an API how much it has.
    GetMetadata,
    /// Fetch one page of an API, archive it, hand its items on.
    GetPage,
}

impl JobKind {
    pub fn as_str(self) -> &'static str {
        match self {
            JobKind::Crawl => "crawl",
            JobKind::Noop => "noop",
            JobKind::Occurrence => "occurrence",
            JobKind::PageDispatch => "page_dispatch",
            JobKind::GetMetadata => "get_metadata",
            JobKind::GetPage => "get_page",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        const ALL: [JobKind; 6] = [
            JobKind::Crawl,
            JobKind::Noop,
            JobKind::Occurrence,
            JobKind::PageDispatch,
            JobKind::GetMetadata,
            JobKind::GetPage,
        ];
        ALL.into_iter().find(|kind| kind.as_str() == text)
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
    /// Which page of how many, for pages of an API; of 0 where a cursor leads.
    pub page: Option<(i32, i32)>,
    /// The finished job whose lost result this one makes again.
    pub remake_of: Option<Uuid>,
    /// Further tries that its dispatch allows, where it says so.
    pub retries: Option<i16>,
    /// How often a server has refused it (429, 503).
    pub refusals: i16,
    /// How often its host has refused in a row.
    pub host_refusals: i32,
}

/// How a job ended, as `crawl_log.outcome` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    /// Its media type is none that its crawl keeps; its body was not read.
    Unwanted,
    /// Fetched, and read for its links; it asks not to be indexed, and its crawl heeds that: its body is not kept.
    Noindex,
    /// Its dispatch had reached its budget; nothing was requested.
    Budget,
    /// Out of tries.
    Dead,
    /// Its input cannot be stored or run.
    Failed,
    /// Its page was stored already, or its work has been superseded; nothing was requested, or nothing counted.
    Duplicate,
    /// What asked for it is gone: a manifest was changed or deleted.
    Cancelled,
    /// A call that may not be repeated was begun, and nobody knows how it ended.
    Unknown,
    /// It was lost with its worker again and again, at last while nothing else ran there.
    Quarantined,
}

impl Outcome {
    /// It counts as a page, against budgets too. One that asks not to be indexed does: what it links to is fetched, and
    /// a site of nothing else would never come to its end.
    pub fn is_page(self) -> bool {
        matches!(self, Outcome::Ok | Outcome::Noindex)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::Redirect => "redirect",
            Outcome::HttpError => "http_error",
            Outcome::Robots => "robots",
            Outcome::Refused => "refused",
            Outcome::Unwanted => "unwanted",
            Outcome::Noindex => "noindex",
            Outcome::Budget => "budget",
            Outcome::Dead => "dead",
            Outcome::Failed => "failed",
            Outcome::Duplicate => "duplicate",
            Outcome::Cancelled => "cancelled",
            Outcome::Unknown => "unknown",
            Outcome::Quarantined => "quarantined",
        }
    }
}
