//! The world of a campaign: private servers behind links, the sites, and the real processes with their supervisor.

use std::fs::OpenOptions;
use std::net::Ipv4Addr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dodo_scheduler::local::free_port;
use dodo_scheduler::local::postgres::PostgresServer;
use dodo_scheduler::local::redis::RedisServer;
use dodo_scheduler::local::s3::S3Endpoint;
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::cluster::{Cluster, dodo_program};
use crate::link::{Link, Mode};
use crate::post::{Post, Role};
use crate::site::Sites;
use crate::timeline::Timeline;

/// Addresses that the hosts share.
pub const ADDRESSES: u8 = 6;
/// Hosts that the workers may ask, `h0.a0.test` and so on; each schedule takes new ones.
pub const HOSTS_MAX: usize = 1500;
pub const SCHEDULERS: usize = 2;
/// A process that died is started again after this long.
const RESTART: Duration = Duration::from_millis(300);
const LOOK: Duration = Duration::from_millis(40);

/// Which wire: who is at its near end, and what at its far one.
pub const LINKS: &[&str] =
    &["scheduler-redis", "worker-redis", "scheduler-postgres", "worker-postgres", "scheduler-s3", "worker-s3"];

pub struct World {
    pub dir: TempDir,
    pub redis: tokio::sync::Mutex<RedisServer>,
    pub postgres: tokio::sync::Mutex<PostgresServer>,
    pub redis_url: String,
    pub postgres_url: String,
    pub s3: S3Endpoint,
    pub sites: Sites,
    pub site_port: u16,
    pub http: reqwest::Client,
    links: Vec<Link>,
    env: Vec<(String, String)>,
    posts: Mutex<Vec<Post>>,
    pub timeline: Timeline,
}

