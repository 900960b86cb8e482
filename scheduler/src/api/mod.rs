//! The HTTP API: one file a resource, one OpenAPI document, served beside it.

pub mod crawl;
pub mod dead;
pub mod dispatch;
pub mod export;
pub mod extract;
pub mod incident;
pub mod job;
pub mod manifest;
pub mod record;
pub mod source;
pub mod status;
pub mod timer;
pub mod why;
pub mod why_slow;

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use dodo_common::db::pool::DbError;
use dodo_common::stream::connection::StreamError;
use tokio::net::TcpListener;
use utoipa::OpenApi;

use crate::context::Context;

/// A request body beyond this is refused.
const BODY_BYTES_MAX: usize = 16 << 20;

/// What the handlers share.
#[derive(Clone)]
pub struct Api {
    pub ctx: Arc<Context>,
    /// Asked for on every path but the health checks, where there is one.
    pub token: Option<Arc<str>>,
    /// Renders the metrics; a function, so that the API does not know which exporter it is.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
}

#[derive(OpenApi)]
#[openapi(
    info(title = "Dodo", description = "Crawl and scrape as dependable infrastructure."),
    paths(
        crawl::submit,
        crawl::submit_noops,
        dispatch::list,
        dispatch::get,
        dispatch::hosts,
        dispatch::pause,
        dispatch::resume,
        dispatch::cancel,
        job::list,
        job::get,
        why::why,
        why_slow::why_slow,
        incident::list,
        status::status,
        status::workers,
        status::streams,
        status::live,
        status::ready,
        status::metrics,
        export::pages,
        export::links,
        manifest::submit,
        manifest::list,
        source::put,
        source::list,
        source::get,
        source::delete,
        source::run,
        source::put_secret,
        source::secrets,
        timer::list,
        timer::delete,
        record::list,
        record::unfit,
        record::replay,
        record::report,
        dead::list,
        dead::replay,
    )
)]
struct Document;

/// An error as the client sees it: a status and `{"error": "one line"}`.
#[derive(Debug)]
pub struct ApiError(pub StatusCode, pub String);

pub type ApiResult<T> = Result<T, ApiError>;

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.0, Json(serde_json::json!({ "error": self.1 }))).into_response()
    }
}

impl From<DbError> for ApiError {
    fn from(error: DbError) -> Self {
        let status = match &error {
            DbError::Input(_) => StatusCode::UNPROCESSABLE_ENTITY,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self(status, error.to_string())
    }
}

impl From<StreamError> for ApiError {
    fn from(error: StreamError) -> Self {
        Self(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}

pub fn not_found(what: &str) -> ApiError {
    ApiError(StatusCode::NOT_FOUND, format!("there is no {what}"))
}

pub fn bad_request(why: impl Into<String>) -> ApiError {
    ApiError(StatusCode::BAD_REQUEST, why.into())
}

pub fn router(api: Api) -> Router {
    let open = Router::new().route("/health/live", get(status::live)).route("/health/ready", get(status::ready));
    let guarded = Router::new()
        .route("/v1/crawls", post(crawl::submit))
        .route("/v1/noops", post(crawl::submit_noops))
        .route("/v1/dispatches", get(dispatch::list))
        .route("/v1/dispatches/{id}", get(dispatch::get))
        .route("/v1/dispatches/{id}/hosts", get(dispatch::hosts))
        .route("/v1/dispatches/{id}/why-slow", get(why_slow::why_slow))
        .route("/v1/dispatches/{id}/pause", post(dispatch::pause))
        .route("/v1/dispatches/{id}/resume", post(dispatch::resume))
        .route("/v1/dispatches/{id}/cancel", post(dispatch::cancel))
        .route("/v1/jobs", get(job::list))
        .route("/v1/jobs/{id}", get(job::get))
        .route("/v1/why", get(why::why))
        .route("/v1/incidents", get(incident::list))
        .route("/v1/status", get(status::status))
        .route("/v1/workers", get(status::workers))
        .route("/v1/streams", get(status::streams))
        .route("/v1/export/pages", get(export::pages))
        .route("/v1/export/links", get(export::links))
        .route("/v1/manifests", get(manifest::list).post(manifest::submit))
        .route("/v1/sources", get(source::list))
        .route("/v1/sources/{name}", get(source::get).put(source::put).delete(source::delete))
        .route("/v1/sources/{name}/dispatches", post(source::run))
        .route("/v1/secrets", get(source::secrets))
        .route("/v1/secrets/{name}", put(source::put_secret))
        .route("/v1/timers", get(timer::list))
        .route("/v1/timers/{id}", axum::routing::delete(timer::delete))
        .route("/v1/records", get(record::list))
        .route("/v1/unfit", get(record::unfit))
        .route("/v1/unfit/replay", post(record::replay))
        .route("/v1/report", get(record::report))
        .route("/v1/dead", get(dead::list))
        .route("/v1/dead/replay", post(dead::replay))
        .route("/metrics", get(status::metrics))
        .route("/openapi.json", get(async || Json(Document::openapi())))
        .layer(middleware::from_fn_with_state(api.clone(), authorise));
    open.merge(guarded)
        .fallback(async || ApiError(StatusCode::NOT_FOUND, "no such path; see /openapi.json".to_owned()))
        .layer(axum::extract::DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(api)
}

async fn authorise(State(api): State<Api>, request: Request, next: Next) -> Response {
    if let Some(token) = &api.token {
        let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let given = given.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
        if !same(given.as_bytes(), token.as_bytes()) {
            return ApiError(StatusCode::UNAUTHORIZED, "send the admin token: Authorization: Bearer ...".to_owned())
                .into_response();
        }
    }
    next.run(request).await
}

/// Compares in time that does not tell where the first difference is.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (x, y)| difference | (x ^ y)) == 0
}

/// Binds the API.
///
/// # Errors
/// One line: the address is not loopback and there is no token, or the port is taken.
pub async fn bind(address: SocketAddr, token: Option<&str>) -> anyhow::Result<TcpListener> {
    if !address.ip().is_loopback() && token.is_none_or(str::is_empty) {
        bail!("the API may not listen on {address} without an admin token; set DODO_ADMIN_TOKEN");
    }
    TcpListener::bind(address)
        .await
        .with_context(|| format!("the API cannot listen on {address}; choose another with --listen or --port"))
}

pub async fn serve(listener: TcpListener, api: Api) -> anyhow::Result<()> {
    let soft = api.ctx.soft.clone();
    axum::serve(listener, router(api)).with_graceful_shutdown(soft.cancelled_owned()).await.context("the API ended")
}
