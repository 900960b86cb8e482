//! The epoch and the generation as Redis shows them, and the start of a new generation.

use std::sync::LazyLock;

use redis::{InfoDict, Script, Value};

use crate::stream::connection::{PROVE_EPOCH, Redis, StreamError, StreamResult};
use crate::stream::names::{EPOCH, GENERATION, RAW_STREAMS, WINDOW_STREAMS, group_of};

static TAKE_EPOCH: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local now = tonumber(redis.call('GET', KEYS[1]) or '0')
         if now > tonumber(ARGV[1]) then return redis.error_reply('DODOEPOCH a later epoch leads') end
         redis.call('SET', KEYS[1], ARGV[1])
         return 1",
    )
});

/// Window streams are made anew; raw streams are made if they are missing. Creating a group and
/// destroying it leaves an empty stream: the one way to make a stream without an entry.
static START: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        &[
            PROVE_EPOCH,
            "local windows = tonumber(ARGV[3])
         for i = 3, #KEYS do
           local window = i - 2 <= windows
           if window then redis.call('DEL', KEYS[i]) end
           if redis.call('EXISTS', KEYS[i]) == 0 then
             local group = ARGV[i + 1]
             redis.call('XGROUP', 'CREATE', KEYS[i], group ~= '' and group or 'once', '0', 'MKSTREAM')
             if group == '' then redis.call('XGROUP', 'DESTROY', KEYS[i], 'once') end
           elseif ARGV[i + 1] ~= '' then
             -- It is there already: its group may be, too.
             redis.pcall('XGROUP', 'CREATE', KEYS[i], ARGV[i + 1], '0')
           end
         end
         redis.call('SET', KEYS[2], ARGV[2])
         return 1",
        ]
        .concat(),
    )
});

/// What a look at Redis shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sight {
    pub run_id: String,
    pub generation: Option<i64>,
    pub epoch: Option<i64>,
    /// Every stream is there, and every declared group.
    pub whole: bool,
}

/// Looks at what a generation depends on, in one round trip.
pub async fn look(redis: &Redis) -> StreamResult<Sight> {
    let mut pipe = redis::pipe();
    pipe.cmd("INFO").arg("server").cmd("MGET").arg(GENERATION).arg(EPOCH).cmd("EXISTS");
    for (stream, _) in WINDOW_STREAMS {
        pipe.arg(stream);
    }
    for stream in RAW_STREAMS {
        pipe.arg(stream);
    }
    let (info, (generation, epoch), exist): (InfoDict, (Option<i64>, Option<i64>), usize) =
        redis.run(async |c| pipe.query_async(c).await).await?;
    let mut whole = exist == WINDOW_STREAMS.len() + RAW_STREAMS.len();
    if whole {
        let raw = RAW_STREAMS.iter().map(|stream| (*stream, group_of(stream)));
        for (stream, group) in WINDOW_STREAMS.iter().copied().chain(raw) {
            let Some(group) = group else { continue };
            let mut command = redis::cmd("XINFO");
            command.arg("GROUPS").arg(stream);
            let groups: Vec<std::collections::HashMap<String, Value>> =
                redis.run(async |c| command.query_async(c).await).await?;
            whole &= groups
                .iter()
                .any(|g| matches!(g.get("name"), Some(Value::BulkString(name)) if name == group.as_bytes()));
        }
    }
    let run_id = info.get::<String>("run_id").unwrap_or_default();
    Ok(Sight { run_id, generation, epoch, whole })
}

/// Raises the epoch in Redis, so that pushes of an older leader are refused.
pub async fn take_epoch(redis: &Redis, epoch: i64) -> StreamResult<()> {
    let mut call = TAKE_EPOCH.prepare_invoke();
    call.key(EPOCH).arg(epoch);
    let _: i64 = redis.run(async |c| call.invoke_async(c).await).await?;
    Ok(())
}

/// Makes the streams of a new generation and shows its number.
pub async fn start_generation(redis: &Redis, epoch: i64, number: i64) -> StreamResult<()> {
    let mut call = START.prepare_invoke();
    call.key(EPOCH).key(GENERATION).arg(epoch).arg(number).arg(WINDOW_STREAMS.len());
    for (stream, group) in WINDOW_STREAMS {
        call.key(*stream).arg(group.unwrap_or_default());
    }
    for stream in RAW_STREAMS {
        call.key(*stream).arg(group_of(stream).unwrap_or_default());
    }
    let _: i64 = redis.run(async |c| call.invoke_async(c).await).await?;
    Ok(())
}

/// Refuses a Redis that would throw streams away: `allkeys-*` eviction takes them too.
pub async fn check_fit(redis: &Redis) -> StreamResult<()> {
    let mut command = redis::cmd("INFO");
    command.arg("memory");
    let info: InfoDict = redis.run(async |c| command.query_async(c).await).await?;
    match info.get::<String>("maxmemory_policy") {
        Some(policy) if policy.starts_with("allkeys") => Err(StreamError::Unfit(format!(
            "its maxmemory-policy is {policy}, which evicts streams; set it to noeviction"
        ))),
        _ => Ok(()),
    }
}

/// Closes every connection whose name starts so; returns how many there were.
pub async fn kill_connections(redis: &Redis, name: &str) -> StreamResult<usize> {
    let ids: Vec<String> =
        clients(redis).await?.into_iter().filter(|(_, n)| n.starts_with(name)).map(|(id, _)| id).collect();
    for id in &ids {
        let mut command = redis::cmd("CLIENT");
        command.arg("KILL").arg("ID").arg(id);
        let _: i64 = redis.run(async |c| command.query_async(c).await).await?;
    }
    Ok(ids.len())
}

/// (id, name) of every connection.
pub async fn clients(redis: &Redis) -> StreamResult<Vec<(String, String)>> {
    let mut command = redis::cmd("CLIENT");
    command.arg("LIST");
    let text: String = redis.run(async |c| command.query_async(c).await).await?;
    let value =
        |line: &str, key: &str| line.split(' ').find_map(|pair| pair.strip_prefix(key)).unwrap_or_default().to_owned();
    Ok(text.lines().map(|line| (value(line, "id="), value(line, "name="))).collect())
}
