//! A crawl of a server that misbehaves in every way: it ends, each URL once and as expected, and the worker lives.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::hostile::Hostile;

const HOST: Ipv4Addr = Ipv4Addr::new(127, 0, 4, 1);
/// 429 and 503 are held against the host: they have one of their own.
const REFUSING: Ipv4Addr = Ipv4Addr::new(127, 0, 4, 2);
/// Connections that were kept are closed under the next request.
const STALE: Ipv4Addr = Ipv4Addr::new(127, 0, 4, 3);
const API: Ipv4Addr = Ipv4Addr::new(127, 0, 4, 4);
/// They wait for a request, and a handshake is none.
const SILENT: [Ipv4Addr; 2] = [Ipv4Addr::new(127, 0, 4, 5), Ipv4Addr::new(127, 0, 4, 6)];
/// Pages that are as they should be.
const GOOD: usize = 40;
/// Far above what it takes in a debug build; far below a bomb, or an endless head.
const MEMORY_MIB_MAX: u64 = 400;
/// Far above what it takes: 40 s on a quiet machine, of which the slowest page takes 30.
const LIMIT: Duration = Duration::from_secs(300);

/// What the workers are told of how long a server may take, and how much it may send.
const PATIENCE: [(&str, &str); 5] = [
    ("DODO_FETCH_CONNECT_MS", "1000"),
    ("DODO_FETCH_HEAD_MS", "8000"),
    ("DODO_FETCH_READ_MS", "5000"),
    ("DODO_FETCH_TOTAL_MS", "30000"),
    ("DODO_BODY_BYTES_MAX", "2000000"),
];

