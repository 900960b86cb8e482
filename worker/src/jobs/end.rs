//! What the kinds share: a host made ready, an answer that refuses, the ends of a job.

use std::borrow::Cow;

use dodo_common::db::commit::{Finished, Retry};
use dodo_common::db::host::HostState;
use dodo_common::db::schedule::LoadedHost;
use dodo_common::model::job::{ATTEMPTS_MAX, Job, Outcome};
use dodo_common::model::stream_id::StreamId;

use crate::committer::{Done, Effect};
use crate::context::Context;
use crate::fetch::{Fetched, decode, host};

/// A retry waits this long at most, milliseconds.
const BACKOFF_MS_MAX: i64 = 60_000;
/// A body may grow to this many times the bound of a transferred one when it is decoded.
const EXPANSION_MAX: usize = 4;

/// The host of a job, prepared; or what comes of the job instead: it prepares its host, or ends with it.
pub async fn ready(
    ctx: &Context,
    entry: StreamId,
    job: &Job,
    host: Option<LoadedHost>,
) -> Result<LoadedHost, Box<Done>> {
    let ready = match host {
        Some(host) if host.fresh => host,
        stale => return Err(Box::new(prepare(ctx, entry, job, stale.as_ref()).await)),
    };
    let why = || ready.last_error.clone().unwrap_or_default();
    Err(Box::new(match ready.state {
        HostState::Ready => return Ok(ready),
        HostState::Refused => finish(entry, job, Outcome::Refused, &why()),
        HostState::Dead => finish(entry, job, Outcome::Dead, &format!("its host cannot be reached: {}", why())),
        HostState::New | HostState::Held => prepare(ctx, entry, job, Some(&ready)).await,
    }))
}

async fn prepare(ctx: &Context, entry: StreamId, job: &Job, known: Option<&LoadedHost>) -> Done {
    let backoff_ms = ctx.settings.retry_base_ms << known.map_or(0, |host| host.failures.clamp(0, 6));
    let Ok(preparation) = host::prepare(&ctx.fetcher, &job.host, known, backoff_ms.min(BACKOFF_MS_MAX)).await else {
        return Done::new(entry, Effect::Returned);
    };
    tracing::debug!(host = %job.host, job = %job.key.id, state = preparation.update.state.as_str(), "host prepared");
    let mut done = Done::new(entry, Effect::Prepared);
    done.requested = preparation.requested;
    done.host = Some(preparation.update);
    done
}

/// The server asks to come again later, or is out of order.
pub fn is_refusal(fetched: &Fetched) -> bool {
    matches!(fetched.status, 429 | 500..=599)
}

/// Another try of a refused job; 429 and 503 hold its host too.
pub fn refused(ctx: &Context, entry: StreamId, job: &Job, fetched: &Fetched) -> Done {
    let why = format!("the server answered {}", fetched.status);
    let mut done = retry(ctx, entry, job, &why);
    if let Effect::Finished { job, .. } = &mut done.effect {
        job.status = Some(fetched.status as i16);
    }
    done.hold = hold_of(ctx, job, fetched);
    done
}

/// What 429 and 503 ask for: the host, for how long, and why.
pub fn hold_of(ctx: &Context, job: &Job, fetched: &Fetched) -> Option<(String, i64, String)> {
    if !matches!(fetched.status, 429 | 503) {
        return None;
    }
    let hold_ms = fetched.retry_after_ms(ctx.clock.now_ms()).unwrap_or(ctx.settings.retry_base_ms);
    Some((job.host.clone(), hold_ms, format!("the server answered {}", fetched.status)))
}

/// The body decoded, within its bound.
pub fn body_of<'a>(ctx: &Context, fetched: &'a Fetched) -> Result<Cow<'a, [u8]>, String> {
    let limit = ctx.settings.body_bytes_max.saturating_mul(EXPANSION_MAX);
    decode::decode(fetched.content_encoding(), &fetched.body, limit).map_err(|error| error.to_string())
}

pub fn finish(entry: StreamId, job: &Job, outcome: Outcome, reason: &str) -> Done {
    let finished = Finished::new(job.key.clone(), outcome, Some(clean(reason)));
    Done::new(entry, Effect::Finished { job: Box::new(finished), raw: None, dispatch: job.dispatch })
}

/// Another try later: exponential backoff with full jitter; out of tries the job is dead.
pub fn retry(ctx: &Context, entry: StreamId, job: &Job, why: &str) -> Done {
    if job.key.attempt + 1 >= ATTEMPTS_MAX {
        return finish(entry, job, Outcome::Dead, why);
    }
    let ceiling = (ctx.settings.retry_base_ms << job.key.attempt.clamp(0, 10)).clamp(1, BACKOFF_MS_MAX);
    // The job's id and attempt are as good a die as any, and the same for a replay.
    let die = (job.key.id.as_u128() as u64).rotate_left(job.key.attempt as u32 * 7).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let delay_ms = (die % ceiling as u64) as i64;
    Done::new(entry, Effect::Retry(Retry { key: job.key.clone(), delay_ms, error: clean(why) }))
}

/// Text from the network, fit for a column: no NUL, at most 1000 characters.
pub fn clean(text: &str) -> String {
    text.chars().filter(|c| *c != '\0').take(1000).collect()
}
