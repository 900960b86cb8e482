//! Servers that refuse: 429 and 503 are the host's affair, other failures the URL's.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Result;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use dodo_common::clock::Clock;
use serde_json::{Value, json};

use crate::cluster::{Cluster, Process};

const LIMIT: Duration = Duration::from_secs(60);

pub type Hits = Arc<Mutex<Vec<(String, Instant)>>>;

/// Answers by its path: `/n/STATUS/TIMES/AFTER/..` refuses so many times, with that Retry-After, and is then a page.
async fn answer(State(hits): State<Hits>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let before = {
        let mut hits = hits.lock().expect("no panic under this lock");
        let before = hits.iter().filter(|(hit, _)| *hit == path).count();
        hits.push((path.clone(), Instant::now()));
        before
    };
    let (Some(status), Some(times)) =
        (parts.get(1).and_then(|s| s.parse::<u16>().ok()), parts.get(2).and_then(|s| s.parse::<usize>().ok()))
    else {
        return if path == "/robots.txt" { "".into_response() } else { "a page".into_response() };
    };
    if before >= times {
        return "a page at last".into_response();
    }
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
    let after = match parts.get(3).copied().unwrap_or_default() {
        "" => return status.into_response(),
        // A date has whole seconds: two of them are more than one.
        "date" => chrono::DateTime::from_timestamp_millis(Clock::System.now_ms() + 2000)
            .map(|at| at.format("%a, %d %b %Y %H:%M:%S GMT").to_string())
            .unwrap_or_default(),
        seconds => seconds.to_owned(),
    };
    (status, [(header::RETRY_AFTER, after)]).into_response()
}

pub async fn ground(base_ms: &str) -> Result<(Cluster, String, Hits, Vec<Process>)> {
    let mut cluster = Cluster::start().await?;
    let hits = Hits::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let place = listener.local_addr()?.to_string();
    let app = Router::new().fallback(answer).with_state(Arc::clone(&hits));
    tokio::spawn(async move {
        let _ = axum::serve(listener, app).await;
    });
    cluster.open(std::slice::from_ref(&place));
    cluster.worker_env.push(("DODO_RETRY_BASE_MS".to_owned(), base_ms.to_owned()));
    let processes = vec![cluster.scheduler().await?, cluster.worker()?];
    Ok((cluster, format!("http://{place}"), hits, processes))
}

async fn jobs(cluster: &Cluster, dispatch: &str) -> Result<Vec<Value>> {
    let jobs = cluster.get(&format!("/v1/jobs?dispatch={dispatch}&limit=1000")).await?;
    Ok(jobs.as_array().cloned().unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_holds_the_host_and_costs_the_url_nothing() -> Result<()> {
    let (cluster, base, hits, _processes) = ground("50").await?;
    let urls = json!([
        format!("{base}/a/429/6/0"),
        format!("{base}/b/503/1/1"),
        format!("{base}/c/429/1/date"),
        format!("{base}/d/503/6/"),
        format!("{base}/e"),
        format!("{base}/f"),
    ]);
    let dispatch = cluster.post("/v1/crawls", &json!({ "urls": urls, "delay_ms": 0 })).await?;
    cluster.wait_done(&dispatch, LIMIT).await?;
    let jobs = jobs(&cluster, &dispatch).await?;
    assert_eq!(jobs.len(), 6);
    for job in &jobs {
        assert_eq!((&job["state"], &job["attempt"]), (&json!("ok"), &json!(0)), "{job}");
    }
    let hits = hits.lock().expect("no panic under this lock").clone();
    for (path, rest) in [("/b/503/1/1", Duration::from_millis(990)), ("/c/429/1/date", Duration::from_millis(900))] {
        let refused = hits.iter().position(|(hit, _)| hit == path).unwrap_or_default();
        let next = hits.get(refused + 1).map(|(_, at)| at.duration_since(hits[refused].1));
        assert!(next.is_some_and(|gap| gap >= rest), "{path}: the host was asked again after {next:?}");
    }
    let sql = cluster.sql().await?;
    let refusals: i32 = sql.query_one("SELECT refusals FROM host WHERE host = $1", &[&base]).await?.get(0);
    assert_eq!(refusals, 0, "a page calms it");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_refuses_for_ever_ends_its_jobs() -> Result<()> {
    let (cluster, base, hits, _processes) = ground("5").await?;
    let urls: Vec<String> = (0..200).map(|n| format!("{base}/{n}/429/1000000/0")).collect();
    let dispatch = cluster.post("/v1/crawls", &json!({ "urls": urls, "delay_ms": 0 })).await?;
    cluster.wait_done(&dispatch, LIMIT).await?;
    let jobs = jobs(&cluster, &dispatch).await?;
    assert_eq!(jobs.len(), 200);
    for job in &jobs {
        let reason = job["reason"].as_str().unwrap_or_default();
        assert_eq!(job["state"], "dead", "{job}");
        assert!(reason.starts_with("its host is left alone: the server answered 429, 20 times in a row"), "{job}");
    }
    let asked = hits.lock().expect("no panic under this lock").iter().filter(|(path, _)| path != "/robots.txt").count();
    assert_eq!(asked, 20);
    // One URL alone is given up sooner.
    let (cluster, base, hits, _processes) = ground("5").await?;
    let url = format!("{base}/x/503/1000000/0");
    let dispatch = cluster.post("/v1/crawls", &json!({ "urls": [url], "delay_ms": 0 })).await?;
    cluster.wait_done(&dispatch, LIMIT).await?;
    let job = &self::jobs(&cluster, &dispatch).await?[0];
    assert_eq!((&job["state"], &job["reason"]), (&json!("dead"), &json!("the server answered 503, 10 times")));
    assert_eq!((&job["status"], &job["attempt"]), (&json!(503), &json!(0)));
    let hits = hits.lock().expect("no panic under this lock").clone();
    let asked: Vec<Instant> = hits.iter().filter(|(path, _)| path.starts_with("/x")).map(|(_, at)| *at).collect();
    assert_eq!(asked.len(), 10);
    // It names no time at all, and is asked less and less often for that.
    for (n, pair) in asked.windows(2).enumerate() {
        let rest = Duration::from_millis((5 << n).min(50));
        assert!(pair[1] - pair[0] >= rest, "refused {} times: asked again after {:?}", n + 1, pair[1] - pair[0]);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_costs_tries_as_many_as_were_asked_for() -> Result<()> {
    let (cluster, base, _hits, _processes) = ground("5").await?;
    for (retries, tries) in [(None, 5), (Some(1), 2), (Some(0), 1), (Some(7), 8)] {
        let url = format!("{base}/{tries}/500/1000000/");
        let crawl = json!({ "urls": [url], "delay_ms": 0, "retries": retries });
        let dispatch = cluster.post("/v1/crawls", &crawl).await?;
        cluster.wait_done(&dispatch, LIMIT).await?;
        let job = &jobs(&cluster, &dispatch).await?[0];
        assert_eq!((&job["state"], &job["attempt"]), (&json!("dead"), &json!(tries - 1)), "{job}");
    }
    Ok(())
}
