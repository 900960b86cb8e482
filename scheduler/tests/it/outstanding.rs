//! What of the jobs stream is not settled, as a new leader and the audit read it, in Redis itself.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use dodo_common::model::job::JobKey;
use dodo_common::model::stream_id::StreamId;
use dodo_common::stream::connection::Redis;
use dodo_common::stream::control;
use dodo_common::stream::names::JOBS;
use dodo_common::stream::queue::{self, Authority, BATCH_MAX, Order};
use dodo_common::stream::report::{Report, Settled, Verdict};
use dodo_scheduler::local::redis::RedisServer;
use tempfile::TempDir;
use uuid::Uuid;

const AUTHORITY: Authority = Authority { epoch: 1, generation: 1 };

/// A Redis of its own with an empty window.
struct Stream {
    server: RedisServer,
    redis: Redis,
    _dir: TempDir,
}

impl Stream {
    async fn start() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("dodo-it-").tempdir()?;
        let server = RedisServer::start(dir.path())?;
        let redis = Redis::new(&server.url(), "test")?;
        control::take_epoch(&redis, AUTHORITY.epoch).await?;
        control::start_generation(&redis, AUTHORITY.epoch, AUTHORITY.generation).await?;
        Ok(Self { server, redis, _dir: dir })
    }

    async fn push(&self, count: usize) -> Result<Vec<StreamId>> {
        let key = || JobKey { tenant: "default".to_owned(), id: Uuid::now_v7(), attempt: 0 };
        let orders: Vec<Order> = (0..count).map(|_| Order { key: key(), alone: false, proxy: None }).collect();
        let mut ids = Vec::new();
        for batch in orders.chunks(BATCH_MAX) {
            ids.extend(queue::push(&self.redis, AUTHORITY, batch).await?);
        }
        Ok(ids)
    }

    async fn settle(&self, entries: &[StreamId]) -> Result<()> {
        for batch in entries.chunks(BATCH_MAX) {
            let settled = |entry: &StreamId| Settled {
                entry: *entry,
                verdict: Verdict::Gone,
                requested: false,
                ended_ms_ago: 0,
                hold_ms: None,
                answered: None,
                proxy: None,
            };
            let settled = batch.iter().map(settled).collect();
            queue::settle(&self.redis, 1, &Report { settled, ..Report::default() }).await?;
        }
        Ok(())
    }

    async fn outstanding(&self) -> Result<BTreeMap<StreamId, Option<String>>> {
        let found = queue::outstanding(&self.redis).await?;
        assert!(found.is_sorted_by_key(|(entry, _)| entry.entry), "in order");
        let count = found.len();
        let by_id: BTreeMap<_, _> = found.into_iter().map(|(entry, consumer)| (entry.entry, consumer)).collect();
        assert_eq!(by_id.len(), count, "each once");
        Ok(by_id)
    }

    /// Bytes that Redis has answered so far.
    async fn answered_bytes(&self) -> Result<u64> {
        let mut command = redis::cmd("INFO");
        command.arg("stats");
        let info: redis::InfoDict = self.redis.run(async |c| command.query_async(c).await).await?;
        info.get("total_net_output_bytes").context("no such figure")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pending_or_undelivered_is_outstanding() -> Result<()> {
    let stream = Stream::start().await?;
    assert!(stream.outstanding().await?.is_empty());
    let ids = stream.push(20 * BATCH_MAX).await?;
    for (consumer, count) in [("w-1", BATCH_MAX + 7), ("w-2", 17 * BATCH_MAX), ("w-3", 1)] {
        assert_eq!(queue::next(&stream.redis, consumer, count).await?.len(), count);
    }
    // Some at the front, one far behind them, and more than one page that nobody has read yet.
    let delivered = 18 * BATCH_MAX + 8;
    stream.settle(&ids[3..5]).await?;
    stream.settle(&ids[BATCH_MAX + 2..delivered - 1]).await?;
    let before = stream.answered_bytes().await?;
    let found = stream.outstanding().await?;
    let (answered, average) = (stream.answered_bytes().await? - before, 80);
    let pending = |at: usize| match at {
        3 | 4 => None,
        at if at < BATCH_MAX + 2 => Some("w-1"),
        at if at + 1 == delivered => Some("w-3"),
        _ => None,
    };
    let expected: BTreeMap<StreamId, Option<String>> = (0..ids.len())
        .filter(|at| pending(*at).is_some() || *at >= delivered)
        .map(|at| (ids[at], pending(at).map(ToOwned::to_owned)))
        .collect();
    assert_eq!(found, expected);
    assert!(answered < (ids.len() * average) as u64, "what is settled is not read: {answered} bytes");
    // An entry that was trimmed while it was pending is nobody's any more.
    let mut command = redis::cmd("XDEL");
    command.arg(JOBS).arg(ids[0].to_string());
    let _: i64 = stream.redis.run(async |c| command.query_async(c).await).await?;
    assert_eq!(stream.outstanding().await?.len(), expected.len() - 1);
    Ok(())
}

/// Whatever is delivered while they are read, none is missed: a new leader would take it for settled, and its host for free.
#[tokio::test(flavor = "multi_thread")]
async fn no_entry_slips_through_while_it_is_delivered() -> Result<()> {
    const ENTRIES: usize = 2000;
    let stream = Stream::start().await?;
    let ids = stream.push(ENTRIES).await?;
    let worker = Redis::new(&stream.server.url(), "worker")?;
    let delivering = tokio::spawn(async move {
        for _ in 0..ENTRIES {
            queue::next(&worker, "w-1", 1).await?;
        }
        anyhow::Ok(())
    });
    let mut looks = 0;
    while !delivering.is_finished() {
        let found = stream.outstanding().await?;
        let missed = ids.iter().find(|id| !found.contains_key(id));
        assert_eq!(missed, None, "{} of {ENTRIES} found in look {looks}", found.len());
        looks += 1;
    }
    delivering.await??;
    assert!(looks > 1 && stream.outstanding().await?.values().all(|consumer| consumer.as_deref() == Some("w-1")));
    Ok(())
}

/// In the order in which an entry moves on.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_undelivered_is_read_before_what_is_pending() -> Result<()> {
    let stream = Stream::start().await?;
    stream.push(3).await?;
    queue::next(&stream.redis, "w-1", 1).await?;
    let slowlog = async |words: &[&str]| -> Result<redis::Value> {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        Ok(stream.redis.run(async |c| command.query_async(c).await).await?)
    };
    slowlog(&["CONFIG", "SET", "slowlog-log-slower-than", "0"]).await?;
    slowlog(&["SLOWLOG", "RESET"]).await?;
    stream.outstanding().await?;
    let log: Vec<Vec<redis::Value>> = redis::from_redis_value(slowlog(&["SLOWLOG", "GET", "20"]).await?)?;
    let words = log.into_iter().rev().map(|line| redis::from_redis_value::<Vec<String>>(line[3].clone()));
    let words: Vec<Vec<String>> = words.collect::<Result<_, _>>()?;
    let asked: Vec<&str> = words.iter().map(|words| words[0].as_str()).filter(|word| word.starts_with('X')).collect();
    assert_eq!(asked, ["XINFO", "XRANGE", "XPENDING", "XRANGE"]);
    Ok(())
}
