//! `dodo submit`: a manifest without S3.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use dodo_common::db::manifest::Manifest;

use crate::cli::client::Client;
use crate::cli::{Remote, crawl, say};

#[derive(Args, Debug)]
pub struct Submit {
    /// A JSON list of entries: {service, url, headers, cookies, start, count, interval, duration, version, options}
    file: PathBuf,
    /// What it is known by: the same name with other content replaces it [default: the file's name]
    #[arg(long)]
    name: Option<String>,
    /// Wait until everything it started is done; a manifest that runs for ever is waited for as long
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    remote: Remote,
}

pub async fn run(submit: Submit) -> anyhow::Result<ExitCode> {
    let body = std::fs::read(&submit.file).with_context(|| format!("cannot read {}", submit.file.display()))?;
    let file_name = submit.file.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = submit.name.or(file_name).unwrap_or_default();
    let client = Client::new(&submit.remote)?;
    let manifest: Manifest = client.post_bytes("/v1/manifests", &[("name", name)], body).await?;
    let accepted = manifest.state == "accepted";
    if let (true, true, Some(dispatch)) = (accepted, submit.wait, manifest.dispatch) {
        return crawl::wait(&client, dispatch, submit.remote.json).await;
    }
    if submit.remote.json {
        say(serde_json::to_string(&manifest)?)?;
    } else if accepted {
        say(manifest.dispatch.map_or_else(String::new, |id| id.to_string()))?;
    } else {
        eprintln!("dodo: {} is malformed; nothing of it was scheduled", submit.file.display());
        for reason in &manifest.reasons {
            eprintln!("  {}{}", reason.entry.map_or(String::new(), |entry| format!("entry {entry}: ")), reason.reason);
        }
    }
    Ok(if accepted { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
