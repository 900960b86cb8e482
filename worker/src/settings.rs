//! What a worker is told.

use anyhow::{Context as _, ensure};
use clap::{Args, Parser, ValueEnum};
use dodo_common::config::{Logging, Proxies, Servers};
use dodo_common::model::address::Openings;
use dodo_common::model::proxy::Proxy;
use dodo_common::model::proxy_pool::ProxyPool;

/// What a worker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Run jobs.
    Fetch,
    /// Turn items into records.
    Process,
    /// Move raw streams into the archive.
    Archive,
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Fetch => "fetch",
            Role::Process => "process",
            Role::Archive => "archive",
        }
    }
}

/// Takes crawl jobs from Redis, fetches, stores and archives. Ends cleanly on SIGTERM.
#[derive(Parser, Clone, Debug)]
#[command(name = "dodo-worker", version)]
pub struct Settings {
    #[command(flatten)]
    pub servers: Servers,
    #[command(flatten)]
    pub logging: Logging,
    /// What this worker does
    #[arg(long, env = "DODO_ROLES", value_delimiter = ',', default_value = "fetch,process,archive")]
    pub roles: Vec<Role>,
    /// Jobs it holds at once
    #[arg(long, env = "DODO_WORKER_PERMITS", default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub permits: u16,
    /// Bytes of results that wait to be committed, above which it reads no more jobs
    #[arg(long, env = "DODO_HELD_BYTES_MAX", default_value_t = 256 << 20)]
    pub held_bytes_max: u64,
    /// Region it works from; names its log file
    #[arg(long, env = "DODO_REGION")]
    pub region: Option<String>,
    /// Proxy its requests leave by, http://[user:password@]host:port or socks5://..; names its log file
    // Plain text here: clap would repeat a wrong value, and with it a password.
    #[arg(long, env = "DODO_PROXY", hide_env_values = true, default_value = "")]
    pub proxy: String,
    #[command(flatten)]
    pub proxies: Proxies,
    /// Who to write to about this crawler (an address or a URL); needed to fetch anything but loopback
    #[arg(long, env = "DODO_CONTACT", default_value = "")]
    pub contact: String,
    /// Private or loopback host:port that may be fetched all the same, separated by commas
    #[arg(long, env = "DODO_OPEN", default_value = "")]
    pub open: Openings,
    /// Names with given addresses, name=address separated by commas; *.name stands for every name below it
    #[arg(long, env = "DODO_RESOLVE", default_value = "")]
    pub resolve: String,
    /// Bytes of a body that are kept; the rest is cut off and marked
    #[arg(long, env = "DODO_BODY_BYTES_MAX", default_value_t = 10 << 20)]
    pub body_bytes_max: usize,
    #[command(flatten)]
    pub patience: Patience,
    /// PEM file of private CAs that are believed beside the system's
    #[arg(long, env = "DODO_FETCH_CA_FILE", default_value = "")]
    pub fetch_ca_file: String,
    /// The first retry of a page waits at most this long, milliseconds, each further one twice as long; other jobs in proportion
    #[arg(long, env = "DODO_RETRY_BASE_MS", default_value_t = 1000, value_parser = clap::value_parser!(i64).range(1..=60_000))]
    pub retry_base_ms: i64,
    /// A segment is archived when it has waited this long, milliseconds
    #[arg(long, env = "DODO_ARCHIVE_AGE_MS", default_value_t = 30_000)]
    pub archive_age_ms: i64,
    /// Entries of one archive object
    #[arg(long, env = "DODO_ARCHIVE_ENTRIES_MAX", default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    pub archive_entries_max: u32,
    /// How long running jobs may take to finish on SIGTERM before they are handed back, milliseconds
    #[arg(long, env = "DODO_DRAIN_MS", default_value_t = 10_000)]
    pub drain_ms: u64,
    /// Say on the console what the log file says
    #[arg(long, env = "DODO_LOG_CONSOLE")]
    pub log_console: bool,
    /// Let a no-op job that is asked to abort its worker do so: for tests of what then becomes of it
    #[arg(long, hide = true, env = "DODO_ALLOW_ABORT", value_parser = clap::builder::FalseyValueParser::new())]
    pub allow_abort: bool,
    /// End when standard input closes: a child's way to follow its parent
    #[arg(long, hide = true)]
    pub exit_with_stdin: bool,
}

/// How long a server may take.
#[derive(Args, Clone, Debug)]
pub struct Patience {
    /// A connection must stand after this long, TLS included, milliseconds
    #[arg(long = "fetch-connect-ms", env = "DODO_FETCH_CONNECT_MS", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub connect_ms: u64,
    /// Status and headers must be there this long after the request was begun, milliseconds
    #[arg(long = "fetch-head-ms", env = "DODO_FETCH_HEAD_MS", default_value_t = 20_000)]
    pub head_ms: u64,
    /// The longest silence within a body, milliseconds
    #[arg(long = "fetch-read-ms", env = "DODO_FETCH_READ_MS", default_value_t = 15_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub read_ms: u64,
    /// The whole exchange; what came of a body until then is kept and marked, milliseconds
    #[arg(long = "fetch-total-ms", env = "DODO_FETCH_TOTAL_MS", default_value_t = 60_000, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    pub total_ms: u64,
    /// Bytes a second below which a body is cut after ten seconds; what came until then is kept and marked
    #[arg(long = "fetch-bytes-per-s-min", env = "DODO_FETCH_BYTES_PER_S_MIN", default_value_t = 100)]
    pub bytes_per_s_min: u64,
}

impl Patience {
    /// # Errors
    /// One line, when a part is longer than the whole.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!(
            self.connect_ms < self.head_ms && self.head_ms <= self.total_ms,
            "DODO_FETCH_CONNECT_MS ({}) must be less than DODO_FETCH_HEAD_MS ({}), and that at most DODO_FETCH_TOTAL_MS ({})",
            self.connect_ms,
            self.head_ms,
            self.total_ms
        );
        Ok(())
    }
}

impl Settings {
    /// The proxy, if one is set.
    ///
    /// # Errors
    /// One line that does not hold what was given.
    pub fn proxy(&self) -> anyhow::Result<Option<Proxy>> {
        if self.proxy.trim().is_empty() {
            return Ok(None);
        }
        self.proxy.parse().map(Some).context("DODO_PROXY")
    }

    /// The pool in its place; an empty one for none.
    ///
    /// # Errors
    /// One line that does not hold what was given.
    pub fn pool(&self) -> anyhow::Result<ProxyPool> {
        self.proxies.pool_beside(&self.proxy).map_err(anyhow::Error::msg)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_not_longer_than_the_whole() {
        let check = |flags: &[&str]| {
            let settings = Settings::try_parse_from(std::iter::once(&"dodo-worker").chain(flags)).unwrap();
            settings.patience.check()
        };
        assert!(check(&[]).is_ok());
        for flags in [["--fetch-connect-ms", "20000"], ["--fetch-head-ms", "60001"], ["--fetch-total-ms", "19999"]] {
            let why = check(&flags).unwrap_err().to_string();
            assert!(why.contains("DODO_FETCH_HEAD_MS") && why.contains(flags[1]) && why.lines().count() == 1, "{why}");
        }
    }
}
