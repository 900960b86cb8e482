//! The window in Redis: checked, made anew as a generation, rebuilt after a takeover.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::Ordering;

use dodo_common::db::generation::{self, Generation};
use dodo_common::db::pool::{DbError, DbResult};
use dodo_common::db::raw::{self as raw_result, RawKey};
use dodo_common::db::{load, schedule, worker};
use dodo_common::fail;
use dodo_common::model::job::JobKey;
use dodo_common::model::stream_id::StreamId;
use dodo_common::stream::connection::StreamError;
use dodo_common::stream::names::{RAW_STREAMS, archive_name};
use dodo_common::stream::{control, queue, raw};
use uuid::Uuid;

use crate::context::{Context, Term};
use crate::frontier::Frontier;
use crate::frontier::issued::Adopted;

/// Raw results reconciled in one round.
const RECONCILE_BATCH: i64 = 1000;

/// Why the window cannot be worked on.
#[derive(Debug, thiserror::Error)]
pub enum WindowError {
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Db(#[from] DbError),
}

impl WindowError {
    /// Another scheduler leads: stop.
    pub fn ends_term(&self) -> bool {
        matches!(self, WindowError::Stream(StreamError::Epoch(_)) | WindowError::Db(DbError::LeaderRefused(_)))
    }
}

/// Says why the window of `generation` is not whole, or nothing.
pub async fn fault(ctx: &Context, term: &Term, generation: &Generation) -> Result<Option<String>, StreamError> {
    let sight = control::look(&ctx.redis).await?;
    Ok(if sight.epoch.is_some_and(|epoch| epoch > term.epoch) {
        return Err(StreamError::Epoch(format!("Redis shows epoch {}", sight.epoch.unwrap_or_default())));
    } else if generation.number == 0 {
        Some("this is the first start".to_owned())
    } else if sight.run_id != generation.run_id {
        Some("Redis was restarted".to_owned())
    } else if sight.generation != Some(generation.number) {
        Some("Redis does not show this generation".to_owned())
    } else if !sight.whole {
        Some("a stream or a group is missing".to_owned())
    } else {
        None
    })
}

/// Starts a new generation (invariant 6): the row first, so that no commit of the old one can follow; then the
/// streams. What was lost is still to be reconciled.
pub async fn renew(ctx: &Context, term: &Term, why: &str) -> Result<Generation, WindowError> {
    ctx.window_ready.store(false, Ordering::Relaxed);
    control::check_fit(&ctx.redis).await?;
    control::take_epoch(&ctx.redis, term.epoch).await?;
    let sight = control::look(&ctx.redis).await?;
    let generation = generation::advance(&ctx.db, term.epoch, &sight.run_id).await?;
    fail::point_async("generation-advanced").await;
    control::start_generation(&ctx.redis, term.epoch, generation.number).await?;
    fail::point_async("streams-recreated").await;
    metrics::counter!("dodo_generations_total").increment(1);
    if generation.number == 1 {
        // Nothing was lost: before it there was none.
        tracing::info!(generation = generation.number, epoch = term.epoch, "the first generation has started");
    } else {
        tracing::warn!(generation = generation.number, epoch = term.epoch, "a new generation has started: {why}");
    }
    Ok(generation)
}

/// Makes again what Redis lost before this generation. Idempotent: whoever is killed here, the next leader does it.
pub async fn reconcile(ctx: &Context, term: &Term, generation: &Generation) -> Result<(), WindowError> {
    let remade = remake(ctx, term).await?;
    generation::set_reconciled(&ctx.db, term.epoch, generation.number).await?;
    fail::point_async("results-reconciled").await;
    if remade > 0 {
        tracing::warn!(generation = generation.number, results = remade, "results that Redis lost are made again");
    }
    Ok(())
}

/// Finds raw results whose entry is gone and makes them again; returns how many.
async fn remake(ctx: &Context, term: &Term) -> Result<u64, WindowError> {
    let mut after: Option<RawKey> = None;
    let mut remade = 0;
    loop {
        let page = raw_result::page(&ctx.db, after.as_ref(), RECONCILE_BATCH).await?;
        let Some(last) = page.last().cloned() else { return Ok(remade) };
        remade += remake_gone(ctx, term, page).await?.len() as u64;
        after = Some(last);
    }
}

/// The same for results that somebody has deleted from their stream without a new generation. Those between two entries the
/// archiver finds missing when it gets there; these have nothing before them, or nothing behind them.
pub async fn remake_at_ends(ctx: &Context, term: &Term) -> Result<u64, WindowError> {
    let mut remade = 0;
    for stream in RAW_STREAMS {
        loop {
            let ends = raw::ends(&ctx.redis, stream).await?;
            let page = raw_result::outside(&ctx.db, archive_name(stream), ends, RECONCILE_BATCH).await?;
            let gained = remake_gone(ctx, term, page).await?;
            if gained.is_empty() {
                break;
            }
            remade += gained.len() as u64;
            queue::hint(&ctx.redis, gained.into_iter().collect::<BTreeSet<_>>().into_iter().collect()).await?;
        }
    }
    Ok(remade)
}

/// Makes again what of these is gone; returns the (tenant, host) of each.
async fn remake_gone(ctx: &Context, term: &Term, page: Vec<RawKey>) -> Result<Vec<(String, String)>, WindowError> {
    let mut by_stream: HashMap<String, Vec<RawKey>> = HashMap::new();
    for key in page {
        by_stream.entry(key.stream.clone()).or_default().push(key);
    }
    let mut lost = Vec::new();
    for (stream, keys) in by_stream {
        let ids: Vec<StreamId> = keys.iter().map(|key| key.id).collect();
        let present = raw::present(&ctx.redis, &format!("dodo:{stream}"), &ids).await?;
        lost.extend(keys.into_iter().zip(present).filter(|(key, at)| *at != Some(key.generation)).map(|(key, _)| key));
    }
    if lost.is_empty() {
        return Ok(Vec::new());
    }
    Ok(raw_result::remake(&ctx.db, term.epoch, &lost).await?)
}

/// True once every live worker works in this generation: what the others held is dropped by them, or
/// refused.
pub async fn workers_follow(ctx: &Context, generation: i64) -> DbResult<bool> {
    let rows = worker::unreleased(&ctx.db).await?;
    Ok(rows
        .iter()
        .filter(|row| row.ended_at.is_none() && row.lost_at.is_none())
        .all(|row| row.generation >= generation))
}

/// What an earlier leader has issued.
pub struct Outstanding {
    /// The last report read: those after it will settle entries, those before it have.
    pub last_report: StreamId,
    entries: Vec<(StreamId, Adopted)>,
}

pub async fn outstanding(ctx: &Context) -> Result<Outstanding, WindowError> {
    // Before the entries: the report of one that is settled while they are read is behind it.
    let last_report = queue::last_report(&ctx.redis).await?;
    let outstanding = queue::outstanding(&ctx.redis).await?;
    let mut entries = Vec::with_capacity(outstanding.len());
    for batch in outstanding.chunks(schedule::BATCH_MAX) {
        let keys: Vec<JobKey> = batch.iter().map(|(entry, _)| entry.key.clone()).collect();
        let loaded = load::jobs(&ctx.db, &keys).await?;
        let known = loaded.rows.into_iter().map(|row| (row.job.key, (row.job.host, row.job.dispatch)));
        let unknown = loaded.unknown.into_iter().map(|job| (job.key, (job.host, job.dispatch)));
        let rows: HashMap<JobKey, (String, Uuid)> = known.chain(unknown).collect();
        for (entry, _) in batch {
            // Without its row it only waits to be acknowledged: it occupies no host.
            if let Some((host, dispatch)) = rows.get(&entry.key) {
                let (key, host, proxy) = (entry.key.clone(), host.clone(), entry.proxy.clone());
                entries.push((entry.entry, Adopted { key, host, dispatch: *dispatch, alone: entry.alone, proxy }));
            }
        }
    }
    Ok(Outstanding { last_report, entries })
}

/// Fills the frontier with it. What has ended since it was read, or while it was, counts as completed now.
pub fn adopt(ctx: &Context, frontier: &mut Frontier, outstanding: Outstanding) {
    let now = ctx.clock.steady_ms();
    frontier.complete_all(now);
    for (entry, adopted) in outstanding.entries {
        frontier.adopt(now, entry, adopted);
    }
}
