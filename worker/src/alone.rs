//! Suspects: jobs that were lost with their workers. Each runs while nothing else does, so that nobody is lost with it,
//! and so that it is known whose fault a loss is.

use std::sync::Arc;
use std::time::Duration;

use dodo_common::db::load::Loaded;
use dodo_common::db::pool::DbError;
use dodo_common::db::suspect;
use dodo_common::fail;
use dodo_common::model::job::JobKey;
use dodo_common::stream::queue::JobEntry;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::Instrument as _;

use crate::committer::Results;
use crate::consumer::{UNKNOWN_PAUSE, load, span_of};
use crate::context::Context;
use crate::done::{Done, Effect};
use crate::jobs;

/// A database that does not answer is asked again this often.
const PAUSE: Duration = Duration::from_millis(100);

/// Waits until everything that runs is settled, then runs this one job. A worker that drains hands it back.
pub async fn run(ctx: &Arc<Context>, suspect: JobEntry, permits: &Arc<Semaphore>, results: &Results) {
    let JobEntry { entry, key, proxy, .. } = suspect;
    // A permit is free when its job is settled: with all of them, nothing runs, and nothing begins.
    let all = u32::from(ctx.settings.permits);
    let (effect, permit) = tokio::select! {
        biased;
        () = ctx.refused.cancelled() => return,
        () = ctx.soft.cancelled() => (Err(Effect::Returned), none(permits)),
        permit = Arc::clone(permits).acquire_many_owned(all) => {
            let permit = permit.expect("the semaphore is never closed");
            let Some(begun) = begin(ctx, &key).await else { return };
            (begun, permit)
        }
    };
    let done = match effect {
        Err(effect) => Done::new(entry, effect),
        Ok(row) => {
            tracing::warn!(job = %key.id, "a suspect runs alone");
            let span = span_of(ctx, &row.job, proxy.as_deref());
            let done = tokio::select! {
                done = jobs::run(ctx, entry, *row, proxy.as_deref()).instrument(span) => done,
                () = ctx.refused.cancelled() => return,
            };
            // An end takes the row along; where it stays, it must not say that the job still runs here.
            if !matches!(done.effect, Effect::Finished { .. }) && !end(ctx, &key).await {
                return;
            }
            done
        }
    };
    results.send(ctx, done, permit).await;
}

/// No permit: what is handed back has taken none.
fn none(permits: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    Arc::clone(permits).try_acquire_many_owned(0).expect("none is always free")
}

/// Commits that it runs alone here and loads its row, or says what comes of the entry instead; nothing when the
/// incarnation ends meanwhile. In this order: a row that kills who reads it must not stay without a culprit.
async fn begin(ctx: &Context, key: &JobKey) -> Option<Result<Box<Loaded>, Effect>> {
    loop {
        if ctx.soft.is_cancelled() {
            return Some(Err(Effect::Returned));
        }
        match suspect::begin_alone(&ctx.db, &ctx.incarnation, key).await {
            Ok(true) => break,
            Ok(false) => return Some(Err(Effect::Gone)),
            Err(error) => wait(ctx, error).await?,
        }
    }
    fail::point_async("alone-begun").await;
    let (mut rows, unknown) = load(ctx, std::slice::from_ref(key)).await?;
    if let Some(row) = rows.remove(key) {
        return Some(Ok(Box::new(row)));
    }
    if !end(ctx, key).await {
        return None;
    }
    if !unknown.contains(key) {
        return Some(Err(Effect::Gone));
    }
    // It comes back at once where no newer worker takes it: not faster than this.
    tokio::select! { () = tokio::time::sleep(UNKNOWN_PAUSE) => {}, () = ctx.soft.cancelled() => {} }
    Some(Err(Effect::Returned))
}

/// Commits that it runs here no more. False: the incarnation has ended.
async fn end(ctx: &Context, key: &JobKey) -> bool {
    while let Err(error) = suspect::end_alone(&ctx.db, &ctx.incarnation, key).await {
        if wait(ctx, error).await.is_none() {
            return false;
        }
    }
    true
}

/// Waits for a server that is away; nothing when the incarnation has ended.
async fn wait(ctx: &Context, error: DbError) -> Option<()> {
    if let DbError::WorkerRefused(why) = error {
        ctx.refuse(&why);
        return None;
    }
    tracing::warn!(%error, "cannot say that a suspect runs alone; trying again");
    tokio::select! {
        () = ctx.refused.cancelled() => None,
        () = tokio::time::sleep(PAUSE) => Some(()),
    }
}
