//! One look at everything that is measured, straight at Postgres and Redis: the sentinel outlives the scheduler.

use std::collections::HashMap;
use std::time::Duration;

use dodo_common::db::leader;
use dodo_common::db::pool::{Db, DbResult};
use dodo_common::db::vital::{self, Live};
use dodo_common::stream::connection::Redis;
use dodo_common::stream::heartbeat::{self, Beat, LEASE_MS};
use dodo_common::stream::status;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use crate::sentinel::metric::{Look, Metric};

/// A server has this long to answer everything that is asked of it.
pub const LOOK_TIMEOUT: Duration = Duration::from_secs(2);

/// What was found, one look a metric.
pub struct Snapshot {
    pub looks: Vec<(Metric, Look)>,
    pub postgres_up: bool,
}

/// A figure, or one line why there is none.
type Found<T> = Result<T, String>;

struct OfPostgres {
    live: Found<Vec<Live>>,
    looks: Vec<(Metric, Look)>,
    up: bool,
}

struct OfRedis {
    beats: Found<HashMap<Uuid, (i64, Beat)>>,
    looks: Vec<(Metric, Look)>,
}

/// Looks at both servers at once; neither waits for the other. `window_ms` says how far back a metric's
/// events are asked about.
pub async fn look(db: &Db, redis: &Redis, window_ms: impl Fn(Metric) -> i64) -> Snapshot {
    let (postgres, redis) = tokio::join!(look_at_postgres(db, window_ms), look_at_redis(redis));
    let mut looks = postgres.looks;
    looks.extend(redis.looks);
    let workers = postgres.live.and_then(|live| Ok(workers(&live, &redis.beats?)));
    let (ready, age) = match workers {
        Ok((ready, age)) => (Look::Level(ready as f64), Look::Level(age as f64)),
        Err(why) => (Look::Absent(why.clone()), Look::Absent(why)),
    };
    looks.push((Metric::WorkersReady, ready));
    looks.push((Metric::HeartbeatAgeMs, age));
    Snapshot { looks, postgres_up: postgres.up }
}

/// How many workers are ready, and the age of the oldest last heartbeat. One that never beat is as old as
/// its registration.
fn workers(live: &[Live], beats: &HashMap<Uuid, (i64, Beat)>) -> (usize, i64) {
    let mut ready = 0;
    let mut oldest_ms = 0;
    for worker in live {
        match beats.get(&worker.id) {
            // It says that it drains before its row does.
            Some((_, beat)) if beat.draining => {}
            Some((age_ms, _)) => {
                ready += usize::from(*age_ms <= LEASE_MS);
                oldest_ms = oldest_ms.max(*age_ms);
            }
            None => oldest_ms = oldest_ms.max(worker.registered_ms),
        }
    }
    (ready, oldest_ms)
}

async fn look_at_postgres(db: &Db, window_ms: impl Fn(Metric) -> i64) -> OfPostgres {
    let deadline = Instant::now() + LOOK_TIMEOUT;
    let up = within(deadline, "Postgres", vital::ping(db)).await;
    let mut looks = vec![(Metric::PostgresUp, Look::Level(if up.is_ok() { 1.0 } else { 0.0 }))];
    if let Err(why) = up {
        let asked = Metric::ALL
            .into_iter()
            .filter(|metric| metric.event().is_some() || matches!(metric, Metric::Leader | Metric::OldestDueMs));
        looks.extend(asked.map(|metric| (metric, Look::Absent(why.clone()))));
        return OfPostgres { live: Err(why), looks, up: false };
    }
    for metric in Metric::ALL {
        let Some(event) = metric.event() else { continue };
        let found = within(deadline, "Postgres", vital::events(db, event, window_ms(metric).max(1))).await;
        looks.push((metric, found.map_or_else(Look::Absent, Look::Events)));
    }
    let leads = async { DbResult::Ok(i64::from(leader::current(db).await?.is_some())) };
    looks.push((Metric::Leader, level(within(deadline, "Postgres", leads).await)));
    looks.push((Metric::OldestDueMs, level(within(deadline, "Postgres", vital::oldest_due_ms(db)).await)));
    OfPostgres { live: within(deadline, "Postgres", vital::live_workers(db)).await, looks, up: true }
}

async fn look_at_redis(redis: &Redis) -> OfRedis {
    let deadline = Instant::now() + LOOK_TIMEOUT;
    let up = within(deadline, "Redis", status::memory_bytes(redis)).await;
    let mut looks = vec![(Metric::RedisUp, Look::Level(if up.is_ok() { 1.0 } else { 0.0 }))];
    if let Err(why) = up {
        // A connection that leads nowhere any more would never say so: the next look makes a new one.
        redis.close().await;
        looks.extend([Metric::Lag, Metric::HorizonAgeMs].map(|metric| (metric, Look::Absent(why.clone()))));
        return OfRedis { beats: Err(why), looks };
    }
    let lag = within(deadline, "Redis", status::undelivered(redis)).await;
    looks.push((Metric::Lag, level(lag.map(|lag| lag as i64))));
    looks.push((Metric::HorizonAgeMs, level(within(deadline, "Redis", status::raw_age_ms(redis)).await)));
    let beats = within(deadline, "Redis", heartbeat::all(redis)).await;
    let beats = beats.map(|beats| beats.into_iter().map(|heard| (heard.worker, (heard.age_ms, heard.beat))).collect());
    OfRedis { beats, looks }
}

async fn within<T, E: std::fmt::Display>(
    deadline: Instant,
    server: &str,
    asked: impl Future<Output = Result<T, E>>,
) -> Found<T> {
    match timeout_at(deadline, asked).await {
        Ok(found) => found.map_err(|error| error.to_string()),
        Err(_) => Err(format!("{server} gave no answer within {LOOK_TIMEOUT:?}")),
    }
}

fn level(found: Found<i64>) -> Look {
    found.map_or_else(Look::Absent, |value| Look::Level(value as f64))
}
