//! The processor: turns items into records. Once for each item, whoever does it twice.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use dodo_common::db::pool::{DbError, DbResult};
use dodo_common::db::raw::{self as raw_result, EntryKey, EntryState, RawKey};
use dodo_common::db::record::{self, Processed, Unfit};
use dodo_common::db::worker::consumer_name;
use dodo_common::fail;
use dodo_common::model::record::Record;
use dodo_common::stream::connection::{Redis, StreamError};
use dodo_common::stream::items;
use dodo_common::stream::names::{ITEMS, archive_name};
use dodo_common::stream::raw::Stored;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;
use uuid::Uuid;

use crate::consumer::is_generation;
use crate::context::Context;

/// Entries read at once; fewer where they are heavy.
const READ_MAX: usize = 64;
/// What is held of entries that are not decided yet: beyond it nothing of another is taken over.
const HELD_MAX: usize = 256;
const HELD_BYTES_MAX: usize = 32 << 20;
/// An entry that its reader has not acknowledged for this long is another's to process.
const IDLE_MS: u64 = 5_000;
const TAKE_OVER: Duration = Duration::from_secs(2);
/// An entry whose commit is still under way is looked at again after this long.
const UNDECIDED: Duration = Duration::from_millis(20);
const PAUSE: Duration = Duration::from_millis(200);

/// What one pass did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub entries: usize,
    pub records: usize,
    pub unfit: usize,
}