/// What each path must come to: its state, why its body is not whole (any of these words), and what its title or its
/// reason must contain.
const EXPECTED: &[(&str, &str, &str, &str)] = &[
    ("/length/large", "ok", "disconnect", "/length/large the body is cut: the connection broke"),
    ("/length/small", "ok", "", "/length/small"),
    ("/length/two", "dead", "", "content-length"),
    ("/length/same", "ok", "", "/length/same"),
    ("/length/negative", "dead", "", "content-length"),
    ("/length/words", "dead", "", "content-length"),
    ("/length/beyond", "dead", "", "content-length"),
    ("/length/petabytes", "ok", "disconnect", "the connection broke"),
    ("/length/none", "ok", "", "/length/none"),
    ("/chunk/good", "ok", "", "chunked"),
    ("/chunk/trailers", "ok", "", "chunked"),
    ("/chunk/and-length", "ok", "", "chunked"),
    ("/chunk/bad-size", "ok", "disconnect", "chunk size"),
    ("/chunk/large-size", "ok", "disconnect", "chunk size"),
    ("/chunk/cut", "ok", "disconnect", "the connection broke"),
    ("/chunk/no-end", "ok", "disconnect", "the connection broke"),
    ("/chunk/reset", "ok", "disconnect", "the connection broke"),
    ("/head/long", "dead", "", "too large"),
    ("/head/10000", "dead", "", "too large"),
    ("/head/200", "ok", "", "/head/200"),
    ("/head/continued", "ok", "", "/head/continued"),
    ("/head/folded", "ok", "", "/head/folded"),
    ("/head/spaced", "ok", "", "/head/spaced"),
    ("/head/wrong-line", "ok", "", "/head/wrong-line"),
    ("/head/lf-only", "ok", "", "/head/lf-only"),
    ("/head/silent", "dead", "", "no answer after 8000 ms"),
    ("/head/closed", "dead", "", "the request failed"),
    ("/head/reset", "dead", "", "the request failed"),
    ("/head/cut", "dead", "", "the request failed"),
    ("/head/cut-reset", "dead", "", "the request failed"),
    ("/speaks/http-0.9", "dead", "", "the request failed"),
    ("/speaks/http-3", "dead", "", "the request failed"),
    ("/speaks/ssh", "dead", "", "the request failed"),
    ("/speaks/tls", "dead", "", "the request failed"),
    ("/speaks/noise", "dead", "", "the request failed"),
    ("/status/999", "http_error", "", ""),
    ("/status/099", "dead", "", "status"),
    ("/status/words", "dead", "", "status"),
    ("/status/101", "http_error", "", ""),
    ("/status/204", "ok", "", ""),
    ("/status/304", "dead", "", "without a condition"),
    ("/status/404-cut", "http_error", "disconnect", "the connection broke"),
    ("/status/500", "dead", "", "500"),
    ("/to/self", "redirect", "", ""),
    ("/to/one", "redirect", "", ""),
    ("/to/two", "redirect", "", ""),
    ("/to/more/more/more/more/more/more/more/more/more/more/more", "redirect", "", "more than 10 redirects"),
    ("/to/file", "redirect", "", "only http and https"),
    ("/to/script", "redirect", "", "only http and https"),
    ("/to/gopher", "redirect", "", "only http and https"),
    ("/to/private", "redirect", "", ""),
    ("http://10.0.0.1/secret", "refused", "", "private"),
    ("/to/closed", "redirect", "", ""),
    ("http://127.0.0.3/closed", "refused", "", "private"),
    ("/to/metadata", "redirect", "", ""),
    ("http://169.254.169.254/latest/meta-data/", "refused", "", "private"),
    ("/to/fragment", "redirect", "", ""),
    ("/good/fragment", "ok", "", "/good/fragment"),
    ("/to/utf-8", "redirect", "", ""),
    ("/caf%C3%A9-8", "ok", "", "/caf%C3%A9-8"),
    ("/to/latin-1", "redirect", "", ""),
    ("/caf%E9-1", "ok", "", "/caf%E9-1"),
    ("/to/broken", "redirect", "", "not a URL"),
    ("/to/long", "redirect", "", "bytes, more than"),
    ("/to/user", "redirect", "", ""),
    ("/good/user", "ok", "", "/good/user"),
    ("/to/nowhere", "ok", "", "/to/nowhere"),
    ("/to/cut", "redirect", "disconnect", "the connection broke"),
    ("/charset/lies", "ok", "", "caf\u{fffd}"),
    ("/charset/meta-lies", "ok", "", "caf\u{fffd}"),
    ("/charset/utf-16", "ok", "", "caf\u{e9}"),
    ("/charset/unknown", "ok", "", "caf\u{e9}"),
    ("/charset/raw", "ok", "", "/charset/raw"),
    ("/packed/good", "ok", "", "/packed/good"),
    ("/packed/bomb", "ok", "", "larger than"),
    ("/packed/bomb-br", "ok", "", "larger than"),
    ("/packed/bomb-zstd", "ok", "", "larger than"),
    ("/packed/cut", "ok", "", "not sound gzip"),
    ("/packed/twice", "ok", "", "/packed/twice"),
    ("/packed/twice-said-once", "ok", "", ""),
    ("/packed/often", "ok", "", "more than 3"),
    ("/packed/strange", "ok", "", "klingon"),
    ("/packed/only-said", "ok", "", "/packed/only-said"),
    ("/packed/not", "ok", "", "not sound gzip"),
    ("/packed/broken-off", "ok", "disconnect", "/packed/broken-off the body is cut: the connection broke"),
    ("/after/garbage", "ok", "", "/after/garbage"),
    ("/after/answer", "ok", "", "/after/answer"),
    ("/slow/head", "dead", "", "no answer after 8000 ms"),
    ("/slow/headers", "dead", "", "too large"),
    ("/slow/continue", "dead", "", "no answer after 8000 ms"),
    ("/slow/body", "ok", "time", "slower than 100 bytes/s"),
    ("/slow/long-body", "ok", "time", "not whole after 30000 ms"),
    ("/slow/stalls", "ok", "time", "nothing came for 5000 ms"),
    ("/slow/endless", "ok", "length", "longer than 2000000 bytes"),
    // The machine decides which bound is reached first.
    ("/slow/chunks", "ok", "length time", "the body is cut"),
    ("/slow/trailers", "ok", "disconnect", "the connection broke"),
    ("/slow/extension", "ok", "disconnect", "the connection broke"),
    ("/unheard-of", "http_error", "", ""),
];

/// Of a host that refuses at first: each comes to be fetched, and no try is lost.
const REFUSED: [&str; 5] =
    ["/refuses/seconds", "/refuses/imf-fixdate", "/refuses/rfc850", "/refuses/asctime", "/refuses/flapping"];

