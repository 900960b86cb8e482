//! Raw streams: appended by workers, read by range and trimmed by the archiver.

use std::sync::LazyLock;

use redis::{Script, Value};
use uuid::Uuid;

use crate::model::stream_id::StreamId;
use crate::stream::connection::{Redis, StreamError, StreamResult};
use crate::stream::names::GENERATION;
use crate::stream::queue::{entries_of, field, parse_id, take};

/// Bytes of entries in one pipeline, and those after which no more are read: a slow server moves them well within the
/// response timeout.
pub const BYTES_MAX: usize = 8 << 20;
/// Entries in one answer to [`range`]: as many as may turn out to be as large as they may be.
const PART_MAX: usize = 4;
/// Entries looked at in one call of [`present`]: the server copies each body to read a field beside it.
const PRESENT_MAX: usize = 50;

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

impl RawEntry {
    /// What it weighs.
    pub fn bytes(&self) -> usize {
        self.about.len() + self.body.len()
    }
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

static PRESENT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local shown = {}
         for n = 1, #ARGV do
           local entry = redis.call('XRANGE', KEYS[1], ARGV[n], ARGV[n])[1]
           shown[n] = ''
           for i = 1, entry and #entry[2] or 0, 2 do
             if entry[2][i] == 'g' then shown[n] = entry[2][i + 1] end
           end
         end
         return shown",
    )
});

