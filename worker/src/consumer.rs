//! The consumer loop: reads as many entries as there are free permits, loads their rows, runs them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use dodo_common::db::load::{self, Loaded, Unknown};
use dodo_common::fail;
use dodo_common::model::job::{Job, JobKey, JobKind};
use dodo_common::model::stream_id::StreamId;
use dodo_common::model::url::UrlHash;
use dodo_common::stream::connection::{Redis, StreamError};
use dodo_common::stream::queue::{self, JobEntry};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use crate::alone;
use crate::committer::Results;
use crate::context::Context;
use crate::done::{Done, Effect};
use crate::jobs;

/// A server that does not answer is asked again this often.
const PAUSE: Duration = Duration::from_millis(100);
/// While too much waits to be committed, this is looked at so often.
const FULL: Duration = Duration::from_millis(20);
/// A job of an unknown kind is handed back after this long.
pub const UNKNOWN_PAUSE: Duration = Duration::from_secs(1);

/// Runs until the incarnation drains or is refused; then hands back what has not started.
pub async fn run(ctx: Arc<Context>, reader: Redis, results: Results) {
    let permits = Arc::new(Semaphore::new(usize::from(ctx.settings.permits)));
    let tasks = TaskTracker::new();
    let consumer = dodo_common::db::worker::consumer_name(ctx.incarnation.slot);
    // Entries may lie in our own pending list: at the start, and after any read whose answer was lost.
    let mut from_history = true;
    while !ctx.soft.is_cancelled() && !ctx.refused.is_cancelled() {
        tokio::select! {
            () = ctx.fetcher.ready() => {}
            () = ctx.soft.cancelled() => break,
            () = ctx.refused.cancelled() => break,
        }
        let first = tokio::select! {
            permit = Arc::clone(&permits).acquire_owned() => permit.expect("the semaphore is never closed"),
            () = ctx.soft.cancelled() => break,
            () = ctx.refused.cancelled() => break,
        };
        if ctx.pressure.held_bytes() > ctx.settings.held_bytes_max {
            // Its committer is behind: what it holds must not grow without a bound.
            drop(first);
            tokio::time::sleep(FULL).await;
            continue;
        }
        let count = 1 + permits.available_permits();
        // What settles while the history is on its way is in it all the same.
        let held = from_history.then(|| ctx.held());
        let entries = if from_history {
            // The whole pending list, never longer than our permits: what is in it and not held was lost on its way.
            queue::history(&reader, &consumer, usize::from(ctx.settings.permits)).await
        } else {
            queue::next(&reader, &consumer, count).await
        };
        match entries {
            Ok(mut entries) => {
                from_history = false;
                let is_held = |id: &StreamId| held.as_ref().is_some_and(|held| held.contains(id));
                entries.retain(|entry| !is_held(&entry.entry) && ctx.hold(entry.entry));
                let (suspects, entries): (Vec<JobEntry>, Vec<JobEntry>) =
                    entries.into_iter().partition(|entry| entry.alone);
                if entries.is_empty() {
                    drop(first);
                } else {
                    take(&ctx, entries, first, &permits, &tasks, &results).await;
                }
                for suspect in suspects {
                    alone::run(&ctx, suspect, &permits, &results).await;
                }
            }
            Err(error) => {
                tracing::debug!(%error, "cannot read jobs");
                from_history = true;
                reader.close().await;
                // Another generation, a lost group or a restarted server: Postgres knows whether we may go on,
                // and nothing is read before it has said so.
                while !ctx.check_current().await && !ctx.soft.is_cancelled() && !ctx.refused.is_cancelled() {
                    tokio::time::sleep(PAUSE).await;
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    tasks.close();
    // What is not done when the grace is over stays in this consumer's pending list, from where the reaper
    // returns it: nothing is lost, nothing counts as tried.
    tokio::select! { () = tasks.wait() => {}, () = ctx.refused.cancelled() => {} }
}

/// Loads the rows of a batch and starts its jobs; what is gone is only acknowledged.
async fn take(
    ctx: &Arc<Context>,
    entries: Vec<JobEntry>,
    first: OwnedSemaphorePermit,
    permits: &Arc<Semaphore>,
    tasks: &TaskTracker,
    results: &Results,
) {
    let keys: Vec<JobKey> = entries.iter().map(|entry| entry.key.clone()).collect();
    fail::point_async("jobs-read").await;
    let Some((mut rows, unknown)) = load(ctx, &keys).await else { return };
    fail::point_async("jobs-loaded").await;
    let mut spare = Some(first);
    for JobEntry { entry, key, proxy, .. } in entries {
        let permit = match spare.take() {
            Some(permit) => permit,
            None => Arc::clone(permits).acquire_owned().await.expect("the semaphore is never closed"),
        };
        let (row, unknown) = (rows.remove(&key), unknown.contains(&key));
        let (ctx, results) = (Arc::clone(ctx), results.clone());
        tasks.spawn(async move {
            let done = match row {
                None if unknown => {
                    // It comes back at once where no newer worker takes it: not faster than this.
                    tokio::select! { () = tokio::time::sleep(UNKNOWN_PAUSE) => {}, () = ctx.soft.cancelled() => {} }
                    Done::new(entry, Effect::Returned)
                }
                None => Done::new(entry, Effect::Gone),
                Some(_) if ctx.soft.is_cancelled() => Done::new(entry, Effect::Returned),
                Some(row) => {
                    let span = span_of(&ctx, &row.job, proxy.as_deref());
                    tokio::select! {
                        done = jobs::run(&ctx, entry, row, proxy.as_deref()).instrument(span) => done,
                        () = ctx.refused.cancelled() => return,
                    }
                }
            };
            results.send(&ctx, done, permit).await;
        });
    }
}

/// What every line that a job logs carries.
pub fn span_of(ctx: &Context, job: &Job, proxy: Option<&str>) -> tracing::Span {
    let region = proxy.and_then(|proxy| ctx.fetcher.region_of(proxy));
    tracing::info_span!(
        "job", job = %job.key.id, dispatch = %job.dispatch, tenant = %job.key.tenant, host = %job.host,
        worker = %ctx.incarnation.id, region, proxy
    )
}

/// Loads rows, and the jobs of an unknown kind, waiting for Postgres as long as it takes; nothing when the
/// incarnation ends meanwhile.
pub async fn load(ctx: &Context, keys: &[JobKey]) -> Option<(HashMap<JobKey, Loaded>, HashSet<JobKey>)> {
    loop {
        match load::jobs(&ctx.db, keys).await {
            Ok(batch) => {
                if let Some(Unknown { kind, .. }) = batch.unknown.first() {
                    let jobs = batch.unknown.len();
                    tracing::warn!(
                        kind,
                        jobs,
                        "unknown kinds of job are handed back; is this worker older than the scheduler?"
                    );
                }
                // What has a job has been seen, whoever found it.
                for Job { dispatch, url, .. } in
                    batch.rows.iter().map(|row| &row.job).filter(|job| job.kind == JobKind::Crawl)
                {
                    ctx.seen.remember(*dispatch, url.iter().map(|url| UrlHash::of(url)));
                }
                let rows = batch.rows.into_iter().map(|row| (row.job.key.clone(), row)).collect();
                return Some((rows, batch.unknown.into_iter().map(|job| job.key).collect()));
            }
            Err(error) => tracing::warn!(%error, "cannot load jobs; asking again"),
        }
        tokio::select! {
            () = ctx.refused.cancelled() => return None,
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

/// True for errors that a new generation explains.
pub fn is_generation(error: &StreamError) -> bool {
    matches!(error, StreamError::Generation(_))
}
