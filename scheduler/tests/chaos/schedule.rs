//! One schedule: its workload and its faults at their times, the wait for the end, the check.

use std::collections::HashMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;

use crate::fault::{self, Timed};
use crate::site::Host;
use crate::workload::{self, Work};
use crate::world::{HOSTS_MAX, World};

/// Hosts of one schedule at most.
const HOSTS: usize = 40;
/// Schedules of one world.
pub const SCHEDULES_MAX: usize = HOSTS_MAX / HOSTS;
/// Everything must have come to its end so long after the last fault. A lost hint alone costs a minute.
const SETTLE: Duration = Duration::from_secs(180);

/// What one schedule has submitted.
#[derive(Clone, Debug, Serialize)]
pub struct Past {
    name: String,
    hosts: HashMap<String, Host>,
    works: Vec<Work>,
}

/// How a schedule went.
#[derive(Debug, Default)]
pub struct Outcome {
    pub faults: Vec<String>,
    pub lasted: Duration,
    /// From the last fault to the last end.
    pub settled: Duration,
    pub violations: Vec<String>,
    pub notes: Vec<String>,
    pub counts: serde_json::Map<String, serde_json::Value>,
}

/// What the checker answers.
#[derive(Debug, Deserialize)]
pub struct Checked {
    pub violations: Vec<String>,
    notes: Vec<String>,
    counts: serde_json::Map<String, serde_json::Value>,
}

/// How hard a schedule is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// No fault at all.
    Calm,
    Short,
    Long,
}

pub async fn run(world: &Arc<World>, past: &mut Vec<Past>, seed: u64, size: Size) -> Result<Outcome> {
    let began = Instant::now();
    // One stream for the work and one for the faults: what one draws does not move the other.
    let mut of_work = ChaCha8Rng::seed_from_u64(seed);
    let scale = if size == Size::Long { 6 } else { 1 };
    let name = format!("s{}-{seed}", past.len());
    let load = workload::draw(&mut of_work, world, &name, past.len() * HOSTS, scale);
    let faults = faults(seed, size);

    world.timeline.begin(&format!("seed {seed}: {} workers, {} works", load.workers, load.works.len()));
    world.want_workers(load.workers);
    for (host, what) in &load.hosts {
        world.sites.add(host, what.clone());
    }
    let mut outcome =
        Outcome { faults: faults.iter().map(|timed| format!("{:?}", timed.fault)).collect(), ..Outcome::default() };
    let submitting = tokio::spawn({
        let (world, works) = (Arc::clone(world), load.works.clone());
        async move { workload::submit(&world, works).await }
    });
    let start = Instant::now();
    let tasks: Vec<_> = faults
        .into_iter()
        .map(|timed| {
            let world = Arc::clone(world);
            tokio::spawn(async move {
                tokio::time::sleep_until(start + Duration::from_millis(timed.at_ms)).await;
                let what = format!("{:?}", timed.fault);
                fault::run(&world, timed.fault).await.with_context(|| what)
            })
        })
        .collect();
    for task in tasks {
        if let Err(error) = task.await? {
            outcome.violations.push(format!("driver: {error:#}"));
        }
    }
    world.lift();
    world.note("all faults are over");
    let lifted = Instant::now();
    match submitting.await? {
        Ok(works) => past.push(Past { name, hosts: load.hosts.into_iter().collect(), works }),
        Err(error) => outcome.violations.push(format!("driver: {error:#}")),
    }
    if let Err(error) = settle(world, lifted).await {
        outcome.violations.push(format!("{error:#}"));
    }
    outcome.settled = lifted.elapsed();
    world.note("checking");
    let checked = check(world, past)?;
    outcome.violations.extend(checked.violations);
    outcome.violations.extend(world.panics());
    outcome.notes = checked.notes;
    outcome.counts = checked.counts;
    outcome.lasted = began.elapsed();
    Ok(outcome)
}

/// The faults of a seed.
pub fn faults(seed: u64, size: Size) -> Vec<Timed> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(1);
    let (count, span_ms) = match size {
        Size::Calm => (0, 1),
        Size::Short => (rng.random_range(1..=4), 7_000),
        Size::Long => (rng.random_range(10..=20), 90_000),
    };
    fault::draw(&mut rng, count, span_ms)
}

/// Waits until every dispatch is done.
async fn settle(world: &World, lifted: Instant) -> Result<()> {
    let mut left = String::new();
    while lifted.elapsed() < SETTLE {
        match open(world).await {
            Ok(open) if open.is_empty() => return Ok(()),
            Ok(open) => left = open.join(", "),
            Err(error) => left = format!("Postgres: {error:#}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::bail!("not done {SETTLE:?} after the last fault: {left}")
}

/// The dispatches that are not done.
async fn open(world: &World) -> Result<Vec<String>> {
    let sql = world.sql().await?;
    let rows = sql
        .query(
            "SELECT coalesce(key, '') || ' ' || d.id || ' ' || state || ' with ' || (SELECT count(*) FROM crawl_schedule s
               WHERE s.dispatch = d.id) || ' jobs and ' || (SELECT count(*) FROM raw_result r WHERE r.dispatch = d.id) || ' results'
               FROM dispatch d WHERE state <> 'done' ORDER BY d.id",
            &[],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Writes down what was submitted and has it checked.
pub fn check(world: &World, past: &[Past]) -> Result<Checked> {
    let dir = world.dir.path();
    let truth = json!({
        "postgres": world.postgres_url, "redis": world.redis_url, "sites": dir.join("sites.ndjson"),
        "objects": dir.join("s3/objects").join(crate::cluster::BUCKET), "schedules": past,
    });
    let file = dir.join("truth.json");
    std::fs::write(&file, truth.to_string())?;
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/lib/chaos_check.py");
    let python = std::env::var("DODO_TEST_PYTHON").context(
        "DODO_TEST_PYTHON is not set: scripts/chaos and scripts/test set it to a Python that has what the checker needs",
    )?;
    let checked = Command::new(python).arg(program).arg(&file).stderr(Stdio::inherit()).output()?;
    ensure!(checked.status.success(), "the checker failed: {}", String::from_utf8_lossy(&checked.stdout));
    Ok(serde_json::from_slice(&checked.stdout)?)
}

/// Ends a world and leaves its files where they are.
pub fn keep(world: Arc<World>) {
    // Whoever else holds it lets go within a look; the files stay for good.
    for _ in 0..200 {
        if Arc::strong_count(&world) == 1 {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    match Arc::try_unwrap(world) {
        Ok(mut world) => world.dir.disable_cleanup(true),
        Err(world) => std::mem::forget(world),
    }
}
