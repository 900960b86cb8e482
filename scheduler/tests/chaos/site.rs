//! Web sites and paged APIs of many virtual hosts, made of seeds, that write every request they serve into a file.
//!
//! What they serve is said a second time in `scripts/lib/chaos_sites.py`, for the checker.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use anyhow::Result;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};
use dodo_common::clock::Clock;
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// What a host is.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Host {
    /// Page n links to 2n+1, 2n+2 and others, of its own host and of `next`.
    Site { seed: u64, pages: u64, crawl_delay_ms: Option<u64>, robots_late: bool, next: Vec<String> },
    /// Items from 0 on, by number or by cursor.
    Api { seed: u64, items: u64 },
}

/// All the hosts on a few addresses of loopback.
#[derive(Clone)]
pub struct Sites {
    shared: Arc<Shared>,
}

struct Shared {
    hosts: RwLock<HashMap<String, Host>>,
    /// Requests so far by host and path: some fail only the first times.
    asked: Mutex<HashMap<String, u64>>,
    log: Mutex<File>,
    began: Instant,
    began_us: u128,
}

/// First eight bytes of the SHA-256 of the parts joined by slashes: the die of everything generated.
pub fn die(seed: u64, parts: &[&str]) -> u64 {
    let mut text = seed.to_string();
    for part in parts {
        text.push('/');
        text.push_str(part);
    }
    let hash = Sha256::digest(text.as_bytes());
    u64::from_be_bytes(hash[..8].try_into().expect("eight bytes"))
}

impl Sites {
    /// Listens on one port of all `addresses`; requests are written to `log`, a line each when it ended.
    pub async fn start(addresses: &[Ipv4Addr], port: u16, log: &Path) -> Result<Self> {
        let began_us = Clock::System.now_ms() as u128 * 1000;
        let shared = Arc::new(Shared {
            hosts: RwLock::default(),
            asked: Mutex::default(),
            log: Mutex::new(File::create(log)?),
            began: Instant::now(),
            began_us,
        });
        for address in addresses {
            let listener = tokio::net::TcpListener::bind((*address, port)).await?;
            let app = Router::new().fallback(answer).with_state((Arc::clone(&shared), address.to_string()));
            tokio::spawn(async move {
                let _ = axum::serve(listener, app).await;
            });
        }
        Ok(Self { shared })
    }

    pub fn add(&self, name: &str, host: Host) {
        self.shared.hosts.write().expect("no panic under this lock").insert(name.to_owned(), host);
    }
}

impl Shared {
    fn now_us(&self) -> u128 {
        self.began_us + self.began.elapsed().as_micros()
    }

    fn times_asked(&self, host: &str, path: &str) -> u64 {
        let mut asked = self.asked.lock().expect("no panic under this lock");
        let times = asked.entry(format!("{host}{path}")).or_default();
        *times += 1;
        *times
    }
}

/// Writes its line when the answer is made, or dropped because the client has gone: then its status is 0.
struct Record {
    shared: Arc<Shared>,
    host: String,
    address: String,
    path: String,
    start_us: u128,
    status: u16,
}

impl Drop for Record {
    fn drop(&mut self) {
        let line = json!({
            "host": self.host, "address": self.address, "path": self.path, "start_us": self.start_us as u64,
            "end_us": self.shared.now_us() as u64, "status": self.status,
        });
        let mut log = self.shared.log.lock().expect("no panic under this lock");
        writeln!(log, "{line}").expect("the log of the sites can be written");
    }
}

async fn answer(State((shared, address)): State<(Arc<Shared>, String)>, request: Request) -> Response {
    let name = request.headers().get("host").and_then(|host| host.to_str().ok()).unwrap_or_default().to_owned();
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let start_us = shared.now_us();
    let mut record =
        Record { shared: Arc::clone(&shared), host: name.clone(), address, path: path.clone(), start_us, status: 0 };
    let host = shared.hosts.read().expect("no panic under this lock").get(&name).cloned();
    let times = shared.times_asked(&name, &path);
    let answer = match &host {
        None => StatusCode::MISDIRECTED_REQUEST.into_response(),
        Some(Host::Site { seed, pages, crawl_delay_ms, robots_late, next }) => {
            tokio::time::sleep(Duration::from_millis(3 + die(*seed, &["late", &path]) % 40)).await;
            if path == "/robots.txt" {
                robots(*crawl_delay_ms, *robots_late && times == 1)
            } else {
                page(&name, *seed, *pages, next, path.trim_start_matches('/'), times)
            }
        }
        Some(Host::Api { seed, items }) => {
            tokio::time::sleep(Duration::from_millis(3 + die(*seed, &["late", &path]) % 80)).await;
            api(&name, *seed, *items, &path, times)
        }
    };
    record.status = answer.status().as_u16();
    // An answer that is no JSON is an error of the API, whatever its status says.
    if answer.headers().contains_key("x-broken") {
        record.status = 299;
    }
    answer
}

