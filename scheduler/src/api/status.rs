//! The cluster at a glance: leader, workers, streams, health, metrics.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::State;
use dodo_common::db::proxy::ProxyRow;
use dodo_common::db::worker::WorkerRow;
use dodo_common::db::{dispatch, generation, leader, proxy, schedule, segment, suspect, worker};
use dodo_common::stream::heartbeat::{self, Beat};
use dodo_common::stream::status::{self as streams_status, StreamStatus};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::api::{Api, ApiError, ApiResult};
use crate::context::Context;

/// A worker as one wants to read it.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct WorkerView {
    pub id: Uuid,
    pub slot: i32,
    /// starting, ready, busy, draining, lost or ended.
    pub state: String,
    pub host: String,
    pub address: String,
    pub region: Option<String>,
    /// host:port of the proxy its requests leave by.
    pub proxy: Option<String>,
    pub roles: Vec<String>,
    pub version: String,
    pub pid: i32,
    pub generation: i64,
    pub in_flight: u64,
    pub settled: u64,
    /// Bytes of results that wait to be committed.
    #[serde(default)]
    pub held_bytes: u64,
    /// Why it is slow.
    #[serde(default)]
    pub slow: Option<String>,
    pub heartbeat_age_ms: Option<i64>,
    pub registered_at: chrono::DateTime<chrono::Utc>,
    pub reason: Option<String>,
}

/// A proxy of the pool, as its leader wrote it down within the last second.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ProxyView {
    pub region: String,
    /// host:port, without credentials.
    pub address: String,
    /// healthy, quarantined, or trial: its quarantine is over, and one request at a time decides.
    pub state: String,
    pub successes: i64,
    /// Answers that look as if a site had blocked it: 401, 403, 429, challenges.
    pub blocks: i64,
    /// Requests without an answer.
    pub failures: i64,
    pub quarantined_until: Option<chrono::DateTime<chrono::Utc>>,
}

#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Status {
    /// The scheduler that leads, and its epoch.
    pub leader: Option<Uuid>,
    pub epoch: Option<i64>,
    pub generation: i64,
    /// Jobs are being issued by the scheduler that answers.
    pub dispatching: bool,
    /// Why it issues nothing all the same: the archive is behind, and Redis would overflow.
    pub backpressure: Option<String>,
    /// Why work is slow: what each worker says of itself, and regions without a healthy proxy.
    #[serde(default)]
    pub slow: Vec<String>,
    pub jobs_pending: i64,
    /// How long the oldest due job of those looked at has waited, milliseconds.
    pub oldest_due_ms: i64,
    pub workers: HashMap<String, usize>,
    /// The pool, by region and address.
    #[serde(default)]
    pub proxies: Vec<ProxyView>,
    pub archive_objects: i64,
    pub archive_bytes: i64,
    pub redis_bytes: u64,
}

