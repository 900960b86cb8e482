//! A pool of proxies: by region, one proxy a host, out of use while it is blocked or down, and never around it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::Router;
use axum::extract::{ConnectInfo, Request};
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};
use dodo_common::model::job::JobKey;
use dodo_common::stream::connection::Redis;
use dodo_common::stream::queue::{self, Authority, Order};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use uuid::Uuid;

use crate::cluster::{Cluster, Process, dodo_program};
use crate::proxies::{ENCODED, Kind, NAME, PASSWORD, Proxy, USER};

/// Pages of each host; page n links to 2n+1 and 2n+2.
const PAGES: usize = 150;
const EU: std::ops::Range<u8> = 0..6;
const US: std::ops::Range<u8> = 6..8;
const LIMIT: Duration = Duration::from_secs(120);

/// A request, as the site saw it.
#[derive(Clone, Debug)]
struct Hit {
    peer: IpAddr,
    host: String,
    path: String,
    served: bool,
}

/// Sites with many names and addresses that write down who asked, and may block one of them.
struct Sites {
    port: u16,
    hits: Arc<Mutex<Vec<Hit>>>,
    blocked: Arc<Mutex<Option<IpAddr>>>,
}

impl Sites {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
        let port = listener.local_addr()?.port();
        let (hits, blocked) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(None)));
        let (seen, wanted) = (Arc::clone(&hits), Arc::clone(&blocked));
        let answer = async move |ConnectInfo(peer): ConnectInfo<SocketAddr>, request: Request| -> Response {
            let path = request.uri().path().to_owned();
            let host = request.headers().get("host").map_or("", |host| host.to_str().unwrap_or_default()).to_owned();
            let number = path.trim_start_matches('/').parse::<usize>().ok();
            let served = *wanted.lock().expect("no panic under this lock") != Some(peer.ip());
            let hit = Hit { peer: peer.ip(), host, path, served };
            seen.lock().expect("no panic under this lock").push(hit);
            match number {
                // A challenge by its status, or only by its header: a page that would be believed.
                Some(n) if !served && n % 2 == 0 => (StatusCode::FORBIDDEN, "no").into_response(),
                _ if !served => ([("cf-mitigated", "challenge")], Html("wait")).into_response(),
                Some(n) => {
                    let next = [2 * n + 1, 2 * n + 2].into_iter().filter(|n| *n < PAGES);
                    Html(next.map(|n| format!("<a href=/{n}>x</a>")).collect::<String>()).into_response()
                }
                None => StatusCode::NOT_FOUND.into_response(),
            }
        };
        let app = Router::new().fallback(answer).into_make_service_with_connect_info::<SocketAddr>();
        tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(Self { port, hits, blocked })
    }

    fn place(&self, n: u8) -> String {
        format!("h{n}.{NAME}:{}", self.port)
    }

    fn urls(&self, hosts: std::ops::Range<u8>) -> Vec<String> {
        hosts.map(|n| format!("http://{}/0", self.place(n))).collect()
    }

    fn block(&self, peer: Option<IpAddr>) {
        *self.blocked.lock().expect("no panic under this lock") = peer;
    }

    fn hits(&self) -> Vec<Hit> {
        self.hits.lock().expect("no panic under this lock").clone()
    }
}

/// Servers, sites with names, and a scheduler with this pool; workers are told of it by `worker`.
async fn ground(pool: &str) -> Result<(Cluster, Process, Sites)> {
    let mut cluster = Cluster::start().await?;
    let sites = Sites::start().await?;
    let hosts = EU.start..US.end;
    let places: Vec<String> = hosts.clone().map(|n| sites.place(n)).collect();
    cluster.open(&places);
    let names: Vec<String> = hosts.map(|n| format!("h{n}.{NAME}=127.0.8.{}", 10 + n)).collect();
    cluster.worker_env.push(("DODO_RESOLVE".to_owned(), names.join(",")));
    // The scheduler reads a file, the workers a list: both name the same.
    let file = cluster.dir.path().join("proxies");
    std::fs::write(&file, format!("# test\n{}\n", pool.replace(',', "\n")))?;
    let more = [("DODO_PROXIES", file.display().to_string()), ("DODO_PROXY_QUARANTINE_MS", "1500".to_owned())];
    cluster.scheduler_env.extend(more.map(|(name, value)| (name.to_owned(), value)));
    let scheduler = cluster.scheduler().await?;
    Ok((cluster, scheduler, sites))
}

