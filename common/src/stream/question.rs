//! A question to the leader, which alone knows the clocks: it is asked by way of `done`, and answered under a key of its
//! own that expires.

use std::time::Duration;

use redis::Value;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use uuid::Uuid;

use crate::clock::Millis;
use crate::model::cause::Cause;
use crate::stream::connection::{Redis, StreamError, StreamResult};
use crate::stream::names::told;
use crate::stream::queue;
use crate::stream::report::Report;

/// An answer is waited for so long: while there is no leader there is none.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(10);
/// An answer that nobody fetches is gone after this long, seconds.
const KEPT_S: u64 = 10;

/// What does this job of a dispatch wait for at its host?
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    pub id: Uuid,
    #[serde(flatten)]
    pub of: Waiting,
}

/// A due job that nobody has, as far as it matters for what it waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    pub host: String,
    pub dispatch: Uuid,
    /// It visits a page again, or makes a result again: no budget of pages holds it. What a scheduler of an earlier version
    /// asks leaves both out, or names only the visits.
    #[serde(default, alias = "revisit")]
    pub exempt: bool,
    /// It is a suspect, which runs alone.
    #[serde(default)]
    pub alone: bool,
}

/// How things stand at a host, as the leader sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Standing {
    pub cause: Cause,
    /// When that is over, milliseconds since the epoch; none where no clock says it.
    pub until_ms: Option<Millis>,
    /// Requests under way at the host.
    pub in_flight: u32,
    /// When the last one ended, as far as this leader knows.
    pub last_completion_ms: Option<Millis>,
}

/// Asks the leader; nothing if none answers in time.
pub async fn ask(redis: &Redis, of: Waiting) -> StreamResult<Option<Standing>> {
    let id = Uuid::now_v7();
    let question = Question { id, of };
    queue::tell(redis, &Report { asked: vec![question], ..Report::default() }).await?;
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        tokio::time::sleep(PAUSE).await;
        let mut command = redis::cmd("GETDEL");
        command.arg(told(id));
        let answer: Option<Vec<u8>> = redis.run(async |c| command.query_async(c).await).await?;
        if let Some(answer) = answer {
            let standing = serde_json::from_slice(&answer);
            return standing.map(Some).map_err(|error| StreamError::Unfit(format!("the leader's answer: {error}")));
        }
    }
    Ok(None)
}

/// The leader's answer.
pub async fn answer(redis: &Redis, question: Uuid, standing: &Standing) -> StreamResult<()> {
    let json = serde_json::to_vec(standing).expect("an answer is plain data");
    let mut command = redis::cmd("SET");
    command.arg(told(question)).arg(json).arg("EX").arg(KEPT_S);
    let _: Value = redis.run(async |c| command.query_async(c).await).await?;
    Ok(())
}
