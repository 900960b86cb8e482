//! Job kinds, a file each, and what they share.

pub mod crawl;
pub mod declaration;
pub mod end;
pub mod get_metadata;
pub mod get_page;
pub mod noop;
pub mod occurrence;
pub mod page_dispatch;
pub mod paging;
pub mod revisit;
pub mod target;

use std::panic::AssertUnwindSafe;

use dodo_common::db::commit::Finished;
use dodo_common::db::load::{Leave, Loaded};
use dodo_common::model::job::{JobKind, Outcome};
use dodo_common::model::stream_id::StreamId;
use futures::FutureExt as _;
use futures::future::BoxFuture;

use crate::consumer::UNKNOWN_PAUSE;
use crate::context::Context;
use crate::done::{Done, Effect};

/// Runs a job to its end, its requests by the proxy at `address` if the leader chose one; it never fails: every failure is
/// an effect, a panic too.
pub async fn run(ctx: &Context, entry: StreamId, row: Loaded, address: Option<&str>) -> Done {
    let trip = match ctx.fetcher.trip(address) {
        Ok(trip) => trip,
        // It sends no request.
        Err(_) if row.job.host.is_empty() => None,
        Err(why) => {
            tracing::warn!("the job is handed back: {why}; DODO_PROXIES must be the same everywhere");
            // It comes back at once: not faster than this.
            tokio::select! { () = tokio::time::sleep(UNKNOWN_PAUSE) => {}, () = ctx.soft.cancelled() => {} }
            return Done::new(entry, Effect::Returned);
        }
    };
    let Some(trip) = trip else { return run_here(ctx, entry, row).await };
    let mut done = trip.scope(run_here(ctx, entry, row)).await;
    done.proxy = trip.word();
    done
}

async fn run_here(ctx: &Context, entry: StreamId, row: Loaded) -> Done {
    let refuses = (row.job.host_refusals > 0).then(|| row.job.host.clone());
    let (key, kind, dispatch) = (row.job.key.clone(), row.job.kind, row.job.dispatch);
    let visit = (kind == JobKind::Crawl && row.job.payload.is_some()).then(|| row.job.clone());
    let mut done = match caught(run_kind(ctx, entry, row)).await {
        Ok(done) => done,
        Err(why) => {
            // It may have panicked between a call that may not be repeated and its answer.
            let once = kind == JobKind::GetPage
                && ctx.paging(&key.tenant, dispatch).await.map_or(true, |paging| paging.spec.document.at_most_once);
            let outcome = if once { Outcome::Unknown } else { Outcome::Failed };
            let finished = Finished::new(key, outcome, Some(end::clean(&format!("it panicked: {why}"))));
            let mut done = Done::new(entry, Effect::Finished { job: Box::new(finished), raw: None, dispatch });
            done.requested = true;
            if let Some(visit) = visit {
                revisit::missed(ctx, &visit, &mut done).await;
            }
            done
        }
    };
    end::calm(&mut done, refuses);
    log(&done);
    done
}

/// On the heap: a job's task is moved several times until it is spawned, and would be as large as the largest kind.
fn run_kind(ctx: &Context, entry: StreamId, row: Loaded) -> BoxFuture<'_, Done> {
    match row.job.kind {
        _ if row.leave != Leave::Run => Box::pin(async move { stay(entry, &row) }),
        JobKind::Crawl => Box::pin(crawl::run(ctx, entry, row)),
        JobKind::Noop => Box::pin(noop::run(ctx, entry, row)),
        JobKind::Occurrence => Box::pin(occurrence::run(ctx, entry, row)),
        JobKind::PageDispatch => Box::pin(page_dispatch::run(ctx, entry, row)),
        JobKind::GetMetadata => Box::pin(get_metadata::run(ctx, entry, row)),
        JobKind::GetPage => Box::pin(get_page::run(ctx, entry, row)),
    }
}

/// Runs to its end, or to its panic, whose message is the error. What is shared is kept whole by its locks: they do not
/// panic while they are held.
async fn caught<T>(running: impl Future<Output = T>) -> Result<T, String> {
    AssertUnwindSafe(running).catch_unwind().await.map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".to_owned())
    })
}

/// What comes of a job whose dispatch does not let it run: no request (invariant 3).
fn stay(entry: StreamId, row: &Loaded) -> Done {
    match &row.leave {
        Leave::Ending(outcome, why) => end::finish(entry, &row.job, *outcome, why),
        Leave::Paused | Leave::Run => Done::new(entry, Effect::Paused),
    }
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
                refusals = retry.refusals.map(|before| before + 1),
                delay_ms = retry.delay_ms,
                reason = retry.error,
                "job is tried again"
            );
        }
        Effect::Prepared | Effect::Gone | Effect::Paused | Effect::Returned => {}
    }
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn a_panic_is_an_error_with_its_message() {
        let number = std::hint::black_box(7);
        assert_eq!(super::caught(async { number }).await, Ok(7));
        let said = super::caught(async { assert!(number < 5, "it was {number}") }).await;
        assert_eq!(said, Err("it was 7".to_owned()));
        let said = super::caught(async { assert!(number < 5, "too many") }).await;
        assert_eq!(said, Err("too many".to_owned()));
    }
}
