//! `dodo serve` and `dodo migrate`: the scheduler as a process of its own.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;
use dodo_common::config::{Logging, Servers};
use dodo_common::db::migrate as migrations;
use dodo_common::db::pool::Db;
use dodo_common::lifecycle::Lifecycle;
use dodo_common::place;
use dodo_common::stream::control;
use dodo_common::telemetry::{logging, metric};

use crate::api::{self, Api};
use crate::cli::{archive, say};
use crate::context::{Bounds, Context, Duties};
use crate::leader;

/// Connections to Postgres of one scheduler.
const DB_CONNECTIONS: usize = 8;

#[derive(Args, Debug)]
pub struct Serve {
    #[command(flatten)]
    pub servers: Servers,
    #[command(flatten)]
    pub logging: Logging,
    #[command(flatten)]
    pub http: Http,
    #[command(flatten)]
    pub duties: Duties,
    #[command(flatten)]
    pub bounds: Bounds,
}

/// The API's settings, for `dodo serve` and `dodo up`.
#[derive(Args, Clone, Debug)]
pub struct Http {
    /// Address the API listens on; anything but loopback needs an admin token
    #[arg(long, env = "DODO_LISTEN", default_value = "127.0.0.1:7070")]
    pub listen: SocketAddr,
    /// Token the API asks for
    #[arg(long, env = "DODO_ADMIN_TOKEN", hide_env_values = true)]
    pub admin_token: Option<String>,
}

#[derive(Args, Debug)]
pub struct Migrate {
    /// Postgres, for example postgres://dodo:password@127.0.0.1:5432/dodo
    #[arg(long, env = "DODO_DATABASE_URL", hide_env_values = true)]
    database_url: String,
    /// Print JSON for scripts
    #[arg(long)]
    json: bool,
}

pub async fn serve(serve: Serve) -> anyhow::Result<ExitCode> {
    let lifecycle = Lifecycle::install().context("cannot listen for signals")?;
    let name = log_name(serve.http.listen);
    let guard = logging::start(&serve.logging, &name, true).map_err(anyhow::Error::msg)?;
    let ctx = open(&serve.servers, serve.duties, serve.bounds, &lifecycle).await?;
    let api = api(&ctx, &serve.http)?;
    let listener = api::bind(serve.http.listen, serve.http.admin_token.as_deref()).await?;
    tracing::info!(listen = %serve.http.listen, scheduler = %ctx.id, "serving");
    let leading = tokio::spawn(leader::run(Arc::clone(&ctx)));
    tokio::select! {
        served = api::serve(listener, api) => served?,
        () = guard.report_dropped() => {}
        () = lifecycle.hard.cancelled() => {}
    }
    let _ = leading.await;
    Ok(ExitCode::SUCCESS)
}

/// The log directory is this scheduler's own: the port tells it from others of this machine; one that listens
/// everywhere is told from others on the same port, each in its container, by its address.
fn log_name(listen: SocketAddr) -> String {
    if listen.ip().is_unspecified() {
        format!("scheduler-{}-{}", place::own_address(), listen.port())
    } else {
        format!("scheduler-{}", listen.port())
    }
}

/// Connects, and refuses what would only fail later: an unknown schema, a Redis that evicts, a missing bucket.
pub async fn open(
    servers: &Servers,
    duties: Duties,
    bounds: Bounds,
    lifecycle: &Lifecycle,
) -> anyhow::Result<Arc<Context>> {
    let pool = bounds.proxies.pool.pool().map_err(anyhow::Error::msg)?;
    let db = Db::pipeline(&servers.database_url, "dodo-scheduler", DB_CONNECTIONS)?;
    migrations::check(&db).await?;
    let store = archive::store(&servers.s3)?;
    let ctx = Context::new(db, &servers.redis_url, store, duties, bounds, pool, lifecycle.soft.clone())?;
    control::check_fit(&ctx.redis).await?;
    ctx.store.check().await?;
    Ok(ctx)
}

pub fn api(ctx: &Arc<Context>, http: &Http) -> anyhow::Result<Api> {
    let handle = metric::install().map_err(anyhow::Error::msg)?;
    Ok(Api {
        ctx: Arc::clone(ctx),
        token: http.admin_token.as_deref().filter(|token| !token.is_empty()).map(Arc::from),
        metrics: Arc::new(move || handle.render()),
    })
}

pub async fn migrate(args: Migrate) -> anyhow::Result<ExitCode> {
    let applied = migrations::migrate(&args.database_url).await?;
    say(match (args.json, applied.as_slice()) {
        (true, applied) => serde_json::json!({ "applied": applied }).to_string(),
        (false, []) => "the schema is up to date".to_owned(),
        (false, applied) => format!("applied migrations {applied:?}"),
    })?;
    Ok(ExitCode::SUCCESS)
}
