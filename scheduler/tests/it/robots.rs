//! robots.txt: how far its redirects are followed, and for how long it is good.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::{Request, State};
use axum::response::{Html, IntoResponse, Response};
use dodo_scheduler::local::free_port;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::web::{Asked, MOVED, Web, noting};

const LIMIT: Duration = Duration::from_secs(60);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 7, 1);

/// Fetches these pages of a place and no others. Returns how each path ended.
async fn crawl(cluster: &Cluster, place: &str, paths: &[&str]) -> Result<BTreeMap<String, String>> {
    let start = format!("http://{place}");
    let urls: Vec<String> = paths.iter().map(|path| format!("{start}{path}")).collect();
    let body = json!({ "urls": urls, "delay_ms": 0, "depth": 0 });
    let dispatch = cluster.post("/v1/crawls", &body).await?;
    cluster.wait_done(&dispatch, LIMIT).await?;
    let jobs = cluster.get(&format!("/v1/export/pages?dispatch={dispatch}")).await?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let jobs = jobs.as_array().context("no jobs")?.iter();
    Ok(jobs.map(|job| (text(&job["url"]).replace(&start, ""), text(&job["state"]))).collect())
}

fn ends(expected: &[(&str, &str)]) -> BTreeMap<String, String> {
    expected.iter().map(|(path, state)| ((*path).to_owned(), (*state).to_owned())).collect()
}

/// RFC 9309 2.3.1.2: at least five redirects are followed, and what is behind more of them may be taken as not there.
#[tokio::test(flavor = "multi_thread")]
async fn rules_bind_behind_five_redirects_and_none_do_behind_six() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let port = free_port()?;
    let names: Vec<String> = (0..=6).map(|hops| format!("{}site.test:{port}", MOVED.repeat(hops))).collect();
    let web = Web::virtual_hosts(&names, 1, Duration::ZERO, &[ADDRESS], port).await?;
    cluster.worker_env.push(("DODO_RESOLVE".to_owned(), format!("*.test={ADDRESS}")));
    cluster.open(&names);
    let _scheduler = cluster.scheduler().await?;
    let _worker = cluster.worker()?;
    let bound = crawl(&cluster, &names[5], &["/0", "/private"]).await?;
    assert_eq!(bound, ends(&[("/0", "ok"), ("/private", "robots")]));
    let asked = |host: &str| {
        let hits = web.hits().into_iter().filter(|hit| hit.host == host);
        let mut paths: Vec<String> = hits.map(|hit| hit.path).collect();
        paths.sort();
        paths
    };
    let on_the_way = || [0, 1, 2, 3, 4].map(|hops: usize| asked(&names[hops]).len());
    assert_eq!(asked(&names[5]), ["/0", "/robots.txt"]);
    assert_eq!(on_the_way(), [1; 5], "each place once");

    let free = crawl(&cluster, &names[6], &["/0", "/private"]).await?;
    assert_eq!(free, ends(&[("/0", "ok"), ("/private", "http_error")]), "there is no such page, and it was asked for");
    assert_eq!(asked(&names[6]), ["/0", "/private", "/robots.txt"]);
    assert_eq!(on_the_way(), [1, 2, 2, 2, 2], "the place behind the sixth is not asked");
    Ok(())
}

/// A site whose rules are others the second time.
async fn turning(State(asked): State<Asked>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let mut asked = asked.lock().expect("no panic under this lock");
    asked.push(path.clone());
    let reads = asked.iter().filter(|path| *path == "/robots.txt").count();
    match (path.as_str(), reads) {
        ("/robots.txt", 1) => "User-agent: *\nDisallow: /early\n".into_response(),
        ("/robots.txt", _) => "User-agent: *\nDisallow: /late\n".into_response(),
        _ => Html("a page").into_response(),
    }
}

/// RFC 9309 2.4: it is good for a day at most.
#[tokio::test(flavor = "multi_thread")]
async fn rules_that_have_run_out_are_read_again_once() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let (place, asked) = noting(Router::new().fallback(turning)).await?;
    cluster.open(std::slice::from_ref(&place));
    let _scheduler = cluster.scheduler().await?;
    let _worker = cluster.worker()?;
    let sql = cluster.sql().await?;
    let since = |before: usize| asked.lock().expect("no panic under this lock")[before..].to_vec();
    let first = crawl(&cluster, &place, &["/early", "/late"]).await?;
    assert_eq!(first, ends(&[("/early", "robots"), ("/late", "ok")]));
    assert_eq!(crawl(&cluster, &place, &["/early"]).await?, ends(&[("/early", "robots")]));
    assert_eq!(since(0), ["/robots.txt", "/late"], "they are good for another crawl, too");
    let valid = "SELECT valid_until - now() BETWEEN interval '23 hours' AND interval '24 hours' FROM host";
    assert!(sql.query_one(valid, &[]).await?.get::<_, bool>(0));

    // As if a day had passed.
    let later = "UPDATE host SET valid_until = now() - interval '1 second'";
    assert_eq!(sql.execute(later, &[]).await?, 1);
    let second = crawl(&cluster, &place, &["/early", "/late", "/other"]).await?;
    assert_eq!(second, ends(&[("/early", "ok"), ("/late", "robots"), ("/other", "ok")]));
    let mut news = since(2);
    assert_eq!(news[0], "/robots.txt", "before any page");
    news.sort();
    assert_eq!(news, ["/early", "/other", "/robots.txt"]);
    assert!(sql.query_one(valid, &[]).await?.get::<_, bool>(0));
    Ok(())
}

/// The delay that binds is that of who asks, whoever came first and read the rules.
#[tokio::test(flavor = "multi_thread")]
async fn a_crawl_delay_binds_the_name_it_is_asked_of() -> Result<()> {
    const ASKED: Duration = Duration::from_secs(1);
    let mut cluster = Cluster::start().await?;
    let times = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&times);
    let site = move |request: Request| async move {
        if request.uri().path() == "/robots.txt" {
            return "User-agent: examplebot\nCrawl-delay: 1\n".into_response();
        }
        noted.lock().expect("no panic under this lock").push(Instant::now());
        Html("a page").into_response()
    };
    let (place, _asked) = noting(Router::new().fallback(site)).await?;
    cluster.open(std::slice::from_ref(&place));
    let _scheduler = cluster.scheduler().await?;
    let _worker = cluster.worker()?;
    assert_eq!(crawl(&cluster, &place, &["/first"]).await?, ends(&[("/first", "ok")]));
    let urls: Vec<String> = (0..4).map(|n| format!("http://{place}/{n}")).collect();
    let body = json!({ "urls": urls, "delay_ms": 0, "depth": 0, "user_agent": "examplebot/1.0" });
    let dispatch = cluster.post("/v1/crawls", &body).await?;
    cluster.wait_done(&dispatch, LIMIT).await?;
    let times = times.lock().expect("no panic under this lock").clone();
    assert_eq!(times.len(), 5);
    for pair in times.windows(2) {
        assert!(pair[1] - pair[0] >= ASKED, "{:?}", pair[1] - pair[0]);
    }
    let tries: i64 =
        cluster.sql().await?.query_one("SELECT count(*) FROM crawl_log WHERE attempt > 0", &[]).await?.get(0);
    assert_eq!(tries, 0, "no try was burnt");
    Ok(())
}
