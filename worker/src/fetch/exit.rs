//! Exits: the ways out of this worker, and the one that the requests of a job take.
//!
//! With a pool the leader chooses the proxy of each job, and is told what its requests say of it. Both belong to the job
//! that runs, so they travel with its task. A request that belongs to none is not sent: nothing leaves but by the pool.

use std::sync::{Arc, Mutex, OnceLock};

use dodo_common::model::proxy::{Proxy, ProxyWord};
use reqwest::Client;
use url::Url;

use crate::fetch::block;
use crate::fetch::fetched::Fetched;
use crate::fetch::proxy::{self, FetchError, Uplink};

tokio::task_local! {
    static TRIP: Arc<Trip>;
}

/// A way out: clients that share nothing with those of another.
#[derive(Debug)]
pub struct Way {
    /// Keeps connections.
    pub pooled: Client,
    /// Makes one for each request: for hosts whose open connections are not to be trusted.
    pub single: Client,
    pub uplink: Option<Arc<Uplink>>,
}

/// A proxy of the pool.
#[derive(Debug)]
pub struct Exit {
    pub region: String,
    pub proxy: Proxy,
    /// Made when the first job comes by: a worker may never see most of a large pool.
    pub way: OnceLock<Way>,
}

/// What a job has of its exit.
#[derive(Debug)]
pub struct Trip {
    pub exit: Arc<Exit>,
    word: Mutex<Option<ProxyWord>>,
}

impl Trip {
    pub fn by(exit: Arc<Exit>) -> Arc<Self> {
        Arc::new(Self { exit, word: Mutex::default() })
    }

    /// That of the running job.
    pub fn current() -> Option<Arc<Self>> {
        TRIP.try_with(Arc::clone).ok()
    }

    /// Runs a job by it.
    pub async fn scope<F: Future>(self: &Arc<Self>, job: F) -> F::Output {
        TRIP.scope(Arc::clone(self), job).await
    }

    /// What its last request said of the proxy.
    pub fn word(&self) -> Option<ProxyWord> {
        *self.word.lock().expect("no panic under this lock")
    }

    /// Notes what an answer from `url`, or none, says of the proxy, and marks an answer that looks blocked.
    pub fn note(&self, url: &Url, answer: &mut Result<Fetched, FetchError>) {
        let word = match answer {
            Err(FetchError::Unsent(_)) => return,
            Err(FetchError::Proxy(_)) => ProxyWord::Down,
            Err(FetchError::Failed(_) | FetchError::Unreachable(_)) => ProxyWord::Failed,
            Ok(fetched) => {
                fetched.block = block::sign(fetched);
                match fetched.status {
                    _ if fetched.block.is_some() => ProxyWord::Blocked,
                    // What a proxy says where it does not reach the site (RFC 9110 15.6.3 and 15.6.5; Squid says 503); the
                    // site may have said it, too, which the leader finds out.
                    502..=504 if proxy::may_answer(&self.exit.proxy, url) => ProxyWord::Failed,
                    _ => ProxyWord::Good,
                }
            }
        };
        *self.word.lock().expect("no panic under this lock") = Some(word);
    }
}
