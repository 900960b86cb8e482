//! The work of a schedule: drawn from a seed, submitted until it is accepted, and written down for the checker.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::site::Host;
use crate::world::World;

/// A submission is tried for this long: faults may hold up every scheduler for a while.
const SUBMIT: Duration = Duration::from_secs(90);

/// One thing to submit, as the checker is told of it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Work {
    pub key: String,
    /// crawl, source or noop.
    pub kind: &'static str,
    /// The id it was given.
    pub dispatch: Option<String>,
    pub delay_ms: u64,
    pub concurrency: u64,
    /// Crawls: where it starts.
    pub seeds: Vec<String>,
    /// Sources: name, style and the host that has the items.
    pub source: Option<Source>,
    /// No-ops: how many, and how they behave.
    pub count: u64,
    pub sleep_ms: u64,
    pub fails: bool,
    pub aborts: bool,
    #[serde(skip)]
    pub at_ms: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Source {
    pub name: String,
    pub host: String,
    /// numbered, cursor or once.
    pub style: &'static str,
    pub size: u64,
    pub items: u64,
}

/// What a schedule brings: hosts and what is asked of them.
#[derive(Clone, Debug, Default)]
pub struct Workload {
    pub hosts: Vec<(String, Host)>,
    pub works: Vec<Work>,
    pub workers: usize,
}

/// Draws a workload. `first_host` is the first host nobody has used; `scale` lengthens everything.
pub fn draw(rng: &mut ChaCha8Rng, world: &World, name: &str, first_host: usize, scale: u64) -> Workload {
    let mut load = Workload { workers: rng.random_range(2..=4), ..Workload::default() };
    let mut next_host = first_host;
    let crawls = rng.random_range(1..=2) * if scale > 1 { 2 } else { 1 };
    for n in 0..crawls {
        crawl(rng, world, &format!("{name}-crawl{n}"), &mut next_host, scale, &mut load);
    }
    for (style, chance) in [("numbered", 0.7), ("cursor", 0.5), ("once", 0.5)] {
        if rng.random_bool(chance) {
            source(rng, world, name, style, &mut next_host, scale, &mut load);
        }
    }
    for n in 0..rng.random_range(0..=3) {
        let mut work = Work {
            key: format!("{name}-noop{n}"),
            kind: "noop",
            count: rng.random_range(5..400) * scale,
            at_ms: arrival(rng, 5000, scale),
            ..Work::default()
        };
        match rng.random_range(0..4) {
            0 => {
                work.count = rng.random_range(1..10);
                work.sleep_ms = rng.random_range(200..4000) * if scale > 1 { 8 } else { 1 };
            }
            1 => {
                work.count = rng.random_range(1..5);
                work.fails = rng.random_bool(0.7);
                // One job that ends whoever runs it, again and again, is enough.
                work.aborts = !work.fails;
                work.count = if work.aborts { 1 } else { work.count };
            }
            _ => {}
        }
        load.works.push(work);
    }
    load
}

/// When a work is submitted: all along a long schedule, mostly at the start of a short one.
fn arrival(rng: &mut ChaCha8Rng, short_ms: u64, scale: u64) -> u64 {
    rng.random_range(0..short_ms) * if scale > 1 { 15 } else { 1 }
}

fn crawl(rng: &mut ChaCha8Rng, world: &World, key: &str, next_host: &mut usize, scale: u64, load: &mut Workload) {
    let hosts: Vec<String> = (0..rng.random_range(2..=4)).map(|n| world.host(*next_host + n)).collect();
    *next_host += hosts.len();
    for (n, host) in hosts.iter().enumerate() {
        let site = Host::Site {
            seed: rng.random(),
            pages: rng.random_range(6..28) * scale,
            crawl_delay_ms: rng.random_bool(0.3).then(|| rng.random_range(100..400)),
            robots_late: rng.random_bool(0.15),
            next: hosts.iter().cycle().skip(n + 1).take(hosts.len() - 1).cloned().collect(),
        };
        load.hosts.push((host.clone(), site));
    }
    let work = Work {
        key: key.to_owned(),
        kind: "crawl",
        delay_ms: rng.random_range(30..250),
        concurrency: rng.random_range(1..=2),
        seeds: hosts.iter().take(rng.random_range(1..=2)).map(|host| format!("http://{host}/0")).collect(),
        at_ms: arrival(rng, 1500, scale),
        ..Work::default()
    };
    if rng.random_bool(0.25) {
        // The same sites once more, for somebody else.
        load.works.push(Work { key: format!("{key}-again"), at_ms: arrival(rng, 4000, scale), ..work.clone() });
    }
    load.works.push(work);
}

