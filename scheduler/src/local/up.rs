//! `dodo up`: the whole cluster on one machine, and the crawls it was given.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use dodo_common::config::{Logging, S3, Servers};
use dodo_common::db::dispatch;
use dodo_common::db::migrate;
use dodo_common::lifecycle::Lifecycle;
use dodo_common::model::address::Openings;
use dodo_common::model::proxy::Proxy;
use dodo_common::telemetry::logging;
use url::Url;

use crate::api;
use crate::cli::crawl::CrawlFlags;
use crate::cli::serve::{self, Http};
use crate::cli::tell;
use crate::context::{Bounds, Duties};
use crate::leader;
use crate::local::postgres::PostgresServer;
use crate::local::redis::RedisServer;
use crate::local::s3::S3Endpoint;
use crate::local::sample::Sample;
use crate::local::watch::{Summary, Watched};
use crate::local::workers::{self, WorkerEnv};
use crate::local::{lock_dir, make_dir, write_private};

const BUCKET: &str = "dodo";
/// On one machine nobody wants to wait a minute for a manifest.
const MANIFESTS: &str = "manifests";
const MANIFEST_REFRESH_MS: u64 = 1000;

#[derive(Args, Debug)]
pub struct Up {
    /// Directory that holds everything [default: /var/lib/dodo for root, else ~/.local/share/dodo]
    #[arg(long, env = "DODO_DATA")]
    data: Option<PathBuf>,
    /// Worker processes
    #[arg(long, env = "DODO_WORKERS", default_value_t = 2, value_parser = clap::value_parser!(u16).range(0..=256))]
    workers: u16,
    /// Port of the API on 127.0.0.1; 0 takes a free one
    #[arg(long, default_value_t = 7070)]
    port: u16,
    /// Crawl this URL; may be given more than once
    #[arg(long)]
    crawl: Vec<String>,
    /// Crawl the sample web site and read the sample API that Dodo brings along, served on loopback
    #[arg(long)]
    sample: bool,
    #[command(flatten)]
    flags: CrawlFlags,
    #[command(flatten)]
    bounds: Bounds,
    /// Start no sentinel; with one, the DODO_SLACK_, DODO_SMTP_ and DODO_MAIL_ variables say whom it alerts
    #[arg(long)]
    no_sentinel: bool,
    /// Stop everything when every crawl is fetched and archived
    #[arg(long)]
    exit_when_done: bool,
    /// Redis to use instead of a private one
    #[arg(long, env = "DODO_REDIS_URL", hide_env_values = true)]
    redis_url: Option<String>,
    /// Postgres to use instead of a private one
    #[arg(long, env = "DODO_DATABASE_URL", hide_env_values = true)]
    database_url: Option<String>,
    /// S3 endpoint to use instead of a private one; DODO_S3_BUCKET and the AWS_ variables go with it
    #[arg(long, env = "DODO_S3_ENDPOINT")]
    s3_endpoint: Option<String>,
    /// Who to write to about this crawler (an address or a URL); needed to crawl anything but loopback
    #[arg(long, env = "DODO_CONTACT", default_value = "")]
    contact: String,
    /// Private or loopback host:port that may be fetched beside those of --crawl, separated by commas
    #[arg(long, env = "DODO_OPEN", default_value = "")]
    open: String,
    /// Proxy the workers' requests leave by, http://[user:password@]host:port or socks5://..
    // Plain text here: clap would repeat a wrong value, and with it a password.
    #[arg(long, env = "DODO_PROXY", hide_env_values = true, default_value = "")]
    proxy: String,
    /// What to log: error, warn, info, debug
    #[arg(long, env = "DODO_LOG", default_value = "info,s3s=warn,s3s_fs=warn")]
    log: String,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

/// The servers of this run; dropping them stops those that are private.
struct Ground {
    servers: Servers,
    redis: Option<RedisServer>,
    postgres: Option<PostgresServer>,
    s3: Option<S3Endpoint>,
    sample: Option<Sample>,
}

pub async fn run(up: Up) -> anyhow::Result<ExitCode> {
    if !up.proxy.trim().is_empty() {
        up.proxy.parse::<Proxy>().context("DODO_PROXY")?;
    }
    up.open.parse::<Openings>().context("DODO_OPEN")?;
    up.bounds.proxies.pool.pool_beside(&up.proxy).map_err(anyhow::Error::msg)?;
    let lifecycle = Lifecycle::install().context("cannot listen for signals")?;
    if !up.no_sentinel {
        workers::check_sentinel()?;
    }
    let data = make_dir(&data_dir(up.data.as_deref())?)?;
    let _lock = lock_dir(&data)?;
    let logging = Logging { log_dir: data.join("log"), log: up.log.clone() };
    let _log = logging::start(&logging, "scheduler", false).map_err(anyhow::Error::msg)?;
    let started = Instant::now();
    let mut ground = start_ground(&up, &data).await?;
    let result = run_on(&up, &data, &logging, &mut ground, &lifecycle, started).await;
    stop_ground(ground).await;
    result
}

async fn run_on(
    up: &Up,
    data: &Path,
    logging: &Logging,
    ground: &mut Ground,
    lifecycle: &Lifecycle,
    started: Instant,
) -> anyhow::Result<ExitCode> {
    migrate::migrate(&ground.servers.database_url).await?;
    let duties = Duties {
        contact: up.contact.clone(),
        manifest_prefix: MANIFESTS.to_owned(),
        manifest_refresh_ms: MANIFEST_REFRESH_MS,
    };
    let ctx = serve::open(&ground.servers, duties, up.bounds.clone(), lifecycle).await?;
    let http = Http { listen: SocketAddr::from(([127, 0, 0, 1], up.port)), admin_token: None };
    let listener = api::bind(http.listen, None).await?;
    let address = listener.local_addr()?;
    let request = (!up.crawl.is_empty()).then(|| up.flags.request(up.crawl.clone())).transpose()?;
    // Checked before anything starts: a wrong URL must not leave a cluster behind.
    let now = ctx.clock.now_ms();
    let checked = request.map(|request| api::crawl::checked(request, &up.contact, now)).transpose().map_err(plain)?;
    if let Some(region) = checked.as_ref().and_then(|crawl| crawl.spec.region.as_deref()) {
        ctx.pool.check_region(region).map_err(anyhow::Error::msg)?;
    }
    if up.sample {
        ground.sample = Some(Sample::start(data, &up.flags, MANIFESTS, ctx.clock.now_ms())?);
    }
    let seeds = checked.iter().flat_map(|crawl| crawl.seeds.iter().map(|seed| &seed.url));
    let open = openings(data, seeds, ground.sample.iter().flat_map(Sample::places), &up.open)?;
    let serving = tokio::spawn(api::serve(listener, serve::api(&ctx, &http)?));
    let leading = tokio::spawn(leader::run(Arc::clone(&ctx)));
    let env = WorkerEnv {
        servers: ground.servers.clone(),
        logging: logging.clone(),
        contact: up.contact.clone(),
        proxy: up.proxy.clone(),
        proxies: up.bounds.proxies.pool.proxies.clone(),
        open,
    };
    keep_archive(data, &ground.servers)?;
    let workers = workers::start(&env, up.workers, lifecycle)?;
    if !up.no_sentinel {
        workers::start_sentinel(&workers, &env, &data.join("sentinel"), lifecycle)?;
    }
    tell(format!("API http://{address}  logs {}", logging.log_dir.display()));
    let mut watched = Watched { ids: dispatch::open(&ctx.db).await?.iter().map(|open| open.id).collect() };
    if let Some(crawl) = checked {
        let accepted = api::crawl::submit_crawl(&ctx, &crawl).await.map_err(plain)?;
        watched.ids.insert(accepted.dispatch);
    }
    if let Some(sample) = &ground.sample {
        sample.submit(&ctx).await?;
    }
    let finished = watched.wait(&ctx, lifecycle, ground.sample.as_ref(), up.json).await;
    let summary = match finished {
        Ok((dispatches, done)) => Summary::of(&ctx, data, &dispatches, done, started).await,
        Err(error) => Err(error),
    };
    let mut printed = Ok(());
    if let Ok(summary) = &summary {
        printed = summary.print(up.json, &address.to_string(), logging);
    }
    if summary.is_ok() && !up.exit_when_done && !lifecycle.soft.is_cancelled() {
        tell("running until Ctrl-C");
        lifecycle.soft.cancelled().await;
    }
    lifecycle.soft.cancel();
    // Workers drain while the scheduler still leads; then the scheduler gives up its lease.
    workers.stop().await;
    let _ = leading.await;
    let _ = tokio::time::timeout(Duration::from_secs(3), serving).await;
    // Nobody may be there to read it any more, and everything was to be stopped in order all the same.
    printed?;
    summary.map(|_| ExitCode::SUCCESS)
}

async fn start_ground(up: &Up, data: &Path) -> anyhow::Result<Ground> {
    let redis = match up.redis_url {
        Some(_) => None,
        None => {
            let dir = data.join("redis");
            Some(tokio::task::spawn_blocking(move || RedisServer::start(&dir)).await??)
        }
    };
    let postgres = match up.database_url {
        Some(_) => None,
        None => {
            let dir = data.join("postgres");
            Some(tokio::task::spawn_blocking(move || PostgresServer::start(&dir, false)).await??)
        }
    };
    let (s3, settings) = match &up.s3_endpoint {
        Some(endpoint) => (None, external_s3(endpoint)),
        None => {
            let s3 = S3Endpoint::start(&data.join("s3"), BUCKET)?;
            let settings = S3 {
                s3_endpoint: s3.endpoint(),
                s3_bucket: s3.bucket().to_owned(),
                s3_region: "us-east-1".to_owned(),
                s3_access_key: s3.access_key().to_owned(),
                s3_secret_key: s3.secret_key().to_owned(),
            };
            (Some(s3), settings)
        }
    };
    let url = |given: &Option<String>, own: Option<String>| given.clone().or(own).unwrap_or_default();
    let servers = Servers {
        redis_url: url(&up.redis_url, redis.as_ref().map(|own| own.socket_url().unwrap_or_else(|| own.url()))),
        database_url: url(&up.database_url, postgres.as_ref().map(|own| own.socket_url().unwrap_or_else(|| own.url()))),
        s3: settings,
    };
    Ok(Ground { servers, redis, postgres, s3, sample: None })
}

fn external_s3(endpoint: &str) -> S3 {
    let variable = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    S3 {
        s3_endpoint: endpoint.to_owned(),
        s3_bucket: variable("DODO_S3_BUCKET", BUCKET),
        s3_region: variable("DODO_S3_REGION", "us-east-1"),
        s3_access_key: variable("AWS_ACCESS_KEY_ID", ""),
        s3_secret_key: variable("AWS_SECRET_ACCESS_KEY", ""),
    }
}

async fn stop_ground(mut ground: Ground) {
    if let Some(sample) = &mut ground.sample {
        sample.stop().await;
    }
    if let Some(s3) = &ground.s3 {
        s3.stop().await;
    }
    let (mut redis, mut postgres) = (ground.redis.take(), ground.postgres.take());
    let _ = tokio::task::spawn_blocking(move || {
        if let Some(redis) = &mut redis {
            redis.stop();
        }
        if let Some(postgres) = &mut postgres {
            postgres.stop();
        }
    })
    .await;
}

/// Exactly the private host:port of the seeds given on this directory, now and before: what is unfinished
/// stays open. Beside them, for now, those that were asked for.
fn openings<'a>(
    data: &Path,
    seeds: impl Iterator<Item = &'a Url>,
    places: impl Iterator<Item = String>,
    asked: &str,
) -> anyhow::Result<String> {
    let kept = data.join("open");
    let before = std::fs::read_to_string(&kept).unwrap_or_default();
    let mut open: BTreeSet<String> = before.split(',').filter(|entry| !entry.is_empty()).map(str::to_owned).collect();
    open.extend(seeds.filter_map(|seed| Some(format!("{}:{}", seed.host_str()?, seed.port_or_known_default()?))));
    open.extend(places);
    let join = |open: &BTreeSet<String>| open.iter().map(String::as_str).collect::<Vec<_>>().join(",");
    std::fs::write(&kept, join(&open)).with_context(|| format!("cannot write {}", kept.display()))?;
    open.extend(asked.split(',').map(|entry| entry.trim().to_owned()).filter(|entry| !entry.is_empty()));
    Ok(join(&open))
}

