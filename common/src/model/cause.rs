//! What the jobs of a dispatch wait for: the causes that its time is shared out to.

use serde::{Deserialize, Serialize};

/// What a job waits for.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Nothing but its turn.
    #[default]
    Turn,
    /// The delay that its dispatch asks for.
    Delay,
    /// The longer one that robots.txt asks for.
    CrawlDelay,
    /// The longer one that follows from slow answers.
    Pace,
    /// The host asked to be left alone.
    Hold,
    /// The clock of its address, which other hosts share.
    Address,
    /// As many requests as allowed are in flight at its host: those are counted as [`Cause::Request`].
    Busy,
    /// An answer: its request is under way, or its result is being committed.
    Request,
    /// Another try, after one that has failed.
    Errors,
    /// Addresses and robots.txt of its host.
    Robots,
    /// Its dispatch has its whole budget in flight.
    Budget,
    /// Its proxy, which has as many requests under way as it may, or rests between two.
    Proxy,
    /// A suspect: its turn. As many as may run alone do.
    Suspects,
    /// A proxy: every one of its region is in quarantine.
    Quarantine,
    /// A worker: the window is full, or nobody has taken what is issued.
    Workers,
    /// The archive, which is behind.
    Backpressure,
}

impl Cause {
    const ALL: [Cause; 16] = [
        Cause::Turn,
        Cause::Delay,
        Cause::CrawlDelay,
        Cause::Pace,
        Cause::Hold,
        Cause::Address,
        Cause::Busy,
        Cause::Request,
        Cause::Errors,
        Cause::Robots,
        Cause::Budget,
        Cause::Proxy,
        Cause::Suspects,
        Cause::Quarantine,
        Cause::Workers,
        Cause::Backpressure,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Cause::Turn => "turn",
            Cause::Delay => "delay",
            Cause::CrawlDelay => "crawl_delay",
            Cause::Pace => "pace",
            Cause::Hold => "hold",
            Cause::Address => "address",
            Cause::Busy => "busy",
            Cause::Request => "request",
            Cause::Errors => "errors",
            Cause::Robots => "robots",
            Cause::Budget => "budget",
            Cause::Proxy => "proxy",
            Cause::Suspects => "suspects",
            Cause::Quarantine => "quarantine",
            Cause::Workers => "workers",
            Cause::Backpressure => "backpressure",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Cause::ALL.into_iter().find(|cause| cause.as_str() == text)
    }

    /// What it means, and what would help.
    pub fn meaning(self) -> &'static str {
        match self {
            Cause::Turn => "waiting for their turn",
            Cause::Delay => "politeness: the delay of the crawl (--delay)",
            Cause::CrawlDelay => "politeness: the Crawl-delay of robots.txt",
            Cause::Pace => "politeness: the host answers slowly",
            Cause::Hold => {
                "politeness: the host asked to be left alone (429, 503, Retry-After), or nobody answers there"
            }
            Cause::Address => "politeness: the address is shared with other hosts",
            Cause::Busy | Cause::Request => "requests under way (--host-concurrency, the site's latency)",
            Cause::Errors => "tries that failed, until they are repeated (dodo why, of a job)",
            Cause::Robots => "addresses and robots.txt of new hosts",
            Cause::Budget => "its page budget is in flight",
            Cause::Proxy => "politeness: the bounds of the proxies (DODO_PROXY_CONCURRENCY, DODO_PROXY_DELAY_MS)",
            Cause::Suspects => "other suspects run alone, as many at a time as half of the workers (more workers)",
            Cause::Quarantine => "no proxy of their region is healthy (dodo status)",
            Cause::Workers => "all workers are busy (more workers, DODO_WORKER_PERMITS)",
            Cause::Backpressure => "backpressure: the archive is behind",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_has_a_name_of_its_own() {
        for cause in Cause::ALL {
            assert_eq!(Cause::parse(cause.as_str()), Some(cause));
            assert_eq!(serde_json::to_value(cause).unwrap(), cause.as_str());
        }
    }
}
