//! The group that processes the items: read, take over what another left, acknowledge.

use redis::Value;

use crate::model::stream_id::StreamId;
use crate::stream::connection::{BLOCK_MS, Redis, StreamResult};
use crate::stream::names::{ITEMS, PROCESS};
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
