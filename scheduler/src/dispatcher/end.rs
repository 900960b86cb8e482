//! Jobs that no worker ends: the leader does.

use dodo_common::db::{page, schedule, suspect};
use dodo_common::fail;
use dodo_common::model::job::Outcome;
use uuid::Uuid;

use crate::dispatcher::Dispatcher;
use crate::window::WindowError;

/// Orphaned calls ended in one tick.
const ORPHANED_MAX: i64 = 1000;
/// Jobs quarantined in one tick.
const QUARANTINED_MAX: i64 = 100;

impl Dispatcher<'_> {
    /// Calls that may not be repeated and whose worker is gone: nobody knows how they ended (at most once).
    pub(super) async fn end_orphaned(&mut self) -> Result<(), WindowError> {
        let orphaned = page::orphaned(&self.ctx.db, self.term.epoch, ORPHANED_MAX).await?;
        for batch in orphaned.chunk_by(|a, b| a.0 == b.0) {
            let ids: Vec<_> = batch.iter().map(|(_, id)| *id).collect();
            let reason = "its call had begun when its worker was lost; it is not repeated";
            self.end(&batch[0].0, &ids, Outcome::Unknown, reason).await?;
            tracing::warn!(jobs = ids.len(), "calls ended unknown with their worker");
        }
        Ok(())
    }

    /// Jobs that were lost with their worker once too often while they ran alone.
    pub(super) async fn quarantine(&mut self) -> Result<(), WindowError> {
        for (tenant, id, reason) in suspect::doomed(&self.ctx.db, QUARANTINED_MAX).await? {
            self.end(&tenant, &[id], Outcome::Quarantined, &reason).await?;
            metrics::counter!("dodo_jobs_quarantined_total").increment(1);
            tracing::error!(job = %id, tenant, "a job is quarantined: {reason}");
        }
        Ok(())
    }

    /// Ends jobs for which a budget has no room.
    pub(super) async fn skip(&mut self) -> Result<(), WindowError> {
        let mut jobs = self.frontier.take_over_budget();
        jobs.sort_by(|(a, over_a), (b, over_b)| (&a.tenant, over_a, a).cmp(&(&b.tenant, over_b, b)));
        for batch in jobs.chunk_by(|(a, over_a), (b, over_b)| (&a.tenant, over_a) == (&b.tenant, over_b)) {
            let ids: Vec<_> = batch.iter().map(|(key, _)| key.id).collect();
            let (first, over) = &batch[0];
            self.end(&first.tenant, &ids, Outcome::Budget, &over.to_string()).await?;
            for (key, _) in batch {
                self.frontier.skipped(key);
            }
        }
        Ok(())
    }

    /// Ends jobs that no worker will.
    async fn end(&self, tenant: &str, ids: &[Uuid], outcome: Outcome, reason: &str) -> Result<(), WindowError> {
        schedule::skip(&self.ctx.db, self.term.epoch, tenant, ids, outcome, reason).await?;
        fail::point_async("jobs-ended").await;
        Ok(())
    }
}
