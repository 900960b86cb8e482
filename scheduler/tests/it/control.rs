//! Pause, resume and cancel, on real processes.

use std::time::Duration;

use anyhow::{Context, Result};
use reqwest::Method;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::web::Web;

const LIMIT: Duration = Duration::from_secs(60);

async fn order(cluster: &Cluster, dispatch: &str, order: &str) -> Result<(u16, Value)> {
    cluster.call(Method::POST, &format!("/v1/dispatches/{dispatch}/{order}"), "").await
}

/// How many log rows of a dispatch have this outcome, and how many jobs they are of.
async fn logged(sql: &tokio_postgres::Client, dispatch: &str, outcome: &str) -> Result<(i64, i64)> {
    let row = sql
        .query_one(
            "SELECT count(*), count(DISTINCT id) FROM crawl_log WHERE dispatch = $1::text::uuid AND outcome = $2",
            &[&dispatch, &outcome],
        )
        .await?;
    Ok((row.get(0), row.get(1)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_dispatch_waits_and_lets_others_by() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let web = Web::start(1, 60, Duration::from_millis(2)).await?;
    cluster.open(&web.places);
    let _scheduler = cluster.scheduler().await?;
    let _worker = cluster.worker()?;
    let crawl = |pages: Option<i64>| json!({ "urls": web.urls(), "delay_ms": 40, "max_pages": pages });
    let first = cluster.post("/v1/crawls", &crawl(None)).await?;
    cluster.wait_finished(&first, 5).await?;
    let (status, paused) = order(&cluster, &first, "pause").await?;
    assert_eq!((status, paused["paused_at"].is_string()), (200, true));
    assert!(cluster.dodo_text(&["dispatch", "pause", &first])?.contains("paused"), "twice is no error");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = web.hits().len();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(web.hits().len(), before, "nothing is issued a second later");

    // Its rows are older and stand first in the index; another dispatch of the same host goes by.
    let second = cluster.post("/v1/crawls", &crawl(Some(10))).await?;
    cluster.wait_done(&second, LIMIT).await?;
    let still: Value = serde_json::from_str(&cluster.dodo_text(&["dispatch", "get", &first, "--json"])?)?;
    assert!(still["progress"]["finished"].as_i64() < Some(60), "{still}");
    let pending = cluster.get(&format!("/v1/jobs?dispatch={first}&state=pending")).await?;
    let why = cluster.dodo_text(&["why", pending[0]["id"].as_str().context("no pending job")?])?;
    assert!(why.contains("Its dispatch is paused since"), "{why}");

    assert_eq!(order(&cluster, &first, "resume").await?.0, 200);
    assert_eq!(order(&cluster, &first, "resume").await?.0, 200);
    cluster.wait_done(&first, LIMIT).await?;
    assert_eq!(logged(&cluster.sql().await?, &first, "ok").await?, (60, 60));
    let (status, refused) = order(&cluster, &first, "pause").await?;
    assert_eq!((status, refused["error"].as_str()), (409, Some(format!("dispatch {first} is done").as_str())));
    assert_eq!(order(&cluster, "0198f6a0-0000-7000-8000-000000000000", "cancel").await?.0, 404);
    let listed = cluster.dodo_text(&["dispatch", "list"])?;
    assert!(listed.contains(&first) && listed.contains(&second), "{listed}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_in_the_window_of_a_paused_dispatch_are_handed_back() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let _scheduler = cluster.scheduler().await?;
    // Without a worker the window fills; the pause comes before anybody reads it.
    let dispatch = cluster.post("/v1/noops", &json!({ "count": 500 })).await?;
    let sql = cluster.sql().await?;
    let full = async || Ok(cluster.issued().await? > 0);
    cluster.until("some are issued", LIMIT, full).await?;
    assert_eq!(order(&cluster, &dispatch, "pause").await?.0, 200);
    let _worker = cluster.worker()?;
    cluster
        .until("the window is handed back", LIMIT, async || {
            let streams = cluster.get("/v1/streams").await?;
            let jobs = streams.as_array().and_then(|all| all.iter().find(|s| s["name"] == "dodo:jobs:fetch")).cloned();
            let workers = cluster.get("/v1/workers").await?;
            Ok(workers[0]["settled"].as_u64() > Some(0) && jobs.is_some_and(|j| j["pending"] == 0 && j["lag"] == 0))
        })
        .await?;
    // Its last heartbeat may be from before the last of them.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let settled = cluster.get("/v1/workers").await?[0]["settled"].as_u64().unwrap_or_default();
    tokio::time::sleep(Duration::from_millis(700)).await;
    let later = cluster.get("/v1/workers").await?[0]["settled"].as_u64().unwrap_or_default();
    assert_eq!(settled, later, "nothing goes round and round");
    assert!(settled < 5000, "{settled} entries for 500 jobs");
    let row = sql.query_one("SELECT count(*) FROM crawl_schedule WHERE attempt = 0", &[]).await?;
    assert_eq!(row.get::<_, i64>(0), 500);
    order(&cluster, &dispatch, "resume").await?;
    cluster.wait_done(&dispatch, LIMIT).await?;
    assert_eq!(logged(&sql, &dispatch, "ok").await?, (500, 500));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_dispatch_ends_whatever_dies() -> Result<()> {
    const JOBS: i64 = 60_000;
    let mut cluster = Cluster::start().await?;
    let mut first = cluster.scheduler().await?;
    let _second = cluster.scheduler().await?;
    let _worker = cluster.worker()?;
    let dispatch = cluster.post("/v1/noops", &json!({ "count": JOBS, "payload": {} })).await?;
    let sql = cluster.sql().await?;
    cluster.wait_finished(&dispatch, 500).await?;
    assert_eq!(order(&cluster, &dispatch, "cancel").await?.0, 200);
    assert_eq!(order(&cluster, &dispatch, "cancel").await?.0, 200);
    assert_eq!(order(&cluster, &dispatch, "resume").await?.0, 409);
    cluster.until("some are cancelled", LIMIT, async || Ok(logged(&sql, &dispatch, "cancelled").await?.0 > 0)).await?;
    first.kill();
    cluster.wait_done(&dispatch, LIMIT).await?;
    let (ok, cancelled) = (logged(&sql, &dispatch, "ok").await?, logged(&sql, &dispatch, "cancelled").await?);
    assert_eq!((ok.0, cancelled.0), (ok.1, cancelled.1), "each job ended once");
    assert_eq!(ok.0 + cancelled.0, JOBS);
    assert!(cancelled.0 > 0);
    let done = cluster.progress(&dispatch).await?;
    assert!(done["note"].as_str().is_some_and(|note| note.starts_with("it was cancelled at ")), "{done}");
    assert_eq!(done["progress"]["skipped"].as_i64(), Some(cancelled.0));
    assert_eq!(order(&cluster, &dispatch, "cancel").await?.0, 200, "it is cancelled already");
    assert_eq!(order(&cluster, &dispatch, "pause").await?.0, 409);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn links_of_a_running_page_are_cancelled_too() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let web = Web::start(1, 30, Duration::from_millis(600)).await?;
    cluster.open(&web.places);
    let _scheduler = cluster.scheduler().await?;
    let _worker = cluster.worker()?;
    let dispatch = cluster.post("/v1/crawls", &json!({ "urls": web.seeds(), "delay_ms": 0 })).await?;
    // The second page is under way when it is cancelled, paused as it is.
    cluster.wait_finished(&dispatch, 1).await?;
    tokio::time::sleep(Duration::from_millis(200)).await;
    order(&cluster, &dispatch, "pause").await?;
    let hits = web.hits().len();
    assert_eq!(order(&cluster, &dispatch, "cancel").await?.0, 200);
    cluster.wait_done(&dispatch, LIMIT).await?;
    let hits_after = web.hits().len();
    assert!(hits_after <= hits + 1, "only what ran has ended: {hits} then {hits_after}");
    let sql = cluster.sql().await?;
    let row = sql
        .query_one(
            "SELECT count(*), count(DISTINCT id), count(DISTINCT url) FROM crawl_log WHERE dispatch = $1::text::uuid",
            &[&dispatch],
        )
        .await?;
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(0)), (row.get::<_, i64>(1), row.get::<_, i64>(2)));
    let done = cluster.progress(&dispatch).await?;
    assert_eq!(done["progress"]["scheduled"], done["progress"]["finished"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_takes_what_it_has_started_with_it() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let web = Web::start(1, 30, Duration::from_millis(2)).await?;
    cluster.open(&web.places);
    let _scheduler = cluster.scheduler().await?;
    let _worker = cluster.worker()?;
    let entry = json!({ "service": "crawl", "url": web.seeds()[0], "interval": 1, "count": 1000, "options": { "delay_ms": 200 } });
    let (status, manifest) = cluster.call(Method::POST, "/v1/manifests?name=beat", json!([entry]).to_string()).await?;
    assert!(status < 300, "{manifest}");
    let parent = manifest["dispatch"].as_str().context("no dispatch")?.to_owned();
    let children = async || -> Result<Vec<Value>> {
        let all = cluster.get("/v1/dispatches").await?;
        Ok(all.as_array().into_iter().flatten().filter(|d| d["parent"] == parent.as_str()).cloned().collect())
    };
    cluster.until("it has started two crawls", LIMIT, async || Ok(children().await?.len() >= 2)).await?;
    assert_eq!(order(&cluster, &parent, "pause").await?.0, 200);
    assert!(children().await?.iter().all(|d| d["paused_at"].is_string() || d["state"] == "done"));
    let count = children().await?.len();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(children().await?.len() <= count + 1, "at most what was under way");
    assert!(children().await?.iter().all(|d| d["paused_at"].is_string() || d["state"] == "done"));
    assert_eq!(order(&cluster, &parent, "resume").await?.0, 200);
    cluster.until("it goes on", LIMIT, async || Ok(children().await?.len() > count)).await?;
    assert_eq!(order(&cluster, &parent, "cancel").await?.0, 200);
    cluster.wait_done(&parent, LIMIT).await?;
    let ended = children().await?;
    assert!(ended.iter().all(|d| d["state"] == "done"), "{ended:?}");
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(children().await?.len(), ended.len(), "its entries have stopped");
    Ok(())
}
