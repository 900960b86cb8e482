//! Housekeeping: partitions ahead of time, old worker rows, entries whose occurrence went astray.

use std::sync::Arc;
use std::time::Duration;

use dodo_common::db::pool::DbResult;
use dodo_common::db::{explain, manifest, worker};

use crate::context::{Context, Term};

/// Daily partitions of `crawl_log` kept ready.
const DAYS_AHEAD: i32 = 3;
const EVERY: Duration = Duration::from_secs(60);

/// What one tick did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub partitions: i64,
    pub workers: u64,
    pub entries: u64,
}

pub async fn run(ctx: Arc<Context>, term: Term) {
    loop {
        match tick(&ctx, &term).await {
            Ok(summary) if summary != Summary::default() => tracing::info!(?summary, "housekeeping"),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "housekeeping failed"),
        }
        tokio::select! { () = term.over.cancelled() => return, () = tokio::time::sleep(EVERY) => {} }
    }
}

pub async fn tick(ctx: &Context, term: &Term) -> DbResult<Summary> {
    Ok(Summary {
        partitions: explain::ensure_partitions(&ctx.db, DAYS_AHEAD).await?,
        workers: worker::expire(&ctx.db, term.epoch).await?,
        entries: manifest::unstick(&ctx.db, term.epoch).await?,
    })
}
