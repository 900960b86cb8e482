//! The life of a worker process: register, work, and register anew when it was refused.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use dodo_common::db::pool::{Db, DbError};
use dodo_common::db::worker::{self, Registration};
use dodo_common::db::{generation, migrate};
use dodo_common::fail;
use dodo_common::lifecycle::Lifecycle;
use dodo_common::place;
use dodo_common::storage::object::{S3Settings, Store};
use dodo_common::stream::connection::Redis;
use dodo_common::telemetry::{logging, metric};
use uuid::Uuid;

use crate::archiver::{self, Archiver};
use crate::context::Context;
use crate::fetch::Fetcher;
use crate::heart::Pulse;
use crate::settings::{Role, Settings};
use crate::{committer, consumer, heart, processor};

/// Connections to Postgres: commits, loads and a spare.
const DB_CONNECTIONS: usize = 5;
/// The archiver's, beside the one that holds its lock.
const ARCHIVER_CONNECTIONS: usize = 1;
/// A server that is not there yet is asked again this often at the start.
const START_TRIES: u32 = 150;

pub async fn run(settings: Settings, lifecycle: Lifecycle) -> anyhow::Result<()> {
    metric::install().map_err(anyhow::Error::msg)?;
    let about = about(&settings)?;
    let mut before = None;
    let mut log = None;
    loop {
        let id = Uuid::now_v7();
        let connect = |size| Db::worker(&settings.servers.database_url, &worker::session_name(id), size);
        let db = connect(DB_CONNECTIONS)?;
        let incarnation = match register(&db, id, before, &about, &lifecycle).await? {
            Some(incarnation) => incarnation,
            None => return Ok(()),
        };
        if log.is_none() {
            let name = log_name(&about, incarnation.slot);
            let guard = logging::start(&settings.logging, &name, settings.log_console).map_err(anyhow::Error::msg)?;
            tokio::spawn(guard.report_dropped());
            log = Some(guard);
        }
        let (region, proxy) = (about.region.as_deref(), about.proxy.as_deref());
        tracing::info!(worker = %id, slot = incarnation.slot, generation = incarnation.generation, region, proxy, "registered");
        fail::point_async("registered").await;
        let url = &settings.servers.redis_url;
        let ours = |redis: Redis| redis.of_generation(incarnation.generation, &incarnation.run_id);
        let redis = ours(Redis::new(url, &format!("{id}:write"))?);
        let reader = ours(Redis::blocking(url, &format!("{id}:read"))?);
        let items = ours(Redis::blocking(url, &format!("{id}:items"))?);
        let archive = ours(Redis::new(url, &format!("{id}:archive"))?);
        let pulse = Arc::new(Pulse::default());
        let fetcher = Fetcher::new(&settings, Arc::clone(&pulse)).context("cannot make the HTTP client")?;
        let ctx =
            Arc::new(Context::new(settings.clone(), incarnation, db, redis, (fetcher, pulse), lifecycle.soft.clone()));
        heart::start(&ctx)?;
        let archiver = Archiver::new(Arc::clone(&ctx), connect(ARCHIVER_CONNECTIONS)?, archive, store(&settings)?);
        work(&ctx, (reader, items), archiver, &lifecycle).await;
        before = Some(id);
        if !ctx.refused.is_cancelled() {
            worker::end(&ctx.db, id).await.unwrap_or_else(|error| tracing::warn!(%error, "cannot say that it ended"));
            // The heart must stop: an ended incarnation has no heartbeat.
            ctx.refused.cancel();
            tracing::info!(worker = %id, settled = ctx.settled.load(Ordering::Relaxed), "drained");
            return Ok(());
        }
        if lifecycle.soft.is_cancelled() {
            // Told to stop and out of grace: what it still held is taken back by the reaper.
            return Ok(());
        }
    }
}

