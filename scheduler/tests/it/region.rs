//! A region whose every proxy is in quarantine: what leaves by it steps aside, and nobody waits behind it.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use dodo_scheduler::local::free_port;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::judge;
use crate::proxies::{ENCODED, Kind, Proxy};
use crate::web::Web;

/// More of each host than is buffered of it at once.
const PAGES: usize = 120;
/// Of each host, for the crawl that need not wait.
const OTHERS: usize = 30;
const DELAY: Duration = Duration::from_millis(40);
const LIMIT: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread")]
async fn a_region_in_quarantine_holds_up_nobody_else() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let port = free_port()?;
    let addresses = [71, 72].map(|n| Ipv4Addr::new(127, 0, 8, n));
    let places = [0, 1].map(|n| format!("r{n}.test:{port}"));
    let web = Web::virtual_hosts(&places, PAGES, Duration::from_millis(3), &addresses, port).await?;
    cluster.open(&places);
    let names = format!("r0.test={},r1.test={}", addresses[0], addresses[1]);
    let (down, us) = (free_port()?, Proxy::start(Kind::Socks5, 0).await?);
    let pool = format!("eu=socks5://{ENCODED}@127.0.0.1:{down},us=socks5://{ENCODED}@127.0.0.1:{}", us.port);
    cluster
        .worker_env
        .extend([("DODO_RESOLVE", names), ("DODO_PROXIES", pool.clone())].map(|(n, v)| (n.to_owned(), v)));
    let more = [("DODO_PROXIES", pool), ("DODO_PROXY_QUARANTINE_MS", "300".to_owned())];
    cluster.scheduler_env.extend(more.map(|(name, value)| (name.to_owned(), value)));
    let mut scheduler = cluster.scheduler().await?;
    let _worker = cluster.worker()?;

    let crawl = |region, urls: &[String], priority| {
        let delay_ms = DELAY.as_millis() as u64;
        json!({ "urls": urls, "region": region, "depth": 0, "delay_ms": delay_ms, "priority": priority })
    };
    let urls = web.urls();
    let first = cluster.post("/v1/crawls", &crawl("eu", &urls, 50)).await?;
    let away = async || {
        let status = cluster.get("/v1/status").await?;
        let proxies = status["proxies"].as_array().context("no proxies")?;
        Ok(proxies.iter().any(|proxy| proxy["region"] == "eu" && proxy["state"] == "quarantined"))
    };
    cluster.until("the proxy of eu is in quarantine", LIMIT, away).await?;
    let some: Vec<String> = urls.chunks(PAGES).flat_map(|of_a_host| of_a_host[..OTHERS].to_vec()).collect();
    let second = cluster.post("/v1/crawls", &crawl("us", &some, -50)).await?;
    cluster.wait_done(&second, LIMIT).await?;
    let progress = &cluster.progress(&second).await?["progress"];
    assert_eq!((&progress["pages"], &progress["failed"]), (&json!(some.len()), &json!(0)), "{progress}");
    assert_eq!(cluster.progress(&first).await?["progress"]["finished"], 0);

    // What waits says for what, and until when.
    let told = async || {
        let why: Value = serde_json::from_str(&cluster.dodo_text(&["why", &urls[PAGES / 2], "--json"])?)?;
        let lines = why["lines"].to_string();
        Ok(why["standing"]["cause"] == "quarantine"
            && why["standing"]["until_ms"].is_i64()
            && lines.contains("no proxy of their region is healthy")
            && lines.contains("the first of its proxies is tried at"))
    };
    cluster.until("why says so", LIMIT, told).await?;
    let slow = async || Ok(cluster.dodo_text(&["why-slow", &first])?.contains("no proxy of their region is healthy"));
    cluster.until("why-slow says so", LIMIT, slow).await?;

    // Another leader, which has been told of another pool, says what nobody will ever serve.
    let pool = cluster.scheduler_env.iter_mut().find(|(name, _)| name == "DODO_PROXIES").context("no pool")?;
    let both = std::mem::replace(&mut pool.1, format!("us=socks5://{ENCODED}@127.0.0.1:{}", us.port));
    scheduler.kill();
    scheduler = cluster.scheduler().await?;
    let gone = async || {
        let slow = cluster.get("/v1/status").await?["slow"].to_string();
        Ok(slow.contains("DODO_PROXIES has no proxy of region eu: 1 crawl of it waits for one"))
    };
    cluster.until("the status says so", LIMIT, gone).await?;
    if let Some(pool) = cluster.scheduler_env.iter_mut().find(|(name, _)| name == "DODO_PROXIES") {
        pool.1 = both;
    }
    scheduler.kill();
    let _scheduler = cluster.scheduler().await?;

    // From here on nothing can leave but by the one that comes back.
    us.stop.cancel();
    let _eu = Proxy::start(Kind::Socks5, down).await?;
    cluster.wait_done(&first, LIMIT).await?;
    let progress = &cluster.progress(&first).await?["progress"];
    assert_eq!((&progress["pages"], &progress["failed"]), (&json!(urls.len()), &json!(0)), "{progress}");
    let tries: i16 = cluster.sql().await?.query_one("SELECT max(attempt) FROM crawl_log", &[]).await?.get(0);
    assert_eq!(tries, 0, "no try was burnt");
    let hits = web.hits();
    let pages = hits.iter().filter(|hit| hit.path != "/robots.txt").count();
    assert_eq!(pages, urls.len() + some.len(), "each page once for each crawl");
    judge::polite(&hits, DELAY, |hit| hit.host.clone())
}
