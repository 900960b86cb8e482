//! Garbage of the archive: what nobody planned goes, what somebody did stays, whoever looks at it meanwhile.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::cluster::Cluster;

const FAR: &str = "archive/default/items/0000000009/000000000000001-0000000000_000000000000002-0000000000";
const PLANNED: &str = "archive/default/items/0000000009/000000000000007-0000000000_000000000000008-0000000000";
const FOREIGN: &str = "archive/default/notes.txt";

/// Puts objects, written as long ago as said.
async fn put(cluster: &Cluster, ago: Duration, keys: &[String]) -> Result<()> {
    let store = cluster.store()?;
    for key in keys {
        store.put(key, Bytes::from_static(b"left behind")).await?;
        let file = std::fs::File::options().write(true).open(cluster.object_file(key))?;
        file.set_modified(file.metadata()?.modified()? - ago)?;
    }
    Ok(())
}

async fn keys(cluster: &Cluster) -> Result<Vec<String>> {
    Ok(cluster.store()?.list("archive", None).await?.into_iter().map(|(key, _)| key).collect())
}

async fn pipeline(cluster: &Cluster) -> Result<Client> {
    let sql = cluster.sql().await?;
    sql.batch_execute("SET ROLE dodo_pipeline").await?;
    Ok(sql)
}

fn insert(key: &str, first: i64, last: i64) -> String {
    format!(
        "INSERT INTO archive_segment (tenant, generation, stream, first_ms, first_seq, last_ms, last_seq, key, entries, bytes, sha256)
         VALUES ('default', 9, 'items', {first}, 0, {last}, 0, '{key}.ndjson.zst', 1, 1, '')"
    )
}

/// A cluster whose archive holds two segments, and whose worker has ended.
async fn archived() -> Result<Cluster> {
    let mut cluster = Cluster::start().await?;
    let _scheduler = cluster.scheduler().await?;
    let _worker = cluster.worker()?;
    for round in 0..2 {
        let body = json!({ "count": 20, "payload": { "round": round } });
        let dispatch = cluster.post("/v1/noops", &body).await?;
        cluster.wait_done(&dispatch, Duration::from_secs(60)).await?;
    }
    Ok(cluster)
}

fn deleted(lines: &str) -> Result<Vec<String>> {
    let key = |line: &str| -> Result<String> {
        Ok(serde_json::from_str::<Value>(line)?["key"].as_str().context("no key")?.to_owned())
    };
    lines.lines().map(key).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_nobody_planned_is_deleted() -> Result<()> {
    let cluster = archived().await?;
    let ours = keys(&cluster).await?;
    assert!(ours.len() >= 4, "two segments with their sidecars: {ours:?}");
    let text = cluster.dodo_text(&["archive", "gc", "--older-than", "0s"])?;
    assert!(text.starts_with("0 objects deleted"), "{text}");

    // A whole segment, the rest of one, one that is planned and not put yet whole, one that is too young.
    let long = Duration::from_secs(7200);
    let whole = [format!("{FAR}.ndjson.zst"), format!("{FAR}.ndjson.zst.json")];
    let rest = [format!("{}.cdxj", FAR.replace("items", "pages"))];
    let planned = [format!("{PLANNED}.ndjson.zst")];
    let young = [format!("{}.ndjson.zst", FAR.replace("000000009", "000000010"))];
    put(&cluster, long, &whole).await?;
    put(&cluster, long, &rest).await?;
    put(&cluster, long, &planned).await?;
    put(&cluster, long, &[FOREIGN.to_owned()]).await?;
    put(&cluster, Duration::from_secs(60), &young).await?;
    pipeline(&cluster).await?.batch_execute(&insert(PLANNED, 7, 8)).await?;
    let before = keys(&cluster).await?;

    let told = deleted(&cluster.dodo_text(&["archive", "gc", "--dry-run", "--json"])?)?;
    assert_eq!(told, [whole[1].clone(), whole[0].clone(), rest[0].clone()], "the sidecar goes first");
    assert_eq!(keys(&cluster).await?, before, "a dry run deletes nothing");
    let text = cluster.dodo_text(&["archive", "gc"])?;
    assert!(text.contains("3 objects deleted") && text.contains("1 unknown ones are too young"), "{text}");
    assert!(text.contains("1 objects are no segment's and stay"), "{text}");
    let after = keys(&cluster).await?;
    let gone: Vec<_> = before.iter().filter(|key| !after.contains(key)).collect();
    assert_eq!(gone.len(), 3, "{gone:?}");
    assert!(told.iter().all(|key| gone.contains(&key)));
    assert!(cluster.dodo_text(&["archive", "gc"])?.starts_with("0 objects deleted"), "twice changes nothing");
    assert_eq!(keys(&cluster).await?, after);
    assert!(ours.iter().all(|key| after.contains(key)));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_postgres_does_not_know_at_all_is_left_alone() -> Result<()> {
    let cluster = archived().await?;
    pipeline(&cluster).await?.batch_execute("DELETE FROM archive_segment").await?;
    let before = keys(&cluster).await?;
    for more in [&[][..], &["--dry-run"]] {
        let out = cluster.dodo(&[&["archive", "gc", "--older-than", "0s"], more].concat());
        let error = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.code() == Some(1) && error.lines().count() == 1 && error.contains("--force"), "{error}");
    }
    assert_eq!(keys(&cluster).await?, before);
    cluster.dodo_text(&["archive", "gc", "--older-than", "0s", "--force"])?;
    assert_eq!(keys(&cluster).await?, Vec::<String>::new());
    assert_eq!(cluster.dodo(&["archive", "gc", "--older-than", "soon"]).status.code(), Some(2));
    Ok(())
}

/// The plan is made after the survey and before the delete: the moment in which an archiver takes a key up again.
#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_is_planned_meanwhile_keeps_its_object() -> Result<()> {
    let cluster = archived().await?;
    put(&cluster, Duration::from_secs(7200), &[format!("{FAR}.ndjson.zst")]).await?;
    let sql = pipeline(&cluster).await?;
    sql.batch_execute("BEGIN").await?;
    sql.batch_execute(&insert(FAR, 1, 2)).await?;
    let look = cluster.sql().await?;
    let (cluster, text) = {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let text = cluster.dodo_text(&["archive", "gc"]);
            let _ = sender.send((cluster, text));
        });
        let waits = "SELECT count(*) FROM pg_locks WHERE relation = 'archive_segment'::regclass AND NOT granted";
        let start = std::time::Instant::now();
        while look.query_one(waits, &[]).await?.get::<_, i64>(0) == 0 {
            ensure!(start.elapsed() < Duration::from_secs(20), "it does not wait for the plan");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        sql.batch_execute("COMMIT").await?;
        receiver.await?
    };
    let text = text?;
    assert!(text.starts_with("0 objects deleted"), "{text}");
    assert!(keys(&cluster).await?.contains(&format!("{FAR}.ndjson.zst")));
    Ok(())
}
