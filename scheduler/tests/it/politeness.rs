//! 300 virtual hosts on shared addresses: spacing and concurrency, judged by the server's own log.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use dodo_scheduler::local::free_port;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::judge;
use crate::web::{Hit, MOVED, Web};

const HOSTS: usize = 300;
const PAGES: usize = 3;
const DELAY: Duration = Duration::from_millis(200);
/// Fewer addresses than hosts: several hosts share a clock.
const ADDRESSES: u8 = 60;

#[tokio::test(flavor = "multi_thread")]
async fn hosts_and_addresses_are_never_hurried() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let port = free_port()?;
    let addresses: Vec<Ipv4Addr> = (1..=ADDRESSES).map(|n| Ipv4Addr::new(127, 0, 2, n)).collect();
    let names: Vec<String> = (0..HOSTS).map(|n| format!("h{n}.test:{port}")).collect();
    let web = Web::virtual_hosts(&names, PAGES, Duration::from_millis(3), &addresses, port).await?;
    let resolve: Vec<String> =
        (0..HOSTS).map(|n| format!("h{n}.test={}", addresses[n % usize::from(ADDRESSES)])).collect();
    cluster.worker_env.push(("DODO_RESOLVE".to_owned(), resolve.join(",")));
    cluster.open(&names);
    let _scheduler = cluster.scheduler().await?;
    let mut workers = (0..4).map(|_| cluster.worker()).collect::<Result<Vec<_>>>()?;
    let body =
        json!({ "urls": web.seeds(), "scope": "any", "delay_ms": DELAY.as_millis() as u64, "host_concurrency": 1 });
    let dispatch = cluster.post("/v1/crawls", &body).await?;
    // A hand-over in the middle: the clocks of what the killed worker held start at its loss.
    cluster.wait_finished(&dispatch, 200).await?;
    workers[0].kill();
    cluster.wait_done(&dispatch, Duration::from_secs(90)).await?;
    let hits = web.hits();
    judge::complete(&cluster, &web, &dispatch).await?;
    let hosts: HashSet<&String> = hits.iter().map(|hit| &hit.host).collect();
    assert_eq!(hosts.len(), HOSTS);
    judge::polite(&hits, DELAY, |hit| hit.host.clone())?;
    judge::polite(&hits, DELAY, |hit| hit.address.clone())
}

/// Hosts whose robots.txt is another host's: the request for it waits for that one's clocks, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_redirected_robots_txt_hurries_nobody() -> Result<()> {
    const TARGETS: usize = 4;
    const PAGES: usize = 12;
    let mut cluster = Cluster::start().await?;
    let port = free_port()?;
    // Each name has an address of its own; up to three redirects lead to a target.
    let names: Vec<String> =
        (0..4).flat_map(|hops| (0..TARGETS).map(move |n| format!("{}h{n}.test", MOVED.repeat(hops)))).collect();
    let addresses: Vec<Ipv4Addr> = (0..names.len()).map(|n| Ipv4Addr::new(127, 0, 3, n as u8 + 1)).collect();
    let places: Vec<String> = names.iter().map(|name| format!("{name}:{port}")).collect();
    let web = Web::virtual_hosts(&places, PAGES, Duration::from_millis(20), &addresses, port).await?;
    let resolve: Vec<String> =
        names.iter().zip(&addresses).map(|(name, address)| format!("{name}={address}")).collect();
    cluster.worker_env.push(("DODO_RESOLVE".to_owned(), resolve.join(",")));
    cluster.open(&places);
    let _scheduler = cluster.scheduler().await?;
    let _workers = (0..2).map(|_| cluster.worker()).collect::<Result<Vec<_>>>()?;
    let body = json!({ "urls": web.urls(), "delay_ms": DELAY.as_millis() as u64, "host_concurrency": 1 });
    let dispatch = cluster.post("/v1/crawls", &body).await?;
    cluster.wait_done(&dispatch, Duration::from_secs(90)).await?;
    let hits = web.hits();
    let robots = |hit: &&Hit| hit.path == "/robots.txt" && !hit.host.starts_with(MOVED);
    assert_eq!(hits.iter().filter(robots).count(), TARGETS * 4, "for itself and for each that leads there");
    judge::polite(&hits, DELAY, |hit| hit.host.clone())?;
    judge::polite(&hits, DELAY, |hit| hit.address.clone())
}

