//! Leadership: take the lease, act while it is renewed, stop at once when it is not.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dodo_common::db::leader as lease;
use dodo_common::fail;
use tokio_util::sync::CancellationToken;

use crate::context::{Context, Term};
use crate::{dispatcher, ending, housekeeping, manifests, timers};

/// A standby asks for the lease this often.
const ASK: Duration = Duration::from_millis(300);
/// A leader renews this often: a third of the lease.
const RENEW: Duration = Duration::from_millis(700);

/// Stands by and leads, by turns, until the process is told to stop.
pub async fn run(ctx: Arc<Context>) {
    while !ctx.soft.is_cancelled() {
        match lease::acquire(&ctx.db, ctx.id).await {
            Ok(Some(epoch)) => lead(&ctx, epoch).await,
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "cannot ask for the lease"),
        }
        tokio::select! { () = ctx.soft.cancelled() => {}, () = tokio::time::sleep(ASK) => {} }
    }
}

async fn lead(ctx: &Arc<Context>, epoch: i64) {
    tracing::info!(epoch, scheduler = %ctx.id, "leads");
    fail::point_async("lease-taken").await;
    let term = Term { epoch, over: ctx.soft.child_token() };
    ctx.leads.store(true, Ordering::Relaxed);
    metrics::gauge!("dodo_leader").set(1.0);
    let tasks = tokio_util::task::TaskTracker::new();
    tasks.spawn(to_the_end(term.over.clone(), dispatcher::run(Arc::clone(ctx), term.clone())));
    tasks.spawn(to_the_end(term.over.clone(), ending::run(Arc::clone(ctx), term.clone())));
    tasks.spawn(to_the_end(term.over.clone(), housekeeping::run(Arc::clone(ctx), term.clone())));
    tasks.spawn(to_the_end(term.over.clone(), manifests::run(Arc::clone(ctx), term.clone())));
    tasks.spawn(to_the_end(term.over.clone(), timers::run(Arc::clone(ctx), term.clone())));
    tasks.close();
    hold(ctx, epoch, &term.over).await;
    term.over.cancel();
    // What still runs is refused by its epoch; it need not be waited for long.
    let _ = tokio::time::timeout(Duration::from_secs(3), tasks.wait()).await;
    ctx.leads.store(false, Ordering::Relaxed);
    ctx.window_ready.store(false, Ordering::Relaxed);
    *ctx.backpressure.lock().expect("no panic under this lock") = None;
    metrics::gauge!("dodo_leader").set(0.0);
    if ctx.soft.is_cancelled() {
        let _ = lease::release(&ctx.db, epoch).await;
    }
    tracing::info!(epoch, "leads no more");
}

/// A duty of the leader. Whoever cannot do one of them, since it has panicked, does not lead: another shall.
async fn to_the_end(over: CancellationToken, duty: impl Future<Output = ()>) {
    let _over = over.drop_guard();
    duty.await;
}

/// Renews until the lease is lost or the term ends.
async fn hold(ctx: &Context, epoch: i64, over: &CancellationToken) {
    let mut confirmed = tokio::time::Instant::now();
    let lease_time = Duration::from_millis(lease::LEASE_MS as u64);
    loop {
        tokio::select! { () = over.cancelled() => return, () = tokio::time::sleep(RENEW) => {} }
        let asked = tokio::time::Instant::now();
        let left = lease_time.saturating_sub(confirmed.elapsed());
        match tokio::time::timeout(left, lease::renew(&ctx.db, epoch)).await {
            Ok(Ok(true)) => confirmed = asked,
            Ok(Ok(false)) => {
                tracing::warn!(epoch, "the lease is another's");
                return;
            }
            Ok(Err(error)) if confirmed.elapsed() < lease_time => {
                tracing::warn!(%error, epoch, "cannot renew the lease; trying again");
            }
            _ => {
                tracing::warn!(epoch, "the lease could not be renewed in time");
                return;
            }
        }
    }
}
