//! What came of a job, on its way from whoever ran it to the committer.

use std::time::Instant;

use dodo_common::db::commit::{Finished, Found, Retry};
use dodo_common::db::host::{Hold, HostUpdate};
use dodo_common::model::job::JobKey;
use dodo_common::model::proxy::ProxyWord;
use dodo_common::model::stream_id::StreamId;
use dodo_common::stream::raw::RawEntry;
use uuid::Uuid;

/// What came of a job, before it is committed.
#[derive(Debug)]
pub enum Effect {
    /// It ended; its raw result, if any, goes to the named stream first.
    Finished { job: Box<Finished>, raw: Option<(&'static str, RawEntry)>, dispatch: Uuid },
    /// Its row stays with its next attempt.
    Retry(Retry),
    /// Its host was prepared; the row is unchanged.
    Prepared,
    /// Its row was gone.
    Gone,
    /// Its dispatch is paused; the row is unchanged.
    Paused,
    /// It has not been started, or our proxy did not let it out.
    Returned,
}

impl Effect {
    /// The try that it ends.
    pub fn key(&self) -> Option<&JobKey> {
        match self {
            Effect::Finished { job, .. } => Some(&job.key),
            Effect::Retry(retry) => Some(&retry.key),
            Effect::Prepared | Effect::Gone | Effect::Paused | Effect::Returned => None,
        }
    }
}

/// One settled entry of the jobs stream.
#[derive(Debug)]
pub struct Done {
    pub entry: StreamId,
    pub effect: Effect,
    /// What was learned of the host.
    pub host: Option<HostUpdate>,
    /// What its answer says of its host.
    pub hold: Option<Hold>,
    pub requested: bool,
    /// How long its host took to answer it, milliseconds; that is the latency, which a long body is no part of.
    pub head_ms: Option<i32>,
    /// What its request says of the proxy that the leader chose.
    pub proxy: Option<ProxyWord>,
    /// Its request, if there was one, was over by then.
    pub ended: Instant,
}

impl Done {
    /// What is known when its request is over.
    pub fn new(entry: StreamId, effect: Effect) -> Self {
        Self {
            entry,
            effect,
            host: None,
            hold: None,
            requested: false,
            head_ms: None,
            proxy: None,
            ended: Instant::now(),
        }
    }

    /// What it takes to hold it until it is committed, but for a small fixed part.
    pub fn bytes(&self) -> u64 {
        let Effect::Finished { job, raw, .. } = &self.effect else { return 0 };
        let raw = raw.as_ref().map_or(0, |(_, entry)| entry.about.len() + entry.body.len());
        let kept = job.paged.as_ref().and_then(|paged| paged.kept.as_ref()).map_or(0, Vec::len);
        let found: usize = job.found.iter().map(|found| size_of::<Found>() + found.url.len() + found.host.len()).sum();
        let modified = job.revisited.as_ref().map_or(0, |revisited| size_of_val(revisited.modified.as_slice()));
        (raw + kept + found + modified + job.links.as_ref().map_or(0, String::len)) as u64
    }
}