/// The cluster at a glance
#[utoipa::path(get, path = "/v1/status", responses((status = 200, body = Status)))]
pub async fn status(State(api): State<Api>) -> ApiResult<Json<Status>> {
    let ctx = &api.ctx;
    let leader = leader::current(&ctx.db).await?;
    let (jobs_pending, oldest_due_ms) = schedule::backlog(&ctx.db).await?;
    let (archive_objects, archive_bytes) = segment::totals(&ctx.db).await?;
    let mut workers = HashMap::new();
    let mut slow = Vec::new();
    for view in views(ctx).await?.into_iter().filter(|view| view.state != "ended") {
        if let (Some(why), false) = (&view.slow, view.state == "lost") {
            slow.push(format!("worker {} at {}: {why}", view.slot, view.address));
        }
        *workers.entry(view.state).or_default() += 1;
    }
    let proxies: Vec<ProxyView> = proxy::all(&ctx.db).await?.into_iter().map(|row| proxy_view(ctx, row)).collect();
    for region in proxies.chunk_by(|a, b| a.region == b.region) {
        // On trial they are tried as soon as anything is to leave.
        if region.iter().all(|proxy| proxy.state == "quarantined") {
            slow.push(format!("no proxy of region {} is healthy: what leaves by it waits", region[0].region));
        }
    }
    let regions: HashSet<&str> = proxies.iter().map(|proxy| proxy.region.as_str()).collect();
    for (region, crawls) in dispatch::regions(&ctx.db).await?.iter().filter(|(region, _)| !regions.contains(&**region))
    {
        let what = if *crawls == 1 { "1 crawl".to_owned() } else { format!("{crawls} crawls") };
        slow.push(format!("DODO_PROXIES has no proxy of region {region}: {what} of it waits for one"));
    }
    let backpressure = ctx.backpressure.lock().expect("no panic under this lock").clone();
    Ok(Json(Status {
        leader: leader.map(|(id, _)| id),
        epoch: leader.map(|(_, epoch)| epoch),
        generation: generation::current(&ctx.db).await?.number,
        dispatching: ctx.window_ready.load(Ordering::Relaxed),
        backpressure,
        slow,
        jobs_pending,
        oldest_due_ms,
        workers,
        proxies,
        archive_objects,
        archive_bytes,
        redis_bytes: streams_status::memory_bytes(&ctx.redis).await.unwrap_or_default(),
    }))
}

/// Workers: those that live, and the latest of those that do not
#[utoipa::path(get, path = "/v1/workers", responses((status = 200, body = Vec<WorkerView>)))]
pub async fn workers(State(api): State<Api>) -> ApiResult<Json<Vec<WorkerView>>> {
    Ok(Json(views(&api.ctx).await?))
}

async fn views(ctx: &Context) -> ApiResult<Vec<WorkerView>> {
    // Without Redis the rows are still worth showing: the states are then what Postgres knows.
    let beats: HashMap<Uuid, (i64, Beat)> = heartbeat::all(&ctx.redis)
        .await
        .unwrap_or_default()
        .into_iter()
        .map(|heard| (heard.worker, (heard.age_ms, heard.beat)))
        .collect();
    Ok(worker::recent(&ctx.db).await?.into_iter().map(|row| view(row, &beats)).collect())
}

fn proxy_view(ctx: &Context, row: ProxyRow) -> ProxyView {
    let until = |ms| chrono::DateTime::from_timestamp_millis(ctx.clock.now_ms() + ms);
    let state = match row.quarantined_ms {
        None => "healthy",
        Some(1..) => "quarantined",
        Some(_) => "trial",
    };
    ProxyView {
        region: row.region,
        address: row.address,
        state: state.to_owned(),
        successes: row.successes,
        blocks: row.blocks,
        failures: row.failures,
        quarantined_until: row.quarantined_ms.and_then(until),
    }
}

fn view(row: WorkerRow, beats: &HashMap<Uuid, (i64, Beat)>) -> WorkerView {
    let beat = beats.get(&row.id);
    let state = match beat {
        _ if row.lost_at.is_some() => "lost",
        _ if row.ended_at.is_some() => "ended",
        _ if row.draining_at.is_some() => "draining",
        None => "starting",
        Some((_, beat)) if beat.in_flight > 0 => "busy",
        Some(_) => "ready",
    };
    WorkerView {
        id: row.id,
        slot: row.slot,
        state: state.to_owned(),
        host: row.host,
        address: row.address,
        region: row.region,
        proxy: row.proxy,
        roles: row.roles,
        version: row.version,
        pid: row.pid,
        generation: row.generation,
        in_flight: beat.map_or(0, |(_, beat)| beat.in_flight),
        settled: beat.map_or(0, |(_, beat)| beat.settled),
        held_bytes: beat.map_or(0, |(_, beat)| beat.held_bytes),
        slow: beat.and_then(|(_, beat)| beat.slow.clone()),
        heartbeat_age_ms: beat.map(|(age, _)| *age),
        registered_at: row.registered_at,
        reason: row.reason,
    }
}

