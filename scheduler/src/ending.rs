//! The rest of dispatches that are ending: what is left of one, and what is added meanwhile, ends in the log. Results of one
//! whose budget is spent had counted before: where they are made again, that goes on, unless its user cancels the dispatch.
//!
//! The row of the dispatch says so; a leader that is killed here leaves the rest to the next one.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dodo_common::db::control::{self, Ending};
use dodo_common::db::pool::{DbError, DbResult};
use dodo_common::db::schedule::{self, Stretch};
use dodo_common::model::job::Outcome;
use uuid::Uuid;

use crate::context::{Context, Term};

const EVERY: Duration = Duration::from_millis(200);
/// Dispatches looked at in one tick, jobs in one stretch of the schedule, and stretches of it in one tick.
const DISPATCHES_MAX: i64 = 500;
const STRETCH: i64 = 5_000;
const STRETCHES_MAX: usize = 20;
/// After a walk that has found nothing it rests for this many times as long as the walk took.
const REST: u32 = 4;

/// How far a tenant's schedule has been walked.
#[derive(Debug, Default)]
struct Walk {
    /// Each with how it ends.
    of: HashSet<(Uuid, Outcome)>,
    after: Uuid,
    found: bool,
    took: Duration,
    rests_until: Option<Instant>,
}

impl Walk {
    /// Another dispatch is looked for, or for another end: those before here have not been looked at for it.
    fn look_for(&mut self, of: HashSet<(Uuid, Outcome)>) {
        if !of.is_subset(&self.of) {
            self.found = true;
            self.rests_until = None;
        }
        self.of = of;
    }

    fn reached(&mut self, stretch: &Stretch, took: Duration) {
        self.found |= !stretch.found.is_empty();
        self.took += took;
        self.after = stretch.next.unwrap_or_default();
        if stretch.next.is_none() {
            self.rests_until = (!self.found).then(|| Instant::now() + self.took * REST);
            (self.found, self.took) = (false, Duration::ZERO);
        }
    }
}

/// Where the walks are, by tenant.
#[derive(Debug, Default)]
pub struct Walks(HashMap<String, Walk>);

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
    let mut walks = Walks::default();
    loop {
        match tick(&ctx, &term, &mut walks).await {
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
pub async fn tick(ctx: &Context, term: &Term, walks: &mut Walks) -> DbResult<Summary> {
    let mut summary = Summary { spent: control::spend(&ctx.db, term.epoch).await?, ..Summary::default() };
    let ending = control::ending(&ctx.db, DISPATCHES_MAX).await?;
    for manifest in ending.iter().filter(|ending| ending.manifest) {
        summary.entries += control::stop_entries(&ctx.db, term.epoch, &manifest.tenant, manifest.id).await?;
    }
    walks.0.retain(|tenant, _| ending.iter().any(|ending| ending.tenant == *tenant));
    for of_tenant in ending.chunk_by(|a, b| a.tenant == b.tenant) {
        let walk = walks.0.entry(of_tenant[0].tenant.clone()).or_default();
        summary.jobs += walk_on(ctx, term, of_tenant, walk).await?;
    }
    Ok(summary)
}

/// Ends what it finds of `ending`, all of one tenant, on the next part of the walk.
async fn walk_on(ctx: &Context, term: &Term, ending: &[Ending], walk: &mut Walk) -> DbResult<u64> {
    let ids: Vec<Uuid> = ending.iter().map(|ending| ending.id).collect();
    let is_spent = |ending: &&Ending| ending.outcome == Outcome::Budget;
    let spent: Vec<Uuid> = ending.iter().filter(is_spent).map(|ending| ending.id).collect();
    walk.look_for(ending.iter().map(|ending| (ending.id, ending.outcome)).collect());
    if walk.rests_until.is_some_and(|until| Instant::now() < until) {
        return Ok(0);
    }
    let tenant = &ending[0].tenant;
    let mut jobs = 0;
    for _ in 0..STRETCHES_MAX {
        let began = Instant::now();
        let stretch = schedule::of_dispatches(&ctx.db, tenant, &ids, &spent, walk.after, STRETCH).await?;
        for found in stretch.found.chunk_by(|a, b| a.0 == b.0) {
            let Some(of) = ending.iter().find(|ending| ending.id == found[0].0) else { continue };
            for batch in found.chunks(schedule::BATCH_MAX) {
                // A worker may end some of them first: whoever deletes the row wins.
                let batch: Vec<Uuid> = batch.iter().map(|(_, job)| *job).collect();
                jobs += schedule::skip(&ctx.db, term.epoch, tenant, &batch, of.outcome, &of.note).await?;
            }
        }
        walk.reached(&stretch, began.elapsed());
        if stretch.next.is_none() || term.over.is_cancelled() {
            break;
        }
    }
    Ok(jobs)
}
