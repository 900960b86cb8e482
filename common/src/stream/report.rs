//! What a worker reports on `done` when it settles entries, the hint that work was gained, and questions to the leader.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::model::proxy::ProxyWord;
use crate::model::stream_id::StreamId;
use crate::stream::question::Question;

/// How an entry of the jobs stream was settled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Its row was deleted and logged by this worker; `page`: it counts against the pages budget.
    /// `fresh`: it has said something new, as far as that is told. `job` is the worker's own note and is not sent.
    Finished {
        #[serde(skip)]
        job: Uuid,
        page: bool,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        fresh: bool,
    },
    /// Its row stays and is due again in so many milliseconds.
    Retried { in_ms: i64 },
    /// It prepared its host (addresses, robots); its row is unchanged and due.
    Prepared,
    /// Its row was gone or had moved on; nothing was requested.
    Gone,
    /// Its dispatch is paused, or ends: nothing was requested.
    Paused,
    /// The worker is leaving, or its proxy is down: nothing was requested, issue it again.
    Returned,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settled {
    pub entry: StreamId,
    pub verdict: Verdict,
    /// A request was sent, so the host's clocks start when it ended.
    #[serde(default)]
    pub requested: bool,
    /// How long ago that was when this report was sent, milliseconds: what a commit takes is no part of the delay.
    #[serde(default)]
    pub ended_ms_ago: i64,
    /// The host asked to be left alone for so long, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_ms: Option<i64>,
    /// How long the host took to answer, milliseconds, and whether that was a good answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered: Option<(i64, bool)>,
    /// What its request says of the proxy that the leader chose for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<ProxyWord>,
}

/// One entry of `done`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    #[serde(default)]
    pub worker: Uuid,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub settled: Vec<Settled>,
    /// (tenant, host) that gained jobs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gained: Vec<(String, String)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub asked: Vec<Question>,
}
