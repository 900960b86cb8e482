//! What the parts of a scheduler share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64};

use dodo_common::clock::Clock;
use dodo_common::db::pool::Db;
use dodo_common::stream::connection::{Redis, StreamResult};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// One scheduler process.
pub struct Context {
    /// Names this process in the lease.
    pub id: Uuid,
    pub db: Db,
    pub redis: Redis,
    pub redis_url: String,
    pub clock: Clock,
    pub soft: CancellationToken,
    /// This process leads.
    pub leads: AtomicBool,
    /// The window of the current generation is up: jobs are being issued.
    pub window_ready: AtomicBool,
    pub generation: AtomicI64,
}

impl Context {
    pub fn new(db: Db, redis_url: &str, soft: CancellationToken) -> StreamResult<Arc<Self>> {
        let id = Uuid::now_v7();
        Ok(Arc::new(Self {
            id,
            db,
            redis: Redis::new(redis_url, &format!("scheduler:{id}"))?,
            redis_url: redis_url.to_owned(),
            clock: Clock::System,
            soft,
            leads: AtomicBool::new(false),
            window_ready: AtomicBool::new(false),
            generation: AtomicI64::new(0),
        }))
    }
}

/// One term of leadership: its epoch, and the token that ends it.
#[derive(Clone)]
pub struct Term {
    pub epoch: i64,
    pub over: CancellationToken,
}
