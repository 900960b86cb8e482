//! The fault campaign: real processes and servers, faults drawn from a seed, and a checker that knows none of our code.
//!
//! `scripts/chaos` runs it; `cargo test` runs a few fixed seeds of it. A schedule is a workload and a list of faults
//! with their times, both drawn from one seed. When the last fault is over, everything must come to its end, and
//! `scripts/lib/chaos_check.py` reads what was left behind. One world serves many schedules: what earlier ones left
//! must stay right.

#[expect(dead_code, reason = "shared with the integration tests, which use more of it")]
#[path = "../it/cluster.rs"]
mod cluster;
mod disk;
mod fault;
mod link;
mod post;
mod prove;
mod report;
mod schedule;
mod site;
mod timeline;
mod workload;
mod world;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Parser;
use rand::Rng;
use tokio::signal::unix::{SignalKind, signal};

use crate::report::Report;
use crate::schedule::{SCHEDULES_MAX, Size};
use crate::world::World;

/// What `cargo test` runs.
const FIXED: std::ops::RangeInclusive<u64> = 1..=5;
/// A seed whose workload has every kind of work: what is damaged to prove the checker.
const EVERY_KIND: u64 = 6;

/// Runs seeded schedules of faults against a real cluster and checks what is left behind.
#[derive(Parser, Debug)]
#[command(name = "chaos")]
struct Flags {
    /// So many seeds, one after the other, from --seed or a random one
    #[arg(long)]
    seeds: Option<u64>,
    /// This seed
    #[arg(long)]
    seed: Option<u64>,
    /// New seeds for so many minutes
    #[arg(long)]
    minutes: Option<u64>,
    /// Each seed so many times
    #[arg(long, default_value_t = 1)]
    times: u64,
    /// Schedules of minutes, with several faults at once
    #[arg(long)]
    long: bool,
    /// One line of JSON a schedule
    #[arg(long)]
    json: bool,
    /// Only seeds with a fault whose text has this: RedisCut, worker-s3, sleep, ..
    #[arg(long)]
    with: Option<String>,
    /// Stop at the first seed that fails
    #[arg(long)]
    stop: bool,
    /// Only damage a calm world piece by piece, to see that the checker calls each damage by its name
    #[arg(long)]
    prove: bool,
    #[command(flatten)]
    harness: Harness,
}

/// What `cargo test` passes to every test program.
#[derive(clap::Args, Debug)]
struct Harness {
    /// Names of tests; this one runs if one of them is part of its own
    #[arg(hide = true)]
    filters: Vec<String>,
    #[arg(long, hide = true)]
    list: bool,
    #[arg(long, hide = true)]
    ignored: bool,
    #[arg(long, hide = true)]
    include_ignored: bool,
    #[arg(long, hide = true)]
    nocapture: bool,
    #[arg(long, hide = true)]
    no_capture: bool,
    #[arg(long, hide = true)]
    show_output: bool,
    #[arg(long, hide = true)]
    exact: bool,
    #[arg(long, short, hide = true)]
    quiet: bool,
    #[arg(long, hide = true)]
    test_threads: Option<String>,
    #[arg(long, hide = true)]
    format: Option<String>,
    #[arg(long, hide = true)]
    color: Option<String>,
    #[arg(long, hide = true)]
    skip: Vec<String>,
}

impl Harness {
    fn runs(&self) -> bool {
        let names = |filter: &String| "chaos".contains(filter.as_str());
        let chosen = self.filters.is_empty() || self.filters.iter().any(names);
        chosen && !self.list && !self.ignored && !self.skip.iter().any(names)
    }
}

impl Flags {
    /// The seeds to run; without an end where minutes bound them.
    fn seeds(&self) -> Box<dyn Iterator<Item = u64>> {
        let first = self.seed.unwrap_or_else(|| rand::rng().random_range(1000..1_000_000));
        match (self.seeds, self.minutes, self.seed) {
            (Some(count), _, _) => Box::new(first..first + count),
            (None, Some(_), _) => Box::new(first..),
            (None, None, Some(seed)) => Box::new(seed..=seed),
            (None, None, None) => Box::new(FIXED),
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let flags = Flags::parse();
    if !flags.harness.runs() {
        return ExitCode::SUCCESS;
    }
    // Told to stop, it ends its servers and processes: nothing is left running.
    let told = async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
        anyhow::bail!("told to stop")
    };
    let ended = tokio::select! { ended = campaign(&flags) => ended, told = told => told };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("chaos: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs all schedules; whether all were right.
async fn campaign(flags: &Flags) -> Result<bool> {
    let fixed = (flags.seeds, flags.seed, flags.minutes) == (None, None, None);
    if fixed || flags.prove {
        prove().await?;
    }
    if flags.prove {
        return Ok(true);
    }
    let began = Instant::now();
    let size = if flags.long { Size::Long } else { Size::Short };
    let mut report = Report::new(flags.json, flags.long);
    let mut world: Option<(Arc<World>, Vec<schedule::Past>)> = None;
    let chosen = |seed: &u64| {
        flags.with.as_ref().is_none_or(|text| {
            schedule::faults(*seed, size).iter().any(|timed| format!("{:?}", timed.fault).contains(text))
        })
    };
    for seed in flags.seeds().filter(chosen) {
        for _ in 0..flags.times {
            if flags.minutes.is_some_and(|minutes| began.elapsed() > Duration::from_secs(minutes * 60)) {
                return report.end();
            }
            let (here, mut past) = match world.take() {
                Some(kept) => kept,
                None => (World::start().await?, Vec::new()),
            };
            let outcome = schedule::run(&here, &mut past, seed, size).await?;
            let failed = !outcome.violations.is_empty();
            report.schedule(seed, &outcome, &here);
            if failed {
                // What it left is kept for whoever looks for the cause; the next schedule has a world of its own.
                schedule::keep(here);
                if flags.stop {
                    return report.end();
                }
            } else if past.len() < SCHEDULES_MAX {
                world = Some((here, past));
            }
        }
    }
    report.end()
}

/// Proves the checker on a world in which nothing goes wrong.
async fn prove() -> Result<()> {
    let (world, mut past) = (World::start().await?, Vec::new());
    let outcome = schedule::run(&world, &mut past, EVERY_KIND, Size::Calm).await?;
    ensure!(outcome.violations.is_empty(), "a calm schedule is not right: {:?}", outcome.violations);
    prove::run(&world, &past).await
}