impl World {
    pub async fn start() -> Result<Arc<Self>> {
        let Cluster { dir, redis, postgres, s3, .. } = {
            let cluster = Cluster::start().await?;
            // The logs of our own processes lie beside what they wrote.
            std::fs::create_dir_all(cluster.dir.path().join("said"))?;
            cluster
        };
        let (redis_url, postgres_url) = (redis.url(), postgres.url());
        let port_of = |url: &str| -> Result<u16> { url::Url::parse(url)?.port().context("a URL without a port") };
        let mut links = Vec::new();
        for server in [port_of(&redis_url)?, port_of(&postgres_url)?, s3.port()] {
            links.push(Link::to(server).await?);
            links.push(Link::to(server).await?);
        }
        let addresses: Vec<Ipv4Addr> = (1..=ADDRESSES).map(|n| Ipv4Addr::new(127, 0, 3, n)).collect();
        let site_port = free_port()?;
        let sites = Sites::start(&addresses, site_port, &dir.path().join("sites.ndjson")).await?;
        let env = vec![
            ("DODO_S3_BUCKET".to_owned(), crate::cluster::BUCKET.to_owned()),
            ("AWS_ACCESS_KEY_ID".to_owned(), s3.access_key().to_owned()),
            ("AWS_SECRET_ACCESS_KEY".to_owned(), s3.secret_key().to_owned()),
            ("DODO_LOG_DIR".to_owned(), dir.path().join("log").display().to_string()),
            ("DODO_LOG".to_owned(), "info,dodo_worker=debug,dodo_scheduler=debug".to_owned()),
            ("DODO_RETRY_BASE_MS".to_owned(), "100".to_owned()),
            ("DODO_ARCHIVE_AGE_MS".to_owned(), "800".to_owned()),
            ("DODO_DRAIN_MS".to_owned(), "3000".to_owned()),
            ("DODO_STALL_MS".to_owned(), "45000".to_owned()),
            ("DODO_ALLOW_ABORT".to_owned(), "true".to_owned()),
            ("DODO_MANIFEST_REFRESH_MS".to_owned(), "500".to_owned()),
            ("DODO_SENTINEL_EVERY_MS".to_owned(), "500".to_owned()),
            ("DODO_SENTINEL_SPOOL".to_owned(), dir.path().join("spool").display().to_string()),
        ];
        let timeline = Timeline::create(&dir.path().join("timeline.log"))?;
        let mut posts = Vec::new();
        let mut post = |role, number, port| {
            posts.push(Post::new(role, number, port));
        };
        for number in 0..SCHEDULERS {
            post(Role::Scheduler, number, free_port()?);
        }
        post(Role::Sentinel, 0, 0);
        let world = Arc::new(Self {
            http: reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(3)).build()?,
            dir,
            redis: tokio::sync::Mutex::new(redis),
            postgres: tokio::sync::Mutex::new(postgres),
            redis_url,
            postgres_url,
            s3,
            sites,
            site_port,
            links,
            env,
            posts: Mutex::new(posts),
            timeline,
        });
        let weak = Arc::downgrade(&world);
        tokio::spawn(async move {
            while let Some(world) = weak.upgrade() {
                world.supervise();
                drop(world);
                tokio::time::sleep(LOOK).await;
            }
        });
        Ok(world)
    }

    /// The name of host `n`, with its port.
    pub fn host(&self, n: usize) -> String {
        format!("h{n}.a{}.test:{}", n % usize::from(ADDRESSES), self.site_port)
    }

    pub fn link(&self, name: &str) -> &Link {
        let place = LINKS.iter().position(|known| *known == name).expect("a link of the list");
        &self.links[place]
    }

    /// Writes down what happened.
    pub fn note(&self, what: &str) {
        self.timeline.note(what);
    }

    /// So many workers are wanted from here on.
    pub fn want_workers(&self, count: usize) {
        let mut posts = self.posts.lock().expect("no panic under this lock");
        for number in 0..count.max(posts.iter().filter(|post| post.role == Role::Worker).count()) {
            let known = posts.iter_mut().find(|post| post.role == Role::Worker && post.number == number);
            match known {
                None => posts.push(Post::new(Role::Worker, number, 0)),
                Some(post) if number < count => post.start_at = post.start_at.or(Some(Instant::now())),
                Some(post) => {
                    post.start_at = None;
                    post.signal(Signal::SIGTERM);
                }
            }
        }
    }

    /// Notices who has died and starts who is due.
    fn supervise(&self) {
        let mut notes = Vec::new();
        let mut posts = self.posts.lock().expect("no panic under this lock");
        for post in posts.iter_mut() {
            if let Some(child) = &mut post.child
                && let Ok(Some(status)) = child.try_wait()
            {
                let how = status.signal().map_or_else(
                    || format!("with {}", status.code().unwrap_or(-1)),
                    |signal| format!("by signal {signal}"),
                );
                notes.push(format!("  {} ended {how}", post.name()));
                post.child = None;
                post.start_at = post.start_at.map(|_| Instant::now() + RESTART);
            }
            if post.child.is_none() && post.start_at.is_some_and(|at| at <= Instant::now()) {
                match self.spawn(post) {
                    Ok(child) => post.child = Some(child),
                    Err(error) => notes.push(format!("  {} cannot be started: {error:#}", post.name())),
                }
            }
        }
        drop(posts);
        notes.iter().for_each(|line| self.note(line));
    }

    fn spawn(&self, post: &mut Post) -> Result<Child> {
        let said = self.dir.path().join("said").join(format!("{}.txt", post.name()));
        let said = OpenOptions::new().append(true).create(true).open(said)?;
        let near = if post.role == Role::Worker { "worker" } else { "scheduler" };
        let through = |url: &str, server: &str| -> Result<String> {
            let mut url = url::Url::parse(url)?;
            let port = self.link(&format!("{near}-{server}")).port;
            url.set_port(Some(port)).map_err(|()| anyhow::anyhow!("{url} takes no port"))?;
            Ok(url.to_string().trim_end_matches('/').to_owned())
        };
        let mut command = match post.role {
            Role::Worker => Command::new(dodo_program().with_file_name("dodo-worker")),
            Role::Scheduler => {
                let mut command = Command::new(dodo_program());
                command.args(["serve", "--listen", &format!("127.0.0.1:{}", post.port)]);
                command
            }
            Role::Sentinel => {
                let mut command = Command::new(dodo_program());
                command.arg("sentinel");
                command
            }
        };
        if post.role == Role::Worker {
            let hosts: Vec<String> = (0..HOSTS_MAX).map(|n| self.host(n)).collect();
            let addresses: Vec<String> = (0..ADDRESSES).map(|n| format!("*.a{n}.test=127.0.3.{}", n + 1)).collect();
            command.env("DODO_OPEN", hosts.join(",")).env("DODO_RESOLVE", addresses.join(","));
        }
        command
            .envs(self.env.iter().cloned())
            .env("DODO_REDIS_URL", through(&self.redis_url, "redis")?)
            .env("DODO_DATABASE_URL", through(&self.postgres_url, "postgres")?)
            .env("DODO_S3_ENDPOINT", through(&self.s3.endpoint(), "s3")?)
            .stdin(Stdio::null())
            .stdout(said.try_clone()?)
            .stderr(said);
        post.armed = post.fail_point.is_some();
        if let Some(point) = post.fail_point.take() {
            command.env("DODO_FAIL_POINT", point);
        }
        command.spawn().with_context(|| format!("{} cannot be run", command.get_program().display()))
    }

    /// Sends a signal to the `n`-th process of a role, counted round; says which one it was.
    pub fn signal(&self, role: Role, n: usize, signal: Signal) -> Option<usize> {
        let posts = self.posts.lock().expect("no panic under this lock");
        let posts: Vec<&Post> = posts.iter().filter(|post| post.role == role && post.start_at.is_some()).collect();
        let post = posts.get(n % posts.len().max(1))?;
        post.signal(signal);
        Some(post.number)
    }

    /// The next start of this process has a fail point.
    pub fn arm(&self, role: Role, number: usize, point: &str) {
        let mut posts = self.posts.lock().expect("no panic under this lock");
        if let Some(post) = posts.iter_mut().find(|post| post.role == role && post.number == number) {
            post.fail_point = Some(point.to_owned());
        }
    }

    /// Nothing is stopped, cut or slow any more.
    pub fn lift(&self) {
        self.links.iter().for_each(|link| link.set(Mode::Pass));
        self.s3.set_fault(dodo_scheduler::local::s3::Fault::None);
        let mut posts = self.posts.lock().expect("no panic under this lock");
        for post in posts.iter_mut() {
            post.fail_point = None;
            // A point that was not reached must not be reached in the next schedule.
            post.signal(if post.armed { Signal::SIGKILL } else { Signal::SIGCONT });
        }
    }

    pub fn api_ports(&self) -> Vec<u16> {
        let posts = self.posts.lock().expect("no panic under this lock");
        posts.iter().filter(|post| post.role == Role::Scheduler).map(|post| post.port).collect()
    }

    /// Which scheduler leads; the first where none says so.
    pub async fn leader(&self) -> usize {
        for (number, port) in self.api_ports().into_iter().enumerate() {
            let url = format!("http://127.0.0.1:{port}/v1/status");
            let asked = self.http.get(url).timeout(Duration::from_millis(500)).send().await;
            if let Ok(answer) = asked
                && let Ok(status) = answer.json::<Value>().await
                && status["dispatching"] == true
            {
                return number;
            }
        }
        0
    }

    pub async fn sql(&self) -> Result<tokio_postgres::Client> {
        let connecting = tokio_postgres::connect(&self.postgres_url, tokio_postgres::NoTls);
        let (client, connection) = tokio::time::timeout(Duration::from_secs(5), connecting).await??;
        tokio::spawn(connection);
        Ok(client)
    }

    pub async fn redis_command(&self, words: &[&str]) -> Result<redis::Value> {
        let mut connection = redis::Client::open(self.redis_url.as_str())?.get_multiplexed_async_connection().await?;
        Ok(redis::cmd(words[0]).arg(&words[1..]).query_async(&mut connection).await?)
    }

    /// Lines of our processes that speak of a panic.
    pub fn panics(&self) -> Vec<String> {
        let mut found = Vec::new();
        for place in ["said", "log"] {
            read_lines(&self.dir.path().join(place), &mut |path, line| {
                if line.contains("panicked at") {
                    found.push(format!("{}: {line}", path.display()));
                }
            });
        }
        found
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let posts = self.posts.get_mut().expect("no panic under this lock");
        for child in posts.iter_mut().filter_map(|post| post.child.as_mut()) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn read_lines(dir: &Path, see: &mut impl FnMut(&PathBuf, &str)) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            read_lines(&path, see);
        } else if let Ok(bytes) = std::fs::read(&path) {
            String::from_utf8_lossy(&bytes).lines().for_each(|line| see(&path, line));
        }
    }
}
