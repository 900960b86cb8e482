//! The archiver: moves raw streams into the archive, and trims only what is verified there (invariant 9).
//!
//! Every step can be the last one of this process; a successor finds the plan and resumes it:
//! plan (a row with the hash) -> put -> verify -> record (the row; raw results go) -> trim.

mod encode;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use dodo_common::db::dispatch;
use dodo_common::db::pool::{Db, DbError, Session};
use dodo_common::db::raw::{self as raw_result, EntryKey, EntryState};
use dodo_common::db::segment::{self, Segment};
use dodo_common::fail;
use dodo_common::model::stream_id::StreamId;
use dodo_common::storage;
use dodo_common::storage::key::SegmentKey;
use dodo_common::storage::object::{Store, StoreError};
use dodo_common::storage::segment::Encoded;
use dodo_common::stream::connection::{Redis, StreamError};
use dodo_common::stream::names::{RAW_STREAMS, archive_name, group_of};
use dodo_common::stream::raw::{self, Extent, Stored};
use dodo_common::stream::{queue, status};

use crate::archiver::encode::{by_tenant, encode_segment, plan_of};
use crate::consumer::is_generation;
use crate::context::Context;

/// Whoever archives looks this often whether more is to be; the others, whether somebody still does.
const EVERY: Duration = Duration::from_millis(50);
const STAND_BY: Duration = Duration::from_millis(500);
/// Bytes of one segment, before it is encoded. It is held three times over: as read, as encoded, as read back.
const BYTES_MAX: usize = 16 << 20;
/// Entries read at once, and what they should have together, bytes: there may be pages of many megabytes.
const READ_MAX: usize = 200;
const READ_BYTES: usize = 4 << 20;
/// One worker archives at a time, until its incarnation ends; the others look again now and then.
const LOCK: &str = "dodo-archiver";

/// What one tick did to one stream.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub segments: usize,
    pub entries: usize,
    pub trimmed: u64,
    pub remade: usize,
}

/// Runs on a thread of its own: what it reads, packs and writes comes by the megabyte, and its many short waits would each
/// stand behind the pages of a busy worker.
pub fn run(archiver: Archiver) {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(archive(archiver)),
        Err(error) => archiver.ctx.refuse(&format!("no runtime for the archiver: {error}")),
    }
}

/// The archiver of one incarnation, with connections of its own.
pub struct Archiver {
    ctx: Arc<Context>,
    db: Db,
    redis: Redis,
    store: Store,
    /// Held by its session, whatever becomes of us. It only saves work; what keeps two archivers apart is the exclusion
    /// constraint.
    lock: Option<Session>,
    /// A predecessor may have left plans, or we ourselves at an error.
    resuming: bool,
    /// The first entry of each stream that is not empty, since it was looked at or trimmed.
    heads: HashMap<&'static str, StreamId>,
}

impl Archiver {
    pub fn new(ctx: Arc<Context>, db: Db, redis: Redis, store: Store) -> Self {
        Self { ctx, db, redis, store, lock: None, resuming: true, heads: HashMap::new() }
    }

    async fn is_ours(&mut self) -> anyhow::Result<bool> {
        if self.lock.as_ref().is_none_or(|session| session.is_closed()) {
            self.lock = self.db.lock(LOCK).await?;
            self.resuming = true;
            self.heads.clear();
        }
        Ok(self.lock.is_some())
    }
}

async fn archive(mut archiver: Archiver) {
    let ctx = Arc::clone(&archiver.ctx);
    let mut failing = false;
    loop {
        let done = tokio::select! {
            done = tick(&mut archiver) => done,
            // Another one may go on with the same plan: what this one still writes could come after that.
            () = ctx.refused.cancelled() => return,
        };
        match done {
            Ok(summary) => {
                failing = false;
                if summary != Summary::default() {
                    tracing::info!(?summary, "archived");
                    if ctx.soft.is_cancelled() {
                        return;
                    }
                    continue;
                }
            }
            Err(error) => {
                if let Some(DbError::WorkerRefused(why)) = error.downcast_ref::<DbError>() {
                    ctx.refuse(why);
                    return;
                }
                // Another one may have more luck.
                archiver.lock = None;
                // A new generation is the leader's to tell of, once.
                if error.downcast_ref::<StreamError>().is_some_and(is_generation) {
                    tracing::debug!("archiving waits: {error:#}");
                } else if !failing {
                    tracing::warn!("archiving waits: {error:#}");
                    failing = true;
                }
            }
        }
        tokio::select! {
            () = ctx.soft.cancelled() => return,
            () = ctx.refused.cancelled() => return,
            () = tokio::time::sleep(if archiver.lock.is_some() { EVERY } else { STAND_BY }) => {}
        }
    }
}