/// Runs until the incarnation drains or is refused; what it holds is taken over by another.
pub async fn run(ctx: Arc<Context>, reader: Redis) {
    let consumer = consumer_name(ctx.incarnation.slot);
    let mut held = VecDeque::new();
    let mut taken_over = Instant::now() - TAKE_OVER;
    let mut failing = false;
    while !ctx.soft.is_cancelled() && !ctx.refused.is_cancelled() {
        match turn(&ctx, &reader, &consumer, &mut held, &mut taken_over).await {
            Ok(()) => failing = false,
            Err(error) => {
                if let Some(DbError::WorkerRefused(why)) = error.downcast_ref::<DbError>() {
                    return ctx.refuse(why);
                }
                // A new generation is the leader's to tell of, once.
                if error.downcast_ref::<StreamError>().is_some_and(is_generation) {
                    tracing::debug!("processing waits: {error:#}");
                } else if !failing {
                    tracing::warn!("processing waits: {error:#}");
                    failing = true;
                }
                reader.close().await;
                ctx.check_current().await;
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Reads some entries, processes what is decided, keeps the rest.
async fn turn(
    ctx: &Context,
    reader: &Redis,
    consumer: &str,
    held: &mut VecDeque<Stored>,
    taken_over: &mut Instant,
) -> anyhow::Result<()> {
    let heavy = held.iter().map(|stored| stored.entry.bytes()).sum::<usize>() >= HELD_BYTES_MAX;
    if taken_over.elapsed() >= TAKE_OVER && held.len() < HELD_MAX && !heavy {
        *taken_over = Instant::now();
        let others = items::take_over(&ctx.redis, consumer, IDLE_MS, READ_MAX).await?;
        held.extend(others.into_iter().filter(|stored| !held.iter().any(|h| h.id == stored.id)).collect::<Vec<_>>());
    }
    if held.is_empty() {
        held.extend(items::next(reader, consumer, READ_MAX).await?);
    }
    let before = held.len();
    let summary = pass(ctx, held).await?;
    if summary != Summary::default() {
        tracing::debug!(?summary, "processed");
    }
    if held.len() == before && before > 0 {
        // The commit of their jobs is under way.
        tokio::time::sleep(UNDECIDED).await;
    }
    Ok(())
}

/// Processes those of `held` that are decided; they leave it.
async fn pass(ctx: &Context, held: &mut VecDeque<Stored>) -> anyhow::Result<Summary> {
    let mut summary = Summary::default();
    if held.is_empty() {
        return Ok(summary);
    }
    let count = held.len().min(READ_MAX);
    let batch = &held.make_contiguous()[..count];
    let keys: Vec<EntryKey> = batch.iter().map(key_of).collect();
    let states = raw_result::judge(&ctx.db, archive_name(ITEMS), &keys).await?;
    let (mut processed, mut done) = (Vec::new(), Vec::new());
    for (stored, state) in batch.iter().zip(states) {
        match state {
            EntryState::Open => continue,
            EntryState::Unprocessed => processed.push(map(ctx, stored).await?),
            EntryState::Counts | EntryState::Void => {}
        }
        done.push(stored.id);
    }
    if !processed.is_empty() {
        summary.entries = processed.len();
        summary.records = processed.iter().map(|p| p.records.len()).sum();
        summary.unfit = processed.iter().map(|p| p.unfit.len()).sum();
        store(ctx, processed).await?;
        fail::point_async("items-stored").await;
        metrics::counter!("dodo_records_total").increment(summary.records as u64);
        metrics::counter!("dodo_unfit_items_total").increment(summary.unfit as u64);
    }
    items::acknowledge(&ctx.redis, &done).await?;
    held.retain(|stored| !done.contains(&stored.id));
    Ok(summary)
}

/// Stores what entries became. Where the data is at fault, one by one; an entry that cannot be stored is processed
/// without records, and its items are kept as unfit where they can be (invariant 12).
async fn store(ctx: &Context, processed: Vec<Processed>) -> DbResult<()> {
    match record::process(&ctx.db, &ctx.incarnation, &processed).await {
        Err(error) if error.is_data() => tracing::warn!(%error, "records cannot be stored together; one by one"),
        other => return other,
    }
    for entry in processed {
        let Err(error) = record::process(&ctx.db, &ctx.incarnation, std::slice::from_ref(&entry)).await else {
            continue;
        };
        if !error.is_data() {
            return Err(error);
        }
        let mut bare = Processed { records: Vec::new(), ..entry.clone() };
        let more: Vec<Unfit> = entry.records.iter().map(|record| unfit_of(record, &entry, &error)).collect();
        bare.unfit.extend(more);
        match record::process(&ctx.db, &ctx.incarnation, std::slice::from_ref(&bare)).await {
            Err(error) if error.is_data() => {
                tracing::error!(entry = %bare.key.id, %error, "the items of an entry cannot be kept; they are in the archive only");
                bare.unfit.clear();
                record::process(&ctx.db, &ctx.incarnation, std::slice::from_ref(&bare)).await?;
            }
            other => other?,
        }
    }
    Ok(())
}

fn unfit_of(record: &Record, entry: &Processed, error: &DbError) -> Unfit {
    let item = serde_json::to_value(record).unwrap_or_default();
    let place = (record.source.as_str(), record.instance.as_str());
    Unfit::new(place, &item, format!("it cannot be stored: {error}"), (entry.dispatch, entry.job), record.fetched_at)
}

/// The part of an entry that says where its items are from; other payloads have none.
#[derive(Deserialize)]
struct About {
    dispatch: Uuid,
    fetched_ms: i64,
    #[serde(rename = "page")]
    _page: i64,
    items: Vec<Value>,
}

/// Makes records of the items of an entry. One that is of no page dispatch has nothing to make.
async fn map(ctx: &Context, stored: &Stored) -> DbResult<Processed> {
    let entry = &stored.entry;
    let mut processed = Processed {
        key: RawKey {
            tenant: entry.tenant.clone(),
            stream: archive_name(ITEMS).to_owned(),
            id: stored.id,
            generation: entry.generation,
        },
        dispatch: Uuid::nil(),
        job: entry.job,
        records: Vec::new(),
        unfit: Vec::new(),
    };
    let Ok(about) = serde_json::from_slice::<About>(&entry.about) else { return Ok(processed) };
    let paging = match ctx.paging(&entry.tenant, about.dispatch).await {
        Ok(paging) => paging,
        Err(DbError::Input(why)) => {
            tracing::warn!(entry = %stored.id, "an entry of items names no page dispatch: {why}");
            return Ok(processed);
        }
        Err(error) => return Err(error),
    };
    processed.dispatch = about.dispatch;
    let fetched_at = DateTime::<Utc>::from_timestamp_millis(about.fetched_ms).unwrap_or_default();
    let place = (paging.spec.source.as_str(), paging.spec.instance.as_str());
    for item in &about.items {
        match paging.mapper.record(item, fetched_at) {
            Ok(record) => processed.records.push(record),
            Err(why) => {
                processed.unfit.push(Unfit::new(place, item, why, (about.dispatch, entry.job), fetched_at));
            }
        }
    }
    Ok(processed)
}

fn key_of(stored: &Stored) -> EntryKey {
    EntryKey {
        tenant: stored.entry.tenant.clone(),
        id: stored.id,
        generation: stored.entry.generation,
        job: stored.entry.job,
        attempt: stored.entry.attempt,
        writer: stored.entry.writer,
    }
}
