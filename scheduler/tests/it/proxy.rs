//! A worker behind a proxy: every request leaves by it, it is named where it should be, and its trouble is nobody
//! else's.

use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use axum::Router;
use axum::extract::{ConnectInfo, Request};
use axum::response::{Html, IntoResponse, Response};
use base64::Engine as _;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::cluster::{Cluster, Process, dodo_program};
use crate::proxies::{ENCODED, Kind, NAME, OUTSIDE, PASSWORD, Proxy, SITE, USER};

const PAGES: usize = 40;

/// A site that writes down who asked for what; page n links to 2n+1 and 2n+2.
struct Site {
    port: u16,
    hits: Arc<Mutex<Vec<(IpAddr, String)>>>,
}

impl Site {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind((SITE, 0)).await?;
        let port = listener.local_addr()?.port();
        let hits = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&hits);
        let answer = async move |ConnectInfo(peer): ConnectInfo<SocketAddr>, request: Request| -> Response {
            let path = request.uri().path().to_owned();
            seen.lock().expect("no panic under this lock").push((peer.ip(), path.clone()));
            tokio::time::sleep(Duration::from_millis(10)).await;
            match path.trim_start_matches('/').parse::<usize>() {
                Ok(n) => {
                    let next = [2 * n + 1, 2 * n + 2].into_iter().filter(|n| *n < PAGES);
                    Html(next.map(|n| format!("<a href=/{n}>x</a>")).collect::<String>()).into_response()
                }
                Err(_) => axum::http::StatusCode::NOT_FOUND.into_response(),
            }
        };
        let app = Router::new().fallback(answer).into_make_service_with_connect_info::<SocketAddr>();
        tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(Self { port, hits })
    }

    fn place(&self) -> String {
        format!("{NAME}:{}", self.port)
    }

    fn hits(&self) -> Vec<(IpAddr, String)> {
        self.hits.lock().expect("no panic under this lock").clone()
    }
}

/// Servers, a site with a name, and a crawl of it.
async fn ground() -> Result<(Cluster, Process, Site)> {
    let mut cluster = Cluster::start().await?;
    let site = Site::start().await?;
    cluster.open(&[site.place()]);
    cluster.worker_env.push(("DODO_RESOLVE".to_owned(), format!("{NAME}={SITE}")));
    cluster.worker_env.push(("DODO_LOG".to_owned(), "trace".to_owned()));
    let scheduler = cluster.scheduler().await?;
    Ok((cluster, scheduler, site))
}

async fn crawl(cluster: &Cluster, site: &Site) -> Result<String> {
    let urls = [format!("http://{}/0", site.place())];
    cluster.post("/v1/crawls", &json!({ "urls": urls, "delay_ms": 0, "host_concurrency": 4, "depth": 20 })).await
}

fn worker(cluster: &Cluster, proxy: &str) -> Result<Process> {
    cluster.worker_with(&[("DODO_PROXY", proxy), ("DODO_REGION", "eu/1")])
}

async fn is_whole(cluster: &Cluster, dispatch: &str, address: Option<&str>) -> Result<()> {
    let progress = cluster.progress(dispatch).await?;
    assert_eq!(
        (&progress["progress"]["pages"], &progress["progress"]["failed"]),
        (&json!(PAGES), &json!(0)),
        "{progress}"
    );
    let rows = cluster.sql().await?.query("SELECT DISTINCT address FROM crawl_log", &[]).await?;
    let logged: Vec<Option<String>> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(logged, [address.map(str::to_owned)]);
    Ok(())
}

