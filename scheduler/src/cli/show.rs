//! `dodo status|workers|jobs|why`: reading a running cluster.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use dodo_common::db::explain::JobReport;
use dodo_common::stream::status::StreamStatus;
use uuid::Uuid;

use crate::api::status::{ProxyView, Status as Glance, WorkerView};
use crate::api::why_slow::WhySlow as Answer;
use crate::cli::client::Client;
use crate::cli::{Remote, bytes, say};

#[derive(Args, Debug)]
pub struct Plain {
    #[command(flatten)]
    remote: Remote,
}

#[derive(Args, Debug)]
pub struct Status {
    /// Show it again every second until Ctrl-C
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Args, Debug)]
pub struct Jobs {
    /// pending, or an outcome: ok, redirect, http_error, robots, refused, unwanted, noindex, budget, dead, failed, duplicate, cancelled, unknown, quarantined
    #[arg(long)]
    state: Option<String>,
    /// Only those of this dispatch
    #[arg(long)]
    dispatch: Option<Uuid>,
    /// How many at most
    #[arg(long, default_value_t = 50)]
    limit: i64,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Args, Debug)]
pub struct Why {
    /// A URL, or the id of a job
    of: String,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Args, Debug)]
pub struct WhySlow {
    /// Id of the dispatch
    dispatch: Uuid,
    #[command(flatten)]
    remote: Remote,
}