/// Where the archive of this run and its Postgres are, for `dodo archive --data`.
const ARCHIVE_FILE: &str = "archive.json";

fn keep_archive(data: &Path, servers: &Servers) -> anyhow::Result<()> {
    let s3 = &servers.s3;
    let text = serde_json::json!({
        "endpoint": s3.s3_endpoint, "bucket": s3.s3_bucket, "region": s3.s3_region,
        "access_key": s3.s3_access_key, "secret_key": s3.s3_secret_key, "database_url": servers.database_url,
    });
    write_private(&data.join(ARCHIVE_FILE), &text.to_string())
}

/// The archive of a running `dodo up`, and the URL of its Postgres.
pub fn archive_of(data: &Path) -> anyhow::Result<(S3, String)> {
    let file = data.join(ARCHIVE_FILE);
    let text = std::fs::read_to_string(&file)
        .with_context(|| format!("cannot read {}; is this the directory of a `dodo up`?", file.display()))?;
    let value: serde_json::Value =
        serde_json::from_str(&text).with_context(|| format!("{} is damaged", file.display()))?;
    let field = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
    let s3 = S3 {
        s3_endpoint: field("endpoint"),
        s3_bucket: field("bucket"),
        s3_region: field("region"),
        s3_access_key: field("access_key"),
        s3_secret_key: field("secret_key"),
    };
    Ok((s3, field("database_url")))
}

fn data_dir(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(given) = given {
        return std::path::absolute(given).with_context(|| format!("{} is no directory", given.display()));
    }
    if nix::unistd::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/dodo"));
    }
    match std::env::var_os("XDG_DATA_HOME")
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/share").into()))
    {
        Some(base) => Ok(Path::new(&base).join("dodo")),
        None => bail!("there is no home directory; say where with --data"),
    }
}

fn plain(error: api::ApiError) -> anyhow::Error {
    anyhow::anyhow!(error.1)
}
