//! While S3 is away the raw streams grow to their bound, then nothing is issued; nothing is lost.

use std::time::Duration;

use anyhow::Result;
use dodo_scheduler::local::s3::Fault;
use serde_json::json;

use crate::cluster::Cluster;
use crate::judge;
use crate::web::Web;

const ENTRIES_MAX: usize = 40;

async fn entries(cluster: &Cluster) -> Result<usize> {
    Ok(redis::from_redis_value(cluster.redis_command(&["XLEN", "dodo:pages"]).await?)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn dispatch_waits_while_the_streams_are_full() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    cluster.scheduler_env.push(("DODO_STREAM_ENTRIES_MAX".to_owned(), ENTRIES_MAX.to_string()));
    let web = Web::start(4, 60, Duration::from_millis(5)).await?;
    cluster.open(&web.places);
    let _scheduler = cluster.scheduler().await?;
    cluster.s3.set_fault(Fault::Refuse503);
    let _worker = cluster.worker()?;
    let crawl = json!({ "urls": web.seeds(), "scope": "any", "delay_ms": 60, "host_concurrency": 1 });
    let dispatch = cluster.post("/v1/crawls", &crawl).await?;
    cluster
        .until("dispatch waits", Duration::from_secs(60), async || {
            Ok(cluster.get("/v1/status").await?["backpressure"].is_string())
        })
        .await?;
    let shown = cluster.dodo_text(&["status"])?;
    assert!(shown.contains("backpressure: no job is issued: "), "{shown}");
    // What was issued before ends; then nothing is under way and nothing comes.
    cluster
        .until("the window is empty", Duration::from_secs(30), async || {
            let streams = cluster.get("/v1/streams").await?;
            let jobs = streams.as_array().and_then(|all| all.iter().find(|s| s["name"] == "dodo:jobs:fetch")).cloned();
            Ok(jobs.is_some_and(|jobs| jobs["pending"] == 0 && jobs["lag"] == 0))
        })
        .await?;
    let full = entries(&cluster).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(entries(&cluster).await?, full, "nothing is issued");
    assert!(full > ENTRIES_MAX && full < 4 * 60, "{full} entries");
    assert!(cluster.text("/metrics").await?.contains("dodo_backpressure 1"));

    cluster.s3.set_fault(Fault::None);
    cluster.wait_done(&dispatch, Duration::from_secs(90)).await?;
    let over = async || Ok(cluster.get("/v1/status").await?["backpressure"].is_null());
    cluster.until("the streams are found short again", Duration::from_secs(10), over).await?;
    assert!(!cluster.dodo_text(&["status"])?.contains("backpressure"));
    judge::complete(&cluster, &web, &dispatch).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_results_wait_for_postgres_reads_no_more_and_says_so() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let _scheduler = cluster.scheduler().await?;
    let _worker = cluster.worker_with(&[("DODO_HELD_BYTES_MAX", "9000")])?;
    let payload = json!({ "text": "x".repeat(1000) });
    let warm = cluster.post("/v1/noops", &json!({ "count": 1 })).await?;
    cluster.wait_done(&warm, Duration::from_secs(30)).await?;
    let mut sql = cluster.sql().await?;
    // Postgres answers, but no job can be logged.
    let lock = sql.transaction().await?;
    lock.batch_execute("LOCK TABLE crawl_log IN ACCESS EXCLUSIVE MODE").await?;
    let first = cluster.post("/v1/noops", &json!({ "count": 10, "payload": payload })).await?;
    let worker = async || -> Result<serde_json::Value> { Ok(cluster.get("/v1/workers").await?[0].clone()) };
    let limit = Duration::from_secs(30);
    cluster
        .until("it says so", limit, async || {
            Ok(worker().await?["slow"].as_str().is_some_and(|why| why.contains("Postgres") && why.contains("no jobs")))
        })
        .await?;
    let shown = cluster.dodo_text(&["status"])?;
    assert!(shown.contains("\nslow        worker 1 at ") && shown.contains("wait for Postgres since"), "{shown}");
    assert!(shown.contains("it reads no jobs: it holds "), "{shown}");
    let held = worker().await?["held_bytes"].as_u64().unwrap_or_default();
    assert!((10_000..12_000).contains(&held), "{held}");
    let second = cluster.post("/v1/noops", &json!({ "count": 50, "payload": payload })).await?;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(worker().await?["in_flight"], 10, "it has read no more");
    lock.rollback().await?;
    for dispatch in [first, second] {
        cluster.wait_done(&dispatch, limit).await?;
    }
    cluster.until("it says nothing", limit, async || Ok(worker().await?["slow"].is_null())).await?;
    assert_eq!(worker().await?["held_bytes"], 0);
    Ok(())
}