/// Runs every part until the incarnation is refused or has drained.
async fn work(ctx: &Arc<Context>, (reader, items): (Redis, Redis), archiver: Archiver, lifecycle: &Lifecycle) {
    let tasks = tokio_util::task::TaskTracker::new();
    if ctx.settings.roles.contains(&Role::Fetch) {
        let (results, queue) = committer::channel();
        for _ in 0..committer::COMMITTERS {
            tasks.spawn(committer::run(Arc::clone(ctx), queue.clone()));
        }
        tasks.spawn(consumer::run(Arc::clone(ctx), reader, results));
    }
    if ctx.settings.roles.contains(&Role::Process) {
        tasks.spawn(processor::run(Arc::clone(ctx), items));
    }
    if ctx.settings.roles.contains(&Role::Archive) {
        tasks.spawn_blocking(|| archiver::run(archiver));
    }
    tasks.close();
    // The one deadline of a drain, whatever a part waits for: a database that is away ends no wait by itself.
    let drain = async {
        lifecycle.soft.cancelled().await;
        ctx.draining.store(true, Ordering::Relaxed);
        fail::point_async("drain-begun").await;
        let announce = async {
            if let Err(error) = worker::drain(&ctx.db, ctx.incarnation.id).await {
                tracing::warn!(%error, "cannot say that it drains");
            }
        };
        let grace = Duration::from_millis(ctx.settings.drain_ms);
        let _ = tokio::time::timeout(grace, async {
            announce.await;
            std::future::pending::<()>().await;
        })
        .await;
        ctx.refuse("the grace to drain is over; what it holds is handed back");
    };
    tokio::select! {
        () = tasks.wait() => {}
        () = drain => {}
        () = lifecycle.hard.cancelled() => ctx.refuse("a second signal"),
    }
    // Refused: whatever still runs is dropped with its results.
    let _ = tokio::time::timeout(Duration::from_secs(2), tasks.wait()).await;
}

/// Registers, waiting for a database that is starting; nothing when told to stop meanwhile.
async fn register(
    db: &Db,
    id: Uuid,
    before: Option<Uuid>,
    about: &Registration,
    lifecycle: &Lifecycle,
) -> anyhow::Result<Option<worker::Incarnation>> {
    let mut tries = 0;
    loop {
        let attempt = async {
            migrate::check(db).await?;
            // Before the first generation there is no stream to read: a leader makes them.
            if generation::current(db).await?.number == 0 {
                return Err(DbError::Pool("no scheduler has started a generation yet".to_owned()));
            }
            worker::register(db, id, before, about).await
        };
        match attempt.await {
            Ok(incarnation) => return Ok(Some(incarnation)),
            Err(error @ (DbError::Schema(_) | DbError::Url(_) | DbError::Input(_))) => return Err(error.into()),
            // A worker that has worked waits as long as it takes; a new one says at last what is wrong.
            Err(error) if before.is_none() && tries >= START_TRIES => return Err(error.into()),
            Err(error) if before.is_none() && error.to_string().contains("authentication failed") => {
                return Err(error.into());
            }
            Err(error) => tracing::debug!(%error, "cannot register yet"),
        }
        tries += 1;
        tokio::select! {
            () = lifecycle.soft.cancelled() => return Ok(None),
            () = tokio::time::sleep(Duration::from_millis(200)) => {}
        }
    }
}

fn about(settings: &Settings) -> anyhow::Result<Registration> {
    let pool = settings.pool()?;
    let regions: Vec<&str> = pool.regions().into_iter().collect();
    let region = settings.region.clone().filter(|region| !region.trim().is_empty());
    Ok(Registration {
        host: place::host_name(),
        address: place::own_address().to_string(),
        region: region.or_else(|| (!regions.is_empty()).then(|| regions.join("+"))),
        proxy: match pool.all() {
            [] => settings.proxy()?.map(|proxy| proxy.to_string()),
            [only] => Some(only.proxy.to_string()),
            _ => Some("pool".to_owned()),
        },
        roles: settings.roles.iter().map(|role| role.as_str().to_owned()).collect(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id() as i32,
        permits: i32::from(settings.permits),
    })
}

/// `worker-REGION-via-HOST:PORT-ADDRESS-SLOT`, without what is not set; `via-pool` where there are several proxies, which
/// the lines of the jobs name. A region is the operator's text, and no path.
fn log_name(about: &Registration, slot: i32) -> String {
    let plain = |c: char| if c.is_alphanumeric() || matches!(c, '.' | '_') { c } else { '-' };
    let region = about.region.as_ref().map(|region| format!("{}-", region.chars().map(plain).collect::<String>()));
    let proxy = about.proxy.as_ref().map(|proxy| format!("via-{proxy}-"));
    format!("worker-{}{}{}-{slot}", region.unwrap_or_default(), proxy.unwrap_or_default(), about.address)
}

fn store(settings: &Settings) -> anyhow::Result<Store> {
    let s3 = &settings.servers.s3;
    Ok(Store::s3(&S3Settings {
        endpoint: s3.s3_endpoint.clone(),
        bucket: s3.s3_bucket.clone(),
        region: s3.s3_region.clone(),
        access_key: s3.s3_access_key.clone(),
        secret_key: s3.s3_secret_key.clone(),
        allow_http: s3.s3_endpoint.starts_with("http://"),
    })?)
}
