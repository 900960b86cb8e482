//! Job kinds, a file each.

pub mod crawl;
pub mod noop;

use dodo_common::db::schedule::Loaded;
use dodo_common::model::job::JobKind;
use dodo_common::model::stream_id::StreamId;

use crate::committer::Done;
use crate::context::Context;

/// Runs a job to its end; it never fails: every failure is an effect.
pub async fn run(ctx: &Context, entry: StreamId, row: Loaded) -> Done {
    match row.job.kind {
        JobKind::Crawl => crawl::run(ctx, entry, row).await,
        JobKind::Noop => noop::run(ctx, entry, row),
    }
}