pub async fn status(args: Status) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.remote)?;
    loop {
        let glance: Glance = client.get("/v1/status", &[]).await?;
        let streams: Vec<StreamStatus> = client.get("/v1/streams", &[]).await.unwrap_or_default();
        if args.remote.json {
            let mut value = serde_json::to_value(&glance)?;
            value["streams"] = serde_json::to_value(&streams)?;
            say(value.to_string())?;
        } else {
            say(glance_text(&glance, &streams))?;
        }
        if !args.watch {
            return Ok(ExitCode::SUCCESS);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn glance_text(glance: &Glance, streams: &[StreamStatus]) -> String {
    let leader = glance.leader.map_or("none".to_owned(), |id| id.to_string());
    let mut workers: Vec<String> = glance.workers.iter().map(|(state, count)| format!("{count} {state}")).collect();
    workers.sort();
    let workers = if workers.is_empty() { "none".to_owned() } else { workers.join(", ") };
    let mut text = format!(
        "leader      {leader} (epoch {})\ngeneration  {}{}\njobs        {} pending, the oldest due for {:.1} s\nworkers     {workers}\n\
         archive     {} objects, {}\nredis       {}",
        glance.epoch.unwrap_or_default(),
        glance.generation,
        if glance.dispatching { "" } else { " (not dispatching)" },
        glance.jobs_pending,
        glance.oldest_due_ms as f64 / 1000.0,
        glance.archive_objects,
        bytes(glance.archive_bytes.max(0) as u64),
        bytes(glance.redis_bytes),
    );
    for proxy in &glance.proxies {
        text.push_str(&format!("\nproxy       {}", proxy_text(proxy)));
    }
    if let Some(why) = &glance.backpressure {
        text.push_str(&format!("\nbackpressure: {why}"));
    }
    for why in &glance.slow {
        text.push_str(&format!("\nslow        {why}"));
    }
    for stream in streams {
        let lag = stream.lag.map_or(String::new(), |lag| format!(", {lag} undelivered"));
        text.push_str(&format!(
            "\nstream      {}: {} entries, {} pending{lag}",
            stream.name, stream.length, stream.pending
        ));
    }
    text
}

fn proxy_text(proxy: &ProxyView) -> String {
    let ProxyView { region, address, state, successes, blocks, failures, quarantined_until } = proxy;
    let until = quarantined_until.filter(|_| state == "quarantined");
    let until = until.map_or(String::new(), |until| format!(" until {}", until.format("%H:%M:%S UTC")));
    format!("{region} {address}: {state}{until}, {successes} answers, {blocks} blocks, {failures} failures")
}

pub async fn workers(args: Plain) -> anyhow::Result<ExitCode> {
    let workers: Vec<WorkerView> = Client::new(&args.remote)?.get("/v1/workers", &[]).await?;
    if args.remote.json {
        say(serde_json::to_string(&workers)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    say(format!(
        "{:<5} {:<9} {:<16} {:<10} {:<21} {:>8} {:>9} {:>10}  REASON",
        "SLOT", "STATE", "ADDRESS", "REGION", "PROXY", "PID", "HOLDS", "SETTLED"
    ))?;
    for w in workers {
        say(format!(
            "{:<5} {:<9} {:<16} {:<10} {:<21} {:>8} {:>9} {:>10}  {}",
            w.slot,
            w.state,
            w.address,
            w.region.unwrap_or_default(),
            w.proxy.unwrap_or_default(),
            w.pid,
            w.in_flight,
            w.settled,
            w.reason.unwrap_or_default()
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub async fn jobs(args: Jobs) -> anyhow::Result<ExitCode> {
    let mut query = vec![("limit", args.limit.to_string())];
    query.extend(args.state.map(|state| ("state", state)));
    query.extend(args.dispatch.map(|id| ("dispatch", id.to_string())));
    let jobs: Vec<JobReport> = Client::new(&args.remote)?.get("/v1/jobs", &query).await?;
    for job in jobs {
        if args.remote.json {
            say(serde_json::to_string(&job)?)?;
            continue;
        }
        say(job_line(&job))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A job on one line.
pub fn job_line(job: &JobReport) -> String {
    let status = job.status.map_or("-".to_owned(), |status| status.to_string());
    let what = job.url.as_deref().unwrap_or(&job.kind);
    let page = match (job.page, job.total_pages) {
        (Some(page), Some(total)) if total > 0 => format!("  page {page} of {total}"),
        (Some(page), _) => format!("  page {page}"),
        _ => String::new(),
    };
    let reason = job.reason.as_ref().map_or(String::new(), |reason| format!("  ({reason})"));
    let crashes = match (job.crashes, job.alone_crashes) {
        (0, _) => String::new(),
        (crashes, 0) => format!("  {} lost", workers_text(crashes)),
        (crashes, alone) => format!("  {} lost, {alone} while it ran alone", workers_text(crashes)),
    };
    format!("{}  {:<10} {status:>3}  {what}{page}{crashes}{reason}", job.id, job.state)
}

fn workers_text(count: i16) -> String {
    if count == 1 { "1 worker".to_owned() } else { format!("{count} workers") }
}

pub async fn why(args: Why) -> anyhow::Result<ExitCode> {
    let answer: serde_json::Value = Client::new(&args.remote)?.get("/v1/why", &[("of", args.of)]).await?;
    if args.remote.json {
        say(answer.to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    for line in answer["lines"].as_array().into_iter().flatten().filter_map(|line| line.as_str()) {
        say(line)?;
    }
    Ok(ExitCode::SUCCESS)
}

pub async fn why_slow(args: WhySlow) -> anyhow::Result<ExitCode> {
    let path = format!("/v1/dispatches/{}/why-slow", args.dispatch);
    let answer: Answer = Client::new(&args.remote)?.get(&path, &[]).await?;
    say(if args.remote.json { serde_json::to_string(&answer)? } else { why_slow_text(&answer) })?;
    Ok(ExitCode::SUCCESS)
}

fn why_slow_text(answer: &Answer) -> String {
    let mut text = format!("{} {}: {} pages, {:.1}/s", answer.dispatch, answer.state, answer.pages, answer.pages_per_s);
    for share in &answer.shares {
        text.push_str(&format!("\n{:>5.1} %  {}", share.share * 100.0, share.meaning));
    }
    if answer.shares.is_empty() {
        text.push_str("\nnothing of it was seen to wait");
    }
    let retries = &answer.retries;
    if retries.jobs > 0 {
        let next = retries.next_in_ms.unwrap_or_default() as f64 / 1000.0;
        let error = retries.error.as_deref().unwrap_or_default();
        text.push_str(&format!(
            "\nerrors: {} jobs wait for another try, the first for {next:.1} s: {error}",
            retries.jobs
        ));
    }
    text
}