/// Resumes what is planned, then archives one more range of each stream.
async fn tick(archiver: &mut Archiver) -> anyhow::Result<Summary> {
    let mut total = Summary::default();
    if !archiver.is_ours().await? {
        return Ok(total);
    }
    let resuming = std::mem::replace(&mut archiver.resuming, true);
    for stream in RAW_STREAMS {
        if resuming {
            let (segments, remade) = resume(archiver, stream).await?;
            total.segments += segments;
            total.remade += remade;
        }
        let summary = advance(archiver, stream).await?;
        total.segments += summary.segments;
        total.entries += summary.entries;
        total.remade += summary.remade;
        if summary.trimmed > 0 {
            archiver.heads.remove(stream);
        }
        total.trimmed += summary.trimmed;
    }
    archiver.resuming = false;
    Ok(total)
}

/// Finishes the plans of a predecessor. Returns (segments, results made again).
async fn resume(archiver: &Archiver, stream: &str) -> anyhow::Result<(usize, usize)> {
    let mut done = 0;
    let mut remade = 0;
    for plan in segment::planned(&archiver.db, archive_name(stream)).await? {
        let entries = read_range(archiver, stream, &plan).await?;
        let encoded = encode_segment(stream, &plan.tenant, plan.generation, &entries)?;
        match encoded {
            Some(encoded) if encoded.sidecar.sha256 == plan.sha256 => {
                remade += finish(archiver, &plan, Some((&encoded, &ids_of(&entries)))).await?;
            }
            // Redis has lost entries of the plan. If the object was written, it has them all.
            _ if is_written(archiver, &plan).await? => remade += finish(archiver, &plan, None).await?,
            _ => {
                tracing::warn!(key = plan.key, "a planned segment is given up: its entries are gone");
                let lost = segment::abandon(&archiver.db, &archiver.ctx.incarnation, &plan, &ids_of(&entries)).await?;
                remade += announce(archiver, stream, lost).await?;
                continue;
            }
        }
        done += 1;
    }
    Ok((done, remade))
}

/// The entries of a plan that are in the stream and count.
async fn read_range(archiver: &Archiver, stream: &str, plan: &Segment) -> anyhow::Result<Vec<Stored>> {
    let mut all = Vec::new();
    let mut from = plan.first;
    loop {
        let batch = raw::range(&archiver.redis, stream, from, Some(plan.last), READ_MAX).await?;
        let Some(last) = batch.last().map(|stored| stored.id) else { break };
        let states = judge(archiver, stream, &batch).await?;
        all.extend(
            batch
                .into_iter()
                .zip(states)
                .filter(|(stored, state)| {
                    *state == EntryState::Counts
                        && stored.entry.tenant == plan.tenant
                        && stored.entry.generation == plan.generation
                })
                .map(|(stored, _)| stored),
        );
        from = last.next();
    }
    Ok(all)
}

