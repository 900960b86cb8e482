//! Budgets, priorities and starts of dispatches, on real processes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dodo_common::clock::Clock;
use dodo_common::db::schedule;
use reqwest::Method;
use serde_json::json;
use uuid::Uuid;

use crate::cluster::{Cluster, Process};
use crate::feed::{Behaviour, Feed};
use crate::web::Web;

const LIMIT: Duration = Duration::from_secs(60);

async fn ground(pages: usize) -> Result<(Cluster, Web, Vec<Process>)> {
    let mut cluster = Cluster::start().await?;
    let web = Web::start(1, pages, Duration::from_millis(2)).await?;
    cluster.open(&web.places);
    let processes = vec![cluster.scheduler().await?, cluster.worker()?];
    Ok((cluster, web, processes))
}

/// The reasons of jobs that ended `budget`, and how many there are.
async fn over_budget(cluster: &Cluster, dispatch: &str) -> Result<(i64, Vec<String>)> {
    let rows = cluster
        .sql()
        .await?
        .query(
            "SELECT reason, count(*) FROM crawl_log WHERE dispatch = $1::text::uuid AND outcome = 'budget' GROUP BY 1",
            &[&dispatch],
        )
        .await?;
    Ok((rows.iter().map(|row| row.get::<_, i64>(1)).sum(), rows.iter().map(|row| row.get(0)).collect()))
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_and_seconds_end_a_crawl() -> Result<()> {
    let (cluster, web, _processes) = ground(200).await?;
    let crawl = json!({ "urls": web.seeds(), "delay_ms": 20, "max_bytes": 2000 });
    let dispatch = cluster.post("/v1/crawls", &crawl).await?;
    cluster.wait_done(&dispatch, LIMIT).await?;
    let done = cluster.progress(&dispatch).await?;
    let bytes = done["progress"]["bytes"].as_i64().context("no bytes")?;
    // A page has some 200 bytes; the leader looks five times a second.
    assert!((2000..15_000).contains(&bytes), "{done}");
    let (count, reasons) = over_budget(&cluster, &dispatch).await?;
    assert!(count > 0 && reasons.iter().all(|why| why.contains("its budget of 2000 bytes is spent")), "{reasons:?}");
    assert_eq!((&done["progress"]["scheduled"], &done["note"]), (&done["progress"]["finished"], &json!(reasons[0])));

    let started = Instant::now();
    let crawl = json!({ "urls": web.urls(), "delay_ms": 100, "max_seconds": 2 });
    let dispatch = cluster.post("/v1/crawls", &crawl).await?;
    cluster.wait_finished(&dispatch, 2).await?;
    // The clock goes on while it is paused.
    cluster.call(Method::POST, &format!("/v1/dispatches/{dispatch}/pause"), "").await?;
    cluster.wait_done(&dispatch, LIMIT).await?;
    assert!(started.elapsed() >= Duration::from_secs(2));
    let (count, reasons) = over_budget(&cluster, &dispatch).await?;
    assert!(count > 150, "{count}");
    assert_eq!(reasons, ["its budget of 2 seconds is spent"]);
    Ok(())
}

/// Each transaction of the leader keeps its lease from being renewed while it lasts.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_over_a_budget_ends_in_short_transactions() -> Result<()> {
    let (cluster, web, _processes) = ground(6000).await?;
    let crawl = json!({ "urls": web.urls(), "delay_ms": 0, "depth": 0, "max_pages": 3 });
    let dispatch = cluster.post("/v1/crawls", &crawl).await?;
    cluster.wait_done(&dispatch, LIMIT).await?;
    let (count, _) = over_budget(&cluster, &dispatch).await?;
    assert_eq!(count, 5997);
    let most = "SELECT count(*) FROM crawl_log WHERE outcome = 'budget' GROUP BY xmin::text ORDER BY 1 DESC LIMIT 1";
    let most: i64 = cluster.sql().await?.query_one(most, &[]).await?.get(0);
    assert!(most <= schedule::BATCH_MAX as i64, "{most} in one transaction");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paged_run_has_budgets_too() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let feed = Feed::start(5000, Behaviour { latency: Duration::from_millis(20), ..Behaviour::default() }).await?;
    cluster.open(&[feed.addr.to_string()]);
    let _scheduler = cluster.scheduler().await?;
    let _worker = cluster.worker()?;
    let document = feed.document(10);
    cluster.put("/v1/sources/shop", &document).await?;
    let out = cluster.dodo_text(&[
        "sources",
        "run",
        "shop",
        "--base",
        &feed.base(),
        "--max-bytes",
        "5000",
        "--wait",
        "--json",
    ])?;
    let done: serde_json::Value = serde_json::from_str(&out)?;
    let (count, reasons) = over_budget(&cluster, done["id"].as_str().unwrap_or_default()).await?;
    assert!(count > 100 && reasons[0].contains("its budget of 5000 bytes is spent"), "{count} {reasons:?}");
    assert!(done["progress"]["items"].as_i64() > Some(0), "{done}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_higher_priority_goes_first_and_is_inherited() -> Result<()> {
    let (cluster, web, _processes) = ground(120).await?;
    let (low, high) = (&web.urls()[1..60], &web.urls()[60]);
    let first = cluster.post("/v1/crawls", &json!({ "urls": low, "delay_ms": 50, "depth": 0, "priority": -5 })).await?;
    cluster.wait_finished(&first, 3).await?;
    // Its start page finds two more, and those one more each; all of them go before what has waited for long.
    let crawl = json!({ "urls": [high.replace("/60", "/29")], "delay_ms": 50, "depth": 1, "priority": 7 });
    let second = cluster.post("/v1/crawls", &crawl).await?;
    cluster.wait_done(&second, LIMIT).await?;
    let behind = "SELECT count(*) FROM crawl_log WHERE dispatch = $1
        AND finished_at < (SELECT max(finished_at) FROM crawl_log WHERE dispatch = $2)";
    let ids: [Uuid; 2] = [first.parse()?, second.parse()?];
    let behind: i64 = cluster.sql().await?.query_one(behind, &[&ids[0], &ids[1]]).await?.get(0);
    assert!(behind < 40, "{behind}");
    let jobs = cluster.get(&format!("/v1/jobs?dispatch={second}&state=ok")).await?;
    let jobs = jobs.as_array().context("no jobs")?;
    assert!(jobs.len() >= 3 && jobs.iter().all(|job| job["priority"] == 7), "{jobs:?}");
    cluster.wait_done(&first, LIMIT).await?;
    let (status, why) =
        cluster.call(Method::POST, "/v1/noops", json!({ "count": 1, "priority": 101 }).to_string()).await?;
    assert_eq!(status, 400, "{why}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_is_waited_for() -> Result<()> {
    let (cluster, web, _processes) = ground(3).await?;
    let started = Instant::now();
    let later = json!({ "count": 5, "start_in_ms": 1500 });
    let noops = cluster.post("/v1/noops", &later).await?;
    let counted = Instant::now();
    let at = chrono::DateTime::from_timestamp_millis(Clock::System.now_ms() + 2500).context("no time")?.to_rfc3339();
    let crawl = json!({ "urls": web.seeds(), "delay_ms": 0, "start_at": at, "max_seconds": 3600 });
    let crawl = cluster.post("/v1/crawls", &crawl).await?;
    cluster.wait_done(&noops, LIMIT).await?;
    assert!(started.elapsed() >= Duration::from_millis(1500));
    cluster.wait_done(&crawl, LIMIT).await?;
    // The time was told to the millisecond.
    let first = web.hits().iter().map(|hit| hit.start).min().context("nothing was fetched")?;
    assert!(first - counted >= Duration::from_millis(2499), "{:?}", first - counted);
    let early =
        "SELECT count(*) FROM crawl_log l JOIN dispatch d ON d.id = l.dispatch WHERE l.finished_at < d.start_at";
    assert_eq!(cluster.sql().await?.query_one(early, &[]).await?.get::<_, i64>(0), 0);
    let told = "SELECT count(*) FROM dispatch WHERE start_at IS NOT NULL";
    assert_eq!(cluster.sql().await?.query_one(told, &[]).await?.get::<_, i64>(0), 2);
    assert!(started.elapsed() < Duration::from_secs(15), "not found by a scan: {:?}", started.elapsed());
    for wrong in [
        json!({ "start_at": "soon" }),
        json!({ "start_in_ms": -1 }),
        json!({ "start_in_ms": 5, "start_at": "2027-01-01T00:00:00Z" }),
    ] {
        let mut body = json!({ "count": 1 });
        body.as_object_mut().context("an object")?.extend(wrong.as_object().cloned().unwrap_or_default());
        let (status, answer) = cluster.call(Method::POST, "/v1/noops", body.to_string()).await?;
        let line = answer["error"].as_str().unwrap_or_default();
        assert!(status == 400 && line.contains("start_") && line.lines().count() == 1, "{status} {answer}");
    }
    Ok(())
}
