//! `dodo sentinel` and `dodo incidents`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use dodo_common::clock::Clock;
use dodo_common::config::Logging;
use dodo_common::db::migrate as migrations;
use dodo_common::db::pool::{Db, DbError};
use dodo_common::lifecycle::Lifecycle;
use dodo_common::stream::connection::Redis;
use dodo_common::telemetry::logging;

use crate::api::incident::IncidentView;
use crate::cli::client::Client;
use crate::cli::{Remote, say};
use crate::sentinel::channel::Channel;
use crate::sentinel::channel::settings::Channels;
use crate::sentinel::judge::Judge;
use crate::sentinel::ledger::Ledger;
use crate::sentinel::rule::{DEFAULT_RULES, Rules};
use crate::sentinel::spool::Spool;
use crate::sentinel::{self, Context};

/// Connections to Postgres to look by, and others to write down and tell by: neither waits for the other.
const LOOK_CONNECTIONS: usize = 2;
const LEDGER_CONNECTIONS: usize = 4;
/// How a process ends whose settings are wrong, as clap does.
const WRONG_SETTINGS: u8 = 2;

#[derive(Args, Debug)]
pub struct Sentinel {
    /// YAML file of rules instead of the bundled ones
    #[arg(long, env = "DODO_SENTINEL_RULES")]
    rules: Option<PathBuf>,
    /// Print the rules and stop
    #[arg(long)]
    print_rules: bool,
    /// Check the rules and the channels and stop
    #[arg(long, conflicts_with = "print_rules")]
    check: bool,
    /// Print JSON for scripts, with --print-rules and --check
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    channels: Channels,
    /// Pause between two looks, milliseconds
    #[arg(long, env = "DODO_SENTINEL_EVERY_MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    every_ms: u64,
    /// Directory that keeps incidents while Postgres is away; each sentinel needs its own
    #[arg(long, env = "DODO_SENTINEL_SPOOL", default_value = "spool")]
    spool: PathBuf,
    /// Redis, for example redis://:password@127.0.0.1:6379/0
    #[arg(long, env = "DODO_REDIS_URL", hide_env_values = true, default_value = "redis://127.0.0.1:6379/0")]
    redis_url: String,
    /// Postgres, for example postgres://dodo:password@127.0.0.1:5432/dodo
    #[arg(
        long,
        env = "DODO_DATABASE_URL",
        hide_env_values = true,
        default_value = "postgres://dodo@127.0.0.1:5432/dodo"
    )]
    database_url: String,
    #[command(flatten)]
    logging: Logging,
    /// End when standard input closes: a child's way to follow its parent
    #[arg(long, hide = true)]
    exit_with_stdin: bool,
}

#[derive(Args, Debug)]
pub struct Incidents {
    /// How many at most
    #[arg(long, default_value_t = 20)]
    limit: i64,
    #[command(flatten)]
    remote: Remote,
}

pub async fn run(args: Sentinel) -> anyhow::Result<ExitCode> {
    let settings =
        Rules::load(file(args.rules.as_deref())).and_then(|rules| Ok((rules, Channel::open(&args.channels)?)));
    let (rules, channels) = match settings {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("dodo: {error}");
            return Ok(ExitCode::from(WRONG_SETTINGS));
        }
    };
    if args.print_rules {
        return print_rules(&args, &rules);
    }
    if args.check {
        let names: Vec<String> = channels.iter().map(Channel::name).collect();
        say(if args.json {
            serde_json::json!({ "rules": rules.rules.len(), "channels": names }).to_string()
        } else {
            let by = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            format!("{} rules are right; channels: {by}", rules.rules.len())
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    watch(args, rules, &channels).await
}

async fn watch(args: Sentinel, rules: Rules, channels: &[Channel]) -> anyhow::Result<ExitCode> {
    let lifecycle = Lifecycle::install().context("cannot listen for signals")?;
    if args.exit_with_stdin {
        lifecycle.follow_stdin();
    }
    let guard = logging::start(&args.logging, "sentinel", !args.exit_with_stdin).map_err(anyhow::Error::msg)?;
    let spool = Spool::open(&args.spool)?;
    let db = Db::pipeline(&args.database_url, "dodo-sentinel", LOOK_CONNECTIONS)?;
    let ledger_db = Db::pipeline(&args.database_url, "dodo-sentinel-ledger", LEDGER_CONNECTIONS)?;
    let redis = Redis::new(&args.redis_url, "sentinel")?;
    match migrations::check(&db).await {
        Ok(()) => {}
        Err(error @ DbError::Schema(_)) => return Err(error.into()),
        // A database that is down at the start is an incident like any other.
        Err(error) => tracing::warn!(%error, "starting without Postgres"),
    }
    let clock = Clock::System;
    let names: Vec<String> = channels.iter().map(Channel::name).collect();
    tracing::info!(rules = rules.rules.len(), channels = names.join(","), "watching");
    if names.is_empty() {
        tracing::warn!("no channel is configured: incidents are written down and nobody is told");
    }
    let mut judge = Judge::new(rules, clock.steady_ms());
    let ledger = Ledger::new(ledger_db, clock.clone(), names, spool);
    let ctx = Context { db, redis, clock, ledger, every: Duration::from_millis(args.every_ms) };
    tokio::select! {
        () = sentinel::run(&ctx, &mut judge, channels, &lifecycle) => {}
        () = guard.report_dropped() => {}
    }
    Ok(ExitCode::SUCCESS)
}

fn print_rules(args: &Sentinel, rules: &Rules) -> anyhow::Result<ExitCode> {
    if args.json {
        say(serde_json::to_string(rules)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let text = match file(args.rules.as_deref()) {
        Some(file) => std::fs::read_to_string(file)?,
        None => DEFAULT_RULES.to_owned(),
    };
    say(text.trim_end())?;
    Ok(ExitCode::SUCCESS)
}

pub async fn incidents(args: Incidents) -> anyhow::Result<ExitCode> {
    let query = [("limit", args.limit.to_string())];
    let incidents: Vec<IncidentView> = Client::new(&args.remote)?.get("/v1/incidents", &query).await?;
    if args.remote.json {
        say(serde_json::to_string(&incidents)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    if incidents.is_empty() {
        say("no incidents")?;
    }
    for incident in incidents {
        say(text_of(&incident))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn text_of(incident: &IncidentView) -> String {
    let at = incident.fired_at.format("%Y-%m-%d %H:%M:%S UTC");
    let until = incident.resolved_at.map_or("open".to_owned(), |at| format!("resolved {}", at.format("%H:%M:%S")));
    let mut text = format!("{at}  {:<8}  {:<20}  {until}\n  {}", incident.severity, incident.rule, incident.summary);
    for notice in incident.notices.iter().filter(|notice| notice.delivered_at.is_none()) {
        let why = notice.last_error.as_deref().unwrap_or("not tried yet");
        text.push_str(&format!("\n  not told by {} ({}): {why}", notice.channel, notice.event.as_str()));
    }
    text
}

/// A variable that is set to nothing is not set.
fn file(given: Option<&Path>) -> Option<&Path> {
    given.filter(|file| !file.as_os_str().is_empty())
}
