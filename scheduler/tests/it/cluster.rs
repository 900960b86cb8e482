//! A cluster for one test: private servers, `dodo serve` and `dodo-worker` as real processes.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use dodo_common::storage::object::{S3Settings, Store};
use dodo_scheduler::local::free_port;
use dodo_scheduler::local::postgres::PostgresServer;
use dodo_scheduler::local::redis::RedisServer;
use dodo_scheduler::local::s3::S3Endpoint;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

pub const BUCKET: &str = "dodo";

/// A process of the cluster; killed when it is dropped.
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts `dodo` with these arguments, quietly.
    pub fn start(arguments: &[&str], env: &[(&str, &str)]) -> Result<Self> {
        let child = Command::new(dodo_program())
            .args(arguments)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { child })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("the process is ours");
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Waits for its end and returns its exit code.
    pub async fn ended(&mut self, limit: Duration) -> Result<Option<i32>> {
        let start = Instant::now();
        while start.elapsed() < limit {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.code());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!("the process did not end within {limit:?}")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

pub struct Cluster {
    pub dir: TempDir,
    pub redis: RedisServer,
    pub postgres: PostgresServer,
    pub s3: S3Endpoint,
    /// More variables for the workers.
    pub worker_env: Vec<(String, String)>,
    /// More variables for the schedulers.
    pub scheduler_env: Vec<(String, String)>,
    http: reqwest::Client,
    apis: Vec<u16>,
}

impl Cluster {
    /// The servers, migrated; no process of ours runs yet.
    pub async fn start() -> Result<Self> {
        dodo_common::install_tls_provider();
        let dir = tempfile::Builder::new().prefix("dodo-it-").tempdir()?;
        // Postgres runs as another user when we are root: it must be able to walk here.
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let redis = RedisServer::start(&dir.path().join("redis"))?;
        let postgres = PostgresServer::start(&dir.path().join("postgres"), true)?;
        let s3 = S3Endpoint::start(&dir.path().join("s3"), BUCKET)?;
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build()?;
        let worker_env =
            [("DODO_RETRY_BASE_MS", "100"), ("DODO_ARCHIVE_AGE_MS", "1000"), ("DODO_LOG", "info,dodo_worker=debug")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .to_vec();
        let scheduler_env = vec![("DODO_MANIFEST_REFRESH_MS".to_owned(), "200".to_owned())];
        let cluster = Self { dir, redis, postgres, s3, worker_env, scheduler_env, http, apis: Vec::new() };
        let out = cluster.dodo(&["migrate"]);
        anyhow::ensure!(out.status.success(), "migrate: {}", String::from_utf8_lossy(&out.stderr));
        Ok(cluster)
    }

    pub fn open(&mut self, places: &[String]) {
        self.worker_env.push(("DODO_OPEN".to_owned(), places.join(",")));
    }

    /// The bucket, as any client sees it.
    pub fn store(&self) -> Result<Store> {
        Ok(Store::s3(&S3Settings {
            endpoint: self.s3.endpoint(),
            bucket: BUCKET.to_owned(),
            region: "us-east-1".to_owned(),
            access_key: self.s3.access_key().to_owned(),
            secret_key: self.s3.secret_key().to_owned(),
            allow_http: true,
        })?)
    }

    pub fn env(&self) -> Vec<(String, String)> {
        [
            ("DODO_REDIS_URL", self.redis.url()),
            ("DODO_DATABASE_URL", self.postgres.url()),
            ("DODO_S3_ENDPOINT", self.s3.endpoint()),
            ("DODO_S3_BUCKET", BUCKET.to_owned()),
            ("AWS_ACCESS_KEY_ID", self.s3.access_key().to_owned()),
            ("AWS_SECRET_ACCESS_KEY", self.s3.secret_key().to_owned()),
            ("DODO_LOG_DIR", self.dir.path().join("log").display().to_string()),
            ("DODO_API_URL", format!("http://127.0.0.1:{}", self.apis.first().copied().unwrap_or(1))),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }

    /// Starts a scheduler; the API of the first one that answers is asked.
    pub async fn scheduler(&mut self) -> Result<Process> {
        let port = free_port()?;
        let child = Command::new(dodo_program())
            .args(["serve", "--listen", &format!("127.0.0.1:{port}")])
            .envs(self.env())
            .envs(self.scheduler_env.iter().cloned())
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        self.apis.push(port);
        let process = Process { child };
        let start = Instant::now();
        while self.http.get(format!("http://127.0.0.1:{port}/health/live")).send().await.is_err() {
            anyhow::ensure!(start.elapsed() < Duration::from_secs(20), "the scheduler does not answer");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(process)
    }

    pub fn worker(&self) -> Result<Process> {
        self.worker_with(&[])
    }

    pub fn worker_with(&self, more: &[(&str, &str)]) -> Result<Process> {
        let child = Command::new(dodo_program().with_file_name("dodo-worker"))
            .envs(self.env())
            .envs(self.worker_env.iter().cloned())
            .envs(more.iter().copied())
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("dodo-worker is missing: cargo build --workspace --bins")?;
        Ok(Process { child })
    }

    /// Starts a sentinel that looks ten times a second.
    pub fn sentinel(&self, more: &[(&str, &str)]) -> Result<Process> {
        let child = Command::new(dodo_program())
            .arg("sentinel")
            .envs(self.env())
            .env("DODO_SENTINEL_EVERY_MS", "100")
            .env("DODO_SENTINEL_SPOOL", self.dir.path().join("spool"))
            .envs(more.iter().copied())
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Process { child })
    }

    /// Runs the operator's tool.
    pub fn dodo(&self, arguments: &[&str]) -> std::process::Output {
        Command::new(dodo_program()).args(arguments).envs(self.env()).output().expect("dodo runs")
    }

    pub fn dodo_text(&self, arguments: &[&str]) -> Result<String> {
        let out = self.dodo(arguments);
        anyhow::ensure!(out.status.success(), "dodo {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
        Ok(String::from_utf8(out.stdout)?)
    }

    /// The scheduler that was started last is asked first.
    pub fn ask_last(&mut self) {
        self.apis.reverse();
    }

    pub async fn get(&self, path: &str) -> Result<Value> {
        let mut last = None;
        for port in &self.apis {
            match self.http.get(format!("http://127.0.0.1:{port}{path}")).send().await {
                Ok(answer) if answer.status().is_success() => return Ok(answer.json().await?),
                Ok(answer) => last = Some(anyhow::anyhow!("{path}: {}", answer.text().await?)),
                Err(error) => last = Some(error.into()),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("no scheduler runs")))
    }

    /// What the first scheduler answers, as it is.
    pub async fn text(&self, path: &str) -> Result<String> {
        let port = self.apis.first().context("no scheduler runs")?;
        Ok(self.http.get(format!("http://127.0.0.1:{port}{path}")).send().await?.error_for_status()?.text().await?)
    }

    /// Submits to the first scheduler that answers; returns the dispatch.
    pub async fn post(&self, path: &str, body: &Value) -> Result<String> {
        for port in &self.apis {
            if let Ok(answer) = self.http.post(format!("http://127.0.0.1:{port}{path}")).json(body).send().await {
                let ok = answer.status().is_success();
                let value: Value = answer.json().await?;
                anyhow::ensure!(ok, "{path}: {value}");
                return Ok(value["dispatch"].as_str().context("no dispatch")?.to_owned());
            }
        }
        bail!("no scheduler answers")
    }

    /// Any request to the first scheduler that answers: its status and its answer.
    pub async fn call(&self, method: reqwest::Method, path: &str, body: impl Into<String>) -> Result<(u16, Value)> {
        let body = body.into();
        for port in &self.apis {
            let request = self.http.request(method.clone(), format!("http://127.0.0.1:{port}{path}"));
            if let Ok(answer) = request.header("content-type", "application/json").body(body.clone()).send().await {
                let status = answer.status().as_u16();
                return Ok((status, serde_json::from_str(&answer.text().await?).unwrap_or(Value::Null)));
            }
        }
        bail!("no scheduler answers")
    }

    pub async fn put(&self, path: &str, body: &Value) -> Result<()> {
        let (status, answer) = self.call(reqwest::Method::PUT, path, body.to_string()).await?;
        anyhow::ensure!((200..300).contains(&status), "{path}: {status} {answer}");
        Ok(())
    }

    /// Whether something holds within the limit; asked again and again.
    pub async fn until(&self, what: &str, limit: Duration, mut holds: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < limit {
            if holds().await? {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        self.print_logs();
        bail!("{what}: not within {limit:?}")
    }

    /// Entries in the stream of jobs.
    pub async fn issued(&self) -> Result<u64> {
        Ok(redis::from_redis_value(self.redis_command(&["XLEN", "dodo:jobs:fetch"]).await?)?)
    }

    pub async fn progress(&self, dispatch: &str) -> Result<Value> {
        self.get(&format!("/v1/dispatches/{dispatch}")).await
    }

    /// Waits until so many jobs of a dispatch have ended.
    pub async fn wait_finished(&self, dispatch: &str, count: i64) -> Result<()> {
        self.wait(dispatch, Duration::from_secs(60), |value| value["progress"]["finished"].as_i64() >= Some(count))
            .await
    }

    pub async fn wait_done(&self, dispatch: &str, limit: Duration) -> Result<()> {
        self.wait(dispatch, limit, |value| value["state"] == "done").await
    }

    async fn wait(&self, dispatch: &str, limit: Duration, done: impl Fn(&Value) -> bool) -> Result<()> {
        let start = Instant::now();
        let mut last = Value::Null;
        while start.elapsed() < limit {
            if let Ok(value) = self.progress(dispatch).await {
                if done(&value) {
                    return Ok(());
                }
                last = value;
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        self.print_logs();
        bail!("not there after {limit:?}; last seen: {last}")
    }

    pub async fn sql(&self) -> Result<tokio_postgres::Client> {
        let (client, connection) = tokio_postgres::connect(&self.postgres.url(), tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    pub async fn redis_command(&self, words: &[&str]) -> Result<redis::Value> {
        // The usual half second is too short for a machine that runs many clusters at once.
        let config = redis::AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(30)));
        let client = redis::Client::open(self.redis.url())?;
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        Ok(command.query_async(&mut connection).await?)
    }

    /// An object as the plain file that the endpoint keeps it in: read as any other tool would.
    pub fn object_file(&self, key: &str) -> PathBuf {
        self.dir.path().join("s3/objects").join(BUCKET).join(key)
    }

    /// The end of every log, for a test that fails.
    pub fn print_logs(&self) {
        let Ok(dirs) = std::fs::read_dir(self.dir.path().join("log")) else { return };
        for dir in dirs.flatten() {
            for file in std::fs::read_dir(dir.path()).into_iter().flatten().flatten() {
                let text = std::fs::read_to_string(file.path()).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                eprintln!("== {}", file.path().display());
                for line in &lines[lines.len().saturating_sub(40)..] {
                    eprintln!("{line}");
                }
            }
        }
    }

    /// Everything that was logged.
    pub fn logs(&self) -> String {
        let mut all = String::new();
        for dir in std::fs::read_dir(self.dir.path().join("log")).into_iter().flatten().flatten() {
            for file in std::fs::read_dir(dir.path()).into_iter().flatten().flatten() {
                all.push_str(&std::fs::read_to_string(file.path()).unwrap_or_default());
            }
        }
        all
    }
}

pub fn dodo_program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_dodo"))
}
