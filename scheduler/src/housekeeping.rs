//! Housekeeping: partitions ahead of time, old worker rows, entries whose occurrence went astray, results that left their
//! stream unnoticed.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use dodo_common::db::partition::{self, Ensured};
use dodo_common::db::pool::DbResult;
use dodo_common::db::{dispatch, manifest, worker};
use uuid::Uuid;

use crate::context::{Context, Term};
use crate::window::{self, WindowError};

/// Daily partitions of `crawl_log` kept ready.
const DAYS_AHEAD: i32 = 3;
const EVERY: Duration = Duration::from_secs(30);

/// What one tick did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub partitions: i64,
    /// Rows that have moved to them from the default partition.
    pub moved: u64,
    /// Days that stay in the default partition, which has too many rows of them.
    pub crowded: i64,
    /// Days of which it is not known.
    pub failed: i64,
    pub workers: u64,
    pub entries: u64,
}

pub async fn run(ctx: Arc<Context>, term: Term) {
    let (mut crowded, mut waiting) = (0, HashSet::new());
    loop {
        match tick(&ctx, &term).await {
            Ok(summary) => {
                // It lasts: it is said once.
                if summary.crowded > crowded {
                    let rows_max = partition::MOVED_ROWS_MAX;
                    tracing::warn!(days = summary.crowded, rows_max, "days of the log stay in its default partition");
                }
                crowded = summary.crowded;
                let done = Summary { crowded: 0, failed: 0, ..summary };
                if done != Summary::default() {
                    tracing::info!(summary = ?done, "housekeeping");
                }
            }
            Err(error) => tracing::warn!(%error, "housekeeping failed"),
        }
        match look_for_lost(&ctx, &term, &mut waiting).await {
            Ok(0) => {}
            Ok(results) => tracing::warn!(results, "results that left their stream unnoticed are made again"),
            // The dispatcher says what is away.
            Err(error) => tracing::debug!(%error, "cannot look for results that left their stream"),
        }
        tokio::select! { () = term.over.cancelled() => return, () = tokio::time::sleep(EVERY) => {} }
    }
}

pub async fn tick(ctx: &Context, term: &Term) -> DbResult<Summary> {
    let mut summary = Summary::default();
    for in_days in 0..=DAYS_AHEAD {
        match partition::ensure(&ctx.db, in_days).await {
            Ok(Ensured::There) => {}
            Ok(Ensured::Made) => summary.partitions += 1,
            Ok(Ensured::Moved(rows)) => {
                summary.partitions += 1;
                summary.moved += rows;
            }
            Ok(Ensured::Crowded) => summary.crowded += 1,
            Err(error) => {
                // The other days, and the other duties, do not wait for it.
                tracing::warn!(%error, in_days, "the log has no partition for that day yet");
                summary.failed += 1;
            }
        }
    }
    summary.workers = worker::expire(&ctx.db, term.epoch).await?;
    summary.entries = manifest::unstick(&ctx.db, term.epoch).await?;
    Ok(summary)
}

/// A dispatch that waits for the archive from one look to the next may wait for a result that somebody deleted from its
/// stream: what is gone is made again; returns how many.
async fn look_for_lost(ctx: &Context, term: &Term, waiting: &mut HashSet<Uuid>) -> Result<u64, WindowError> {
    let archiving = dispatch::archiving(&ctx.db).await?;
    let lasts = archiving.iter().any(|id| waiting.contains(id));
    *waiting = archiving;
    if lasts { window::remake_at_ends(ctx, term).await } else { Ok(0) }
}
