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
use dodo_common::db::dispatch::{self, Dispatch, Progress};
use dodo_common::db::{migrate, segment};
use dodo_common::lifecycle::Lifecycle;
use dodo_common::model::proxy::Proxy;
use dodo_common::telemetry::logging;
use url::Url;
use uuid::Uuid;

use crate::api;
use crate::cli::crawl::{self as bar, CrawlFlags};
use crate::cli::serve::{self, Http};
use crate::cli::{bytes, say, tell};
use crate::context::{Context, Duties};
use crate::leader;
use crate::local::postgres::PostgresServer;
use crate::local::redis::RedisServer;
use crate::local::s3::S3Endpoint;
use crate::local::site::SampleSite;
use crate::local::workers::{self, WorkerEnv};
use crate::local::{lock_dir, make_dir, write_private};

const BUCKET: &str = "dodo";
/// On one machine nobody wants to wait a minute for a manifest.
const MANIFESTS: &str = "manifests";
const MANIFEST_REFRESH_MS: u64 = 1000;
const POLL: Duration = Duration::from_millis(200);
/// The delay at which the bundled site is crawled: it is our own.
const SAMPLE_DELAY_MS: i64 = 20;

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
    /// Crawl the sample web site that Dodo brings along, served on loopback
    #[arg(long)]
    sample: bool,
    #[command(flatten)]
    flags: CrawlFlags,
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
    site: Option<SampleSite>,
}

