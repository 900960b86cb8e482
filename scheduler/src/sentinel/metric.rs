//! What the sentinel measures: one table.

use dodo_common::db::vital::Event;
use serde::{Deserialize, Serialize};

/// A metric by the name that rules use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Workers that take jobs: not draining, with a fresh heartbeat.
    WorkersReady,
    /// Event: a worker died without draining and was committed lost.
    WorkersLost,
    /// Age of the oldest last heartbeat among the workers that are not draining; 0 without workers.
    HeartbeatAgeMs,
    /// 1 while a scheduler holds the lease, else 0.
    Leader,
    /// Event: the manifests were read without an error.
    ManifestRefreshes,
    /// Entries of the jobs stream that no worker has read yet.
    Lag,
    /// How long the oldest due job has waited.
    OldestDueMs,
    /// Age of the first entry of the raw streams: how far the archiver, and with it the horizon, is behind.
    HorizonAgeMs,
    /// Event: a job ran out of tries.
    DeadJobs,
    /// 1 while Postgres answers, else 0.
    PostgresUp,
    /// 1 while Redis answers, else 0.
    RedisUp,
}

impl Metric {
    pub const ALL: [Metric; 11] = [
        Metric::WorkersReady,
        Metric::WorkersLost,
        Metric::HeartbeatAgeMs,
        Metric::Leader,
        Metric::ManifestRefreshes,
        Metric::Lag,
        Metric::OldestDueMs,
        Metric::HorizonAgeMs,
        Metric::DeadJobs,
        Metric::PostgresUp,
        Metric::RedisUp,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Metric::WorkersReady => "workers_ready",
            Metric::WorkersLost => "workers_lost",
            Metric::HeartbeatAgeMs => "heartbeat_age_ms",
            Metric::Leader => "leader",
            Metric::ManifestRefreshes => "manifest_refreshes",
            Metric::Lag => "lag",
            Metric::OldestDueMs => "oldest_due_ms",
            Metric::HorizonAgeMs => "horizon_age_ms",
            Metric::DeadJobs => "dead_jobs",
            Metric::PostgresUp => "postgres_up",
            Metric::RedisUp => "redis_up",
        }
    }

    /// The event that is counted, where the metric is not a level.
    pub fn event(self) -> Option<Event> {
        match self {
            Metric::WorkersLost => Some(Event::WorkerLost),
            Metric::ManifestRefreshes => Some(Event::ManifestRefresh),
            Metric::DeadJobs => Some(Event::DeadJob),
            Metric::WorkersReady
            | Metric::HeartbeatAgeMs
            | Metric::Leader
            | Metric::Lag
            | Metric::OldestDueMs
            | Metric::HorizonAgeMs
            | Metric::PostgresUp
            | Metric::RedisUp => None,
        }
    }
}

/// What one look at a metric found.
#[derive(Clone, Debug, PartialEq)]
pub enum Look {
    /// Its level now.
    Level(f64),
    /// Every event of the longest window a rule asks about, as (age in milliseconds, how many).
    Events(Vec<(i64, i64)>),
    /// No sample, and why.
    Absent(String),
}
