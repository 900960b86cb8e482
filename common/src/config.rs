//! What every process is told: servers, bucket, log directory. Environment variables carry the
//! names of `docker/sample.env`; flags override them.

use std::path::PathBuf;

use clap::Args;

use crate::model::proxy_pool::ProxyPool;

/// A file that names a pool of proxies, bytes.
const POOL_BYTES_MAX: u64 = 1 << 20;

/// Where Redis, Postgres and the object store are.
#[derive(Args, Clone, Debug, Default)]
pub struct Servers {
    /// Redis, for example redis://:password@127.0.0.1:6379/0
    #[arg(long, env = "DODO_REDIS_URL", hide_env_values = true, default_value = "redis://127.0.0.1:6379/0")]
    pub redis_url: String,
    /// Postgres, for example postgres://dodo:password@127.0.0.1:5432/dodo
    #[arg(
        long,
        env = "DODO_DATABASE_URL",
        hide_env_values = true,
        default_value = "postgres://dodo@127.0.0.1:5432/dodo"
    )]
    pub database_url: String,
    #[command(flatten)]
    pub s3: S3,
}

/// The bucket that holds the archive.
#[derive(Args, Clone, Debug, Default)]
pub struct S3 {
    /// S3 endpoint, for example http://127.0.0.1:9000
    #[arg(long, env = "DODO_S3_ENDPOINT", default_value = "http://127.0.0.1:9000")]
    pub s3_endpoint: String,
    /// Bucket; it must exist
    #[arg(long, env = "DODO_S3_BUCKET", default_value = "dodo")]
    pub s3_bucket: String,
    /// Region the requests are signed for
    #[arg(long, env = "DODO_S3_REGION", default_value = "us-east-1")]
    pub s3_region: String,
    /// Access key
    #[arg(long, env = "AWS_ACCESS_KEY_ID", hide_env_values = true, default_value = "")]
    pub s3_access_key: String,
    /// Secret key
    #[arg(long, env = "AWS_SECRET_ACCESS_KEY", hide_env_values = true, default_value = "")]
    pub s3_secret_key: String,
}

/// Where and how much a process logs.
#[derive(Args, Clone, Debug)]
pub struct Logging {
    /// Directory under which each process gets a log directory of its own
    #[arg(long, env = "DODO_LOG_DIR", default_value = "log")]
    pub log_dir: PathBuf,
    /// What to log: error, warn, info, debug, or a filter such as dodo=debug,info
    #[arg(long, env = "DODO_LOG", default_value = "info")]
    pub log: String,
}

/// The pool of proxies, for schedulers, which choose, and workers, which fetch: the same for all of them.
#[derive(Args, Clone, Debug, Default)]
pub struct Proxies {
    /// Proxies that requests leave by: region=URL separated by commas, or a file of them, one a line
    // Plain text here: clap would repeat a wrong value, and with it a password.
    #[arg(long, env = "DODO_PROXIES", hide_env_values = true, default_value = "")]
    pub proxies: String,
}

impl Proxies {
    /// The pool; an empty one where none is set.
    ///
    /// # Errors
    /// One line that does not hold what was given: even what names a file may be a mistyped password.
    pub fn pool(&self) -> Result<ProxyPool, String> {
        let text = self.proxies.trim();
        let listed = if text.is_empty() || text.contains("://") { text.to_owned() } else { read(text)? };
        let pool: ProxyPool = listed.parse().map_err(|error| format!("DODO_PROXIES: {error}"))?;
        if pool.is_empty() && !text.is_empty() {
            return Err("DODO_PROXIES: the file names no proxy".to_owned());
        }
        Ok(pool)
    }

    /// The pool, where `proxy` is the setting of the one proxy of a worker.
    ///
    /// # Errors
    /// One line that does not hold what was given.
    pub fn pool_beside(&self, proxy: &str) -> Result<ProxyPool, String> {
        let pool = self.pool()?;
        if !pool.is_empty() && !proxy.trim().is_empty() {
            return Err("give DODO_PROXIES or DODO_PROXY, not both".to_owned());
        }
        Ok(pool)
    }
}

fn read(path: &str) -> Result<String, String> {
    let wrong = |why: String| format!("DODO_PROXIES: it has no region=URL, and cannot be read as a file: {why}");
    let bytes = std::fs::metadata(path).map_err(|error| wrong(error.to_string()))?.len();
    if bytes > POOL_BYTES_MAX {
        return Err(wrong(format!("it has more than {POOL_BYTES_MAX} bytes")));
    }
    std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))
}
