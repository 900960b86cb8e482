//! What the parts of a scheduler share.

use std::sync::atomic::{AtomicBool, AtomicI64};
use std::sync::{Arc, Mutex};

use clap::Args;
use dodo_common::clock::Clock;
use dodo_common::config::Proxies;
use dodo_common::db::pool::Db;
use dodo_common::model::proxy_pool::ProxyPool;
use dodo_common::storage::object::Store;
use dodo_common::stream::connection::{Redis, StreamResult};
use dodo_common::stream::queue;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::frontier::exits;

/// What a leader is told of its duties.
#[derive(Args, Clone, Debug)]
pub struct Duties {
    /// Who to write to about this crawler (an address or a URL); needed to crawl anything but loopback
    #[arg(long, env = "DODO_CONTACT", default_value = "")]
    pub contact: String,
    /// Prefix of the bucket under which manifests lie
    #[arg(long, env = "DODO_MANIFEST_PREFIX", default_value = "manifests")]
    pub manifest_prefix: String,
    /// The manifests are looked at this often, milliseconds
    #[arg(long, env = "DODO_MANIFEST_REFRESH_MS", default_value_t = 60_000, value_parser = clap::value_parser!(u64).range(50..))]
    pub manifest_refresh_ms: u64,
}

/// What bounds the work of a leader, for `dodo serve` and `dodo up`.
#[derive(Args, Clone, Debug)]
pub struct Bounds {
    /// Nothing is issued while the raw streams take more memory than this
    #[arg(long, env = "DODO_STREAM_BYTES_MAX", default_value_t = 512 << 20)]
    pub stream_bytes_max: u64,
    /// Nothing is issued while the raw streams hold more entries than this
    #[arg(long, env = "DODO_STREAM_ENTRIES_MAX", default_value_t = 500_000)]
    pub stream_entries_max: u64,
    /// A worker that holds jobs and settles none for this long is lost, milliseconds; above every timeout of a job
    #[arg(long, env = "DODO_STALL_MS", default_value_t = 120_000, value_parser = clap::value_parser!(u64).range(1000..))]
    pub stall_ms_max: u64,
    #[command(flatten)]
    pub proxies: ProxyBounds,
}

/// The pool of proxies, and what is asked of each.
#[derive(Args, Clone, Debug)]
pub struct ProxyBounds {
    #[command(flatten)]
    pub pool: Proxies,
    /// Requests under way by one proxy of the pool at most
    #[arg(long, env = "DODO_PROXY_CONCURRENCY", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub proxy_concurrency: u32,
    /// Between the end of a request by a proxy of the pool and the next one, milliseconds
    #[arg(long, env = "DODO_PROXY_DELAY_MS", default_value_t = 0, value_parser = clap::value_parser!(i64).range(0..=3_600_000))]
    pub proxy_delay_ms: i64,
    /// How long a proxy of the pool is left alone when its answers show that it is blocked, or it does not answer, milliseconds;
    /// each further time in a row twice as long, up to sixteen times
    #[arg(long, env = "DODO_PROXY_QUARANTINE_MS", default_value_t = 30_000, value_parser = clap::value_parser!(i64).range(1..=3_600_000))]
    pub proxy_quarantine_ms: i64,
}

impl ProxyBounds {
    pub fn bounds(&self) -> exits::Bounds {
        exits::Bounds {
            concurrency: self.proxy_concurrency,
            delay_ms: self.proxy_delay_ms,
            quarantine_ms: self.proxy_quarantine_ms,
        }
    }
}

/// One scheduler process.
pub struct Context {
    /// Names this process in the lease.
    pub id: Uuid,
    pub db: Db,
    pub redis: Redis,
    pub redis_url: String,
    pub store: Store,
    pub duties: Duties,
    pub bounds: Bounds,
    /// The proxies that requests leave by; empty: they leave as the workers are told.
    pub pool: ProxyPool,
    pub clock: Clock,
    pub soft: CancellationToken,
    /// This process leads.
    pub leads: AtomicBool,
    /// The window of the current generation is up: jobs are being issued.
    pub window_ready: AtomicBool,
    pub generation: AtomicI64,
    /// Why nothing is issued though the window is up.
    pub backpressure: Mutex<Option<String>>,
}

impl Context {
    pub fn new(
        db: Db,
        redis_url: &str,
        store: Store,
        duties: Duties,
        bounds: Bounds,
        pool: ProxyPool,
        soft: CancellationToken,
    ) -> StreamResult<Arc<Self>> {
        let id = Uuid::now_v7();
        Ok(Arc::new(Self {
            id,
            db,
            redis: Redis::new(redis_url, &format!("scheduler:{id}"))?,
            redis_url: redis_url.to_owned(),
            store,
            duties,
            bounds,
            pool,
            clock: Clock::System,
            soft,
            leads: AtomicBool::new(false),
            window_ready: AtomicBool::new(false),
            generation: AtomicI64::new(0),
            backpressure: Mutex::default(),
        }))
    }

    /// Tells the leader which (tenant, host) gained jobs. Without it the dispatcher's scan finds them all the same, within a
    /// minute.
    pub async fn hint(&self, gained: Vec<(String, String)>) {
        if let Err(error) = queue::hint(&self.redis, gained).await {
            tracing::debug!(%error, "the hint did not get through");
        }
    }
}

/// One term of leadership: its epoch, and the token that ends it.
#[derive(Clone)]
pub struct Term {
    pub epoch: i64,
    pub over: CancellationToken,
}