pub async fn run(up: Up) -> anyhow::Result<ExitCode> {
    if !up.proxy.trim().is_empty() {
        up.proxy.parse::<Proxy>().context("DODO_PROXY")?;
    }
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
    let ctx = serve::open(&ground.servers, duties, lifecycle).await?;
    let http = Http { listen: SocketAddr::from(([127, 0, 0, 1], up.port)), admin_token: None };
    let listener = api::bind(http.listen, None).await?;
    let address = listener.local_addr()?;
    let urls = crawl_urls(up, data, ground)?;
    let request = (!urls.is_empty()).then(|| {
        let mut request = up.flags.request(urls);
        if up.sample && up.crawl.is_empty() {
            request.delay_ms = request.delay_ms.or(Some(SAMPLE_DELAY_MS));
        }
        request
    });
    // Checked before anything starts: a wrong URL must not leave a cluster behind.
    let checked = request.map(|request| api::crawl::checked(request, &up.contact)).transpose().map_err(plain)?;
    let open = openings(data, checked.iter().flat_map(|(_, _, seeds)| seeds.iter().map(|seed| &seed.url)))?;
    let serving = tokio::spawn(api::serve(listener, serve::api(&ctx, &http)?));
    let leading = tokio::spawn(leader::run(Arc::clone(&ctx)));
    let env = WorkerEnv {
        servers: ground.servers.clone(),
        logging: logging.clone(),
        contact: up.contact.clone(),
        proxy: up.proxy.clone(),
        open,
    };
    keep_archive(data, &ground.servers.s3)?;
    let workers = workers::start(&env, up.workers, lifecycle)?;
    if !up.no_sentinel {
        workers::start_sentinel(&workers, &env, &data.join("sentinel"), lifecycle)?;
    }
    tell(format!("API http://{address}  logs {}", logging.log_dir.display()));
    let mut watched: Vec<Uuid> = dispatch::open(&ctx.db).await?.iter().map(|open| open.id).collect();
    if let Some((spec, key, seeds)) = checked {
        let accepted = api::crawl::submit_crawl(&ctx, &spec, key.as_deref(), &seeds).await.map_err(plain)?;
        if !watched.contains(&accepted.dispatch) {
            watched.push(accepted.dispatch);
        }
    }
    let finished = wait(&ctx, lifecycle, &watched, up.json).await;
    let summary = finished.map(|dispatches| summary_of(&dispatches, started));
    let mut printed = Ok(());
    if let Ok(summary) = &summary {
        let (objects, archived) = segment::totals(&ctx.db).await.unwrap_or_default();
        printed = print_summary(up, summary, objects, archived, &address.to_string(), logging);
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

/// Waits until every dispatch is done, or for Ctrl-C; returns how far the watched ones are.
async fn wait(ctx: &Context, lifecycle: &Lifecycle, watched: &[Uuid], quiet: bool) -> anyhow::Result<Vec<Dispatch>> {
    let bar = bar::bar(quiet);
    loop {
        let mut dispatches = Vec::new();
        for id in watched {
            // A database that restarts is waited for.
            if let Ok(Some(found)) = dispatch::get(&ctx.db, dodo_common::model::job::TENANT_DEFAULT, *id).await {
                dispatches.push(found);
            }
        }
        bar::show(&bar, &dispatches);
        let done = dispatches.len() == watched.len() && dispatches.iter().all(|dispatch| dispatch.state == "done");
        if done || lifecycle.soft.is_cancelled() {
            bar.finish_and_clear();
            return Ok(dispatches);
        }
        tokio::select! { () = lifecycle.soft.cancelled() => {}, () = tokio::time::sleep(POLL) => {} }
    }
}

struct Summary {
    progress: Progress,
    done: bool,
    seconds: f64,
}

fn summary_of(dispatches: &[Dispatch], started: Instant) -> Summary {
    let mut progress = Progress::default();
    for p in dispatches.iter().map(|dispatch| &dispatch.progress) {
        progress.add(p);
    }
    let done = dispatches.iter().all(|dispatch| dispatch.state == "done");
    Summary { progress, done, seconds: started.elapsed().as_secs_f64() }
}

fn print_summary(
    up: &Up,
    summary: &Summary,
    objects: i64,
    archived: i64,
    api: &str,
    logging: &Logging,
) -> anyhow::Result<()> {
    let p = &summary.progress;
    if up.json {
        return say(serde_json::json!({
            "done": summary.done, "pages": p.pages, "links": p.links, "duplicates": p.duplicates, "failed": p.failed,
            "skipped": p.skipped, "bytes": p.bytes, "archive_objects": objects, "archive_bytes": archived,
            "seconds": summary.seconds, "api": format!("http://{api}"), "logs": logging.log_dir,
        })
        .to_string());
    }
    say(format!(
        "{}\n  pages       {} fetched, {} received\n  links       {} stored, {} duplicates skipped\n  not fetched {} failed, {} not allowed\n  \
         archive     {objects} objects, {}\n  time        {:.1} s\n  API         http://{api}\n  logs        {}",
        if summary.done { "done" } else { "stopped; start again on the same data to go on" },
        p.pages,
        bytes(p.bytes.max(0) as u64),
        p.links,
        p.duplicates,
        p.failed,
        p.skipped,
        bytes(archived.max(0) as u64),
        summary.seconds,
        logging.log_dir.display(),
    ))
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
        redis_url: url(&up.redis_url, redis.as_ref().map(RedisServer::url)),
        database_url: url(&up.database_url, postgres.as_ref().map(PostgresServer::url)),
        s3: settings,
    };
    Ok(Ground { servers, redis, postgres, s3, site: None })
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
    if let Some(site) = &mut ground.site {
        site.stop().await;
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

/// The URLs of this start; the sample site is served where the last start on this directory served it.
fn crawl_urls(up: &Up, data: &Path, ground: &mut Ground) -> anyhow::Result<Vec<String>> {
    if !up.sample {
        return Ok(up.crawl.clone());
    }
    let kept = data.join("sample-port");
    let port = std::fs::read_to_string(&kept).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    let site = SampleSite::start_on(None, port).or_else(|_| SampleSite::start(None))?;
    std::fs::write(&kept, site.addr().port().to_string())
        .with_context(|| format!("cannot write {}", kept.display()))?;
    let mut urls = up.crawl.clone();
    urls.push(site.url());
    ground.site = Some(site);
    Ok(urls)
}

/// Exactly the private host:port of the seeds given on this directory, now and before: what is unfinished
/// stays open.
fn openings<'a>(data: &Path, seeds: impl Iterator<Item = &'a Url>) -> anyhow::Result<String> {
    let kept = data.join("open");
    let before = std::fs::read_to_string(&kept).unwrap_or_default();
    let mut open: BTreeSet<String> = before.split(',').filter(|entry| !entry.is_empty()).map(str::to_owned).collect();
    open.extend(seeds.filter_map(|seed| Some(format!("{}:{}", seed.host_str()?, seed.port_or_known_default()?))));
    let open = open.into_iter().collect::<Vec<_>>().join(",");
    std::fs::write(&kept, &open).with_context(|| format!("cannot write {}", kept.display()))?;
    Ok(open)
}

/// Where the archive of this run is, for `dodo archive --data`.
const ARCHIVE_FILE: &str = "archive.json";

fn keep_archive(data: &Path, s3: &S3) -> anyhow::Result<()> {
    let text = serde_json::json!({
        "endpoint": s3.s3_endpoint, "bucket": s3.s3_bucket, "region": s3.s3_region,
        "access_key": s3.s3_access_key, "secret_key": s3.s3_secret_key,
    });
    write_private(&data.join(ARCHIVE_FILE), &text.to_string())
}

/// The archive of a running `dodo up`.
pub fn archive_of(data: &Path) -> anyhow::Result<S3> {
    let file = data.join(ARCHIVE_FILE);
    let text = std::fs::read_to_string(&file)
        .with_context(|| format!("cannot read {}; is this the directory of a `dodo up`?", file.display()))?;
    let value: serde_json::Value =
        serde_json::from_str(&text).with_context(|| format!("{} is damaged", file.display()))?;
    let field = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
    Ok(S3 {
        s3_endpoint: field("endpoint"),
        s3_bucket: field("bucket"),
        s3_region: field("region"),
        s3_access_key: field("access_key"),
        s3_secret_key: field("secret_key"),
    })
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
