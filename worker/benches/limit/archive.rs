//! Pages moved from the stream into files: read by range, written, synced, read back whole, and only then trimmed.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use isal::Codec;
use redis::aio::MultiplexedConnection;
use tokio::sync::watch;

use crate::commit::STREAM;
use crate::crawl::BATCH_MAX;

const OBJECT_BYTES: usize = 16 << 20;

#[derive(Debug, Default)]
pub struct Archived {
    pub pages: usize,
    pub objects: usize,
    pub bytes: usize,
}

/// Follows the last committed entry until the crawl is over.
pub async fn archive(
    redis: &mut MultiplexedConnection,
    directory: &Path,
    mut committed: watch::Receiver<String>,
) -> Result<Archived> {
    let mut all = Archived::default();
    let (mut object, mut lengths) = (Vec::with_capacity(OBJECT_BYTES), Vec::new());
    let mut last = String::from("0-0");
    loop {
        let over = committed.changed().await.is_err();
        let until = committed.borrow_and_update().clone();
        while last != until {
            let entries: Vec<(String, Vec<Vec<u8>>)> = redis::cmd("XRANGE")
                .arg(STREAM)
                .arg(format!("({last}"))
                .arg(&until)
                .arg("COUNT")
                .arg(BATCH_MAX)
                .query_async(redis)
                .await
                .context("Redis")?;
            ensure!(!entries.is_empty(), "{until} is not in the stream");
            for (id, fields) in entries {
                let member = fields.get(3).context("an entry without a member")?;
                object.extend_from_slice(member);
                lengths.push(member.len());
                last = id;
            }
            if object.len() >= OBJECT_BYTES {
                seal(redis, directory, &mut all, &mut object, &mut lengths, &last).await?;
            }
        }
        if over {
            seal(redis, directory, &mut all, &mut object, &mut lengths, &last).await?;
            return Ok(all);
        }
    }
}

async fn seal(
    redis: &mut MultiplexedConnection,
    directory: &Path,
    all: &mut Archived,
    object: &mut Vec<u8>,
    lengths: &mut Vec<usize>,
    last: &str,
) -> Result<()> {
    all.pages += lengths.len();
    all.objects += 1;
    all.bytes += object.len();
    let (file, bytes, members) =
        (directory.join(format!("{last}.warc.gz")), std::mem::take(object), std::mem::take(lengths));
    *object = tokio::task::spawn_blocking(move || write(&file, bytes, &members)).await??;
    let (ms, sequence) = last.split_once('-').context("an entry's id")?;
    let next = format!("{ms}-{}", sequence.parse::<u64>()? + 1);
    let trim = redis::cmd("XTRIM").arg(STREAM).arg("MINID").arg("=").arg(next).query_async(redis).await;
    let trimmed: usize = trim.context("Redis")?;
    ensure!(trimmed > 0, "nothing was trimmed up to {last}");
    Ok(())
}

/// Gives the buffer back, empty. A member tells its own length and check sum (RFC 1952, 2.3.1).
fn write(file: &PathBuf, mut bytes: Vec<u8>, members: &[usize]) -> Result<Vec<u8>> {
    let mut output = File::create_new(file)?;
    output.write_all(&bytes)?;
    output.sync_all()?;
    let stored = fs::read(file)?;
    let (mut rest, mut plain) = (&stored[..], Vec::new());
    for &length in members {
        let (member, after) = rest.split_at_checked(length).context("a file that is too short")?;
        let size = member.last_chunk().map(|size| u32::from_le_bytes(*size)).context("a member without an end")?;
        plain.resize(size as usize, 0);
        let length = isal::decompress_into(member, &mut plain, Codec::Gzip)?;
        ensure!(length == plain.len() && plain.starts_with(b"WARC/1.1\r\n"), "a record that is none");
        rest = after;
    }
    ensure!(rest.is_empty(), "a file that is too long");
    bytes.clear();
    Ok(bytes)
}
