//! Raw streams: appended by workers, read by range and trimmed by the archiver.

use std::sync::LazyLock;

use redis::{Script, Value};
use uuid::Uuid;

use crate::model::stream_id::StreamId;
use crate::stream::connection::{Redis, StreamError, StreamResult};
use crate::stream::names::GENERATION;
use crate::stream::queue::{entries_of, field, parse_id};

/// An entry before it has an id.
#[derive(Clone, Debug)]
pub struct RawEntry {
    pub tenant: String,
    pub generation: i64,
    pub job: Uuid,
    pub attempt: i16,
    pub writer: Uuid,
    /// JSON: for `pages` what the index says of the record, for `items` the payload.
    pub about: Vec<u8>,
    /// For `pages` the gzip member of the WARC record; empty for `items`.
    pub body: Vec<u8>,
}

/// An entry as it lies in the stream.
#[derive(Clone, Debug)]
pub struct Stored {
    pub id: StreamId,
    pub entry: RawEntry,
}

static TRIM: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return redis.error_reply('DODOGEN another generation') end
         return redis.call('XTRIM', KEYS[2], 'MINID', '=', ARGV[2])",
    )
});

/// Appends entries in one pipeline; the answer holds one id an entry, in order.
///
/// # Errors
/// [`StreamError::Generation`] when the stream is not there: only the leader makes it.
pub async fn append(redis: &Redis, stream: &str, entries: &[&RawEntry]) -> StreamResult<Vec<StreamId>> {
    let mut pipe = redis::pipe();
    for entry in entries {
        pipe.cmd("XADD")
            .arg(stream)
            .arg("NOMKSTREAM")
            .arg("*")
            .arg("t")
            .arg(&entry.tenant)
            .arg("g")
            .arg(entry.generation)
            .arg("j")
            .arg(entry.job.as_bytes())
            .arg("a")
            .arg(entry.attempt)
            .arg("w")
            .arg(entry.writer.as_bytes())
            .arg("m")
            .arg(&entry.about)
            .arg("b")
            .arg(&entry.body);
    }
    let ids: Vec<Option<String>> = redis.run(async |c| pipe.query_async(c).await).await?;
    ids.into_iter()
        .map(|id| parse_id(&id.ok_or_else(|| StreamError::Generation(format!("{stream} is missing")))?))
        .collect()
}

/// Entries from `from` to `to`, both included, at most `count`.
pub async fn range(
    redis: &Redis,
    stream: &str,
    from: StreamId,
    to: Option<StreamId>,
    count: usize,
) -> StreamResult<Vec<Stored>> {
    let mut command = redis::cmd("XRANGE");
    command
        .arg(stream)
        .arg(from.to_string())
        .arg(to.map_or("+".to_owned(), |id| id.to_string()))
        .arg("COUNT")
        .arg(count);
    let value: Value = redis.run(async |c| command.query_async(c).await).await?;
    stored_of(stream, value)
}

/// Entries as an answer of the server has them.
pub(crate) fn stored_of(stream: &str, value: Value) -> StreamResult<Vec<Stored>> {
    entries_of(value)?
        .into_iter()
        .map(|(id, fields)| {
            let text = |name: &[u8]| field(&fields, name).and_then(|bytes| std::str::from_utf8(bytes).ok());
            let uuid = |name: &[u8]| field(&fields, name).and_then(|bytes| Uuid::from_slice(bytes).ok());
            let entry = (|| {
                Some(RawEntry {
                    tenant: text(b"t")?.to_owned(),
                    generation: text(b"g")?.parse().ok()?,
                    job: uuid(b"j")?,
                    attempt: text(b"a")?.parse().ok()?,
                    writer: uuid(b"w")?,
                    about: field(&fields, b"m")?.to_vec(),
                    body: field(&fields, b"b")?.to_vec(),
                })
            })();
            let entry = entry.ok_or_else(|| StreamError::Unfit(format!("entry {id} of {stream} is not ours")))?;
            Ok(Stored { id, entry })
        })
        .collect()
}

/// Which of these ids are in the stream, with the generation each entry names.
pub async fn present(redis: &Redis, stream: &str, ids: &[StreamId]) -> StreamResult<Vec<Option<i64>>> {
    let mut pipe = redis::pipe();
    for id in ids {
        pipe.cmd("XRANGE").arg(stream).arg(id.to_string()).arg(id.to_string());
    }
    let values: Vec<Value> = redis.run(async |c| pipe.query_async(c).await).await?;
    values
        .into_iter()
        .map(|value| {
            let entries = entries_of(value)?;
            Ok(entries.first().and_then(|(_, fields)| std::str::from_utf8(field(fields, b"g")?).ok()?.parse().ok()))
        })
        .collect()
}

/// Drops every entry below `first_kept`; refused when the generation is over.
pub async fn trim_below(redis: &Redis, stream: &str, generation: i64, first_kept: StreamId) -> StreamResult<u64> {
    let mut call = TRIM.prepare_invoke();
    call.key(GENERATION).key(stream).arg(generation).arg(first_kept.to_string());
    redis.run(async |c| call.invoke_async(c).await).await
}

/// What a stream holds, at a glance: the price of a look does not grow with it.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    pub entries: usize,
    /// Memory it takes, estimated by the server from a few samples.
    pub bytes: usize,
    pub first: Option<StreamId>,
}

pub async fn extent(redis: &Redis, stream: &str) -> StreamResult<Extent> {
    let mut pipe = redis::pipe();
    pipe.cmd("XLEN").arg(stream);
    pipe.cmd("MEMORY").arg("USAGE").arg(stream).arg("SAMPLES").arg(5);
    pipe.cmd("XINFO").arg("STREAM").arg(stream);
    let (entries, bytes, about): (usize, Option<usize>, std::collections::HashMap<String, Value>) =
        redis.run(async |c| pipe.query_async(c).await).await?;
    let first = match about.get("first-entry") {
        Some(Value::Array(entry)) => match entry.first() {
            Some(Value::BulkString(id)) => Some(parse_id(&String::from_utf8_lossy(id))?),
            _ => None,
        },
        _ => None,
    };
    Ok(Extent { entries, bytes: bytes.unwrap_or(0), first })
}
