//! The group that processes the items: read, take over what another left, acknowledge; and how far it is.

use redis::Value;

use crate::model::stream_id::StreamId;
use crate::stream::connection::{BLOCK_MS, Redis, StreamResult};
use crate::stream::names::{ITEMS, PROCESS};
use crate::stream::queue::parse_id;
use crate::stream::raw::{Stored, stored_of};

/// Reads up to `count` new entries, waiting up to [`BLOCK_MS`]. Needs a connection of its own.
pub async fn next(redis: &Redis, consumer: &str, count: usize) -> StreamResult<Vec<Stored>> {
    let mut command = redis::cmd("XREADGROUP");
    command.arg("GROUP").arg(PROCESS).arg(consumer).arg("COUNT").arg(count);
    command.arg("BLOCK").arg(BLOCK_MS).arg("STREAMS").arg(ITEMS).arg(">");
    let value: Value = redis.run(async |c| command.query_async(c).await).await?;
    let Value::Array(streams) = value else { return Ok(Vec::new()) };
    let Some(Value::Array(stream)) = streams.into_iter().next() else { return Ok(Vec::new()) };
    stream.into_iter().nth(1).map_or_else(|| Ok(Vec::new()), |value| stored_of(ITEMS, value))
}

/// Takes over entries that nobody has acknowledged for `idle_ms`: processing them twice changes nothing.
pub async fn take_over(redis: &Redis, consumer: &str, idle_ms: u64, count: usize) -> StreamResult<Vec<Stored>> {
    let mut command = redis::cmd("XAUTOCLAIM");
    command.arg(ITEMS).arg(PROCESS).arg(consumer).arg(idle_ms).arg("0-0").arg("COUNT").arg(count);
    let value: Value = redis.run(async |c| command.query_async(c).await).await?;
    let Value::Array(parts) = value else { return Ok(Vec::new()) };
    parts.into_iter().nth(1).map_or_else(|| Ok(Vec::new()), |value| stored_of(ITEMS, value))
}

pub async fn acknowledge(redis: &Redis, entries: &[StreamId]) -> StreamResult<()> {
    if entries.is_empty() {
        return Ok(());
    }
    let mut command = redis::cmd("XACK");
    command.arg(ITEMS).arg(PROCESS);
    for entry in entries {
        command.arg(entry.to_string());
    }
    let _: i64 = redis.run(async |c| command.query_async(c).await).await?;
    Ok(())
}

/// The horizon: the first entry that the group has not acknowledged. Nothing from there on may leave the stream; a
/// missing group has acknowledged nothing.
pub async fn horizon(redis: &Redis) -> StreamResult<StreamId> {
    let mut pipe = redis::pipe();
    pipe.cmd("XINFO").arg("GROUPS").arg(ITEMS);
    pipe.cmd("XPENDING").arg(ITEMS).arg(PROCESS).arg("-").arg("+").arg(1);
    let (groups, pending): (Vec<std::collections::HashMap<String, Value>>, Value) =
        redis.run(async |c| pipe.query_async(c).await).await?;
    let ours = groups.iter().find(|g| matches!(g.get("name"), Some(Value::BulkString(name)) if name == PROCESS.as_bytes()));
    let delivered = match ours.and_then(|g| g.get("last-delivered-id")) {
        Some(Value::BulkString(id)) => parse_id(&String::from_utf8_lossy(id))?,
        _ => return Ok(StreamId { ms: 0, seq: 0 }),
    };
    let first = first_pending(pending)?;
    Ok(first.map_or_else(|| delivered.next(), |first| first.min(delivered.next())))
}

/// The first id of an extended XPENDING answer.
fn first_pending(value: Value) -> StreamResult<Option<StreamId>> {
    let Value::Array(rows) = value else { return Ok(None) };
    let Some(Value::Array(row)) = rows.into_iter().next() else { return Ok(None) };
    match row.into_iter().next() {
        Some(Value::BulkString(id)) => Ok(Some(parse_id(&String::from_utf8_lossy(&id))?)),
        _ => Ok(None),
    }
}