/// A host that answers slowly is asked less often than its crawl asks for, and one is told why that takes so long.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_host_sets_the_pace_and_why_slow_says_so() -> Result<()> {
    const LATENCY: Duration = Duration::from_millis(500);
    let mut cluster = Cluster::start().await?;
    let web = Web::start(1, 8, LATENCY).await?;
    cluster.open(&web.places);
    let _scheduler = cluster.scheduler().await?;
    let _worker = cluster.worker()?;
    let body = json!({ "urls": web.seeds(), "delay_ms": 50, "host_concurrency": 1 });
    let dispatch = cluster.post("/v1/crawls", &body).await?;
    cluster.wait_done(&dispatch, Duration::from_secs(60)).await?;
    judge::complete(&cluster, &web, &dispatch).await?;
    // What comes before the first page has been answered is asked at the crawl's own pace.
    let hits = web.hits();
    let pages: Vec<Hit> = hits.into_iter().filter(|hit| hit.path != "/robots.txt").collect();
    judge::polite(&pages, LATENCY, |hit| hit.host.clone())?;
    let sql = cluster.sql().await?;
    let pace: Option<i64> = sql.query_one("SELECT pace_ms FROM host", &[]).await?.get(0);
    assert!(pace >= Some(LATENCY.as_millis() as i64), "the next leader does not know: {pace:?}");
    let answer = cluster.get(&format!("/v1/dispatches/{dispatch}/why-slow")).await?;
    let shares = answer["shares"].as_array().cloned().unwrap_or_default();
    let share = |cause: &str| {
        let found = shares.iter().find(|share| share["cause"] == cause);
        found.and_then(|share| share["share"].as_f64()).unwrap_or_default()
    };
    // On a busy machine most of the delay has passed when a request is committed.
    assert!(share("pace") > 0.0 && share("request") > 0.1, "{answer}");
    let sum: f64 = shares.iter().filter_map(|share| share["share"].as_f64()).sum();
    assert!((0.999..1.001).contains(&sum), "{answer}");
    let text = cluster.dodo_text(&["why-slow", &dispatch])?;
    assert!(text.contains("the host answers slowly"), "{text}");
    Ok(())
}

/// Of a job that is due `why` says which worker has it, or which clock holds it and until when.
#[tokio::test(flavor = "multi_thread")]
async fn why_names_the_worker_or_the_clock_that_holds_a_url() -> Result<()> {
    const LATENCY: Duration = Duration::from_secs(3);
    const DELAY_MS: i64 = 6000;
    let mut cluster = Cluster::start().await?;
    let web = Web::start(1, 3, LATENCY).await?;
    cluster.open(&web.places);
    let _scheduler = cluster.scheduler().await?;
    // It does not lead, and asks the one that does.
    let _standby = cluster.scheduler().await?;
    cluster.ask_last();
    let _worker = cluster.worker()?;
    let urls = &web.urls()[..2];
    let dispatch = cluster.post("/v1/crawls", &json!({ "urls": urls, "delay_ms": DELAY_MS, "depth": 0 })).await?;
    // After robots.txt and a delay one is under way for three seconds; then the other waits.
    let of = async || -> Result<Vec<Value>> {
        let mut found = Vec::new();
        for url in urls {
            found.push(serde_json::from_str(&cluster.dodo_text(&["why", url, "--json"])?)?);
        }
        Ok(found)
    };
    let start = Instant::now();
    let held = loop {
        let held = of().await?.into_iter().find(|why| why["holder"]["worker"].is_string());
        if let Some(held) = held {
            break held;
        }
        ensure!(start.elapsed() < Duration::from_secs(60), "no worker holds either of them");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let workers = cluster.get("/v1/workers").await?;
    assert_eq!(held["holder"]["worker"], workers[0]["id"], "{held}");
    assert!(held["lines"].to_string().contains("holds it."), "{held}");
    cluster.wait_finished(&dispatch, 1).await?;
    let why = loop {
        // The leader is asked, and has a second to answer.
        if let Some(why) = of().await?.into_iter().find(|why| why["standing"].is_object()) {
            break why;
        }
        ensure!(start.elapsed() < Duration::from_secs(60), "neither of them waits");
    };
    assert_eq!((&why["standing"]["cause"], &why["standing"]["in_flight"]), (&json!("delay"), &json!(0)), "{why}");
    let [until, ended] = ["until_ms", "last_completion_ms"].map(|name| why["standing"][name].as_i64().unwrap_or(0));
    assert_eq!(until - ended, DELAY_MS, "{why}");
    assert!(why["lines"].to_string().contains("the delay of the crawl"), "{why}");
    Ok(())
}
