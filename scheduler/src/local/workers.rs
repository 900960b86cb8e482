//! The worker processes of `dodo up`: started, and started again with a backoff when they die. The sentinel's
//! process is kept the same way.

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use dodo_common::config::{Logging, Servers};
use dodo_common::lifecycle::Lifecycle;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio_util::task::TaskTracker;

/// A child that died is started again after this long, and twice as long each further time.
const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// One that lived this long starts over with the shortest backoff.
const STEADY: Duration = Duration::from_secs(30);
/// What tokio reads how many threads run its tasks from.
const THREADS: &str = "TOKIO_WORKER_THREADS";
/// A child has this long to drain.
const DRAIN: Duration = Duration::from_secs(15);

/// What each worker is told, through its environment: no secret stands on a command line.
#[derive(Clone)]
pub struct WorkerEnv {
    pub servers: Servers,
    pub logging: Logging,
    pub contact: String,
    /// The proxy of every worker, credentials included; empty for none.
    pub proxy: String,
    /// The pool in its place; empty for none.
    pub proxies: String,
    /// Private host:port that may be fetched.
    pub open: String,
}

pub struct Workers {
    tasks: TaskTracker,
}

impl Workers {
    /// Waits until every worker has drained; `lifecycle.soft` must be cancelled.
    pub async fn stop(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Starts `count` workers and keeps them running until `lifecycle.soft` is cancelled.
pub fn start(env: &WorkerEnv, count: u16, lifecycle: &Lifecycle) -> anyhow::Result<Workers> {
    let program = program()?;
    let tasks = TaskTracker::new();
    for _ in 0..count {
        let mut command = worker(&program, env);
        if std::env::var_os(THREADS).is_none() {
            command.env(THREADS, threads_of(count).to_string());
        }
        tasks.spawn(keep("worker", command, lifecycle.clone()));
    }
    Ok(Workers { tasks })
}

/// Threads for each of so many workers. More than there are cores for all of them would only hand jobs around.
fn threads_of(workers: u16) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    cores.div_ceil(usize::from(workers.max(1)))
}

/// Starts a sentinel beside the workers and keeps it running. What it alerts by is in our own environment,
/// which it inherits; a spool in its environment would be shared with nobody, ours is of this cluster.
pub fn start_sentinel(workers: &Workers, env: &WorkerEnv, spool: &Path, lifecycle: &Lifecycle) -> anyhow::Result<()> {
    let mut command = child(&std::env::current_exe().context("cannot tell where this program is")?, env);
    command.arg("sentinel").arg("--exit-with-stdin").env("DODO_SENTINEL_SPOOL", spool);
    workers.tasks.spawn(keep("sentinel", command, lifecycle.clone()));
    Ok(())
}

/// Asks a sentinel whether it would start: a wrong rule or channel stops us before anything runs.
///
/// # Errors
/// The sentinel's own line.
pub fn check_sentinel() -> anyhow::Result<()> {
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    let out =
        std::process::Command::new(own).args(["sentinel", "--check"]).output().context("cannot run a sentinel")?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr);
        bail!("{}", said.trim().trim_start_matches("dodo: "));
    }
    Ok(())
}

/// `dodo-worker` beside this program.
fn program() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    let program = own.with_file_name("dodo-worker");
    if !program.is_file() {
        bail!("{} is missing: build it with `cargo build --workspace`", program.display());
    }
    Ok(program)
}

async fn keep(what: &'static str, mut command: Command, lifecycle: Lifecycle) {
    let mut backoff = BACKOFF_MIN;
    while !lifecycle.soft.is_cancelled() {
        let started = Instant::now();
        match command.spawn() {
            Ok(mut child) => {
                let pid = child.id();
                // Waiting for a child closes its standard input, unless it is held elsewhere.
                let _lifeline = child.stdin.take();
                tokio::select! {
                    status = child.wait() => tracing::warn!(?status, pid, "a {what} ended; it is started again"),
                    () = lifecycle.soft.cancelled() => return drain(what, child, &lifecycle).await,
                }
            }
            Err(error) => tracing::error!("cannot start a {what}: {error:#}"),
        }
        backoff = if started.elapsed() > STEADY { BACKOFF_MIN } else { backoff };
        tokio::select! { () = lifecycle.soft.cancelled() => {}, () = tokio::time::sleep(backoff) => {} }
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

fn worker(program: &Path, env: &WorkerEnv) -> Command {
    let s3 = &env.servers.s3;
    let mut command = child(program, env);
    command
        .arg("--exit-with-stdin")
        .env("DODO_S3_ENDPOINT", &s3.s3_endpoint)
        .env("DODO_S3_BUCKET", &s3.s3_bucket)
        .env("DODO_S3_REGION", &s3.s3_region)
        .env("AWS_ACCESS_KEY_ID", &s3.s3_access_key)
        .env("AWS_SECRET_ACCESS_KEY", &s3.s3_secret_key)
        .env("DODO_CONTACT", &env.contact)
        .env("DODO_PROXY", &env.proxy)
        .env("DODO_PROXIES", &env.proxies)
        .env("DODO_OPEN", &env.open);
    command
}

/// Its standard input is our end of a pipe: it closes when we die, however we die, and the child drains.
/// A group of its own: a Ctrl-C at the terminal reaches us only, and we drain them in order.
fn child(program: &Path, env: &WorkerEnv) -> Command {
    let mut command = Command::new(program);
    command
        .env("DODO_REDIS_URL", &env.servers.redis_url)
        .env("DODO_DATABASE_URL", &env.servers.database_url)
        .env("DODO_LOG_DIR", &env.logging.log_dir)
        .env("DODO_LOG", &env.logging.log)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .process_group(0)
        .kill_on_drop(true);
    command
}

async fn drain(what: &'static str, mut child: Child, lifecycle: &Lifecycle) {
    if let Some(pid) = child.id() {
        // It may have ended by itself meanwhile, which is what we want.
        let _ = kill(Pid::from_raw(pid as i32), Signal::SIGTERM);
    }
    tokio::select! {
        _ = child.wait() => {}
        () = tokio::time::sleep(DRAIN) => tracing::warn!("a {what} did not drain in time and is killed"),
        () = lifecycle.hard.cancelled() => {}
    }
    let _ = child.kill().await;
}
