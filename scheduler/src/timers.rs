//! Timers: sources that start a page dispatch every so often.

use std::sync::Arc;
use std::time::Duration;

use dodo_common::db::pool::{DbError, DbResult};
use dodo_common::db::source;
use dodo_common::model::source::PagedSpec;
use dodo_common::stream::queue;

use crate::context::{Context, Term};

const EVERY: Duration = Duration::from_millis(500);
/// Timers that go off in one tick.
const DUE_MAX: i64 = 100;

/// Runs for one term of leadership.
pub async fn run(ctx: Arc<Context>, term: Term) {
    let mut failing = false;
    loop {
        match tick(&ctx, &term).await {
            Ok(_) => failing = false,
            Err(DbError::LeaderRefused(_)) => return,
            Err(error) => {
                if !failing {
                    tracing::warn!(%error, "timers wait");
                }
                failing = true;
            }
        }
        tokio::select! { () = term.over.cancelled() => return, () = tokio::time::sleep(EVERY) => {} }
    }
}

/// Starts the dispatches of due timers; returns how many.
pub async fn tick(ctx: &Context, term: &Term) -> DbResult<usize> {
    let mut started = 0;
    for due in source::due(&ctx.db, DUE_MAX).await? {
        let s = &due.source;
        let spec = PagedSpec::new(&s.name, s.version, s.document.clone(), None, None, Default::default());
        match &spec {
            Ok(_) => {
                tracing::info!(source = s.name, tenant = due.tenant, at = %due.at, "a timer starts a page dispatch");
                started += 1;
            }
            Err(why) => {
                tracing::warn!(source = s.name, tenant = due.tenant, "a timer cannot start a page dispatch: {why}")
            }
        }
        match source::tick(&ctx.db, term.epoch, &due, spec.as_ref().ok()).await {
            // One that is at fault holds up no other.
            Err(error) if error.is_data() => tracing::warn!(source = s.name, %error, "a timer cannot be moved"),
            other => other?,
        }
        if let Err(error) = queue::hint(&ctx.redis, vec![(due.tenant.clone(), String::new())]).await {
            tracing::debug!(%error, "the hint did not get through");
        }
    }
    Ok(started)
}
