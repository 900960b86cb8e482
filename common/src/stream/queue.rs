//! The jobs stream: push by the leader, next and settle by workers, return by the reaper.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock};

use redis::{Script, Value};
use uuid::Uuid;

use crate::model::job::JobKey;
use crate::model::stream_id::StreamId;
use crate::stream::connection::{BLOCK_MS, PROVE_EPOCH, Redis, StreamError, StreamResult};
use crate::stream::names::{DONE, EPOCH, GENERATION, GROUP, JOBS};
use crate::stream::report::Report;

/// Entries in one push, settle or return. Lua unpacks them onto its stack, which holds some thousands.
pub const BATCH_MAX: usize = 500;

/// Who pushes: both are checked in Redis by the very call that writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Authority {
    pub epoch: i64,
    pub generation: i64,
}

/// A job to push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    pub key: JobKey,
    /// Its worker is to run nothing beside it.
    pub alone: bool,
    /// The address of the proxy that its request leaves by.
    pub proxy: Option<Arc<str>>,
}

/// An entry of the jobs stream: ids, whether it runs alone, and by which proxy it leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobEntry {
    pub entry: StreamId,
    pub key: JobKey,
    pub alone: bool,
    pub proxy: Option<String>,
}

static PUSH: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        &[
            PROVE_EPOCH,
            "if redis.call('GET', KEYS[2]) ~= ARGV[2] then return redis.error_reply('DODOGEN another generation') end
         if redis.call('EXISTS', KEYS[3]) == 0 then return redis.error_reply('DODOGEN no jobs stream') end
         local ids = {}
         for i = 3, #ARGV, 5 do
           local id
           if ARGV[i + 4] ~= '' then
             local fields = {'t', ARGV[i], 'j', ARGV[i + 1], 'a', ARGV[i + 2], 'x', ARGV[i + 4]}
             if ARGV[i + 3] == '1' then fields[9], fields[10] = 'o', '1' end
             id = redis.call('XADD', KEYS[3], 'NOMKSTREAM', '*', unpack(fields))
           elseif ARGV[i + 3] == '1' then
             id = redis.call('XADD', KEYS[3], 'NOMKSTREAM', '*', 't', ARGV[i], 'j', ARGV[i + 1], 'a', ARGV[i + 2], 'o', '1')
           else
             id = redis.call('XADD', KEYS[3], 'NOMKSTREAM', '*', 't', ARGV[i], 'j', ARGV[i + 1], 'a', ARGV[i + 2])
           end
           ids[#ids + 1] = id
         end
         return ids",
        ]
        .concat(),
    )
});

static SETTLE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return redis.error_reply('DODOGEN another generation') end
         if #ARGV > 3 then redis.call('XACK', KEYS[2], ARGV[2], unpack(ARGV, 4)) end
         return redis.call('XADD', KEYS[3], 'NOMKSTREAM', '*', 'r', ARGV[3])",
    )
});

static TAKE_BACK: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&[PROVE_EPOCH, "return redis.call('XACK', KEYS[2], ARGV[2], unpack(ARGV, 3))"].concat())
});

/// Pushes at most [`BATCH_MAX`] jobs; the answer holds one entry id a job, in order.
pub async fn push(redis: &Redis, authority: Authority, orders: &[Order]) -> StreamResult<Vec<StreamId>> {
    let mut call = PUSH.prepare_invoke();
    call.key(EPOCH).key(GENERATION).key(JOBS).arg(authority.epoch).arg(authority.generation);
    for Order { key, alone, proxy } in orders {
        call.arg(&key.tenant).arg(key.id.to_string()).arg(key.attempt).arg(u8::from(*alone));
        call.arg(proxy.as_deref().unwrap_or_default());
    }
    let ids: Vec<String> = redis.run(async |c| call.invoke_async(c).await).await?;
    ids.iter().map(|id| parse_id(id)).collect()
}

/// Reads up to `count` new entries for a consumer, waiting up to [`BLOCK_MS`]. Needs a connection of its
/// own: the read must never be dropped, or Redis delivers into nothing.
pub async fn next(redis: &Redis, consumer: &str, count: usize) -> StreamResult<Vec<JobEntry>> {
    read(redis, consumer, count, ">").await
}

/// The consumer's own pending entries: delivered, perhaps never received.
pub async fn history(redis: &Redis, consumer: &str, count: usize) -> StreamResult<Vec<JobEntry>> {
    read(redis, consumer, count, "0").await
}

async fn read(redis: &Redis, consumer: &str, count: usize, from: &str) -> StreamResult<Vec<JobEntry>> {
    let mut command = redis::cmd("XREADGROUP");
    command.arg("GROUP").arg(GROUP).arg(consumer).arg("COUNT").arg(count);
    if from == ">" {
        command.arg("BLOCK").arg(BLOCK_MS);
    }
    command.arg("STREAMS").arg(JOBS).arg(from);
    let value: Value = redis.run(async |c| command.query_async(c).await).await?;
    let Value::Array(streams) = value else { return Ok(Vec::new()) };
    let Some(Value::Array(stream)) = streams.into_iter().next() else { return Ok(Vec::new()) };
    stream.into_iter().nth(1).map_or_else(|| Ok(Vec::new()), job_entries)
}

