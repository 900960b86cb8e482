//! The command line, a file for each group of verbs.

pub mod archive;
pub mod client;
pub mod crawl;
pub mod dead;
pub mod dispatch;
pub mod export;
pub mod gc;
pub mod health;
pub mod records;
pub mod rules;
pub mod s3;
pub mod sample;
pub mod sentinel;
pub mod serve;
pub mod show;
pub mod sources;
pub mod submit;
pub mod timers;

use std::io::Write;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::local::up;

/// Crawl and scrape as dependable infrastructure: loses nothing, counts nothing twice, explains every decision.
#[derive(Parser, Debug)]
#[command(name = "dodo", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run everything on this machine: private Redis and Postgres, an S3 endpoint, scheduler and workers
    Up(Box<up::Up>),
    /// Run a scheduler: HTTP API, and the dispatcher while it leads
    Serve(Box<serve::Serve>),
    /// Watch the cluster by rules and alert by Slack and mail
    Sentinel(Box<sentinel::Sentinel>),
    /// Bring the database's schema up to date
    Migrate(serve::Migrate),
    /// Run an S3 endpoint on a directory, for where there is no other
    S3(s3::S3Server),
    /// Serve the sample web site that Dodo brings along
    Sample(sample::Sample),
    /// Tell whether a part of the cluster is well, by the exit code: for health checks
    Health(health::Health),
    /// Submit a crawl to a running cluster
    Crawl(Box<crawl::Crawl>),
    /// Submit a manifest: a list of jobs as a file
    Submit(submit::Submit),
    /// Store, list and run sources: APIs that are read page by page
    Sources(sources::Sources),
    /// List and delete timers: crawls and runs that recur
    Timers(timers::Timers),
    /// List records, and the items that did not fit
    Records(records::Records),
    /// Totals of what was gathered
    Report(records::Report),
    /// List dispatches; pause, resume and cancel them
    Dispatch(dispatch::DispatchArgs),
    /// List and replay jobs that ended without success
    Dead(dead::Dead),
    /// Show the cluster at a glance
    Status(show::Status),
    /// List workers
    Workers(show::Plain),
    /// List jobs, finished or pending
    Jobs(show::Jobs),
    /// List incidents, the open ones first
    Incidents(sentinel::Incidents),
    /// Explain every decision about a URL or a job
    Why(show::Why),
    /// Say what a dispatch spends its time on
    WhySlow(show::WhySlow),
    /// List, read and check the archive, from S3 alone; delete what does not belong there
    Archive(archive::Archive),
    /// Write the pages or links of a crawl to standard output
    Export(export::Export),
    /// Say whether a robots.txt allows URLs, and by which line
    Robots(rules::Robots),
    /// Show the canonical form of a URL, step by step
    Url(rules::CanonicalUrl),
}

/// Where the scheduler's API is.
#[derive(Args, Clone, Debug)]
pub struct Remote {
    /// Address of the scheduler's API
    #[arg(long, env = "DODO_API_URL", default_value = "http://127.0.0.1:7070")]
    pub api: String,
    /// Admin token of the API, where it asks for one
    #[arg(long, env = "DODO_ADMIN_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Print JSON for scripts
    #[arg(long)]
    pub json: bool,
}

pub async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Up(up) => up::run(*up).await,
        Command::Serve(serve) => serve::serve(*serve).await,
        Command::Sentinel(args) => sentinel::run(*args).await,
        Command::Migrate(migrate) => serve::migrate(migrate).await,
        Command::S3(s3) => s3::run(s3).await,
        Command::Sample(sample) => sample::run(sample).await,
        Command::Health(health) => health::run(health).await,
        Command::Crawl(crawl) => crawl::run(*crawl).await,
        Command::Submit(submit) => submit::run(submit).await,
        Command::Sources(sources) => sources::run(sources).await,
        Command::Timers(timers) => timers::run(timers).await,
        Command::Records(records) => records::run(records).await,
        Command::Report(report) => records::report(report).await,
        Command::Dispatch(dispatch) => dispatch::run(dispatch).await,
        Command::Dead(dead) => dead::run(dead).await,
        Command::Status(status) => show::status(status).await,
        Command::Workers(plain) => show::workers(plain).await,
        Command::Jobs(jobs) => show::jobs(jobs).await,
        Command::Incidents(incidents) => sentinel::incidents(incidents).await,
        Command::Why(why) => show::why(why).await,
        Command::WhySlow(why) => show::why_slow(why).await,
        Command::Archive(archive) => archive::run(archive).await,
        Command::Export(export) => export::run(export).await,
        Command::Robots(robots) => rules::robots(robots).await,
        Command::Url(url) => rules::url(&url),
    }
}

/// Writes one line to standard output; unlike `println!` it reports a closed pipe instead of panicking.
pub fn say(text: impl AsRef<str>) -> anyhow::Result<()> {
    writeln!(std::io::stdout().lock(), "{}", text.as_ref())?;
    Ok(())
}

/// Writes one line to standard error; unlike `eprintln!` it does not panic when the terminal is gone.
pub fn tell(text: impl AsRef<str>) {
    let _ = writeln!(std::io::stderr().lock(), "dodo: {}", text.as_ref());
}

pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

/// Bytes as a person reads them.
pub fn bytes(count: u64) -> String {
    indicatif::HumanBytes(count).to_string()
}
