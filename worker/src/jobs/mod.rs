//! Job kinds, a file each.

pub mod crawl;
pub mod end;
pub mod get_metadata;
pub mod get_page;
pub mod noop;
pub mod occurrence;
pub mod page_dispatch;
pub mod paging;

use dodo_common::db::schedule::Loaded;
use dodo_common::model::job::{JobKind, Outcome};
use dodo_common::model::stream_id::StreamId;

use crate::committer::{Done, Effect};
use crate::context::Context;

/// Runs a job to its end; it never fails: every failure is an effect.
pub async fn run(ctx: &Context, entry: StreamId, row: Loaded) -> Done {
    let done = match row.job.kind {
        JobKind::Crawl => crawl::run(ctx, entry, row).await,
        JobKind::Noop => noop::run(ctx, entry, row).await,
        JobKind::Occurrence => occurrence::run(ctx, entry, row).await,
        JobKind::PageDispatch => page_dispatch::run(ctx, entry, row).await,
        JobKind::GetMetadata => get_metadata::run(ctx, entry, row).await,
        JobKind::GetPage => get_page::run(ctx, entry, row).await,
    };
    log(&done);
    done
}

/// One line a job; what went well is for those who look closely.
fn log(done: &Done) {
    match &done.effect {
        Effect::Finished { job, .. } => {
            let reason = job.reason.as_deref().unwrap_or_default();
            match job.outcome {
                Outcome::Dead | Outcome::Failed | Outcome::Unknown => {
                    tracing::warn!(outcome = job.outcome.as_str(), status = job.status, reason, "job ended");
                }
                _ => tracing::debug!(outcome = job.outcome.as_str(), status = job.status, reason, "job ended"),
            }
        }
        Effect::Retry(retry) => {
            tracing::info!(
                attempt = retry.key.attempt + 1,
                delay_ms = retry.delay_ms,
                reason = retry.error,
                "job is tried again"
            );
        }
        Effect::Prepared | Effect::Gone | Effect::Returned => {}
    }
}
