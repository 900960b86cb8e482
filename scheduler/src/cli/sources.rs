//! `dodo sources`: documents of APIs, their secrets, and dispatches of them.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use dodo_common::db::source::{SecretName, Source};
use dodo_common::model::source::Document;

use crate::api::source::{RunRequest, SecretRequest, Stored};
use crate::api::timer::Answer;
use crate::cli::client::Client;
use crate::cli::timers::{self, CronFlags};
use crate::cli::{Remote, crawl, say};

#[derive(Args, Debug)]
pub struct Sources {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// List the stored sources
    List(Plain),
    /// Print a source's document
    Show(Named),
    /// Store a document under a name; other content is a new version
    Put {
        name: String,
        /// The document, JSON
        file: PathBuf,
        #[command(flatten)]
        remote: Remote,
    },
    /// Forget a source; its records stay
    Delete(Named),
    /// Read the source's API once, page by page; prints the dispatch id
    Run(Box<Run>),
    /// Store a secret, read from standard input
    Secret(Named),
    /// List the names of the stored secrets
    Secrets(Plain),
}

#[derive(Args, Debug)]
struct Plain {
    #[command(flatten)]
    remote: Remote,
}

#[derive(Args, Debug)]
struct Named {
    name: String,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Args, Debug)]
struct Run {
    name: String,
    /// What {base} in the document's URLs stands for
    #[arg(long)]
    base: Option<String>,
    /// Which installation of the platform [default: the authority of its URL]
    #[arg(long)]
    instance: Option<String>,
    /// A name in braces of the document's URLs and what it stands for: name=value; may be given more than once
    #[arg(long, value_parser = pair)]
    subject: Vec<(String, String)>,
    /// A name for this dispatch: asking again with the same one starts nothing new
    #[arg(long)]
    key: Option<String>,
    /// Body bytes to receive before the rest is skipped; what is in flight then comes on top [default: no limit]
    #[arg(long)]
    max_bytes: Option<i64>,
    /// Seconds after which the rest is skipped, a pause included [default: no limit]
    #[arg(long)]
    max_seconds: Option<i64>,
    /// How often a request is tried again [default: what the document says]
    #[arg(long)]
    retries: Option<i16>,
    /// -100 to 100; at one API the higher goes first [default: 0]
    #[arg(long, allow_negative_numbers = true)]
    priority: Option<i16>,
    /// Begin at this time, RFC 3339
    #[arg(long)]
    start_at: Option<String>,
    /// Begin so many milliseconds from now
    #[arg(long)]
    start_in_ms: Option<i64>,
    #[command(flatten)]
    cron: CronFlags,
    /// Wait until every page is fetched, processed and archived
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    remote: Remote,
}

pub async fn run(sources: Sources) -> anyhow::Result<ExitCode> {
    match sources.verb {
        Verb::List(plain) => list(&plain.remote).await?,
        Verb::Secrets(plain) => secrets(&plain.remote).await?,
        Verb::Show(named) => {
            let source: Source = Client::new(&named.remote)?.get(&path(&named.name), &[]).await?;
            say(if named.remote.json {
                serde_json::to_string(&source)?
            } else {
                serde_json::to_string_pretty(&source.document)?
            })?;
        }
        Verb::Put { name, file, remote } => put(&name, &file, &remote).await?,
        Verb::Delete(named) => Client::new(&named.remote)?.delete(&path(&named.name)).await?,
        Verb::Run(run) => return start(*run).await,
        Verb::Secret(named) => secret(&named).await?,
    }
    Ok(ExitCode::SUCCESS)
}

fn path(name: &str) -> String {
    format!("/v1/sources/{name}")
}

async fn list(remote: &Remote) -> anyhow::Result<()> {
    let sources: Vec<Source> = Client::new(remote)?.get("/v1/sources", &[]).await?;
    for source in sources {
        if remote.json {
            say(serde_json::to_string(&source)?)?;
            continue;
        }
        let next = source.next_at.map_or(String::new(), |at| format!("  next {}", at.format("%F %T UTC")));
        say(format!("{}  version {}  {}{next}", source.name, source.version, source.document.url))?;
    }
    Ok(())
}

async fn put(name: &str, file: &PathBuf, remote: &Remote) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    // Read here too: the line and column of a slip are worth more than the server's word.
    let document: Document =
        serde_json::from_str(&text).with_context(|| format!("{} is no source document", file.display()))?;
    let stored: Stored = Client::new(remote)?.put(&path(name), &document).await?;
    say(if remote.json {
        serde_json::to_string(&stored)?
    } else {
        format!("{} version {}", stored.name, stored.version)
    })
}

async fn start(run: Run) -> anyhow::Result<ExitCode> {
    let client = Client::new(&run.remote)?;
    let request = RunRequest {
        base: run.base,
        instance: run.instance,
        subject: run.subject.into_iter().collect::<BTreeMap<_, _>>(),
        metadata: None,
        key: run.key,
        max_bytes: run.max_bytes,
        max_seconds: run.max_seconds,
        retries: run.retries,
        priority: run.priority,
        start_at: run.start_at,
        start_in_ms: run.start_in_ms,
        cron: run.cron.cron,
        timezone: run.cron.timezone,
    };
    let accepted = match client.post(&format!("{}/dispatches", path(&run.name)), &request).await? {
        Answer::Dispatch(accepted) => accepted,
        Answer::Timer(timer) => {
            timers::show(&timer, run.remote.json)?;
            return Ok(ExitCode::SUCCESS);
        }
    };
    if run.wait {
        return crawl::wait(&client, accepted.dispatch, run.remote.json).await;
    }
    say(if run.remote.json { serde_json::to_string(&accepted)? } else { accepted.dispatch.to_string() })?;
    Ok(ExitCode::SUCCESS)
}

async fn secret(named: &Named) -> anyhow::Result<()> {
    let mut value = String::new();
    std::io::stdin().read_to_string(&mut value).context("cannot read the secret from standard input")?;
    let value = value.trim_end_matches(['\r', '\n']).to_owned();
    if value.is_empty() {
        bail!("give the secret on standard input, for example: dodo sources secret {} < file", named.name);
    }
    Client::new(&named.remote)?.put_nothing(&format!("/v1/secrets/{}", named.name), &SecretRequest { value }).await
}

async fn secrets(remote: &Remote) -> anyhow::Result<()> {
    let names: Vec<SecretName> = Client::new(remote)?.get("/v1/secrets", &[]).await?;
    for secret in names {
        say(if remote.json { serde_json::to_string(&secret)? } else { secret.name })?;
    }
    Ok(())
}

fn pair(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .filter(|(name, _)| !name.is_empty())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .ok_or_else(|| "write it as name=value".to_owned())
}
