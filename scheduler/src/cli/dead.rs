//! `dodo dead`: jobs that ended without success, and their replay.

use std::process::ExitCode;

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use dodo_common::db::explain::JobReport;
use uuid::Uuid;

use crate::api::dead::{ReplayedJobs, Which};
use crate::cli::client::Client;
use crate::cli::show::job_line;
use crate::cli::{Remote, say};

#[derive(Args, Debug)]
pub struct Dead {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// List dead letters: jobs that ended dead, failed, unknown or quarantined
    List(Query),
    /// Schedule them again, each once
    Replay {
        #[command(flatten)]
        query: Query,
        /// Calls that may not be repeated and whose end is unknown, too
        #[arg(long)]
        force: bool,
    },
}

#[derive(Args, Debug)]
struct Query {
    /// Only those of this dispatch
    #[arg(long)]
    dispatch: Option<Uuid>,
    /// Only this kind: crawl, get_page, get_metadata, page_dispatch
    #[arg(long)]
    kind: Option<String>,
    /// Only those that ended so: dead, failed, unknown or quarantined
    #[arg(long, value_parser = ["dead", "failed", "unknown", "quarantined"])]
    outcome: Option<String>,
    /// Only those of this host, as `dodo jobs` shows it
    #[arg(long)]
    host: Option<String>,
    /// Only those whose reason holds this text
    #[arg(long)]
    reason: Option<String>,
    /// Only those that ended at this time or later, RFC 3339
    #[arg(long)]
    since: Option<DateTime<Utc>>,
    #[command(flatten)]
    remote: Remote,
}

impl Query {
    fn which(&self, force: bool) -> Which {
        Which {
            dispatch: self.dispatch,
            kind: self.kind.clone(),
            outcome: self.outcome.clone(),
            host: self.host.clone(),
            reason: self.reason.clone(),
            since: self.since,
            after: None,
            force,
        }
    }
}

pub async fn run(dead: Dead) -> anyhow::Result<ExitCode> {
    match dead.verb {
        Verb::List(query) => list(&query).await?,
        Verb::Replay { query, force } => replay(&query, force).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(query: &Query) -> anyhow::Result<()> {
    let client = Client::new(&query.remote)?;
    let which = query.which(false);
    let mut after: Option<Uuid> = None;
    loop {
        let given = [
            ("dispatch", which.dispatch.map(|id| id.to_string())),
            ("kind", which.kind.clone()),
            ("outcome", which.outcome.clone()),
            ("host", which.host.clone()),
            ("reason", which.reason.clone()),
            ("since", which.since.map(|at| at.to_rfc3339())),
            ("after", after.map(|id| id.to_string())),
        ];
        let pairs: Vec<(&str, String)> = given.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        let jobs: Vec<JobReport> = client.get("/v1/dead", &pairs).await?;
        let Some(last) = jobs.last() else { return Ok(()) };
        after = Some(last.id);
        for job in &jobs {
            say(if query.remote.json { serde_json::to_string(job)? } else { job_line(job) })?;
        }
    }
}

async fn replay(query: &Query, force: bool) -> anyhow::Result<()> {
    let client = Client::new(&query.remote)?;
    let mut total = ReplayedJobs::default();
    loop {
        let replayed: ReplayedJobs = client.post("/v1/dead/replay", &query.which(force)).await?;
        total.replayed += replayed.replayed;
        total.left = replayed.left;
        if replayed.replayed == 0 {
            break;
        }
    }
    say(if query.remote.json {
        serde_json::to_string(&total)?
    } else if total.left > 0 {
        format!(
            "{} scheduled again, {} calls with an unknown end left alone (--force repeats them)",
            total.replayed, total.left
        )
    } else {
        format!("{} scheduled again", total.replayed)
    })
}
