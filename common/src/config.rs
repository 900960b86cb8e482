//! What every process is told: servers, bucket, log directory. Environment variables carry the
//! names of `docker/sample.env`; flags override them.

use std::path::PathBuf;

use clap::Args;

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
