//! A paged API on loopback that fails, lies and changes as it is told, and writes down every request.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

/// A request as the API saw it.
#[derive(Clone, Debug)]
pub struct Asked {
    pub path: String,
    pub page: usize,
    pub status: u16,
    pub headers: HeaderMap,
    pub key: Option<String>,
}

#[derive(Default)]
pub struct Behaviour {
    /// Every so many requests one fails, by turns with 500, 503 and an answer that is no JSON; 0: none.
    pub fail_every: usize,
    /// What it says beyond the truth about the count.
    pub lie: i64,
    /// After so many good pages, so many items more are there, at the end.
    pub grow: Option<(usize, usize)>,
    /// Beyond its end it begins again: with the last page for any number, with the first cursor.
    pub circle: bool,
    pub latency: Duration,
    /// How often the count is given as null.
    pub malformed_counts: AtomicUsize,
}

pub struct Feed {
    pub addr: SocketAddr,
    shared: Arc<Shared>,
    server: tokio::task::JoinHandle<()>,
}

struct Shared {
    items: AtomicUsize,
    requests: AtomicUsize,
    pages: AtomicUsize,
    recovered: AtomicBool,
    behaviour: Behaviour,
    log: Mutex<Vec<Asked>>,
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.server.abort();
    }
}

#[derive(Deserialize)]
struct Asking {
    page: Option<usize>,
    size: Option<usize>,
    cursor: Option<String>,
    key: Option<String>,
}

impl Feed {
    pub async fn start(items: usize, behaviour: Behaviour) -> Result<Self> {
        let shared = Arc::new(Shared {
            items: AtomicUsize::new(items),
            requests: AtomicUsize::new(0),
            pages: AtomicUsize::new(0),
            recovered: AtomicBool::new(false),
            behaviour,
            log: Mutex::default(),
        });
        let app = Router::new()
            .route("/items", get(page))
            .route("/count", get(count))
            .route("/chain", get(chain))
            .with_state(Arc::clone(&shared));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let server = tokio::spawn(async move {
            let _ = axum::serve(listener, app).await;
        });
        Ok(Self { addr, shared, server })
    }

    /// From now on nothing fails.
    pub fn recover(&self) {
        self.shared.recovered.store(true, Ordering::SeqCst);
    }

    pub fn base(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.shared.log.lock().expect("no panic under this lock").clone()
    }

    /// Pages that were answered with 200 and how often.
    pub fn served(&self) -> std::collections::BTreeMap<usize, usize> {
        let mut served = std::collections::BTreeMap::new();
        for asked in self.asked().into_iter().filter(|asked| asked.status == 200 && asked.path != "/count") {
            *served.entry(asked.page).or_default() += 1;
        }
        served
    }

    /// The ids of everything it has.
    pub fn ids(&self) -> BTreeSet<String> {
        (0..self.shared.items.load(Ordering::SeqCst)).map(|n| format!("item-{n}")).collect()
    }

    /// The document of a source that reads it page by page.
    pub fn document(&self, size: usize) -> Value {
        json!({
            "url": "{base}/items?page={page}&size={page_size}", "base": self.base(),
            "paging": { "style": "numbered", "size": size, "count": { "path": "$.total" } },
            "items": "$.items", "id": "$.id", "delay_ms": 0, "concurrency": 16,
            "fields": { "author": "$.by.name", "text": "$.text", "language": "$.lang", "rating": "$.stars", "created_at": "$.at" },
        })
    }

    pub fn cursor_document(&self, size: usize) -> Value {
        let mut document = self.document(size);
        document["url"] = json!("{base}/chain?cursor={cursor}&size={page_size}");
        document["paging"] = json!({ "style": "cursor", "size": size, "next": "$.next" });
        document
    }
}

pub fn item(n: usize) -> Value {
    json!({
        "id": format!("item-{n}"), "by": { "name": format!("author {}", n % 7) }, "text": format!("word{n} for a reader"),
        "lang": (["en", "de", "fr"][n % 3]), "stars": n % 5 + 1, "at": 1_700_000_000 + n as i64, "extra": { "n": n },
    })
}

impl Shared {
    /// Fails by turns; writes the request down.
    async fn enter(&self, path: &str, page: usize, headers: &HeaderMap, key: Option<String>) -> Option<Response> {
        tokio::time::sleep(self.behaviour.latency).await;
        let number = self.requests.fetch_add(1, Ordering::SeqCst) + 1;
        let every = if self.recovered.load(Ordering::SeqCst) { 0 } else { self.behaviour.fail_every };
        let failure = (every > 0 && number.is_multiple_of(every)).then(|| match (number / every) % 3 {
            0 => (StatusCode::INTERNAL_SERVER_ERROR, "out of order").into_response(),
            1 => (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "0")], "busy").into_response(),
            _ => (StatusCode::OK, "{\"total\": 4").into_response(),
        });
        let status = match &failure {
            Some(answer) if answer.status() == StatusCode::OK => 299,
            Some(answer) => answer.status().as_u16(),
            None => 200,
        };
        let asked = Asked { path: path.to_owned(), page, status, headers: headers.clone(), key };
        self.log.lock().expect("no panic under this lock").push(asked);
        failure
    }

    fn total(&self) -> Value {
        let left = &self.behaviour.malformed_counts;
        if left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
            return Value::Null;
        }
        json!(self.items.load(Ordering::SeqCst) as i64 + self.behaviour.lie)
    }

    fn slice(&self, from: usize, size: usize) -> Vec<Value> {
        let pages = self.pages.fetch_add(1, Ordering::SeqCst) + 1;
        if let Some((after, more)) = self.behaviour.grow
            && pages == after
        {
            self.items.fetch_add(more, Ordering::SeqCst);
        }
        let items = self.items.load(Ordering::SeqCst);
        (from..items.min(from + size)).map(item).collect()
    }
}

async fn page(State(shared): State<Arc<Shared>>, headers: HeaderMap, Query(asking): Query<Asking>) -> Response {
    let (page, size) = (asking.page.unwrap_or(1), asking.size.unwrap_or(10));
    if let Some(failure) = shared.enter("/items", page, &headers, asking.key).await {
        return failure;
    }
    let pages = shared.items.load(Ordering::SeqCst).div_ceil(size);
    let page = if shared.behaviour.circle { page.min(pages) } else { page };
    let items = shared.slice((page - 1) * size, size);
    Json(json!({ "total": shared.total(), "items": items })).into_response()
}

async fn count(State(shared): State<Arc<Shared>>, headers: HeaderMap, Query(asking): Query<Asking>) -> Response {
    if let Some(failure) = shared.enter("/count", 0, &headers, asking.key).await {
        return failure;
    }
    Json(json!({ "total": shared.total() })).into_response()
}

async fn chain(State(shared): State<Arc<Shared>>, headers: HeaderMap, Query(asking): Query<Asking>) -> Response {
    let size = asking.size.unwrap_or(10);
    let from = asking.cursor.as_deref().and_then(|c| c.strip_prefix("after ")?.parse().ok()).unwrap_or(0);
    if let Some(failure) = shared.enter("/chain", from / size + 1, &headers, asking.key).await {
        return failure;
    }
    let items = shared.slice(from, size);
    let next = match from + size < shared.items.load(Ordering::SeqCst) {
        true => Some(from + size),
        false => shared.behaviour.circle.then_some(0),
    };
    let next = next.map(|from| format!("after {from}"));
    Json(json!({ "items": items, "next": next })).into_response()
}
