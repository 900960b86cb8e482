//! Faults: drawn from a seed, done at their time.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use dodo_common::fail::POINTS;
use dodo_scheduler::local::s3;
use nix::sys::signal::Signal;
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use crate::disk::{LogsFull, copy_dir, cut_log};
use crate::link::Mode;
use crate::post::Role;
use crate::world::{LINKS, SCHEDULERS, World};

/// Streams that are deleted one by one.
const STREAMS: &[&str] = &["dodo:jobs:fetch", "dodo:done", "dodo:pages", "dodo:items"];
/// Fail points that schedulers pass; the others are the workers'.
const OF_SCHEDULERS: &[&str] = &[
    "lease-taken",
    "epoch-raised",
    "generation-advanced",
    "streams-recreated",
    "results-reconciled",
    "jobs-picked",
    "jobs-pushed",
    "worker-lost",
    "entries-taken-back",
    "manifest-read",
    "entries-expanded",
    "jobs-ended",
    "progress-rolled-up",
];
/// A process that is held at a point is held up to so long, milliseconds: beyond every lease.
const HELD_MS_MAX: u64 = 7000;

#[derive(Clone, Debug)]
pub enum Fault {
    Kill {
        role: Role,
        n: usize,
    },
    KillAllWorkers,
    Terminate {
        n: usize,
    },
    Stop {
        role: Role,
        n: usize,
        ms: u64,
    },
    KillLeader,
    StopLeader {
        ms: u64,
    },
    KillSchedulers,
    RedisRestart,
    RedisCrash {
        down_ms: u64,
    },
    RedisFlush,
    RedisDelete {
        stream: &'static str,
    },
    /// Its data as they were `age_ms` before.
    RedisOlder {
        age_ms: u64,
    },
    /// The last part of its append-only file is gone, so many bytes of a thousand.
    RedisCut {
        permille: u64,
    },
    PostgresRestart,
    PostgresCrash {
        down_ms: u64,
    },
    PostgresTerminate,
    Link {
        name: &'static str,
        mode: Mode,
        ms: u64,
    },
    Store {
        fault: s3::Fault,
        ms: u64,
    },
    FailPoint {
        role: Role,
        n: usize,
        point: String,
    },
    /// The disk of the logs is full: every write to one fails.
    LogsFull {
        ms: u64,
    },
}

/// A fault and when it begins, in milliseconds.
#[derive(Clone, Debug)]
pub struct Timed {
    pub at_ms: u64,
    pub fault: Fault,
}

/// Draws `count` faults within `span_ms`.
pub fn draw(rng: &mut ChaCha8Rng, count: usize, span_ms: u64) -> Vec<Timed> {
    let mut faults: Vec<Timed> =
        (0..count).map(|_| Timed { at_ms: rng.random_range(300..span_ms), fault: draw_one(rng) }).collect();
    faults.sort_by_key(|timed| timed.at_ms);
    faults
}

fn draw_one(rng: &mut ChaCha8Rng) -> Fault {
    let n = rng.random_range(0..4);
    match rng.random_range(0..34) {
        0..=3 => Fault::Kill { role: Role::Worker, n },
        4 => Fault::KillAllWorkers,
        5 => Fault::Terminate { n },
        6..=8 => Fault::Stop { role: Role::Worker, n, ms: rng.random_range(500..6500) },
        9..=10 => Fault::KillLeader,
        11 => Fault::StopLeader { ms: rng.random_range(500..6500) },
        12 => Fault::KillSchedulers,
        13 => Fault::RedisRestart,
        14 => Fault::RedisCrash { down_ms: rng.random_range(0..2000) },
        15 => Fault::RedisFlush,
        16 => Fault::RedisDelete { stream: STREAMS.choose(rng).expect("there are some") },
        17 => Fault::RedisOlder { age_ms: rng.random_range(300..3000) },
        18 => Fault::RedisCut { permille: rng.random_range(1..600) },
        19 => Fault::PostgresRestart,
        20 => Fault::PostgresCrash { down_ms: rng.random_range(0..3000) },
        21 => Fault::PostgresTerminate,
        22..=25 => {
            let mode = match rng.random_range(0..5) {
                0 => Mode::Cut,
                1 => Mode::Hold,
                2 => Mode::Delay(rng.random_range(20..400)),
                3 => Mode::LoseReply,
                _ => Mode::CutReply,
            };
            Fault::Link { name: LINKS.choose(rng).expect("there are some"), mode, ms: rng.random_range(200..5000) }
        }
        26..=27 => {
            let fault = match rng.random_range(0..3) {
                0 => s3::Fault::Refuse503,
                1 => s3::Fault::Refuse500,
                _ => s3::Fault::Slow(rng.random_range(100..1500)),
            };
            Fault::Store { fault, ms: rng.random_range(500..4000) }
        }
        28 => Fault::LogsFull { ms: rng.random_range(500..4000) },
        _ => {
            let (point, _) = *POINTS.choose(rng).expect("there are some");
            let role = if OF_SCHEDULERS.contains(&point) { Role::Scheduler } else { Role::Worker };
            let nth = rng.random_range(1..=4);
            let action = if rng.random_bool(0.6) {
                "abort".to_owned()
            } else {
                format!("sleep:{}", rng.random_range(300..HELD_MS_MAX))
            };
            Fault::FailPoint { role, n, point: format!("{point}@{nth}={action}") }
        }
    }
}

