//! Sites that are out of order for a while, and what is told of it afterwards.

use std::collections::HashMap;
use std::io::Read as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Redirect, Response};
use flate2::read::GzDecoder;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::cluster::{Cluster, Process};

const LIMIT: Duration = Duration::from_secs(90);
const PAGES: usize = 200;
/// Answers 503 before the first robots.txt: more of them than a host may fail to answer at all.
const REFUSED: usize = 11;

/// How often each path was asked for.
type Hits = Arc<Mutex<HashMap<String, usize>>>;

async fn answer(State(hits): State<Hits>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let cookie = request.headers().get("cookie").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let before = {
        let mut hits = hits.lock().expect("no panic under this lock");
        let count = hits.entry(path.clone()).or_default();
        *count += 1;
        *count - 1
    };
    match path.as_str() {
        "/robots.txt" => StatusCode::NOT_FOUND.into_response(),
        "/late/robots.txt" if before < REFUSED => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        "/flaky" if before < 2 => (StatusCode::INTERNAL_SERVER_ERROR, "not yet").into_response(),
        "/door" if cookie != "seen=1" => ([("set-cookie", "seen=1")], Redirect::to("/door")).into_response(),
        "/wall" => Redirect::to("/wall").into_response(),
        "/bare" => Response::new(Body::from("<!doctype html><a href=/behind>x</a>")),
        "/bare.txt" => Response::new(Body::from("no <a href=/never>page</a>")),
        _ => Html(format!("<title>{path}</title>{path}")).into_response(),
    }
}

/// As `answer`, of a host whose robots.txt is out of order at first.
async fn late(State(hits): State<Hits>, mut request: Request) -> Response {
    if request.uri().path() == "/robots.txt" {
        *request.uri_mut() = axum::http::Uri::from_static("/late/robots.txt");
    }
    answer(State(hits), request).await
}

fn count(hits: &Hits, path: &str) -> usize {
    hits.lock().expect("no panic under this lock").get(path).copied().unwrap_or_default()
}

/// A site on a runtime of its own: with that go its socket and its connections.
struct Site(Option<Runtime>);

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

fn serve(app: Router, at: SocketAddr) -> Result<(Site, SocketAddr)> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let _inside = runtime.enter();
    let listener = std::net::TcpListener::bind(at)?;
    listener.set_nonblocking(true)?;
    let at = listener.local_addr()?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    runtime.spawn(async move { axum::serve(listener, app).await });
    Ok((Site(Some(runtime)), at))
}

