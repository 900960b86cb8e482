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
/// Batches of jobs over a budget that are ended in one turn.
const SKIPS_MAX: usize = 4;

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

    /// Ends jobs for which a budget has no room. Each transaction locks the lease's row: a long one would keep it from being
    /// renewed, and many of them would keep this loop from everything else.
    pub(super) async fn skip(&mut self) -> Result<(), WindowError> {
        for _ in 0..SKIPS_MAX {
            let batch = self.frontier.take_over_budget(schedule::BATCH_MAX);
            let Some(first) = batch.first() else { break };
            let ids: Vec<_> = batch.iter().map(|job| job.key.id).collect();
            self.end(&first.key.tenant, &ids, Outcome::Budget, &first.over.to_string()).await?;
            for job in &batch {
                self.frontier.skipped(job);
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