fn source(
    rng: &mut ChaCha8Rng,
    world: &World,
    name: &str,
    style: &'static str,
    next_host: &mut usize,
    scale: u64,
    load: &mut Workload,
) {
    let host = world.host(*next_host);
    *next_host += 1;
    let items = rng.random_range(20..160) * scale;
    load.hosts.push((host.clone(), Host::Api { seed: rng.random(), items }));
    load.works.push(Work {
        key: format!("{name}-{style}"),
        kind: "source",
        delay_ms: rng.random_range(0..120),
        concurrency: rng.random_range(1..=3),
        source: Some(Source { name: format!("{name}-{style}"), host, style, size: rng.random_range(5..15), items }),
        at_ms: arrival(rng, 3000, scale),
        ..Work::default()
    });
}

/// Submits everything at its time; returns the works with their dispatches.
pub async fn submit(world: &Arc<World>, works: Vec<Work>) -> Result<Vec<Work>> {
    let began = Instant::now();
    let tasks: Vec<_> = works
        .into_iter()
        .map(|mut work| {
            let world = Arc::clone(world);
            tokio::spawn(async move {
                tokio::time::sleep_until(began + Duration::from_millis(work.at_ms)).await;
                let dispatch = submit_one(&world, &work).await.with_context(|| work.key.clone())?;
                world.note(&format!("  {} accepted as {dispatch}", work.key));
                work.dispatch = Some(dispatch);
                anyhow::Ok(work)
            })
        })
        .collect();
    let mut done = Vec::new();
    for task in tasks {
        done.push(task.await??);
    }
    Ok(done)
}

async fn submit_one(world: &World, work: &Work) -> Result<String> {
    let (path, body) = match (&work.source, work.kind) {
        (None, "crawl") => (
            "/v1/crawls".to_owned(),
            json!({ "urls": work.seeds, "scope": "any", "delay_ms": work.delay_ms, "host_concurrency": work.concurrency,
                    "key": work.key }),
        ),
        (None, _) => (
            "/v1/noops".to_owned(),
            json!({ "count": work.count, "payload": { "burst": work.key }, "key": work.key, "sleep_ms": work.sleep_ms,
                    "abort": work.aborts, "fail": work.fails.then_some("it was told to") }),
        ),
        (Some(source), _) => {
            let path = format!("/v1/sources/{}", source.name);
            call(world, reqwest::Method::PUT, &path, &document(source, work)).await?;
            let known = if source.style == "once" { json!({ "total": source.items }) } else { Value::Null };
            (format!("{path}/dispatches"), json!({ "key": work.key, "metadata": known }))
        }
    };
    let answer = call(world, reqwest::Method::POST, &path, &body).await?;
    Ok(answer["dispatch"].as_str().context("no dispatch")?.to_owned())
}

fn document(source: &Source, work: &Work) -> Value {
    let base = format!("http://{}", source.host);
    let mut document = json!({
        "url": "{base}/items?page={page}&size={page_size}", "base": base,
        "paging": { "style": "numbered", "size": source.size, "count": { "path": "$.total" } },
        "items": "$.items", "id": "$.id", "delay_ms": work.delay_ms, "concurrency": work.concurrency,
        "fields": { "author": "$.by.name", "text": "$.text", "language": "$.lang", "rating": "$.stars", "created_at": "$.at" },
    });
    match source.style {
        "cursor" => {
            document["url"] = json!("{base}/chain?cursor={cursor}&size={page_size}");
            document["paging"] = json!({ "style": "cursor", "size": source.size, "next": "$.next" });
        }
        "once" => {
            document["at_most_once"] = json!(true);
            document["paging"]["count"]["url"] = json!("{base}/count");
        }
        _ => {}
    }
    document
}

/// Asks the schedulers by turns until one accepts; a request has a key, so that a second try changes nothing.
async fn call(world: &World, method: reqwest::Method, path: &str, body: &Value) -> Result<Value> {
    let began = Instant::now();
    let mut last = String::new();
    while began.elapsed() < SUBMIT {
        for port in world.api_ports() {
            let url = format!("http://127.0.0.1:{port}{path}");
            match world.http.request(method.clone(), url).json(body).send().await {
                Ok(answer) if answer.status().is_success() => {
                    // The answer may be cut off: then the next one says the same.
                    if let Ok(value) = answer.json().await {
                        return Ok(value);
                    }
                }
                Ok(answer) if answer.status().is_client_error() => bail!("{path}: {}", answer.text().await?),
                Ok(answer) => last = answer.text().await.unwrap_or_default(),
                Err(error) => last = error.to_string(),
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bail!("{path} was not accepted within {SUBMIT:?}: {last}")
}
