//! NDJSON.zst segments: written through the whole pipeline, read with tools that are not ours.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::cluster::Cluster;

const ITEMS: usize = 3000;

#[tokio::test(flavor = "multi_thread")]
async fn items_are_archived_and_read_back() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let _scheduler = cluster.scheduler().await?;
    // What the streams held is compared with the archive, so it must still be there.
    cluster.s3.set_fault(dodo_scheduler::local::s3::Fault::Refuse503);
    cluster.worker_env.push(("DODO_ARCHIVE_ENTRIES_MAX".to_owned(), "1700".to_owned()));
    let _workers = [cluster.worker()?, cluster.worker()?];
    let dispatch = cluster.post("/v1/noops", &json!({ "count": ITEMS, "payload": { "name": "été" } })).await?;
    cluster.wait_finished(&dispatch, ITEMS as i64).await?;
    let ids = stream_ids(&cluster, "dodo:items").await?;
    assert_eq!(ids.len(), ITEMS);
    cluster.s3.set_fault(dodo_scheduler::local::s3::Fault::None);
    cluster.wait_done(&dispatch, Duration::from_secs(60)).await?;

    // A range of ids is exactly what was in the stream.
    let (from, to) = (&ids[500], &ids[2600]);
    let lines = cluster.dodo_text(&["archive", "cat", "items", "--from", from, "--to", to])?;
    let archived: Vec<String> = lines
        .lines()
        .map(|line| Ok(serde_json::from_str::<Value>(line)?["id"].as_str().context("no id")?.to_owned()))
        .collect::<Result<_>>()?;
    assert_eq!(archived, ids[500..=2600]);
    let whole = cluster.dodo_text(&["archive", "cat", "items"])?;
    let mut numbers: Vec<u64> =
        whole.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()?["n"].as_u64()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..ITEMS as u64).collect::<Vec<_>>(), "each payload once");

    // Tools that are not ours read the same.
    let mut files = Vec::new();
    for line in cluster.dodo_text(&["archive", "list", "items", "--json"])?.lines() {
        let key = serde_json::from_str::<Value>(line)?["key"].as_str().context("no key")?.to_owned();
        files.push(cluster.object_file(&key));
    }
    assert!(files.len() >= 2, "several segments");
    let out = Command::new("zstdcat").args(&files).output().context("zstdcat is missing")?;
    assert!(out.status.success());
    assert_eq!(out.stdout.iter().filter(|byte| **byte == b'\n').count(), ITEMS);
    let python = std::env::var("DODO_TEST_PYTHON").context("run scripts/test: it makes the Python environment")?;
    let script = "import sys, duckdb; print(duckdb.sql(f'SELECT count(DISTINCT n) FROM read_json({sys.argv[1:]}, compression=\\'zstd\\', format=\\'newline_delimited\\')').fetchall()[0][0])";
    let out = Command::new(python).arg("-c").arg(script).args(&files).output()?;
    assert_eq!(
        String::from_utf8_lossy(&out.stdout).trim(),
        ITEMS.to_string(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );

    // What is archived has left the stream, and a damaged object is found.
    assert!(stream_ids(&cluster, "dodo:items").await?.is_empty());
    assert!(cluster.dodo(&["archive", "verify"]).status.success());
    let mut damaged = std::fs::read(&files[0])?;
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(&files[0], damaged)?;
    assert_eq!(cluster.dodo(&["archive", "verify"]).status.code(), Some(1));
    Ok(())
}

async fn stream_ids(cluster: &Cluster, stream: &str) -> Result<Vec<String>> {
    let answer = cluster.redis_command(&["XRANGE", stream, "-", "+"]).await?;
    let rows: Vec<(String, redis::Value)> = redis::from_redis_value(answer)?;
    Ok(rows.into_iter().map(|(id, _)| id).collect())
}
