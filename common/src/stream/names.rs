//! Every key of Redis, and who writes and reads it.
//!
//! | key | what | written by | read by |
//! | --- | --- | --- | --- |
//! | `dodo:jobs:fetch` | ids of jobs to run, which run alone, and by which proxy; group `workers` | leader | workers |
//! | `dodo:done` | reports of ended jobs, hints of gained work, questions | workers, API | leader |
//! | `dodo:pages` | fetched pages as gzip members of WARC records | workers | archiver |
//! | `dodo:items` | raw payloads as JSON; group `process` | workers | processors, archiver |
//! | `dodo:heartbeats` | hash: incarnation to its last heartbeat | workers | leader, sentinel |
//! | `dodo:generation` | number of the generation | leader | all |
//! | `dodo:epoch` | epoch of the leader | leader | leader |
//! | `dodo:told:<id>` | answer to a question; expires | leader | API |

use uuid::Uuid;

pub const JOBS: &str = "dodo:jobs:fetch";
pub const GROUP: &str = "workers";
pub const DONE: &str = "dodo:done";
pub const PAGES: &str = "dodo:pages";
pub const ITEMS: &str = "dodo:items";
pub const HEARTBEATS: &str = "dodo:heartbeats";
pub const GENERATION: &str = "dodo:generation";
pub const EPOCH: &str = "dodo:epoch";

/// Streams that are deleted and made anew with each generation, with their group where they have one.
pub const WINDOW_STREAMS: &[(&str, Option<&str>)] = &[(JOBS, Some(GROUP)), (DONE, None)];
/// Streams whose entries survive a generation and are archived before they are trimmed.
pub const RAW_STREAMS: &[&str] = &[PAGES, ITEMS];
/// The group that processes the items.
pub const PROCESS: &str = "process";

/// The group declared on a raw stream: nothing leaves the stream before the group has acknowledged it.
pub fn group_of(raw_stream: &str) -> Option<&'static str> {
    (raw_stream == ITEMS).then_some(PROCESS)
}

/// Where the leader answers a question.
pub fn told(question: Uuid) -> String {
    format!("dodo:told:{question}")
}

/// The name of a raw stream in Postgres and in object keys.
pub fn archive_name(stream: &str) -> &str {
    stream.trim_start_matches("dodo:")
}