#[tokio::test(flavor = "multi_thread")]
async fn a_crawl_survives_every_server() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let good: Vec<String> = (0..GOOD).map(|n| format!("/good/{n}")).collect();
    let stale: Vec<String> = (0..GOOD).map(|n| format!("/stale/{n}")).collect();
    // Those that only a redirect leads to are not linked.
    let linked = EXPECTED.iter().map(|(path, ..)| *path).filter(|path| {
        let is_target = path.starts_with("http") || path.contains("more/more") || path.starts_with("/caf");
        !is_target && !path.starts_with("/good/")
    });
    let host =
        Hostile::start(HOST, &linked.chain(good.iter().map(String::as_str)).chain(["/to/more"]).collect::<Vec<_>>())
            .await?;
    let refusing = Hostile::start(REFUSING, &REFUSED).await?;
    let kept = Hostile::start(STALE, &stale.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    cluster.open(&[host.place.clone(), refusing.place.clone(), kept.place.clone()]);
    cluster.worker_env.extend(PATIENCE.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let _scheduler = cluster.scheduler().await?;
    let mut worker = cluster.worker()?;
    let started = Instant::now();
    let mut dispatches = Vec::new();
    for site in [&host, &refusing, &kept] {
        let concurrency = if site.place == kept.place { 1 } else { 16 };
        // The redirects without end go deeper and deeper.
        let body = json!({ "urls": [format!("http://{}/", site.place)], "scope": "any", "delay_ms": 0,
            "host_concurrency": concurrency, "retries": 1, "max_repeats": 2048 });
        dispatches.push(cluster.post("/v1/crawls", &body).await?);
    }
    let mut logged = Logged::default();
    for dispatch in &dispatches {
        cluster.wait_done(dispatch, LIMIT).await?;
        logged.add(&cluster.dodo_text(&["export", "pages", "--dispatch", dispatch])?)?;
    }
    println!("{} URLs in {:?}", logged.jobs.len(), started.elapsed());
    for (path, state, truncated, said) in EXPECTED {
        logged.check(&host, path, state, truncated, said);
    }
    for hops in 1..11 {
        logged.check(&host, &format!("/to{}", "/more".repeat(hops)), "redirect", "", "");
    }
    for (site, paths) in [(&host, &good[..]), (&kept, &stale), (&refusing, &REFUSED.map(str::to_owned))] {
        logged.check(site, "/", "ok", "", "");
        for path in paths {
            let attempt = logged.check(site, path, "ok", "", path);
            ensure!(attempt == Some(0), "{path} took more than one try");
        }
    }
    logged.wrong.extend(logged.jobs.keys().map(|url| format!("{url} was logged and not expected")));
    ensure!(logged.wrong.is_empty(), "{}", logged.wrong.join("\n"));

    // Nobody came back before he was told to.
    let hits = refusing.hits();
    for first in hits.iter().filter(|hit| hit.again_ms.is_some()) {
        let second =
            hits.iter().find(|hit| hit.path == first.path && hit.at_ms > first.at_ms).context("no second hit")?;
        ensure!(Some(second.at_ms) >= first.again_ms, "{}: {first:?}, {second:?}", first.path);
    }
    // What was cut short is in the archive, and says so.
    let verified = cluster.dodo_text(&["archive", "verify"])?;
    assert!(verified.contains(" 0 bad"), "{verified}");

    let memory = peak_mib(worker.id())?;
    println!("worker: {memory} MiB at most");
    assert!(memory < MEMORY_MIB_MAX, "{memory} MiB");
    assert!(!worker.has_ended()?, "the worker lives");
    assert!(!cluster.logs().contains("panicked"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_dies_with_its_connection_is_only_sent_again_if_that_was_old_and_never_if_it_may_not_be() -> Result<()> {
    const CALLS: i64 = 6;
    let mut cluster = Cluster::start().await?;
    let api = Hostile::start(API, &[]).await?;
    cluster.open(std::slice::from_ref(&api.place));
    let _scheduler = cluster.scheduler().await?;
    let _worker = cluster.worker()?;
    let base = format!("http://{}/stale-api/", api.place);
    let document = json!({ "url": format!("{base}{{page}}"), "delay_ms": 0, "concurrency": 1,
        "paging": { "style": "numbered", "size": 1, "count": { "path": "$.total", "url": base } },
        "items": "$.items", "id": "$.id", "at_most_once": true, "fields": {} });
    cluster.put("/v1/sources/api", &document).await?;
    let dispatch = cluster.post("/v1/sources/api/dispatches", &json!({ "metadata": { "total": CALLS } })).await?;
    cluster.wait_done(&dispatch, LIMIT).await?;
    let rows = cluster.sql().await?.query("SELECT outcome FROM crawl_log WHERE kind = 'get_page'", &[]).await?;
    let unknown = rows.iter().filter(|row| row.get::<_, &str>(0) == "unknown").count();
    assert!(unknown > 0 && rows.iter().all(|row| matches!(row.get(0), "ok" | "unknown")), "{rows:?}");
    let mut asked: Vec<String> = api.hits().into_iter().map(|hit| hit.path).collect();
    let calls = asked.len();
    asked.sort();
    asked.dedup();
    assert_eq!(calls, asked.len(), "a call was repeated: {asked:?}");

    // A page that never answers: the connection that robots.txt came by dies with the first request, then each with one.
    let body = json!({ "urls": [format!("http://{}/head/closed", api.place)], "delay_ms": 0, "retries": 3 });
    let dispatch = cluster.post("/v1/crawls", &body).await?;
    cluster.wait_done(&dispatch, LIMIT).await?;
    let requests = api.hits().iter().filter(|hit| hit.path == "/head/closed").count();
    assert!(matches!(requests, 4 | 5), "{requests} requests at four tries");
    Ok(())
}

/// Whether it is the first request of all, for robots.txt, or one for a page: what runs out is the patience for the
/// connection, which is the shorter one, and that is said.
#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_is_never_answered_ends_as_a_connection_that_was_not_made() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let [strange, known] = [Hostile::start(SILENT[0], &[]).await?, Hostile::start(SILENT[1], &[]).await?];
    cluster.open(&[strange.place.clone(), known.place.clone()]);
    cluster.worker_env.extend(PATIENCE.map(|(name, value)| (name.to_owned(), value.to_owned())));
    cluster.worker_env.push(("DODO_RETRY_BASE_MS".to_owned(), "1".to_owned()));
    let hosts = [&strange, &known].map(|site| format!("https://{}", site.place));
    // As if it had answered when it was prepared.
    let ready =
        "INSERT INTO host (host, addresses, state, valid_until) VALUES ($1, $2, 'ready', now() + interval '1 hour')";
    cluster.sql().await?.execute(ready, &[&hosts[1], &vec![SILENT[1].to_string()]]).await?;
    let _scheduler = cluster.scheduler().await?;
    let _worker = cluster.worker()?;
    let urls = hosts.map(|host| format!("{host}/"));
    let dispatch = cluster.post("/v1/crawls", &json!({ "urls": urls, "delay_ms": 0, "retries": 1 })).await?;
    cluster.wait_done(&dispatch, LIMIT).await?;
    let mut logged = Logged::default();
    logged.add(&cluster.dodo_text(&["export", "pages", "--dispatch", &dispatch])?)?;
    logged.check(&strange, &urls[0], "dead", "", "its host cannot be reached: cannot connect: operation timed out");
    logged.check(&known, &urls[1], "dead", "", "cannot connect: operation timed out");
    assert!(logged.wrong.is_empty(), "{}", logged.wrong.join("\n"));
    Ok(())
}

/// The rows that are not checked yet, and what is wrong with the others.
#[derive(Default)]
struct Logged {
    jobs: HashMap<String, Value>,
    wrong: Vec<String>,
}

impl Logged {
    fn add(&mut self, export: &str) -> Result<()> {
        for line in export.lines() {
            let job: Value = serde_json::from_str(line)?;
            let url = job["url"].as_str().context("no URL")?.to_owned();
            ensure!(self.jobs.insert(url.clone(), job).is_none(), "{url} was logged twice");
        }
        Ok(())
    }

    /// Returns the number of the try.
    fn check(&mut self, site: &Hostile, path: &str, state: &str, truncated: &str, says: &str) -> Option<i64> {
        let url = if path.starts_with("http") { path.to_owned() } else { format!("http://{}{path}", site.place) };
        let Some(job) = self.jobs.remove(&url) else {
            self.wrong.push(format!("{url} was not logged"));
            return None;
        };
        let text = |name: &str| job[name].as_str().unwrap_or_default();
        let said = format!("{} {}", text("title"), text("reason"));
        let as_expected = text("state") == state && truncated.split(' ').any(|word| word == text("truncated"));
        if !as_expected || !said.contains(says) {
            self.wrong.push(format!("{path} must be {state} {truncated:?} {says:?}, but is {job}"));
        }
        job["attempt"].as_i64()
    }
}

/// The most memory that a process had at any time.
fn peak_mib(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? / 1024)
}
