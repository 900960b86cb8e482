//! `dodo timers`: what recurs.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use dodo_common::db::timer::Timer;
use uuid::Uuid;

use crate::cli::client::Client;
use crate::cli::{Remote, say};

#[derive(Args, Debug)]
pub struct Timers {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// List them, the next one first
    List {
        #[command(flatten)]
        remote: Remote,
    },
    /// Forget one; what it has started goes on
    Delete {
        id: Uuid,
        #[command(flatten)]
        remote: Remote,
    },
}

/// A crawl or a run that recurs.
#[derive(Args, Clone, Debug, Default)]
pub struct CronFlags {
    /// Submit it again and again: a cron pattern of five fields, or six with seconds first
    #[arg(long, conflicts_with = "wait")]
    pub cron: Option<String>,
    /// The time zone of the pattern's clock, such as Europe/Berlin [default: UTC]
    #[arg(long, requires = "cron")]
    pub timezone: Option<String>,
}

pub async fn run(timers: Timers) -> anyhow::Result<ExitCode> {
    match timers.verb {
        Verb::List { remote } => {
            let timers: Vec<Timer> = Client::new(&remote)?.get("/v1/timers", &[]).await?;
            for timer in &timers {
                show(timer, remote.json)?;
            }
        }
        Verb::Delete { id, remote } => Client::new(&remote)?.delete(&format!("/v1/timers/{id}")).await?,
    }
    Ok(ExitCode::SUCCESS)
}

pub fn show(timer: &Timer, json: bool) -> anyhow::Result<()> {
    say(if json { serde_json::to_string(timer)? } else { line(timer) })
}

/// A timer on one line.
fn line(timer: &Timer) -> String {
    let what = match (&timer.source, &timer.key) {
        (Some(source), _) => format!("source {source}"),
        (None, Some(key)) => format!("{} {key}", timer.kind),
        (None, None) => timer.kind.clone(),
    };
    let when = match (&timer.cron, timer.every_s) {
        (Some(cron), _) => format!("{cron} {}", timer.timezone.as_deref().unwrap_or("UTC")),
        (None, every_s) => format!("every {} s", every_s.unwrap_or_default()),
    };
    let next = timer.next_at.map_or("never".to_owned(), |at| at.format("%F %T UTC").to_string());
    let error = timer.last_error.as_ref().map_or(String::new(), |why| format!("  ({why})"));
    format!("{}  {what}  {when}  next {next}{error}", timer.id)
}