/// What the status says of the proxies, by address.
async fn proxies(cluster: &Cluster) -> Result<BTreeMap<String, Value>> {
    let status = cluster.get("/v1/status").await?;
    let listed = status["proxies"].as_array().context("no proxies")?;
    let address = |proxy: &Value| proxy["address"].as_str().unwrap_or_default().to_owned();
    Ok(listed.iter().map(|proxy| (address(proxy), proxy.clone())).collect())
}

async fn has_state(cluster: &Cluster, address: &str, state: &str) -> Result<bool> {
    Ok(proxies(cluster).await?.get(address).is_some_and(|proxy| proxy["state"] == state))
}

fn names_no_secret(texts: &[String]) {
    for text in texts {
        for secret in [USER, PASSWORD, ENCODED, "pa55"] {
            assert!(!text.contains(secret), "{secret} is there: {text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_proxy_is_left_alone_and_its_hosts_move_and_return() -> Result<()> {
    let outside = [91, 92, 93].map(|n| Ipv4Addr::new(127, 0, 9, n));
    let a = Proxy::start_at(Kind::Socks5, 0, outside[0]).await?;
    let b = Proxy::start_at(Kind::Http, 0, outside[1]).await?;
    let c = Proxy::start_at(Kind::Socks5, 0, outside[2]).await?;
    let addresses = [&a, &b, &c].map(|proxy| format!("127.0.0.1:{}", proxy.port));
    let pool = format!(
        "eu=socks5://{ENCODED}@{},eu=http://{ENCODED}@{},us=socks5://{ENCODED}@{}",
        addresses[0], addresses[1], addresses[2]
    );
    let (cluster, _scheduler, sites) = ground(&pool).await?;
    let _workers = [cluster.worker_with(&[("DODO_PROXIES", &pool)])?, cluster.worker_with(&[("DODO_PROXIES", &pool)])?];
    let crawl = |region, urls| json!({ "urls": urls, "region": region, "delay_ms": 50, "depth": 20, "retries": 9 });
    let eu = cluster.post("/v1/crawls", &crawl("eu", sites.urls(EU))).await?;
    let us = cluster.post("/v1/crawls", &crawl("us", sites.urls(US))).await?;

    // Each host has one proxy, of its region.
    cluster.wait_finished(&eu, 60).await?;
    let mut homes: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
    for hit in sites.hits() {
        homes.entry(hit.host).or_default().insert(hit.peer);
    }
    assert!(homes.values().all(|peers| peers.len() == 1), "{homes:?}");
    let home = |host: &str| homes[host].first().copied().expect("it was asked");
    let of = |peer: Ipv4Addr| homes.keys().filter(|host| home(host) == IpAddr::from(peer)).count();
    let victim = usize::from(of(outside[1]) > of(outside[0]));
    let (blocked, other) = (IpAddr::from(outside[victim]), IpAddr::from(outside[1 - victim]));

    sites.block(Some(blocked));
    let until = "the blocked proxy is in quarantine";
    cluster.until(until, LIMIT, async || has_state(&cluster, &addresses[victim], "quarantined").await).await?;
    let status = cluster.dodo_text(&["status"])?;
    ensure!(status.contains(&format!("\nproxy       eu {}: ", addresses[victim])), "{status}");
    sites.block(None);
    let before = sites.hits().len();
    let moved = async || {
        Ok(sites.hits()[before..].iter().any(|hit| hit.peer == other && home(&hit.host) == blocked && hit.served))
    };
    cluster.until("its hosts leave by the other one", LIMIT, moved).await?;
    let until = "it is healthy again";
    cluster.until(until, LIMIT, async || has_state(&cluster, &addresses[victim], "healthy").await).await?;
    let before = sites.hits().len();
    let returned = async || Ok(sites.hits()[before..].iter().any(|hit| hit.peer == blocked));
    cluster.until("its hosts are back", LIMIT, returned).await?;

    for (dispatch, hosts) in [(&eu, EU), (&us, US)] {
        cluster.wait_done(dispatch, LIMIT).await?;
        let progress = &cluster.progress(dispatch).await?["progress"];
        assert_eq!((&progress["pages"], &progress["failed"]), (&json!(PAGES * hosts.len()), &json!(0)), "{progress}");
    }
    let (hits, mut pages) = (sites.hits(), BTreeSet::new());
    for hit in &hits {
        let allowed = hit.peer == home(&hit.host) || (home(&hit.host) == blocked && hit.peer == other);
        assert!(allowed, "{hit:?} of {}", home(&hit.host));
        if hit.served && hit.path != "/robots.txt" {
            assert!(pages.insert((&hit.host, &hit.path)), "twice: {hit:?}");
        }
    }
    assert_eq!(pages.len(), PAGES * 8);
    for (n, address) in addresses.iter().enumerate() {
        let answers = hits.iter().filter(|hit| hit.peer == outside[n] && hit.served).count();
        let counted = async || {
            let proxy = &proxies(&cluster).await?[address];
            Ok(proxy["successes"] == answers && (proxy["blocks"].as_i64() > Some(0)) == (n == victim))
        };
        cluster.until("each answer and each block is counted", LIMIT, counted).await?;
    }

    // Named where they should be, and without their credentials everywhere.
    let metrics = cluster.text("/metrics").await?;
    for (address, region) in addresses.iter().zip(["eu", "eu", "us"]) {
        assert!(
            metrics.contains(&format!("dodo_proxy_healthy{{region=\"{region}\",proxy=\"{address}\"}} 1")),
            "{metrics}"
        );
        let line = format!("region=\"{region}\" proxy=\"{address}\"");
        assert!(cluster.logs().contains(&line), "no line of a job has {line}");
    }
    let dirs: Vec<String> = std::fs::read_dir(cluster.dir.path().join("log"))?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    assert!(dirs.iter().any(|dir| dir.starts_with("worker-eu-us-via-pool-")), "{dirs:?}");
    let rows = cluster.sql().await?.query_one("SELECT string_agg(p::text, ' ') FROM proxy p", &[]).await?;
    names_no_secret(&[cluster.logs(), metrics, status, dirs.join(" "), rows.get(0)]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn while_every_proxy_is_down_jobs_wait_and_nothing_goes_around() -> Result<()> {
    let ports = [dodo_scheduler::local::free_port()?, dodo_scheduler::local::free_port()?];
    let addresses = ports.map(|port| format!("127.0.0.1:{port}"));
    let pool = format!("eu=socks5://{ENCODED}@{},eu=http://{ENCODED}@{}", addresses[0], addresses[1]);
    let (mut cluster, mut scheduler, sites) = ground(&pool).await?;
    let nowhere = json!({ "urls": sites.urls(EU), "region": "us" }).to_string();
    let (status, answer) = cluster.call(reqwest::Method::POST, "/v1/crawls", nowhere).await?;
    assert!(status == 400 && answer.to_string().contains("only in eu"), "{answer}");

    // A worker that has not been told of the pool sends nothing.
    let mut strange = cluster.worker()?;
    let crawl = json!({ "urls": sites.urls(EU), "delay_ms": 0, "host_concurrency": 2, "depth": 3 });
    let dispatch = cluster.post("/v1/crawls", &crawl).await?;
    let handed_back = async || Ok(cluster.logs().contains("which this worker has not been told of"));
    cluster.until("jobs are handed back", LIMIT, handed_back).await?;
    strange.signal(Signal::SIGTERM);
    strange.ended(Duration::from_secs(10)).await?;

    let _worker = cluster.worker_with(&[("DODO_PROXIES", &pool)])?;
    let both = async |cluster: &Cluster| {
        Ok(proxies(cluster)
            .await?
            .values()
            .all(|proxy| proxy["state"] != "healthy" && proxy["failures"].as_i64() >= Some(3)))
    };
    cluster.until("both are in quarantine", LIMIT, async || both(&cluster).await).await?;
    let says = async || Ok(cluster.dodo_text(&["status"])?.contains("no proxy of region eu is healthy"));
    cluster.until("status says so", LIMIT, says).await?;
    let slow =
        async || Ok(cluster.dodo_text(&["why-slow", &dispatch])?.contains("no proxy of their region is healthy"));
    cluster.until("why-slow says so", LIMIT, slow).await?;

    // The next leader knows it, too.
    scheduler.kill();
    let _successor = cluster.scheduler().await?;
    let leads = async || {
        let leads = cluster.get("/v1/status").await.is_ok_and(|status| status["dispatching"] == true);
        Ok(leads && both(&cluster).await?)
    };
    cluster.until("the successor leads and knows", LIMIT, leads).await?;
    let progress = cluster.progress(&dispatch).await?;
    assert_eq!(progress["progress"]["finished"], 0, "{progress}");
    let tries: i16 = cluster.sql().await?.query_one("SELECT max(attempt) FROM crawl_schedule", &[]).await?.get(0);
    assert_eq!((tries, sites.hits().len()), (0, 0), "nothing was tried");

    let outside = Ipv4Addr::new(127, 0, 9, 91);
    let _first = Proxy::start_at(Kind::Socks5, ports[0], outside).await?;
    cluster.wait_done(&dispatch, LIMIT).await?;
    let progress = &cluster.progress(&dispatch).await?["progress"];
    assert_eq!((&progress["pages"], &progress["failed"]), (&json!(15 * EU.len()), &json!(0)), "{progress}");
    let tries: i16 = cluster.sql().await?.query_one("SELECT max(attempt) FROM crawl_log", &[]).await?.get(0);
    assert_eq!(tries, 0, "no try was burnt");
    assert!(sites.hits().iter().all(|hit| hit.peer == outside), "everything left by the one that is up");
    names_no_secret(&[cluster.logs()]);
    Ok(())
}

#[test]
fn a_wrong_pool_is_one_line_without_the_password() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let worker = dodo_program().with_file_name("dodo-worker");
    for (program, arguments) in
        [(worker.as_path(), vec![]), (dodo_program(), vec!["serve"]), (dodo_program(), vec!["up", "--data"])]
    {
        for (value, one, expected) in [
            ("eu=u:pa55@h:1", "", "no region=URL"),
            ("/no/such/pa55", "", "cannot be read"),
            ("eu=https://u:pa55@h:1", "", "entry 1"),
            ("eu=http://u:pa55@h:1,us=http://h:1", "", "entry 2"),
            ("eu=http://u:pa55@h:1", "http://u:pa55@h:2", "not both"),
        ] {
            // A scheduler has no use for the one proxy of a worker.
            if !one.is_empty() && arguments == ["serve"] {
                continue;
            }
            let mut command = Command::new(program);
            command.args(&arguments).env("DODO_PROXIES", value).env("DODO_PROXY", one).env("DODO_LOG_DIR", dir.path());
            if arguments.contains(&"--data") {
                command.arg(dir.path().join("data"));
            }
            let out = command.output()?;
            let text = String::from_utf8_lossy(&out.stderr);
            assert_eq!((out.status.code(), text.lines().count()), (Some(1), 1), "{arguments:?} {value}: {text}");
            assert!(text.contains("DODO_PROXIES") && text.contains(expected) && !text.contains("pa55"), "{text}");
        }
    }
    assert!(!dir.path().join("data").exists(), "nothing was started");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_says_by_which_proxy_it_leaves_and_whether_alone() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let _scheduler = cluster.scheduler().await?;
    cluster.until("it leads", LIMIT, async || Ok(cluster.get("/v1/status").await?["dispatching"] == true)).await?;
    let status = cluster.get("/v1/status").await?;
    let number = |name: &str| status[name].as_i64().context("no number");
    let authority = Authority { epoch: number("epoch")?, generation: number("generation")? };
    let redis = Redis::new(&cluster.redis.url(), "test")?;
    let key = |id| JobKey { tenant: "default".to_owned(), id: Uuid::from_u128(id), attempt: 3 };
    let kinds = [(false, None), (true, None), (false, Some("10.0.0.7:1080")), (true, Some("[::1]:80"))];
    let orders: Vec<Order> = (1..)
        .zip(kinds)
        .map(|(id, (alone, proxy))| Order { key: key(id), alone, proxy: proxy.map(Arc::from) })
        .collect();
    queue::push(&redis, authority, &orders).await?;
    let entries = queue::outstanding(&redis).await?.into_iter().map(|(entry, _)| entry);
    let found: Vec<_> = entries.map(|entry| (entry.key, entry.alone, entry.proxy)).collect();
    let pushed: Vec<_> =
        orders.into_iter().map(|order| (order.key, order.alone, order.proxy.map(|proxy| proxy.to_string()))).collect();
    assert_eq!(found, pushed);
    Ok(())
}
