//! The bundled sample API: reviews of a canal, page by page, on loopback. A tenth of its requests fails, as those of
//! real APIs do. Its items are `scheduler/sample/reviews.json`.

use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdTcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const REVIEWS: &str = include_str!("../../sample/reviews.json");
/// One of so many requests fails.
const FAIL_EVERY: usize = 10;
const PAGE_MAX: usize = 100;
/// Name of the source that reads it.
pub const SOURCE: &str = "reviews";

/// The running API; dropping it ends it.
#[derive(Debug)]
pub struct SampleApi {
    addr: SocketAddr,
    stop: CancellationToken,
}

#[derive(Debug)]
struct Api {
    reviews: Vec<Value>,
    requests: AtomicUsize,
}

#[derive(Debug, Deserialize)]
struct Asking {
    page: Option<usize>,
    per_page: Option<usize>,
}

impl SampleApi {
    /// Serves on the given port, or on a free one for 0. To be called inside a tokio runtime.
    pub fn start_on(port: u16) -> Result<Self> {
        let listener = StdTcpListener::bind((Ipv4Addr::LOCALHOST, port))
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .and_then(TcpListener::from_std)
            .context("the sample API cannot listen on 127.0.0.1")?;
        let addr = listener.local_addr().context("cannot read a port")?;
        let reviews = serde_json::from_str(REVIEWS).context("the sample's reviews are damaged")?;
        let api = Arc::new(Api { reviews, requests: AtomicUsize::new(0) });
        let app = Router::new().route("/api/reviews", get(page)).with_state(api);
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        tokio::spawn(async move {
            tokio::select! { _ = axum::serve(listener, app) => {}, () = stopped => {} }
        });
        Ok(Self { addr, stop })
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What `{base}` of the document stands for.
    pub fn base(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The document of the source that reads it: 41 pages of at most 10 items.
    pub fn document() -> Value {
        json!({
            "url": "{base}/api/reviews?page={page}&per_page={page_size}",
            "paging": { "style": "numbered", "size": 10, "count": { "path": "$.total" } },
            "items": "$.reviews", "id": "$.id", "delay_ms": 20, "concurrency": 2,
            "fields": {
                "author": "$.author.name", "text": "$.body", "language": "$.lang", "rating": "$.stars", "created_at": "$.posted",
            },
        })
    }
}

impl Drop for SampleApi {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn page(State(api): State<Arc<Api>>, Query(asking): Query<Asking>) -> Response {
    let number = api.requests.fetch_add(1, Ordering::Relaxed) + 1;
    if number.is_multiple_of(FAIL_EVERY) {
        let status = if number.is_multiple_of(2 * FAIL_EVERY) {
            StatusCode::INTERNAL_SERVER_ERROR
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        return (status, "out of order\n").into_response();
    }
    let size = asking.per_page.unwrap_or(10).clamp(1, PAGE_MAX);
    let from = (asking.page.unwrap_or(1).max(1) - 1).saturating_mul(size);
    let reviews: Vec<&Value> = api.reviews.iter().skip(from).take(size).collect();
    Json(json!({ "total": api.reviews.len(), "reviews": reviews })).into_response()
}