/// A cluster, and a site that answers.
async fn ground(base_ms: &str, late_robots: bool) -> Result<(Cluster, Vec<Process>, Site, SocketAddr, Hits)> {
    let mut cluster = Cluster::start().await?;
    let hits = Hits::default();
    let app = if late_robots { Router::new().fallback(late) } else { Router::new().fallback(answer) };
    let (site, at) = serve(app.with_state(Arc::clone(&hits)), ([127, 0, 0, 1], 0).into())?;
    cluster.open(&[at.to_string()]);
    cluster.worker_env.push(("DODO_RETRY_BASE_MS".to_owned(), base_ms.to_owned()));
    let processes = vec![cluster.scheduler().await?, cluster.worker()?];
    Ok((cluster, processes, site, at, hits))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_that_is_away_for_a_while_costs_its_urls_no_tries() -> Result<()> {
    let (cluster, _processes, site, at, hits) = ground("100", false).await?;
    let urls: Vec<String> = (0..PAGES).map(|n| format!("http://{at}/page/{n}")).collect();
    let body = json!({ "urls": urls, "delay_ms": 20, "host_concurrency": 2, "retries": 1 });
    let dispatch = cluster.post("/v1/crawls", &body).await?;
    cluster.wait_finished(&dispatch, 10).await?;
    drop(site);
    tokio::time::sleep(Duration::from_secs(4)).await;
    let slow: Value = serde_json::from_str(&cluster.dodo_text(&["why-slow", &dispatch, "--json"])?)?;
    let share = |cause: &str| {
        let shares = slow["shares"].as_array().into_iter().flatten();
        shares.filter(|share| share["cause"] == cause).filter_map(|share| share["ms"].as_i64()).sum::<i64>()
    };
    assert!(share("hold") > 1000, "{slow}");
    // Another test may have the port for a moment.
    let app = || Router::new().fallback(answer).with_state(Arc::clone(&hits));
    let mut back = serve(app(), at);
    for _ in 0..50 {
        if back.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        back = serve(app(), at);
    }
    let (_site, _) = back?;
    cluster.wait_done(&dispatch, LIMIT).await?;
    let progress = &cluster.progress(&dispatch).await?["progress"];
    assert_eq!((&progress["pages"], &progress["failed"]), (&json!(PAGES), &json!(0)), "{progress}");
    let id: uuid::Uuid = dispatch.parse()?;
    let row = "SELECT count(*) FILTER (WHERE tries IS NOT NULL), count(*) FILTER (WHERE attempt > 1) FROM crawl_log
        WHERE dispatch = $1";
    let row = cluster.sql().await?.query_one(row, &[&id]).await?;
    assert!(row.get::<_, i64>(0) > 0 && row.get::<_, i64>(1) == 0, "some were asked for in vain");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_robots_txt_that_is_out_of_order_is_waited_for() -> Result<()> {
    let (cluster, _processes, _site, at, hits) = ground("2", true).await?;
    let urls = [format!("http://{at}/a"), format!("http://{at}/b")];
    let dispatch = cluster.post("/v1/crawls", &json!({ "urls": urls, "delay_ms": 0 })).await?;
    cluster.wait_done(&dispatch, LIMIT).await?;
    let progress = &cluster.progress(&dispatch).await?["progress"];
    assert_eq!(progress["pages"], 2, "{progress}");
    assert_eq!(count(&hits, "/late/robots.txt"), REFUSED + 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_try_is_told_and_where_the_record_lies() -> Result<()> {
    let (cluster, _processes, _site, at, _) = ground("100", false).await?;
    let url = format!("http://{at}/flaky");
    let dispatch = cluster.post("/v1/crawls", &json!({ "urls": [&url], "delay_ms": 0, "depth": 0 })).await?;
    cluster.wait_done(&dispatch, LIMIT).await?;
    let lines = cluster.dodo_text(&["why", &url])?;
    assert_eq!(lines.matches("A try failed ").count(), 2, "{lines}");
    for part in [" with status 500 after ", "the server answered 500", "at try 3, ", "It is in the scope of crawl"] {
        assert!(lines.contains(part), "{part}: {lines}");
    }
    let why: Value = serde_json::from_str(&cluster.dodo_text(&["why", &url, "--json"])?)?;
    let job = &why["jobs"][0];
    let workers = cluster.get("/v1/workers").await?;
    for one in job["tries"].as_array().context("no tries")? {
        ensure!(one["status"] == 500 && one["worker"] == workers[0]["id"] && one["ms"].is_i64(), "{one}");
    }
    ensure!(lines.contains(job["digest"].as_str().context("no digest")?), "{lines}");
    // One range of one object is the record.
    let record = &why["archived"][0];
    let place = |name: &str| record[name].as_u64().context("no place");
    let (offset, bytes) = (place("offset")?, place("bytes")?);
    let member = cluster.store()?.get_range(record["key"].as_str().context("no key")?, offset..offset + bytes).await?;
    let mut text = String::new();
    GzDecoder::new(&member[..]).read_to_string(&mut text)?;
    ensure!(text.starts_with("WARC/1.1\r\n") && text.contains(&url) && text.ends_with("/flaky\r\n\r\n"), "{text}");
    // By the id of its job, too.
    let by_id = cluster.dodo_text(&["why", job["id"].as_str().context("no id")?])?;
    ensure!(by_id.contains("It is in the scope of crawl") && by_id.contains(" are its record."), "{by_id}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_door_that_sets_a_cookie_is_entered_at_the_second_try() -> Result<()> {
    let (cluster, _processes, _site, at, hits) = ground("20", false).await?;
    let urls = ["/door", "/wall", "/bare", "/bare.txt"].map(|path| format!("http://{at}{path}"));
    let body = json!({ "urls": urls, "delay_ms": 0, "cookies": true });
    let dispatch = cluster.post("/v1/crawls", &body).await?;
    cluster.wait_done(&dispatch, LIMIT).await?;
    let jobs = cluster.get(&format!("/v1/jobs?dispatch={dispatch}&limit=100")).await?;
    let of = |path: &str| {
        let mut jobs = jobs.as_array().into_iter().flatten();
        jobs.find(|job| job["url"].as_str().is_some_and(|url| url.ends_with(path))).cloned().unwrap_or_default()
    };
    assert_eq!((&of("/door")["state"], &of("/door")["attempt"]), (&json!("ok"), &json!(1)), "{jobs}");
    assert_eq!((&of("/wall")["state"], count(&hits, "/wall")), (&json!("redirect"), 1), "it has set nothing");
    // What has no media type is told by how it begins.
    assert_eq!((count(&hits, "/behind"), count(&hits, "/never")), (1, 0), "{jobs}");
    Ok(())
}
