//! Heartbeats: each worker's last word, stamped by Redis' own clock.

use std::sync::LazyLock;

use redis::{Client, Connection, Script};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::clock::Millis;
use crate::stream::connection::{Redis, StreamError, StreamResult};
use crate::stream::names::{GENERATION, HEARTBEATS};

/// A worker beats this often, milliseconds.
pub const INTERVAL_MS: u64 = 500;
/// Without a connection, silence for this long means lost, milliseconds.
pub const ABSENT_MS: i64 = 800;
/// With a connection, or after Redis or the leader changed, silence for this long means lost, milliseconds.
pub const LEASE_MS: i64 = 4000;

/// What a worker says of itself.
#[derive(Clone, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Beat {
    pub generation: i64,
    pub draining: bool,
    /// Jobs it holds.
    pub in_flight: u64,
    /// Jobs it has settled since it registered.
    pub settled: u64,
    /// Bytes of results that wait to be committed.
    #[serde(default)]
    pub held_bytes: u64,
    /// Why it is slow; nothing when it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow: Option<String>,
}

static BEAT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local t = redis.call('TIME')
         redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000)) .. ' ' .. ARGV[2])
         return redis.call('GET', KEYS[2])",
    )
});

/// A heart on a thread of its own: a plain blocking connection named by the incarnation, so that neither a
/// saturated runtime nor a slow command delays it, and the kernel closes it when the process dies.
pub struct Heart {
    client: Client,
    connection: Option<Connection>,
}

impl Heart {
    pub fn new(url: &str) -> StreamResult<Self> {
        Ok(Self { client: Client::open(url).map_err(StreamError::Url)?, connection: None })
    }

    /// Beats once; returns the generation that Redis shows.
    pub fn beat(&mut self, worker: Uuid, beat: &Beat) -> StreamResult<Option<i64>> {
        let timeout = std::time::Duration::from_millis(1500);
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let mut connection = self.client.get_connection_with_timeout(timeout).map_err(StreamError::Connect)?;
                connection.set_read_timeout(Some(timeout))?;
                connection.set_write_timeout(Some(timeout))?;
                redis::cmd("CLIENT").arg("SETNAME").arg(worker.to_string()).exec(&mut connection)?;
                connection
            }
        };
        let payload = serde_json::to_string(beat).expect("a beat is plain data");
        let shown = BEAT
            .key(HEARTBEATS)
            .key(GENERATION)
            .arg(worker.to_string())
            .arg(payload)
            .invoke::<Option<i64>>(&mut connection)?;
        self.connection = Some(connection);
        Ok(shown)
    }
}

/// The last word of a worker, as Redis has it.
#[derive(Clone, Debug)]
pub struct Heard {
    pub worker: Uuid,
    /// When it came, by Redis' clock: another value is another beat, whatever that clock does.
    pub at_ms: Millis,
    /// How old it is by the same clock, milliseconds.
    pub age_ms: i64,
    pub beat: Beat,
}

/// The last word of every worker.
pub async fn all(redis: &Redis) -> StreamResult<Vec<Heard>> {
    let mut pipe = redis::pipe();
    pipe.cmd("TIME").cmd("HGETALL").arg(HEARTBEATS);
    let ((seconds, micros), beats): ((i64, i64), Vec<(String, String)>) =
        redis.run(async |c| pipe.query_async(c).await).await?;
    let now = seconds * 1000 + micros / 1000;
    Ok(beats
        .into_iter()
        .filter_map(|(worker, text)| {
            let (at, beat) = text.split_once(' ')?;
            let (worker, at_ms) = (worker.parse().ok()?, at.parse().ok()?);
            Some(Heard { worker, at_ms, age_ms: now - at_ms, beat: serde_json::from_str(beat).ok()? })
        })
        .collect())
}

/// Forgets incarnations that are gone.
pub async fn forget(redis: &Redis, workers: &[Uuid]) -> StreamResult<()> {
    if workers.is_empty() {
        return Ok(());
    }
    let mut command = redis::cmd("HDEL");
    command.arg(HEARTBEATS);
    for worker in workers {
        command.arg(worker.to_string());
    }
    let _: i64 = redis.run(async |c| command.query_async(c).await).await?;
    Ok(())
}