fn robots(crawl_delay_ms: Option<u64>, late: bool) -> Response {
    if late {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    let delay = crawl_delay_ms.map_or(String::new(), |ms| format!("Crawl-delay: {}\n", ms as f64 / 1000.0));
    format!("User-agent: *\n{delay}Disallow: /private\n").into_response()
}

/// Page `n`: of a hundred, two always fail, six fail at first, three say "too many" at first, three are missing,
/// four redirect.
fn page(host: &str, seed: u64, pages: u64, next: &[String], n: &str, times: u64) -> Response {
    let Some(number) = n.parse::<u64>().ok().filter(|number| *number < pages) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let kind = if number == 0 { 99 } else { die(seed, &["kind", n]) % 100 };
    match kind {
        0..=1 => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        2..=7 if times <= 1 + die(seed, &["fails", n]) % 2 => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        8..=10 if times == 1 => (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "1")]).into_response(),
        11..=13 => StatusCode::NOT_FOUND.into_response(),
        14..=17 => {
            let to = (number * 7 + 3) % pages;
            (StatusCode::FOUND, [("location", format!("/{to}"))]).into_response()
        }
        _ => Html(html(host, seed, pages, next, number)).into_response(),
    }
}

fn html(host: &str, seed: u64, pages: u64, next: &[String], number: u64) -> String {
    let n = number.to_string();
    let mut filler = String::new();
    for part in 0..die(seed, &["size", &n]) % 40 {
        filler.push_str(&format!("{:016x} ", die(seed, &["filler", &n, &part.to_string()])));
    }
    let links: String =
        links(host, seed, pages, next, number).iter().map(|link| format!("<a href=\"{link}\">x</a>\n")).collect();
    format!("<!doctype html><html lang=en><title>page {n} of {host}</title>\n<p>{filler}</p>\n{links}</html>\n")
}

fn links(host: &str, seed: u64, pages: u64, next: &[String], number: u64) -> Vec<String> {
    let n = number.to_string();
    let mut links = Vec::new();
    for child in [2 * number + 1, 2 * number + 2] {
        if child < pages && !die(seed, &["omit", &child.to_string()]).is_multiple_of(10) {
            links.push(format!("http://{host}/{child}"));
        }
    }
    for extra in 0..die(seed, &["extra", &n]) % 3 {
        links.push(format!("http://{host}/{}", die(seed, &["to", &n, &extra.to_string()]) % pages));
    }
    if die(seed, &["private", &n]).is_multiple_of(4) {
        links.push(format!("http://{host}/private/{n}"));
    }
    if !next.is_empty() && die(seed, &["cross", &n]).is_multiple_of(5) {
        let to = &next[(die(seed, &["where", &n]) % next.len() as u64) as usize];
        links.push(format!("http://{to}/0"));
    }
    let mut distinct: Vec<String> = Vec::new();
    for link in links {
        if !distinct.contains(&link) {
            distinct.push(link);
        }
    }
    distinct
}

/// A tenth of what it is asked fails at first: with 500, with 503, with an answer that is no JSON.
fn api(host: &str, seed: u64, items: u64, path: &str, times: u64) -> Response {
    let fails = die(seed, &["fail", path]);
    if fails.is_multiple_of(10) && times <= 1 + fails / 10 % 2 {
        return match fails / 20 % 3 {
            0 => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
            1 => (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "0")]).into_response(),
            _ => ([("x-broken", "1")], "{\"total\": 4").into_response(),
        };
    }
    let parameter = |name: &str| {
        let query = path.split_once('?').map_or("", |(_, query)| query);
        query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')?.parse::<u64>().ok())
    };
    let size = parameter("size").unwrap_or(10);
    let slice = |from: u64| -> Vec<Value> { (from..items.min(from + size)).map(|n| item(host, n)).collect() };
    let answer = if path.starts_with("/count") {
        json!({ "total": items })
    } else if path.starts_with("/items") {
        json!({ "total": items, "items": slice((parameter("page").unwrap_or(1) - 1) * size) })
    } else {
        let from = parameter("cursor").unwrap_or(0);
        let next = (from + size < items).then(|| (from + size).to_string());
        json!({ "items": slice(from), "next": next })
    };
    axum::Json(answer).into_response()
}

fn item(host: &str, n: u64) -> Value {
    json!({
        "id": format!("i-{n}"), "by": { "name": format!("author {}", n % 7) }, "text": format!("word{n} of {host}"),
        "lang": "en", "stars": n % 5 + 1, "at": 1_700_000_000 + n,
    })
}