/// Acknowledges entries and reports on them in one step (invariant 5).
pub async fn settle(redis: &Redis, generation: i64, report: &Report) -> StreamResult<()> {
    let mut call = SETTLE.prepare_invoke();
    call.key(GENERATION).key(JOBS).key(DONE).arg(generation).arg(GROUP).arg(encode(report));
    for settled in &report.settled {
        call.arg(settled.entry.to_string());
    }
    let _: Value = redis.run(async |c| call.invoke_async(c).await).await?;
    Ok(())
}

/// Tells the leader that hosts gained work; lost hints cost time, not jobs.
pub async fn hint(redis: &Redis, gained: Vec<(String, String)>) -> StreamResult<()> {
    tell(redis, &Report { gained, ..Report::default() }).await
}

/// Tells the leader something that settles nothing.
pub(crate) async fn tell(redis: &Redis, report: &Report) -> StreamResult<()> {
    let mut command = redis::cmd("XADD");
    command.arg(DONE).arg("NOMKSTREAM").arg("*").arg("r").arg(encode(report));
    let _: Value = redis.run(async |c| command.query_async(c).await).await?;
    Ok(())
}

/// Acknowledges entries of a worker that is lost, so that they return to the dispatcher.
pub async fn take_back(redis: &Redis, epoch: i64, entries: &[StreamId]) -> StreamResult<()> {
    for batch in entries.chunks(BATCH_MAX) {
        let mut call = TAKE_BACK.prepare_invoke();
        call.key(EPOCH).key(JOBS).arg(epoch).arg(GROUP);
        for entry in batch {
            call.arg(entry.to_string());
        }
        let _: Value = redis.run(async |c| call.invoke_async(c).await).await?;
    }
    Ok(())
}

/// Pending entries of one consumer, or of all: (entry, consumer). Bounded by the window.
pub async fn pending(redis: &Redis, consumer: Option<&str>) -> StreamResult<Vec<(StreamId, String)>> {
    let mut all = Vec::new();
    let mut from = "-".to_owned();
    loop {
        let mut command = redis::cmd("XPENDING");
        command.arg(JOBS).arg(GROUP).arg(&from).arg("+").arg(BATCH_MAX);
        if let Some(consumer) = consumer {
            command.arg(consumer);
        }
        let rows: Vec<(String, String, i64, i64)> = redis.run(async |c| command.query_async(c).await).await?;
        let short = rows.len() < BATCH_MAX;
        for (id, consumer, _, _) in rows {
            all.push((parse_id(&id)?, consumer));
        }
        match all.last() {
            Some((last, _)) if !short => from = format!("({last}"),
            _ => return Ok(all),
        }
    }
}

/// What a consumer has pending, read without a delivery.
pub async fn held(redis: &Redis, consumer: &str) -> StreamResult<Vec<JobEntry>> {
    let ids: Vec<StreamId> = pending(redis, Some(consumer)).await?.into_iter().map(|(id, _)| id).collect();
    named(redis, &ids).await
}

/// Every entry that is not settled, in order: pending ones with their consumer, undelivered ones without.
///
/// An entry moves on while this reads, from undelivered to pending to settled: it is looked for in that order, so that none
/// slips through. One that is settled meanwhile may still be told; its report is behind the last one before this call.
pub async fn outstanding(redis: &Redis) -> StreamResult<Vec<(JobEntry, Option<String>)>> {
    let delivered = crate::stream::status::last_delivered(redis, JOBS, GROUP).await?;
    let mut entries = behind(redis, delivered).await?;
    let consumers: HashMap<StreamId, String> = pending(redis, None).await?.into_iter().collect();
    let known: HashSet<StreamId> = entries.iter().map(|entry| entry.entry).collect();
    let others: Vec<StreamId> = consumers.keys().filter(|id| !known.contains(id)).copied().collect();
    entries.extend(named(redis, &others).await?);
    entries.sort_by_key(|entry| entry.entry);
    let consumer = |entry: JobEntry| {
        let consumer = consumers.get(&entry.entry).cloned();
        (entry, consumer)
    };
    Ok(entries.into_iter().map(consumer).collect())
}

/// Entries after `after`, [`BATCH_MAX`] at a time: as many as the window has room for.
async fn behind(redis: &Redis, after: StreamId) -> StreamResult<Vec<JobEntry>> {
    let mut entries: Vec<JobEntry> = Vec::new();
    let mut after = after;
    loop {
        let mut command = redis::cmd("XRANGE");
        command.arg(JOBS).arg(format!("({after}")).arg("+").arg("COUNT").arg(BATCH_MAX);
        let value: Value = redis.run(async |c| command.query_async(c).await).await?;
        let page = job_entries(value)?;
        let short = page.len() < BATCH_MAX;
        entries.extend(page);
        match entries.last() {
            Some(last) if !short => after = last.entry,
            _ => return Ok(entries),
        }
    }
}