/// Appends the first of these entries in one pipeline: as many as weigh `bytes_max` together, and at least
/// one. The answer holds one id for each that was appended, in order; call it again with the rest.
///
/// # Errors
/// [`StreamError::Generation`] when the stream is not there: only the leader makes it.
pub async fn append(
    redis: &Redis,
    stream: &str,
    entries: &[&RawEntry],
    bytes_max: usize,
) -> StreamResult<Vec<StreamId>> {
    let mut pipe = redis::pipe();
    for entry in &entries[..fitting(entries, bytes_max)] {
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

/// How many of the first entries go into one pipeline.
fn fitting(entries: &[&RawEntry], bytes_max: usize) -> usize {
    let mut bytes = 0;
    let over = entries.iter().position(|entry| {
        bytes += entry.bytes();
        bytes > bytes_max
    });
    over.map_or(entries.len(), |first_over| first_over.max(1))
}

/// Entries from `from` to `to`, both included, at most `count`; fewer, but at least one, where they are heavy. Nothing in
/// Redis tells what an entry weighs before it is sent (in a script each byte of it would be copied and hashed), so the
/// first comes alone, and while they are light some more come with each answer.
pub async fn range(
    redis: &Redis,
    stream: &str,
    from: StreamId,
    to: Option<StreamId>,
    count: usize,
) -> StreamResult<Vec<Stored>> {
    let to = to.map_or("+".to_owned(), |id| id.to_string());
    let (mut all, mut bytes, mut from, mut part): (Vec<Stored>, _, _, _) = (Vec::new(), 0, from, 1);
    while all.len() < count && bytes < BYTES_MAX {
        let asked = part.min(count - all.len());
        let mut command = redis::cmd("XRANGE");
        command.arg(stream).arg(from.to_string()).arg(&to).arg("COUNT").arg(asked);
        let value: Value = match redis.run(async |c| command.query_async(c).await).await {
            Ok(value) => value,
            // Perhaps they were too heavy together: the next call begins with one of them.
            Err(error) if !all.is_empty() => {
                tracing::debug!(%error, stream, asked, "cannot read further");
                break;
            }
            Err(error) => return Err(error),
        };
        let found = stored_of(stream, value)?;
        bytes += found.iter().map(|stored| stored.entry.bytes()).sum::<usize>();
        let Some(last) = found.last() else { break };
        from = last.id.next();
        let is_end = found.len() < asked;
        all.extend(found);
        if is_end {
            break;
        }
        part = (2 * part).min(PART_MAX);
    }
    Ok(all)
}

/// Entries as an answer of the server has them.
pub(crate) fn stored_of(stream: &str, value: Value) -> StreamResult<Vec<Stored>> {
    entries_of(value)?
        .into_iter()
        .map(|(id, mut fields)| {
            // The two that weigh something are moved, not copied.
            let (about, body) = (take(&mut fields, b"m"), take(&mut fields, b"b"));
            let text = |name: &[u8]| field(&fields, name).and_then(|bytes| std::str::from_utf8(bytes).ok());
            let uuid = |name: &[u8]| field(&fields, name).and_then(|bytes| Uuid::from_slice(bytes).ok());
            let entry = (|| {
                Some(RawEntry {
                    tenant: text(b"t")?.to_owned(),
                    generation: text(b"g")?.parse().ok()?,
                    job: uuid(b"j")?,
                    attempt: text(b"a")?.parse().ok()?,
                    writer: uuid(b"w")?,
                    about: about?,
                    body: body?,
                })
            })();
            let entry = entry.ok_or_else(|| StreamError::Unfit(format!("entry {id} of {stream} is not ours")))?;
            Ok(Stored { id, entry })
        })
        .collect()
}

/// Which of these ids are in the stream, with the generation each entry names.
pub async fn present(redis: &Redis, stream: &str, ids: &[StreamId]) -> StreamResult<Vec<Option<i64>>> {
    let mut all = Vec::with_capacity(ids.len());
    for part in ids.chunks(PRESENT_MAX) {
        let mut call = PRESENT.prepare_invoke();
        call.key(stream);
        for id in part {
            call.arg(id.to_string());
        }
        let shown: Vec<String> = redis.run(async |c| call.invoke_async(c).await).await?;
        all.extend(shown.iter().map(|generation| generation.parse().ok()));
    }
    Ok(all)
}

/// Drops every entry below `first_kept`; refused when the generation is over.
pub async fn trim_below(redis: &Redis, stream: &str, generation: i64, first_kept: StreamId) -> StreamResult<u64> {
    let mut call = TRIM.prepare_invoke();
    call.key(GENERATION).key(stream).arg(generation).arg(first_kept.to_string());
    redis.run(async |c| call.invoke_async(c).await).await
}

/// The first entry. Not for every look: it comes as a whole.
pub async fn first(redis: &Redis, stream: &str) -> StreamResult<Option<StreamId>> {
    Ok(range(redis, stream, StreamId { ms: 0, seq: 0 }, None, 1).await?.first().map(|stored| stored.id))
}

/// The first and the last entry. They come as a whole, as that of [`first`].
pub async fn ends(redis: &Redis, stream: &str) -> StreamResult<Option<(StreamId, StreamId)>> {
    let mut command = redis::cmd("XREVRANGE");
    command.arg(stream).arg("+").arg("-").arg("COUNT").arg(1);
    let last = stored_of(stream, redis.run(async |c| command.query_async(c).await).await?)?;
    Ok(first(redis, stream).await?.zip(last.first().map(|stored| stored.id)))
}

/// What a stream holds, at a glance: the price of a look does not grow with it.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    pub entries: usize,
    /// Memory it takes, estimated by the server from a few samples.
    pub bytes: usize,
}

pub async fn extent(redis: &Redis, stream: &str) -> StreamResult<Extent> {
    let mut pipe = redis::pipe();
    pipe.cmd("XLEN").arg(stream);
    pipe.cmd("MEMORY").arg("USAGE").arg(stream).arg("SAMPLES").arg(5);
    let (entries, bytes): (usize, Option<usize>) = redis.run(async |c| pipe.query_async(c).await).await?;
    Ok(Extent { entries, bytes: bytes.unwrap_or(0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(bytes: usize) -> RawEntry {
        RawEntry {
            tenant: "default".to_owned(),
            generation: 1,
            job: Uuid::nil(),
            attempt: 0,
            writer: Uuid::nil(),
            about: Vec::new(),
            body: vec![0; bytes],
        }
    }

    #[test]
    fn a_pipeline_is_bounded_by_bytes_and_never_empty() {
        let (small, large) = (entry(1000), entry(BYTES_MAX + 1));
        assert_eq!(fitting(&[&small; 256], BYTES_MAX), 256);
        assert_eq!(fitting(&[&large, &small], BYTES_MAX), 1, "one that is too heavy goes alone");
        assert_eq!(fitting(&[&small, &large], BYTES_MAX), 1);
        let half = entry(BYTES_MAX / 2);
        assert_eq!(fitting(&[&half; 5], BYTES_MAX), 2);
        assert_eq!(fitting(&[], BYTES_MAX), 0);
        assert_eq!(fitting(&[&small; 256], 0), 1, "one by one, when all fails");
    }
}
