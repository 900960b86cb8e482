//! A web of several hosts on loopback addresses that writes down every request it serves.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Result;
use axum::Router;
use axum::extract::{Request, State};
use axum::response::{Html, IntoResponse, Redirect, Response};

/// The robots.txt of such a host is that of the host named behind it.
pub const MOVED: &str = "moved-";

/// What was asked for, path and query.
pub type Asked = Arc<Mutex<Vec<String>>>;

/// Serves a site that notes for itself what it is asked for. Returns where, and the notes.
pub async fn noting(app: Router<Asked>) -> Result<(String, Asked)> {
    let asked = Asked::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let place = listener.local_addr()?.to_string();
    let app = app.with_state(Arc::clone(&asked));
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok((place, asked))
}

/// One request as the server saw it.
#[derive(Clone, Debug)]
pub struct Hit {
    pub host: String,
    /// The address it came to.
    pub address: String,
    pub path: String,
    pub start: Instant,
    /// When the answer left, or the client had gone.
    pub end: Instant,
}

#[derive(Clone)]
struct Site {
    hits: Arc<Mutex<Vec<Hit>>>,
    pages: usize,
    hosts: Arc<Vec<String>>,
    address: String,
    latency: Duration,
}

/// `hosts` web sites of `pages` pages each; page n links to pages 2n+1 and 2n+2 of its host, to the start
/// page of the next host and to a neighbour.
pub struct Web {
    pub hits: Arc<Mutex<Vec<Hit>>>,
    /// "127.0.1.1:port" and so on.
    pub places: Vec<String>,
    pub pages: usize,
}

impl Web {
    pub async fn start(hosts: usize, pages: usize, latency: Duration) -> Result<Self> {
        let hits = Arc::new(Mutex::new(Vec::new()));
        let mut listeners = Vec::new();
        for n in 0..hosts {
            let address = Ipv4Addr::new(127, 0, 1, n as u8 + 1);
            listeners.push(tokio::net::TcpListener::bind((address, 0)).await?);
        }
        let places: Vec<String> =
            listeners.iter().map(|l| l.local_addr().map(|a| a.to_string())).collect::<Result<_, _>>()?;
        let hosts = Arc::new(places.clone());
        for (listener, place) in listeners.into_iter().zip(&places) {
            let (hits, hosts) = (Arc::clone(&hits), Arc::clone(&hosts));
            serve(listener, Site { hits, pages, hosts, address: place.clone(), latency });
        }
        Ok(Self { hits, places, pages })
    }

    /// One server for many names; the Host header tells them apart.
    pub async fn virtual_hosts(
        names: &[String],
        pages: usize,
        latency: Duration,
        addresses: &[Ipv4Addr],
        port: u16,
    ) -> Result<Self> {
        let hits = Arc::new(Mutex::new(Vec::new()));
        for address in addresses {
            let listener = tokio::net::TcpListener::bind((*address, port)).await?;
            let (hits, hosts) = (Arc::clone(&hits), Arc::new(names.to_vec()));
            serve(listener, Site { hits, pages, hosts, address: address.to_string(), latency });
        }
        Ok(Self { hits, places: names.to_vec(), pages })
    }

    pub fn seeds(&self) -> Vec<String> {
        self.places.iter().map(|place| format!("http://{place}/0")).collect()
    }

    /// Every page's URL.
    pub fn urls(&self) -> Vec<String> {
        self.places.iter().flat_map(|place| (0..self.pages).map(move |n| format!("http://{place}/{n}"))).collect()
    }

    pub fn hits(&self) -> Vec<Hit> {
        self.hits.lock().expect("no panic under this lock").clone()
    }
}

/// The links of page `n` of host `place`.
pub fn links(hosts: &[String], place: &str, n: usize, pages: usize) -> Vec<String> {
    let own = hosts.iter().position(|host| host == place).unwrap_or(0);
    let next = &hosts[(own + 1) % hosts.len()];
    let mut links: Vec<String> = [2 * n + 1, 2 * n + 2, (n + 1) % pages]
        .iter()
        .filter(|to| **to < pages)
        .map(|to| format!("http://{place}/{to}"))
        .collect();
    links.push(format!("http://{next}/0"));
    links.dedup();
    let mut distinct = Vec::new();
    for link in links {
        if !distinct.contains(&link) {
            distinct.push(link);
        }
    }
    distinct
}

fn serve(listener: tokio::net::TcpListener, site: Site) {
    let app = Router::new().fallback(answer).with_state(site);
    tokio::spawn(async move {
        let _ = axum::serve(listener, app).await;
    });
}

/// Writes its hit down when the answer is done, or dropped because the client has gone.
struct Record {
    site: Site,
    host: String,
    path: String,
    start: Instant,
}

impl Drop for Record {
    fn drop(&mut self) {
        self.site.hits.lock().expect("no panic under this lock").push(Hit {
            host: self.host.clone(),
            address: self.site.address.clone(),
            path: self.path.clone(),
            start: self.start,
            end: Instant::now(),
        });
    }
}

async fn answer(State(site): State<Site>, request: Request) -> Response {
    let host = request.headers().get("host").and_then(|host| host.to_str().ok()).unwrap_or_default().to_owned();
    let path = request.uri().path().to_owned();
    let _record = Record { site: site.clone(), host: host.clone(), path: path.clone(), start: Instant::now() };
    tokio::time::sleep(site.latency).await;
    if let Some(other) = host.strip_prefix(MOVED).filter(|_| path == "/robots.txt") {
        return Redirect::permanent(&format!("http://{other}/robots.txt")).into_response();
    }
    if path == "/robots.txt" {
        return "User-agent: *\nDisallow: /private\n".into_response();
    }
    match path.trim_start_matches('/').parse::<usize>() {
        Ok(n) if n < site.pages => {
            let body: String = links(&site.hosts, &host, n, site.pages)
                .iter()
                .map(|link| format!("<a href=\"{link}\">x</a>\n"))
                .collect();
            Html(format!("<!doctype html><html lang=en><title>page {n}</title>\n{body}</html>")).into_response()
        }
        _ => axum::http::StatusCode::NOT_FOUND.into_response(),
    }
}