/// Region and proxy are named by the listing, the metrics and the log; the credentials by nothing.
async fn is_named(cluster: &Cluster, proxy: &str) -> Result<()> {
    let listing = cluster.dodo_text(&["workers", "--json"])?;
    let workers: Vec<Value> = serde_json::from_str(&listing)?;
    assert_eq!((&workers[0]["region"], &workers[0]["proxy"]), (&json!("eu/1"), &json!(proxy)));
    let table = cluster.dodo_text(&["workers"])?;
    assert!(table.contains(proxy), "{table}");
    let metrics = cluster.text("/metrics").await?;
    assert!(metrics.contains(&format!("region=\"eu/1\",proxy=\"{proxy}\"")), "{metrics}");
    let dirs: Vec<String> = std::fs::read_dir(cluster.dir.path().join("log"))?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    assert!(dirs.iter().any(|dir| dir.starts_with(&format!("worker-eu-1-via-{proxy}-"))), "{dirs:?}");
    let basic = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{PASSWORD}"));
    for text in [cluster.logs(), listing, table, metrics, dirs.join("\n")] {
        for secret in [USER, PASSWORD, ENCODED, "pa55", &basic] {
            assert!(!text.contains(secret), "{secret} is there");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_leaves_by_a_socks5_proxy_and_by_address() -> Result<()> {
    let (cluster, _scheduler, site) = ground().await?;
    let proxy = Proxy::start(Kind::Socks5, 0).await?;
    let _worker = worker(&cluster, &format!("socks5://{ENCODED}@127.0.0.1:{}", proxy.port))?;
    let dispatch = crawl(&cluster, &site).await?;
    cluster.wait_done(&dispatch, Duration::from_secs(60)).await?;
    is_whole(&cluster, &dispatch, Some("127.0.8.8")).await?;
    let hits = site.hits();
    assert_eq!(hits.len(), PAGES + 1, "each page once, and robots.txt");
    assert!(hits.iter().all(|(peer, _)| *peer == OUTSIDE), "{hits:?}");
    assert_eq!(proxy.targets(), [format!("{SITE}:{}", site.port)].into());
    is_named(&cluster, &format!("127.0.0.1:{}", proxy.port)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_leaves_by_an_http_proxy() -> Result<()> {
    let (cluster, _scheduler, site) = ground().await?;
    let proxy = Proxy::start(Kind::Http, 0).await?;
    // A name this time: the proxy's own host is resolved as usual, and may be private.
    let _worker = worker(&cluster, &format!("http://{ENCODED}@localhost:{}", proxy.port))?;
    let dispatch = crawl(&cluster, &site).await?;
    cluster.wait_done(&dispatch, Duration::from_secs(60)).await?;
    // Which address the proxy chose, it does not say.
    is_whole(&cluster, &dispatch, None).await?;
    let hits = site.hits();
    assert_eq!(hits.len(), PAGES + 1, "each page once, and robots.txt");
    assert!(hits.iter().all(|(peer, _)| *peer == OUTSIDE), "{hits:?}");
    assert!(proxy.targets().contains(&format!("http://{}/robots.txt", site.place())));
    is_named(&cluster, &format!("localhost:{}", proxy.port)).await
}

/// Waits until a worker has said so often that it hands jobs back.
async fn wait_for_trouble(cluster: &Cluster, times: usize) -> Result<()> {
    let start = Instant::now();
    while cluster.logs().matches("the proxy is in trouble").count() < times {
        ensure!(start.elapsed() < Duration::from_secs(30), "no trouble was noticed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_is_down_loses_nothing() -> Result<()> {
    let (cluster, _scheduler, site) = ground().await?;
    let port = dodo_scheduler::local::free_port()?;
    let _worker = worker(&cluster, &format!("socks5://{ENCODED}@127.0.0.1:{port}"))?;
    let dispatch = crawl(&cluster, &site).await?;
    wait_for_trouble(&cluster, 1).await?;
    // Much longer than all tries of a job and of a host would take.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let progress = cluster.progress(&dispatch).await?;
    assert_eq!(progress["progress"]["finished"], 0, "{progress}");
    let tries: i16 = cluster.sql().await?.query_one("SELECT max(attempt) FROM crawl_schedule", &[]).await?.get(0);
    assert_eq!(tries, 0, "the proxy's trouble is no try");

    let first = Proxy::start(Kind::Socks5, port).await?;
    cluster.wait_finished(&dispatch, 5).await?;
    first.stop.cancel();
    wait_for_trouble(&cluster, 2).await?;
    let _second = loop {
        match Proxy::start(Kind::Socks5, port).await {
            Ok(proxy) => break proxy,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    cluster.wait_done(&dispatch, Duration::from_secs(60)).await?;
    is_whole(&cluster, &dispatch, Some("127.0.8.8")).await?;
    assert!(site.hits().iter().all(|(peer, _)| *peer == OUTSIDE));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_credentials_end_no_job() -> Result<()> {
    for kind in [Kind::Socks5, Kind::Http] {
        let (cluster, _scheduler, site) = ground().await?;
        let proxy = Proxy::start(kind, 0).await?;
        let scheme = match kind {
            Kind::Socks5 => "socks5",
            Kind::Http => "http",
        };
        let mut wrong =
            worker(&cluster, &format!("{scheme}://{USER}x:y@127.0.0.1:{}", proxy.port).replace("us@er", "u"))?;
        let dispatch = crawl(&cluster, &site).await?;
        wait_for_trouble(&cluster, 2).await?;
        assert_eq!(cluster.progress(&dispatch).await?["progress"]["finished"], 0);
        assert_eq!(site.hits(), []);
        wrong.signal(nix::sys::signal::Signal::SIGTERM);
        assert_eq!(wrong.ended(Duration::from_secs(5)).await?, Some(0), "it drains while it waits for its proxy");
        let _right = worker(&cluster, &format!("{scheme}://{ENCODED}@127.0.0.1:{}", proxy.port))?;
        cluster.wait_done(&dispatch, Duration::from_secs(60)).await?;
        let tries: i16 = cluster.sql().await?.query_one("SELECT max(attempt) FROM crawl_log", &[]).await?.get(0);
        assert_eq!((tries, site.hits().len()), (0, PAGES + 1));
    }
    Ok(())
}

#[test]
fn a_wrong_proxy_is_one_line_without_the_password() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let programs =
        [(dodo_program().with_file_name("dodo-worker"), vec![]), (dodo_program().to_owned(), vec!["up", "--data"])];
    for (program, arguments) in programs {
        for (value, expected) in [
            ("socks4://u:pa55@h:1", "socks5://"),
            ("https://u:pa55@h:1", "not supported"),
            ("socks5h://u:pa55@h:1", "socks5h"),
            ("u:pa55@h:1", "DODO_PROXY"),
            ("socks5://u:pa55/x@h:1", "percent-encoded"),
        ] {
            let mut command = Command::new(&program);
            command.args(&arguments).env("DODO_PROXY", value).env("DODO_LOG_DIR", dir.path()).stdin(Stdio::null());
            if !arguments.is_empty() {
                command.arg(dir.path());
            }
            let out = command.output()?;
            let text = String::from_utf8_lossy(&out.stderr);
            assert_eq!((out.status.code(), text.lines().count()), (Some(1), 1), "{text}");
            assert!(text.contains("DODO_PROXY") && text.contains(expected) && !text.contains("pa55"), "{text}");
        }
    }
    assert_eq!(std::fs::read_dir(dir.path())?.count(), 0, "nothing was started");
    Ok(())
}