/// Does a fault from its begin to its end.
pub async fn run(world: &Arc<World>, fault: Fault) -> Result<()> {
    world.note(&format!("{fault:?}"));
    match fault {
        Fault::Kill { role, n } => signal(world, role, n, Signal::SIGKILL),
        Fault::KillAllWorkers => (0..4).for_each(|n| signal(world, Role::Worker, n, Signal::SIGKILL)),
        Fault::Terminate { n } => signal(world, Role::Worker, n, Signal::SIGTERM),
        Fault::Stop { role, n, ms } => stop(world, role, n, ms).await,
        Fault::KillLeader => signal(world, Role::Scheduler, world.leader().await, Signal::SIGKILL),
        Fault::StopLeader { ms } => stop(world, Role::Scheduler, world.leader().await, ms).await,
        Fault::KillSchedulers => {
            (0..SCHEDULERS).for_each(|n| signal(world, Role::Scheduler, n, Signal::SIGKILL));
        }
        Fault::RedisRestart => {
            let mut redis = world.redis.lock().await;
            tokio::task::block_in_place(|| redis.restart())?;
        }
        Fault::RedisCrash { down_ms } => {
            let mut redis = world.redis.lock().await;
            redis.kill();
            tokio::time::sleep(Duration::from_millis(down_ms)).await;
            tokio::task::block_in_place(|| redis.restart())?;
        }
        Fault::RedisFlush => {
            let _running = world.redis.lock().await;
            world.redis_command(&["FLUSHALL"]).await?;
        }
        Fault::RedisDelete { stream } => {
            let _running = world.redis.lock().await;
            world.redis_command(&["DEL", stream]).await?;
        }
        Fault::RedisOlder { age_ms } => older(world, age_ms).await?,
        Fault::RedisCut { permille } => {
            let mut redis = world.redis.lock().await;
            redis.kill();
            cut_log(&world.dir.path().join("redis/data/appendonlydir"), permille)?;
            tokio::task::block_in_place(|| redis.restart())?;
        }
        Fault::PostgresRestart => {
            let mut postgres = world.postgres.lock().await;
            tokio::task::block_in_place(|| postgres.restart())?;
        }
        Fault::PostgresCrash { down_ms } => {
            let mut postgres = world.postgres.lock().await;
            postgres.kill();
            tokio::time::sleep(Duration::from_millis(down_ms)).await;
            tokio::task::block_in_place(|| postgres.restart())?;
        }
        Fault::PostgresTerminate => {
            let _running = world.postgres.lock().await;
            let all = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                        WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'";
            world.sql().await?.batch_execute(all).await?;
        }
        Fault::Link { name, mode, ms } => {
            world.link(name).set(mode);
            tokio::time::sleep(Duration::from_millis(ms)).await;
            world.link(name).set(Mode::Pass);
            world.note(&format!("  {name} passes again"));
        }
        Fault::Store { fault, ms } => {
            world.s3.set_fault(fault);
            tokio::time::sleep(Duration::from_millis(ms)).await;
            world.s3.set_fault(s3::Fault::None);
            world.note("  the store is well again");
        }
        Fault::FailPoint { role, n, point } => {
            // A scheduler's points are passed by the one that leads: arm the standby, then end the leader.
            let n = if role == Role::Scheduler { world.leader().await + 1 } else { n };
            if let Some(number) = world.signal(role, n, Signal::SIGKILL) {
                world.arm(role, number, &point);
            }
            if role == Role::Scheduler {
                tokio::time::sleep(Duration::from_millis(800)).await;
                signal(world, role, world.leader().await, Signal::SIGKILL);
            }
        }
        Fault::LogsFull { ms } => {
            let full = LogsFull::begin(&world.dir.path().join("log"))?;
            // A process opens its log when it starts.
            (0..4).for_each(|n| signal(world, Role::Worker, n, Signal::SIGKILL));
            tokio::time::sleep(Duration::from_millis(ms)).await;
            drop(full);
            (0..4).for_each(|n| signal(world, Role::Worker, n, Signal::SIGTERM));
        }
    }
    Ok(())
}

fn signal(world: &World, role: Role, n: usize, signal: Signal) {
    if let Some(number) = world.signal(role, n, signal) {
        world.note(&format!("  {signal} to {role:?} {number}"));
    }
}

async fn stop(world: &World, role: Role, n: usize, ms: u64) {
    signal(world, role, n, Signal::SIGSTOP);
    tokio::time::sleep(Duration::from_millis(ms)).await;
    // Whoever has its place now goes on, stopped or not.
    signal(world, role, n, Signal::SIGCONT);
}

/// Keeps a copy of Redis' data and puts it back later.
async fn older(world: &World, age_ms: u64) -> Result<()> {
    let (data, copy) = (world.dir.path().join("redis/data"), world.dir.path().join("redis-before"));
    {
        // A copy of an append-only file that is being written is one that a crash has left.
        let _running = world.redis.lock().await;
        copy_dir(&data, &copy)?;
    }
    tokio::time::sleep(Duration::from_millis(age_ms)).await;
    let mut redis = world.redis.lock().await;
    redis.kill();
    copy_dir(&copy, &data)?;
    tokio::task::block_in_place(|| redis.restart())?;
    world.note("  Redis has its older data");
    Ok(())
}
