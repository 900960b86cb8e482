//! `dodo health`: one question to one part, answered by the exit code. Containers have no other tool to ask with.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use dodo_common::config::Servers;
use dodo_common::db::pool::Db;
use dodo_common::db::worker;
use dodo_common::place;
use dodo_common::stream::connection::Redis;
use dodo_common::stream::heartbeat::{self, LEASE_MS};

use crate::cli::client::Client;
use crate::cli::{Remote, archive, say};

/// The whole check; what takes longer is not well.
const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Part {
    /// The API answers, and Postgres and Redis answer it
    Scheduler,
    /// The cluster knows a live worker on this host
    Worker,
    /// The bucket is there and may be read
    S3,
}

#[derive(Args, Debug)]
pub struct Health {
    /// Which part
    #[arg(value_enum, default_value = "scheduler")]
    part: Part,
    #[command(flatten)]
    servers: Servers,
    #[command(flatten)]
    remote: Remote,
}

pub async fn run(health: Health) -> anyhow::Result<ExitCode> {
    let json = health.remote.json;
    let check = async {
        match health.part {
            Part::Scheduler => scheduler(&health.remote).await,
            Part::Worker => worker(&health.servers).await,
            Part::S3 => archive::store(&health.servers.s3)?.check().await.context("the archive is not well"),
        }
    };
    tokio::time::timeout(TIMEOUT, check).await.with_context(|| format!("no answer within {TIMEOUT:?}"))??;
    say(if json { r#"{"healthy":true}"# } else { "healthy" })?;
    Ok(ExitCode::SUCCESS)
}

async fn scheduler(remote: &Remote) -> anyhow::Result<()> {
    Client::new(remote)?.text("/health/ready").await.map(drop)
}

/// Asks where everybody else looks: a process that runs, but whose heart nobody hears, is not well.
async fn worker(servers: &Servers) -> anyhow::Result<()> {
    let host = place::host_name();
    let db = Db::pipeline(&servers.database_url, "dodo-health", 1)?;
    let mut own = worker::unreleased(&db).await?;
    own.retain(|row| row.host == host && row.lost_at.is_none() && row.ended_at.is_none());
    if own.is_empty() {
        bail!("no worker of {host} is registered");
    }
    let beats = heartbeat::all(&Redis::new(&servers.redis_url, "dodo-health")?).await?;
    if !beats.iter().any(|heard| heard.age_ms <= LEASE_MS && own.iter().any(|row| row.id == heard.worker)) {
        bail!("no worker of {host} has a heartbeat younger than {LEASE_MS} ms");
    }
    Ok(())
}
