//! Sites with TLS behind proxies: through a tunnel and never around it, and who is to blame for what is said outside of it
//! and inside.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::extract::{ConnectInfo, Request};
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};
use base64::Engine as _;
use serde_json::{Value, json};

use crate::cluster::{Cluster, Process};
use crate::proxies::{ENCODED, Kind, NAME, OUTSIDE, PASSWORD, Proxy, SITE, USER};
use crate::tls::Ca;

/// Page n links to 2n+1 and 2n+2.
const PAGES: usize = 40;
const LIMIT: Duration = Duration::from_secs(90);

type Hits = Arc<Mutex<Vec<(IpAddr, String)>>>;

/// A site that writes down who asked for what.
fn site(hits: &Hits) -> Router {
    let hits = Arc::clone(hits);
    let answer = async move |ConnectInfo(peer): ConnectInfo<SocketAddr>, request: Request| -> Response {
        let path = request.uri().path().trim_start_matches('/').to_owned();
        hits.lock().expect("no panic under this lock").push((peer.ip(), path.clone()));
        match (path.strip_prefix("says-").and_then(|status| status.parse().ok()), path.parse::<usize>()) {
            (Some(status), _) => StatusCode::from_u16(status).unwrap_or_default().into_response(),
            (None, Ok(n)) => {
                let next = [2 * n + 1, 2 * n + 2].into_iter().filter(|n| *n < PAGES);
                Html(next.map(|n| format!("<a href=/{n}>x</a>")).collect::<String>()).into_response()
            }
            _ => StatusCode::NOT_FOUND.into_response(),
        }
    };
    Router::new().fallback(answer)
}

fn heard(hits: &Hits) -> Vec<(IpAddr, String)> {
    hits.lock().expect("no panic under this lock").clone()
}

/// Servers, and a TLS site with a name that the workers know and trust; the scheduler has this pool. Returns the port of
/// the site, too.
async fn ground(ca: &Ca, hits: &Hits, pool: &str) -> Result<(Cluster, Process, u16)> {
    let mut cluster = Cluster::start().await?;
    let port = ca.serve(NAME, SITE, &["h2", "http/1.1"], site(hits)).await?.port();
    cluster.open(&[format!("{NAME}:{port}")]);
    let worker = [
        ("DODO_RESOLVE", format!("{NAME}={SITE}")),
        ("DODO_FETCH_CA_FILE", ca.file().display().to_string()),
        ("DODO_LOG", "trace".to_owned()),
    ];
    cluster.worker_env.extend(worker.map(|(name, value)| (name.to_owned(), value)));
    let leader = [("DODO_PROXIES", pool.to_owned()), ("DODO_PROXY_QUARANTINE_MS", "500".to_owned())];
    cluster.scheduler_env.extend(leader.map(|(name, value)| (name.to_owned(), value)));
    let scheduler = cluster.scheduler().await?;
    Ok((cluster, scheduler, port))
}

fn crawl(port: u16, paths: &[&str]) -> Value {
    let urls: Vec<String> = paths.iter().map(|path| format!("https://{NAME}:{port}/{path}")).collect();
    json!({ "urls": urls, "delay_ms": 0, "host_concurrency": 4, "depth": 20, "retries": 9 })
}

/// All pages are there, and this is the most tries that one took before its last.
async fn tries(cluster: &Cluster, dispatch: &str) -> Result<i16> {
    let progress = &cluster.progress(dispatch).await?["progress"];
    assert_eq!((&progress["pages"], &progress["failed"]), (&json!(PAGES), &json!(0)), "{progress}");
    let id: uuid::Uuid = dispatch.parse()?;
    Ok(cluster.sql().await?.query_one("SELECT max(attempt) FROM crawl_log WHERE dispatch = $1", &[&id]).await?.get(0))
}

/// The credentials of the proxies are in nothing that anybody can read.
fn names_no_secret(cluster: &Cluster, url: &str) -> Result<()> {
    let basic = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{PASSWORD}"));
    let told = [&["why", url][..], &["workers", "--json"], &["status"], &["dead", "list"], &["jobs", "--json"]];
    let told: Vec<String> = told.iter().map(|words| cluster.dodo_text(words)).collect::<Result<_>>()?;
    for text in told.iter().chain([&cluster.logs()]) {
        for secret in [USER, PASSWORD, ENCODED, "pa55", &basic] {
            assert!(!text.contains(secret), "{secret} is there");
        }
    }
    Ok(())
}