async fn is_written(archiver: &Archiver, plan: &Segment) -> anyhow::Result<bool> {
    let (key, _) = SegmentKey::parse(&plan.key).context("a planned key is not one of ours")?;
    match storage::segment::verify(&archiver.store, &key).await {
        Ok(sidecar) => Ok(sidecar.sha256 == plan.sha256),
        Err(storage::segment::SegmentError::Store(error @ StoreError::NotFound { .. })) => {
            tracing::debug!(%error, "the object of a plan was not written");
            Ok(false)
        }
        // Half written: the plan can only be given up if the store says so, not because it is away.
        Err(storage::segment::SegmentError::Mismatch { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Says that results of these (tenant, host) are made again. Returns how many.
async fn announce(archiver: &Archiver, stream: &str, remade: Vec<(String, String)>) -> anyhow::Result<usize> {
    let count = remade.len();
    if count > 0 {
        tracing::warn!(stream, count, "Redis has lost results, which are made again");
        let gained: BTreeSet<(String, String)> = remade.into_iter().collect();
        queue::hint(&archiver.redis, gained.into_iter().collect()).await?;
    }
    Ok(count)
}

fn ids_of(entries: &[Stored]) -> HashSet<StreamId> {
    entries.iter().map(|stored| stored.id).collect()
}

/// One more range, from the head of the stream to the first entry that is still open.
async fn advance(archiver: &mut Archiver, stream: &'static str) -> anyhow::Result<Summary> {
    let extent = raw::extent(&archiver.redis, stream).await?;
    if !is_due(archiver, stream, &extent).await? {
        return Ok(Summary::default());
    }
    let archiver = &*archiver;
    let mean_bytes = extent.bytes / extent.entries.max(1);
    let range = gather(archiver, stream, (READ_BYTES / mean_bytes.max(1)).clamp(1, READ_MAX)).await?;
    let Some(last) = range.last else { return Ok(Summary::default()) };
    let mut plans = Vec::new();
    for (tenant, entries) in by_tenant(range.counting) {
        let generation = entries.first().map_or(0, |stored| stored.entry.generation);
        if let Some(encoded) = encode_segment(stream, &tenant, generation, &entries)? {
            plans.push((plan_of(stream, &tenant, generation, &encoded), encoded, ids_of(&entries)));
        }
    }
    if !plans.is_empty() {
        let segments: Vec<_> = plans.iter().map(|(plan, _, present)| (plan, present)).collect();
        let lost = segment::plan(&archiver.db, &archiver.ctx.incarnation, &segments).await?;
        if !lost.is_empty() {
            return Ok(Summary { remade: announce(archiver, stream, lost).await?, ..Summary::default() });
        }
        fail::point_async("archive-planned").await;
    }
    let mut remade = 0;
    for (plan, encoded, present) in &plans {
        remade += finish(archiver, plan, Some((encoded, present))).await?;
    }
    fail::point_async("archive-recorded").await;
    let trimmed = raw::trim_below(&archiver.redis, stream, archiver.ctx.incarnation.generation, last.next()).await?;
    fail::point_async("archive-trimmed").await;
    Ok(Summary {
        segments: plans.len(),
        entries: plans.iter().map(|(plan, ..)| plan.entries as usize).sum(),
        trimmed,
        remade,
    })
}

/// A segment is written when it is full or old, or when a dispatch only waits for it.
async fn is_due(archiver: &mut Archiver, stream: &'static str, extent: &Extent) -> anyhow::Result<bool> {
    if extent.entries == 0 {
        archiver.heads.remove(stream);
        return Ok(false);
    }
    let first = match archiver.heads.get(stream) {
        Some(first) => *first,
        None => {
            let Some(first) = raw::first(&archiver.redis, stream).await? else { return Ok(false) };
            archiver.heads.insert(stream, first);
            first
        }
    };
    let age_ms = archiver.ctx.clock.now_ms() - first.ms as i64;
    let full = extent.entries >= archiver.ctx.settings.archive_entries_max as usize || extent.bytes >= BYTES_MAX;
    Ok(full || age_ms >= archiver.ctx.settings.archive_age_ms || dispatch::any_archiving(&archiver.db).await?)
}

/// A range that may be archived: everything up to `last` is decided.
#[derive(Default)]
struct Range {
    counting: Vec<Stored>,
    last: Option<StreamId>,
}

/// Reads from the head, so many entries at once, until an open entry, another generation or a bound.
async fn gather(archiver: &Archiver, stream: &str, read_max: usize) -> anyhow::Result<Range> {
    let mut range = Range::default();
    // What the group of the stream has not acknowledged stays, whatever Postgres says of it.
    let horizon = match group_of(stream) {
        Some(group) => Some(status::horizon(&archiver.redis, stream, group).await?),
        None => None,
    };
    let mut bytes = 0;
    let mut from = StreamId { ms: 0, seq: 0 };
    loop {
        let batch = raw::range(&archiver.redis, stream, from, None, read_max).await?;
        let Some(end) = batch.last().map(|stored| stored.id) else { return Ok(range) };
        let states = judge(archiver, stream, &batch).await?;
        for (stored, state) in batch.into_iter().zip(states) {
            let other = range.counting.first().is_some_and(|first| first.entry.generation != stored.entry.generation);
            match state {
                _ if horizon.is_some_and(|horizon| stored.id >= horizon) => return Ok(range),
                EntryState::Open | EntryState::Unprocessed => return Ok(range),
                EntryState::Counts if other => {
                    return Ok(range);
                }
                EntryState::Counts => {
                    bytes += stored.entry.body.len() + stored.entry.about.len();
                    range.last = Some(stored.id);
                    range.counting.push(stored);
                }
                EntryState::Void => {
                    range.last = Some(stored.id);
                }
            }
            if bytes >= BYTES_MAX || range.counting.len() >= archiver.ctx.settings.archive_entries_max as usize {
                return Ok(range);
            }
        }
        from = end.next();
    }
}

async fn judge(archiver: &Archiver, stream: &str, batch: &[Stored]) -> anyhow::Result<Vec<EntryState>> {
    let keys: Vec<EntryKey> = batch
        .iter()
        .map(|stored| EntryKey {
            tenant: stored.entry.tenant.clone(),
            id: stored.id,
            generation: stored.entry.generation,
            job: stored.entry.job,
            attempt: stored.entry.attempt,
            writer: stored.entry.writer,
        })
        .collect();
    Ok(raw_result::judge(&archiver.db, archive_name(stream), &keys).await?)
}

/// Puts (unless it is there already), verifies and records one segment, with the entries that it has. Returns how many results
/// are made again.
async fn finish(
    archiver: &Archiver,
    plan: &Segment,
    made: Option<(&Encoded, &HashSet<StreamId>)>,
) -> anyhow::Result<usize> {
    if let Some((encoded, _)) = made {
        storage::segment::put_segment(&archiver.store, encoded).await?;
        fail::point_async("archive-uploaded").await;
        storage::segment::verify_put(&archiver.store, encoded).await?;
    }
    let mut remade = 0;
    loop {
        let present = made.map(|(_, present)| present);
        let lost = segment::record(&archiver.db, &archiver.ctx.incarnation, plan, present).await?;
        if lost.is_empty() {
            break;
        }
        remade += announce(archiver, &plan.stream, lost).await?;
    }
    metrics::counter!("dodo_archived_entries_total").increment(plan.entries as u64);
    metrics::counter!("dodo_archived_bytes_total").increment(plan.bytes as u64);
    Ok(remade)
}