/// Streams: length, lag, pending, horizon
#[utoipa::path(get, path = "/v1/streams", responses((status = 200, body = Vec<StreamStatus>)))]
pub async fn streams(State(api): State<Api>) -> ApiResult<Json<Vec<StreamStatus>>> {
    Ok(Json(streams_status::all(&api.ctx.redis).await?))
}

/// The process answers
#[utoipa::path(get, path = "/health/live", responses((status = 200)))]
pub async fn live() -> &'static str {
    "live\n"
}

/// Postgres and Redis answer
#[utoipa::path(get, path = "/health/ready", responses((status = 200), (status = 503)))]
pub async fn ready(State(api): State<Api>) -> Result<&'static str, ApiError> {
    generation::current(&api.ctx.db).await?;
    streams_status::memory_bytes(&api.ctx.redis).await?;
    Ok("ready\n")
}

/// Metrics in the Prometheus text format
#[utoipa::path(get, path = "/metrics", responses((status = 200, content_type = "text/plain")))]
pub async fn metrics(State(api): State<Api>) -> String {
    if let Ok((pending, oldest_due_ms)) = schedule::backlog(&api.ctx.db).await {
        metrics::gauge!("dodo_jobs_pending").set(pending as f64);
        metrics::gauge!("dodo_oldest_due_seconds").set(oldest_due_ms as f64 / 1000.0);
    }
    if let Ok(suspects) = suspect::pending(&api.ctx.db).await {
        metrics::gauge!("dodo_jobs_suspect").set(suspects as f64);
    }
    if let Ok(streams) = streams_status::all(&api.ctx.redis).await {
        for stream in streams {
            metrics::gauge!("dodo_stream_length", "stream" => stream.name.clone()).set(stream.length as f64);
            metrics::gauge!("dodo_stream_pending", "stream" => stream.name.clone()).set(stream.pending as f64);
            metrics::gauge!("dodo_stream_lag", "stream" => stream.name).set(stream.lag.unwrap_or_default() as f64);
        }
    }
    if let Ok(views) = views(&api.ctx).await {
        let (mut gone, living): (Vec<_>, Vec<_>) =
            views.into_iter().partition(|view| matches!(view.state.as_str(), "lost" | "ended"));
        // A series stays as it was set last. Another worker may have the place of one that is gone.
        gone.retain(|view| living.iter().all(|other| other.slot != view.slot));
        let gone = gone.into_iter().map(|view| WorkerView { in_flight: 0, held_bytes: 0, settled: 0, ..view });
        for view in gone.chain(living) {
            let labels = [
                ("slot", view.slot.to_string()),
                ("region", view.region.unwrap_or_default()),
                ("proxy", view.proxy.unwrap_or_default()),
            ];
            metrics::gauge!("dodo_worker_in_flight", &labels).set(view.in_flight as f64);
            metrics::gauge!("dodo_worker_held_bytes", &labels).set(view.held_bytes as f64);
            metrics::gauge!("dodo_worker_settled", &labels).set(view.settled as f64);
        }
    }
    for proxy in proxy::all(&api.ctx.db).await.unwrap_or_default() {
        let labels = [("region", proxy.region), ("proxy", proxy.address)];
        metrics::gauge!("dodo_proxy_healthy", &labels).set(f64::from(u8::from(proxy.quarantined_ms.is_none())));
        metrics::counter!("dodo_proxy_successes_total", &labels).absolute(proxy.successes.max(0) as u64);
        metrics::counter!("dodo_proxy_blocks_total", &labels).absolute(proxy.blocks.max(0) as u64);
        metrics::counter!("dodo_proxy_failures_total", &labels).absolute(proxy.failures.max(0) as u64);
    }
    (api.metrics)()
}
