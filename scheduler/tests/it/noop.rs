//! No-op jobs that behave badly when they are asked to.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use reqwest::Method;
use serde_json::{Value, json};

use crate::cluster::Cluster;

const LIMIT: Duration = Duration::from_secs(30);

async fn jobs(cluster: &Cluster, dispatch: &str) -> Result<Vec<Value>> {
    let answer = cluster.get(&format!("/v1/jobs?dispatch={dispatch}")).await?;
    Ok(answer.as_array().context("no list")?.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_op_jobs_sleep_fail_and_may_not_abort() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let _scheduler = cluster.scheduler().await?;
    let mut worker = cluster.worker()?;
    let begun = Instant::now();
    let body = json!({ "count": 3, "sleep_ms": 700, "payload": { "name": "kept" } });
    let slow = cluster.post("/v1/noops", &body).await?;
    let failing = cluster.post("/v1/noops", &json!({ "count": 2, "fail": "the moon is full" })).await?;
    let poison = cluster.post("/v1/noops", &json!({ "count": 1, "abort": true })).await?;
    for dispatch in [&slow, &failing, &poison] {
        cluster.wait_done(dispatch, LIMIT).await?;
    }
    assert!(begun.elapsed() >= Duration::from_millis(700));
    for job in jobs(&cluster, &slow).await? {
        assert_eq!((job["state"].as_str(), job["attempt"].as_i64()), (Some("ok"), Some(0)));
    }
    for job in jobs(&cluster, &failing).await? {
        assert_eq!((job["state"].as_str(), job["attempt"].as_i64()), (Some("dead"), Some(4)));
        assert_eq!(job["reason"], "the moon is full");
    }
    let aborted = &jobs(&cluster, &poison).await?[0];
    assert_eq!((aborted["state"].as_str(), aborted["attempt"].as_i64()), (Some("failed"), Some(0)));
    assert!(aborted["reason"].as_str().is_some_and(|why| why.contains("DODO_ALLOW_ABORT")), "{aborted}");

    // What is stored is the payload that was given, and nothing of how the job behaved.
    let items = cluster.dodo_text(&["archive", "cat", "items"])?;
    assert_eq!(items.lines().count(), 3, "{items}");
    assert!(items.lines().all(|item| item.contains("kept") && !item.contains("sleep")), "{items}");

    worker.kill();
    let mut worker = cluster.worker_with(&[("DODO_ALLOW_ABORT", "1")])?;
    cluster.post("/v1/noops", &json!({ "count": 1, "abort": true })).await?;
    assert_eq!(worker.ended(LIMIT).await?, None, "it was ended by a signal");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_op_jobs_that_cannot_be_are_refused() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let _scheduler = cluster.scheduler().await?;
    for (body, word) in [
        (json!({ "count": 1, "sleep_ms": 120_001 }), "120000"),
        (json!({ "count": 1, "sleep_ms": -1 }), "sleep_ms"),
        (json!({ "count": 1, "fail": " " }), "fail"),
        (json!({ "count": 1, "fail": "x".repeat(1001) }), "1000"),
        (json!({ "count": 1, "fail": "x", "abort": true }), "not both"),
        (json!({ "count": 1, "abort": "yes" }), "abort"),
    ] {
        let (status, answer) = cluster.call(Method::POST, "/v1/noops", body.to_string()).await?;
        let text = answer.to_string();
        assert!((400..500).contains(&status) && text.contains(word) && text.lines().count() == 1, "{status} {text}");
    }
    Ok(())
}
