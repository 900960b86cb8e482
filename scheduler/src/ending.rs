//! The rest of dispatches that are ending: what is left of one, and what is added meanwhile, ends in the log.
//!
//! The row of the dispatch says so; a leader that is killed here leaves the rest to the next one.

use std::sync::Arc;
use std::time::Duration;

use dodo_common::db::pool::{DbError, DbResult};
use dodo_common::db::{control, schedule};

use crate::context::{Context, Term};

const EVERY: Duration = Duration::from_millis(200);
/// Dispatches looked at in one tick, and batches of jobs ended for each.
const DISPATCHES_MAX: i64 = 500;
const BATCHES_MAX: usize = 20;

/// What one tick did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Dispatches whose budget was found spent.
    pub spent: u64,
    pub jobs: u64,
    pub entries: u64,
}

/// Runs for one term of leadership.
pub async fn run(ctx: Arc<Context>, term: Term) {
    let mut failing = false;
    loop {
        match tick(&ctx, &term).await {
            Ok(summary) => {
                failing = false;
                if summary != Summary::default() {
                    tracing::info!(?summary, "what was left of dispatches has ended");
                }
            }
            Err(DbError::LeaderRefused(_)) => return,
            Err(error) => {
                if !failing {
                    tracing::warn!(%error, "dispatches cannot be ended yet");
                }
                failing = true;
            }
        }
        tokio::select! { () = term.over.cancelled() => return, () = tokio::time::sleep(EVERY) => {} }
    }
}

/// Ends what is left, in batches of one transaction each.
pub async fn tick(ctx: &Context, term: &Term) -> DbResult<Summary> {
    let mut summary = Summary { spent: control::spend(&ctx.db, term.epoch).await?, ..Summary::default() };
    for ending in control::ending(&ctx.db, DISPATCHES_MAX).await? {
        if ending.manifest {
            summary.entries += control::stop_entries(&ctx.db, term.epoch, &ending.tenant, ending.id).await?;
        }
        for _ in 0..BATCHES_MAX {
            let limit = schedule::BATCH_MAX as i64;
            let ids = schedule::of_dispatch(&ctx.db, &ending.tenant, ending.id, limit).await?;
            if ids.is_empty() {
                break;
            }
            // A worker may end some of them first: whoever deletes the row wins.
            summary.jobs +=
                schedule::skip(&ctx.db, term.epoch, &ending.tenant, &ids, ending.outcome, &ending.note).await?;
            if ids.len() < schedule::BATCH_MAX || term.over.is_cancelled() {
                break;
            }
        }
    }
    Ok(summary)
}
