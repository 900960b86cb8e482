//! The group that processes the items: read, take over what another left, acknowledge.

use std::sync::LazyLock;

use redis::{Script, Value};

use crate::model::stream_id::StreamId;
use crate::stream::connection::{BLOCK_MS, Redis, StreamResult};
use crate::stream::names::{ITEMS, PROCESS};
use crate::stream::raw::{BYTES_MAX, Stored, stored_of};

/// XREADGROUP and XAUTOCLAIM one by one, until the answer grows heavy: no count of entries bounds their bytes.
static READ: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local found, bytes = {}, 0
         for n = 1, tonumber(ARGV[3]) do
           local streams = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', 1, 'STREAMS', KEYS[1], '>')
           if not streams then break end
           local entry = streams[1][2][1]
           found[n] = entry
           for _, value in ipairs(entry[2]) do bytes = bytes + #value end
           if bytes >= tonumber(ARGV[4]) then break end
         end
         return found",
    )
});

static TAKE_OVER: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local found, bytes, from = {}, 0, '0-0'
         for n = 1, tonumber(ARGV[3]) do
           local answer = redis.call('XAUTOCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[5], from, 'COUNT', 1)
           for _, entry in ipairs(answer[2]) do
             found[#found + 1] = entry
             for _, value in ipairs(entry[2]) do bytes = bytes + #value end
           end
           from = answer[1]
           if from == '0-0' or bytes >= tonumber(ARGV[4]) then break end
         end
         return found",
    )
});

/// Reads up to `count` new entries, fewer where they are heavy, waiting up to [`BLOCK_MS`] for the first. Needs a
/// connection of its own.
pub async fn next(redis: &Redis, consumer: &str, count: usize) -> StreamResult<Vec<Stored>> {
    let mut call = READ.prepare_invoke();
    call.key(ITEMS).arg(PROCESS).arg(consumer).arg(count).arg(BYTES_MAX);
    let ready: Value = redis.run(async |c| call.invoke_async(c).await).await?;
    let ready = stored_of(ITEMS, ready)?;
    if !ready.is_empty() {
        return Ok(ready);
    }
    let mut command = redis::cmd("XREADGROUP");
    command.arg("GROUP").arg(PROCESS).arg(consumer).arg("COUNT").arg(1);
    command.arg("BLOCK").arg(BLOCK_MS).arg("STREAMS").arg(ITEMS).arg(">");
    let value: Value = redis.run(async |c| command.query_async(c).await).await?;
    let Value::Array(streams) = value else { return Ok(Vec::new()) };
    let Some(Value::Array(stream)) = streams.into_iter().next() else { return Ok(Vec::new()) };
    stream.into_iter().nth(1).map_or_else(|| Ok(Vec::new()), |value| stored_of(ITEMS, value))
}

/// Takes over up to `count` entries, fewer where they are heavy, that nobody has acknowledged for `idle_ms`:
/// processing them twice changes nothing.
pub async fn take_over(redis: &Redis, consumer: &str, idle_ms: u64, count: usize) -> StreamResult<Vec<Stored>> {
    let mut call = TAKE_OVER.prepare_invoke();
    call.key(ITEMS).arg(PROCESS).arg(consumer).arg(count).arg(BYTES_MAX).arg(idle_ms);
    let value: Value = redis.run(async |c| call.invoke_async(c).await).await?;
    stored_of(ITEMS, value)
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
