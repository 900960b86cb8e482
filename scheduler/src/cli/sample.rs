//! `dodo sample`: the bundled site as a process of its own, to try a cluster that runs elsewhere.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use dodo_common::lifecycle::Lifecycle;
use url::Url;

use crate::cli::say;
use crate::local::site::SampleSite;

#[derive(Args, Debug)]
pub struct Sample {
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1:8000")]
    listen: SocketAddr,
    /// What others call it, for example http://sample:8000 [default: its address]
    #[arg(long)]
    origin: Option<Url>,
    /// Milliseconds by which each answer is late
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=60_000))]
    latency: u64,
}

pub async fn run(args: Sample) -> anyhow::Result<ExitCode> {
    let lifecycle = Lifecycle::install().context("cannot listen for signals")?;
    let origin = args.origin.as_ref().map(Url::as_str);
    let mut site = SampleSite::serve(args.listen, origin, Duration::from_millis(args.latency), None)?;
    say(origin.map_or_else(|| site.url(), str::to_owned))?;
    lifecycle.soft.cancelled().await;
    site.stop().await;
    Ok(ExitCode::SUCCESS)
}