async fn states(cluster: &Cluster) -> Result<Vec<(String, i64)>> {
    let status = cluster.get("/v1/status").await?;
    let proxies = status["proxies"].as_array().context("no proxies")?.iter();
    Ok(proxies
        .map(|proxy| (proxy["state"].as_str().unwrap_or_default().to_owned(), proxy["failures"].as_i64().unwrap_or(-1)))
        .collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tls_site_is_reached_through_a_tunnel_and_never_around_it() -> Result<()> {
    for kind in [Kind::Http, Kind::Socks5] {
        let (ca, hits) = (Ca::new()?, Hits::default());
        let (cluster, _scheduler, port) = ground(&ca, &hits, "").await?;
        let proxy = Proxy::start(kind, 0).await?;
        let (scheme, target) = match kind {
            Kind::Http => ("http", format!("CONNECT {NAME}:{port}")),
            Kind::Socks5 => ("socks5", format!("{SITE}:{port}")),
        };
        let _worker =
            cluster.worker_with(&[("DODO_PROXY", &format!("{scheme}://{ENCODED}@127.0.0.1:{}", proxy.port))])?;
        let dispatch = cluster.post("/v1/crawls", &crawl(port, &["0"])).await?;
        cluster.wait_done(&dispatch, LIMIT).await?;
        assert_eq!(tries(&cluster, &dispatch).await?, 0);
        let heard = heard(&hits);
        assert_eq!(heard.len(), PAGES + 1, "each page once, and robots.txt");
        assert!(heard.iter().all(|(peer, _)| *peer == OUTSIDE), "{heard:?}");
        assert_eq!(proxy.targets(), [target].into(), "nothing but tunnels");
        names_no_secret(&cluster, &format!("https://{NAME}:{port}/0"))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_tunnel_is_held_against_the_proxy() -> Result<()> {
    let outside = [94, 95].map(|n| Ipv4Addr::new(127, 0, 9, n));
    let proxies =
        [Proxy::start_at(Kind::Http, 0, outside[0]).await?, Proxy::start_at(Kind::Http, 0, outside[1]).await?];
    let pool = [0, 1].map(|n| format!("eu=http://{ENCODED}@127.0.0.1:{}", proxies[n].port)).join(",");
    let (ca, hits) = (Ca::new()?, Hits::default());
    let (cluster, _scheduler, port) = ground(&ca, &hits, &pool).await?;
    let worker = cluster.worker_with(&[("DODO_PROXIES", &pool)])?;

    // Both refuse our credentials: nothing is tried, and nothing goes around them.
    for proxy in &proxies {
        proxy.refuse(Some(407));
    }
    let first = cluster.post("/v1/crawls", &crawl(port, &["0"])).await?;
    let away =
        async || Ok(states(&cluster).await?.iter().all(|(state, failures)| state != "healthy" && *failures >= 3));
    cluster.until("both are in quarantine", LIMIT, away).await?;
    assert_eq!((cluster.progress(&first).await?["progress"]["finished"].as_i64(), heard(&hits)), (Some(0), Vec::new()));
    for proxy in &proxies {
        proxy.refuse(None);
    }
    cluster.wait_done(&first, LIMIT).await?;
    assert_eq!(tries(&cluster, &first).await?, 0, "no try was burnt");
    let healthy = async || Ok(states(&cluster).await?.iter().all(|(state, _)| state == "healthy"));
    cluster.until("both are healthy again", LIMIT, healthy).await?;

    // The one that the site's requests leave by does not reach it any more: the other one takes over. A tunnel that is open
    // would not notice.
    drop(worker);
    let _worker = cluster.worker_with(&[("DODO_PROXIES", &pool)])?;
    let home = heard(&hits).last().context("nothing was asked for")?.0;
    let home = usize::from(home == IpAddr::from(outside[1]));
    proxies[home].refuse(Some(502));
    let before = heard(&hits).len();
    let all: Vec<String> = (0..PAGES).map(|n| n.to_string()).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let second = cluster.post("/v1/crawls", &crawl(port, &all)).await?;
    cluster.wait_done(&second, LIMIT).await?;
    assert_eq!(tries(&cluster, &second).await?, 0, "nobody there costs no try");
    let peers: BTreeSet<IpAddr> = heard(&hits)[before..].iter().map(|(peer, _)| *peer).collect();
    assert_eq!(peers, [IpAddr::from(outside[1 - home])].into());
    let reason = format!("the proxy 127.0.0.1:{} did not connect to the site", proxies[home].port);
    assert!(cluster.logs().contains(&reason), "it is said which one");
    names_no_secret(&cluster, &format!("https://{NAME}:{port}/0"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_site_says_in_a_tunnel_is_not_held_against_the_proxy() -> Result<()> {
    let proxy = Proxy::start(Kind::Http, 0).await?;
    let pool = format!("eu=http://{ENCODED}@127.0.0.1:{}", proxy.port);
    let (ca, hits) = (Ca::new()?, Hits::default());
    let (mut cluster, _scheduler, port) = ground(&ca, &hits, &pool).await?;
    // Another site's certificate, whose names sound like a proxy that refuses.
    let name = "credentials.authentication.test";
    let other = ca.serve(name, SITE, &["http/1.1"], site(&Hits::default())).await?.port();
    cluster.open(&[port, other].map(|port| format!("{NAME}:{port}")));
    let _worker = cluster.worker_with(&[("DODO_PROXIES", &pool)])?;
    let statuses = [407, 502, 504].map(|status| (0..8).map(move |n| format!("says-{status}?{n}")));
    let paths: Vec<String> = statuses.into_iter().flatten().chain(["0".to_owned()]).collect();
    let mut said = crawl(port, &paths.iter().map(String::as_str).collect::<Vec<_>>());
    said["retries"] = json!(0);
    let said = cluster.post("/v1/crawls", &said).await?;
    cluster.wait_done(&said, LIMIT).await?;
    let progress = &cluster.progress(&said).await?["progress"];
    assert_eq!((&progress["finished"], &progress["pages"]), (&json!(PAGES + 24), &json!(PAGES)), "{progress}");
    assert_eq!(states(&cluster).await?, [("healthy".to_owned(), 0)], "it has brought every answer");

    let mut strange = crawl(other, &["0"]);
    strange["retries"] = json!(0);
    let strange = cluster.post("/v1/crawls", &strange).await?;
    cluster.wait_done(&strange, LIMIT).await?;
    let dead = cluster.dodo_text(&["jobs", "--dispatch", &strange, "--state", "dead", "--json"])?;
    assert!(dead.contains(name), "{dead}");
    assert!(!cluster.logs().contains("the proxy is in trouble"));
    Ok(())
}
