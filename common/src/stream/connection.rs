//! One connection to Redis that is made again when it breaks.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, Client, InfoDict, IntoConnectionInfo, RedisError, RedisResult};
use tokio::sync::Mutex;

use crate::stream::names::GENERATION;

/// Short commands answer within this long or the connection is given up.
pub const RESPONSE_TIMEOUT: Duration = Duration::from_secs(3);
/// A blocking read waits this long at most, milliseconds.
pub const BLOCK_MS: u64 = 1000;
/// A blocking reader's own limit; well over [`BLOCK_MS`], so that no read is given up while it blocks.
pub const BLOCKING_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How every script of the leader begins: KEYS[1] holds the epoch ARGV[1]. A later one is another leader's. An earlier
/// one, or none, is a wiped or restored Redis: a reason for a new generation, and none to stop leading.
pub const PROVE_EPOCH: &str = "
    local epoch, ours = tonumber(redis.call('GET', KEYS[1]) or '0'), tonumber(ARGV[1])
    if epoch > ours then return redis.error_reply('DODOEPOCH another epoch leads') end
    if epoch < ours then return redis.error_reply('DODOGEN the epoch is not there any more') end
";

#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("Redis: {0}")]
    Redis(RedisError),
    #[error("no connection to Redis: {0}; is it running, and is DODO_REDIS_URL right?")]
    Connect(RedisError),
    #[error("DODO_REDIS_URL is not a Redis URL: {0}")]
    Url(RedisError),
    /// The window was lost or replaced: another generation, a missing stream or group.
    #[error("the window of this generation is gone: {0}")]
    Generation(String),
    /// Another scheduler leads.
    #[error("this scheduler does not lead any more: {0}")]
    Epoch(String),
    #[error("Redis is not fit for use: {0}")]
    Unfit(String),
}

pub type StreamResult<T> = Result<T, StreamError>;

impl From<RedisError> for StreamError {
    fn from(error: RedisError) -> Self {
        let text = error.to_string();
        // Our own scripts answer DODOGEN and DODOEPOCH; the others are Redis' words for a group or a stream that is
        // gone, the third to a reader that was waiting for it.
        if ["DODOGEN", "NOGROUP", "UNBLOCKED", "no such key"].iter().any(|word| text.contains(word)) {
            StreamError::Generation(text)
        } else if text.contains("DODOEPOCH") {
            StreamError::Epoch(text)
        } else {
            StreamError::Redis(error)
        }
    }
}

/// A connection by name. Cheap commands share it; a blocking reader has one of its own.
#[derive(Debug)]
pub struct Redis {
    client: Client,
    name: String,
    timeout: Duration,
    /// The generation that its server must show, and the server's run id.
    expected: Option<(i64, String)>,
    live: Mutex<Option<MultiplexedConnection>>,
}

impl Redis {
    /// `name` is what CLIENT LIST shows.
    pub fn new(url: &str, name: &str) -> StreamResult<Self> {
        Self::with_timeout(url, name, RESPONSE_TIMEOUT)
    }

    pub fn blocking(url: &str, name: &str) -> StreamResult<Self> {
        Self::with_timeout(url, name, BLOCKING_TIMEOUT)
    }

    fn with_timeout(url: &str, name: &str, timeout: Duration) -> StreamResult<Self> {
        let info = url
            .into_connection_info()
            .map_err(StreamError::Url)?
            .set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let client = Client::open(info).map_err(StreamError::Url)?;
        Ok(Self { client, name: name.to_owned(), timeout, expected: None, live: Mutex::new(None) })
    }

    /// Connects only to the server of this generation: one that was restarted may show an older state of it, with jobs that
    /// have ended or wait, until the leader has seen to it; and the archiver relies on it that what it reads is all that the
    /// generation has appended. No connection outlives its server.
    #[must_use]
    pub fn of_generation(mut self, number: i64, run_id: &str) -> Self {
        self.expected = Some((number, run_id.to_owned()));
        self
    }

    /// Runs commands on the connection; an error of the connection itself closes it.
    pub async fn run<T>(
        &self,
        work: impl AsyncFnOnce(&mut MultiplexedConnection) -> RedisResult<T>,
    ) -> StreamResult<T> {
        let mut connection = self.connection().await?;
        match work(&mut connection).await {
            Ok(value) => Ok(value),
            Err(error) => {
                if error.is_io_error() || error.is_connection_dropped() || error.is_timeout() {
                    self.close().await;
                }
                Err(error.into())
            }
        }
    }

    /// Drops the connection; the next command makes a new one.
    pub async fn close(&self) {
        *self.live.lock().await = None;
    }

    async fn connection(&self) -> StreamResult<MultiplexedConnection> {
        let mut live = self.live.lock().await;
        if let Some(connection) = live.as_ref() {
            return Ok(connection.clone());
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(self.timeout));
        let mut connection =
            self.client.get_multiplexed_async_connection_with_config(&config).await.map_err(StreamError::Connect)?;
        redis::cmd("CLIENT")
            .arg("SETNAME")
            .arg(&self.name)
            .query_async::<()>(&mut connection)
            .await
            .map_err(StreamError::Connect)?;
        if let Some((number, run_id)) = &self.expected {
            let mut pipe = redis::pipe();
            pipe.cmd("INFO").arg("server").cmd("GET").arg(GENERATION);
            let (info, generation): (InfoDict, Option<i64>) =
                pipe.query_async(&mut connection).await.map_err(StreamError::Connect)?;
            if generation != Some(*number) || info.get::<String>("run_id").unwrap_or_default() != *run_id {
                return Err(StreamError::Generation(
                    "its server is another one, or shows another generation".to_owned(),
                ));
            }
        }
        *live = Some(connection.clone());
        Ok(connection)
    }
}
