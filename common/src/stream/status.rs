//! What the streams hold, and how far the window's streams may be trimmed.

use std::collections::HashMap;
use std::sync::LazyLock;

use redis::{Script, Value};
use serde::{Deserialize, Serialize};

use crate::model::stream_id::StreamId;
use crate::stream::connection::{PROVE_EPOCH, Redis, StreamResult};
use crate::stream::names::{DONE, EPOCH, GROUP, JOBS, RAW_STREAMS, group_of};
use crate::stream::queue::parse_id;

/// Undelivered entries that are counted one by one.
const COUNT_MAX: usize = 10_000;
const ZERO: StreamId = StreamId { ms: 0, seq: 0 };

/// One stream as the API shows it.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct StreamStatus {
    pub name: String,
    pub length: u64,
    /// Delivered and not settled.
    pub pending: u64,
    /// Not delivered yet; nothing where the stream has no group.
    pub lag: Option<u64>,
    /// Nothing at or above this entry may be trimmed.
    pub horizon: Option<String>,
}

static TRIM: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&[PROVE_EPOCH, "return redis.call('XTRIM', KEYS[2], 'MINID', '=', ARGV[2])"].concat())
});

/// A group's last delivered entry; a missing group has been given nothing.
pub async fn last_delivered(redis: &Redis, stream: &str, name: &str) -> StreamResult<StreamId> {
    let group = group(redis, stream, name).await?;
    match group.get("last-delivered-id") {
        Some(Value::BulkString(id)) => parse_id(&String::from_utf8_lossy(id)),
        _ => Ok(ZERO),
    }
}

/// The horizon of a stream with a group: the lower of oldest pending and first undelivered entry.
pub async fn horizon(redis: &Redis, stream: &str, name: &str) -> StreamResult<StreamId> {
    let delivered = last_delivered(redis, stream, name).await?.next();
    let mut command = redis::cmd("XPENDING");
    command.arg(stream).arg(name).arg("-").arg("+").arg(1);
    let oldest: Vec<(String, String, i64, i64)> = redis.run(async |c| command.query_async(c).await).await?;
    Ok(match oldest.first() {
        Some((id, ..)) => parse_id(id)?.min(delivered),
        None => delivered,
    })
}

/// Trims the jobs stream below its horizon and `done` up to what the leader has read.
pub async fn trim_window(redis: &Redis, epoch: i64, reported: StreamId) -> StreamResult<()> {
    let horizon = horizon(redis, JOBS, GROUP).await?;
    for (stream, first_kept) in [(JOBS, horizon), (DONE, reported)] {
        let mut call = TRIM.prepare_invoke();
        call.key(EPOCH).key(stream).arg(epoch).arg(first_kept.to_string());
        let _: i64 = redis.run(async |c| call.invoke_async(c).await).await?;
    }
    Ok(())
}

/// Every stream, for the API and the metrics.
pub async fn all(redis: &Redis) -> StreamResult<Vec<StreamStatus>> {
    let mut pipe = redis::pipe();
    let names: Vec<&str> = [JOBS, DONE].into_iter().chain(RAW_STREAMS.iter().copied()).collect();
    for name in &names {
        pipe.cmd("XLEN").arg(name);
    }
    let lengths: Vec<u64> = redis.run(async |c| pipe.query_async(c).await).await?;
    let mut all = Vec::new();
    for (stream, length) in names.into_iter().zip(lengths) {
        let mut status = StreamStatus { name: stream.to_owned(), length, pending: 0, lag: None, horizon: None };
        let name = if stream == JOBS { Some(GROUP) } else { group_of(stream) };
        if let Some(name) = name {
            let group = group(redis, stream, name).await.unwrap_or_default();
            let number = |key: &str| match group.get(key) {
                Some(Value::Int(n)) => Some(*n as u64),
                _ => None,
            };
            status.pending = number("pending").unwrap_or_default();
            status.lag = number("lag");
            status.horizon = horizon(redis, stream, name).await.ok().map(|id| id.to_string());
        }
        all.push(status);
    }
    Ok(all)
}

/// Entries of the jobs stream that nobody has read yet. Where Redis has lost count (its `lag` is nil after
/// some trims) they are counted, up to [`COUNT_MAX`].
pub async fn undelivered(redis: &Redis) -> StreamResult<u64> {
    let group = group(redis, JOBS, GROUP).await?;
    if let Some(Value::Int(lag)) = group.get("lag") {
        return Ok((*lag).max(0) as u64);
    }
    let mut command = redis::cmd("XRANGE");
    command
        .arg(JOBS)
        .arg(last_delivered(redis, JOBS, GROUP).await?.next().to_string())
        .arg("+")
        .arg("COUNT")
        .arg(COUNT_MAX);
    let entries: Vec<Value> = redis.run(async |c| command.query_async(c).await).await?;
    Ok(entries.len() as u64)
}

/// The age of the first entry of the raw streams, the older one, milliseconds by Redis' clock; 0 when both are empty.
pub async fn raw_age_ms(redis: &Redis) -> StreamResult<i64> {
    let mut pipe = redis::pipe();
    pipe.cmd("TIME");
    for stream in RAW_STREAMS {
        pipe.cmd("XRANGE").arg(stream).arg("-").arg("+").arg("COUNT").arg(1);
    }
    let answers: Vec<Value> = redis.run(async |c| pipe.query_async(c).await).await?;
    let (seconds, micros): (i64, i64) = redis::from_redis_value(answers[0].clone()).map_err(redis::RedisError::from)?;
    let mut age_ms = 0;
    for answer in &answers[1..] {
        let Value::Array(entries) = answer else { continue };
        let Some(Value::Array(entry)) = entries.first() else { continue };
        if let Some(Value::BulkString(id)) = entry.first() {
            let first = parse_id(&String::from_utf8_lossy(id))?;
            age_ms = age_ms.max(seconds * 1000 + micros / 1000 - first.ms as i64);
        }
    }
    Ok(age_ms)
}

/// Bytes that Redis holds.
pub async fn memory_bytes(redis: &Redis) -> StreamResult<u64> {
    let mut command = redis::cmd("INFO");
    command.arg("memory");
    let info: redis::InfoDict = redis.run(async |c| command.query_async(c).await).await?;
    Ok(info.get::<u64>("used_memory").unwrap_or_default())
}

async fn group(redis: &Redis, stream: &str, name: &str) -> StreamResult<HashMap<String, Value>> {
    let mut command = redis::cmd("XINFO");
    command.arg("GROUPS").arg(stream);
    let groups: Vec<HashMap<String, Value>> = redis.run(async |c| command.query_async(c).await).await?;
    Ok(groups
        .into_iter()
        .find(|g| matches!(g.get("name"), Some(Value::BulkString(found)) if found == name.as_bytes()))
        .unwrap_or_default())
}