/// The entries of these ids, but for those that are trimmed.
async fn named(redis: &Redis, ids: &[StreamId]) -> StreamResult<Vec<JobEntry>> {
    let mut entries = Vec::with_capacity(ids.len());
    for batch in ids.chunks(BATCH_MAX) {
        let mut pipe = redis::pipe();
        for id in batch {
            pipe.cmd("XRANGE").arg(JOBS).arg(id.to_string()).arg(id.to_string());
        }
        let values: Vec<Value> = redis.run(async |c| pipe.query_async(c).await).await?;
        for value in values {
            entries.extend(job_entries(value)?);
        }
    }
    Ok(entries)
}

/// Reports after `after`, waiting up to [`BLOCK_MS`] for the first. Needs a connection of its own.
pub async fn reports(redis: &Redis, after: StreamId) -> StreamResult<Vec<(StreamId, Report)>> {
    let mut command = redis::cmd("XREAD");
    command.arg("COUNT").arg(1000).arg("BLOCK").arg(BLOCK_MS).arg("STREAMS").arg(DONE).arg(after.to_string());
    let value: Value = redis.run(async |c| command.query_async(c).await).await?;
    let Value::Array(streams) = value else { return Ok(Vec::new()) };
    let Some(Value::Array(stream)) = streams.into_iter().next() else { return Ok(Vec::new()) };
    let Some(entries) = stream.into_iter().nth(1) else { return Ok(Vec::new()) };
    entries_of(entries)?
        .into_iter()
        .map(|(id, fields)| {
            let report = field(&fields, b"r")
                .and_then(|bytes| serde_json::from_slice(bytes).ok())
                .ok_or_else(|| StreamError::Unfit(format!("entry {id} of {DONE} is not a report")))?;
            Ok((id, report))
        })
        .collect()
}

/// The id of the last report, or 0-0: where a new leader starts to read.
pub async fn last_report(redis: &Redis) -> StreamResult<StreamId> {
    let mut command = redis::cmd("XREVRANGE");
    command.arg(DONE).arg("+").arg("-").arg("COUNT").arg(1);
    let value: Value = redis.run(async |c| command.query_async(c).await).await?;
    Ok(entries_of(value)?.first().map_or(StreamId { ms: 0, seq: 0 }, |(id, _)| *id))
}

fn encode(report: &Report) -> Vec<u8> {
    serde_json::to_vec(report).expect("a report is plain data")
}

fn job_entries(value: Value) -> StreamResult<Vec<JobEntry>> {
    entries_of(value)?
        .into_iter()
        .map(|(entry, fields)| {
            let text = |name: &[u8]| field(&fields, name).and_then(|bytes| std::str::from_utf8(bytes).ok());
            let key = text(b"t")
                .zip(text(b"j").and_then(|id| Uuid::parse_str(id).ok()))
                .zip(text(b"a").and_then(|a| a.parse().ok()));
            let ((tenant, id), attempt) =
                key.ok_or_else(|| StreamError::Unfit(format!("entry {entry} of {JOBS} is not a job")))?;
            let alone = field(&fields, b"o").is_some();
            let proxy = text(b"x").map(str::to_owned);
            Ok(JobEntry { entry, key: JobKey { tenant: tenant.to_owned(), id, attempt }, alone, proxy })
        })
        .collect()
}

/// The fields of one entry, in order.
pub(crate) type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// Reads what XRANGE answers: an array of (id, fields). Entries without fields were deleted and are left out.
pub(crate) fn entries_of(value: Value) -> StreamResult<Vec<(StreamId, Fields)>> {
    let Value::Array(rows) = value else { return Ok(Vec::new()) };
    let mut entries = Vec::with_capacity(rows.len());
    for row in rows {
        let (id, fields): (String, Option<Vec<Vec<u8>>>) =
            redis::from_redis_value(row).map_err(|error| StreamError::Redis(error.into()))?;
        let Some(fields) = fields else { continue };
        let mut pairs = Vec::with_capacity(fields.len() / 2);
        let mut flat = fields.into_iter();
        while let (Some(name), Some(value)) = (flat.next(), flat.next()) {
            pairs.push((name, value));
        }
        entries.push((parse_id(&id)?, pairs));
    }
    Ok(entries)
}

pub(crate) fn field<'a>(fields: &'a Fields, name: &[u8]) -> Option<&'a [u8]> {
    fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_slice())
}

pub(crate) fn take(fields: &mut Fields, name: &[u8]) -> Option<Vec<u8>> {
    fields.iter_mut().find(|(key, _)| key == name).map(|(_, value)| std::mem::take(value))
}

pub(crate) fn parse_id(text: &str) -> StreamResult<StreamId> {
    text.parse().map_err(|_| StreamError::Unfit(format!("{text} is not a stream id")))
}
