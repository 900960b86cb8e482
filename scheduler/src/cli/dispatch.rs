//! `dodo dispatch`: what was submitted, and orders for it.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use dodo_common::db::dispatch::Dispatch;
use dodo_common::db::tally::Tally;
use uuid::Uuid;

use crate::cli::client::Client;
use crate::cli::crawl::again;
use crate::cli::{Remote, bytes, say};

#[derive(Args, Debug)]
pub struct DispatchArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// List the latest dispatches, newest first
    List {
        #[command(flatten)]
        remote: Remote,
    },
    /// Show one
    Get(One),
    /// What each host has given a crawl that counts that, those with the most duplicates first
    Hosts(One),
    /// Issue nothing more of it for now; what runs ends. Dispatches it has started go with it, here and below
    Pause(One),
    /// Let it go on
    Resume(One),
    /// End what is left of it without a request
    Cancel(One),
}

#[derive(Args, Debug)]
struct One {
    /// Id of the dispatch
    id: Uuid,
    #[command(flatten)]
    remote: Remote,
}

pub async fn run(args: DispatchArgs) -> anyhow::Result<ExitCode> {
    match args.verb {
        Verb::List { remote } => {
            let dispatches: Vec<Dispatch> = Client::new(&remote)?.get("/v1/dispatches", &[]).await?;
            for dispatch in &dispatches {
                show(dispatch, remote.json)?;
            }
        }
        Verb::Get(one) => {
            let path = format!("/v1/dispatches/{}", one.id);
            show(&Client::new(&one.remote)?.get(&path, &[]).await?, one.remote.json)?;
        }
        Verb::Hosts(one) => {
            let path = format!("/v1/dispatches/{}/hosts", one.id);
            for host in Client::new(&one.remote)?.get::<Vec<Tally>>(&path, &[]).await? {
                say(if one.remote.json { serde_json::to_string(&host)? } else { host_line(&host) })?;
            }
        }
        Verb::Pause(one) => order(&one, "pause").await?,
        Verb::Resume(one) => order(&one, "resume").await?,
        Verb::Cancel(one) => order(&one, "cancel").await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn order(one: &One, order: &str) -> anyhow::Result<()> {
    let path = format!("/v1/dispatches/{}/{order}", one.id);
    show(&Client::new(&one.remote)?.post(&path, &()).await?, one.remote.json)
}

fn show(dispatch: &Dispatch, json: bool) -> anyhow::Result<()> {
    say(if json { serde_json::to_string(dispatch)? } else { line(dispatch) })
}

/// What a host has given, on one line.
fn host_line(t: &Tally) -> String {
    format!(
        "{}  {} pages, {}, {} new, {} duplicates, {} near duplicates",
        t.host,
        t.pages,
        bytes(t.bytes.max(0) as u64),
        t.fresh,
        t.duplicates,
        t.near_duplicates
    )
}

/// A dispatch on one line.
fn line(dispatch: &Dispatch) -> String {
    let p = &dispatch.progress;
    let state = match &dispatch.ending {
        _ if dispatch.paused_at.is_some() => "paused",
        Some(_) if dispatch.state == "running" => "ending",
        _ => &dispatch.state,
    };
    let note = dispatch.note.as_ref().map_or(String::new(), |note| format!("  ({note})"));
    format!(
        "{}  {:<8} {:<9} {} of {} jobs ended, {} pages{}, {} failed, {} skipped{note}",
        dispatch.id,
        dispatch.kind,
        state,
        p.finished,
        p.scheduled,
        p.pages,
        again(p),
        p.failed,
        p.skipped
    )
}
