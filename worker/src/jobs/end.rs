//! What the kinds share: a host made ready, an answer that refuses, the ends of a job.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::Duration;

use dodo_common::clock::Millis;
use dodo_common::db::commit::{Finished, Retry};
use dodo_common::db::host::{Hold, HostState, Word};
use dodo_common::db::load::LoadedHost;
use dodo_common::db::pool::DbError;
use dodo_common::model::job::{Job, JobKind, Outcome};
use dodo_common::model::retry::{HOST_REFUSALS_MAX, Policy, REFUSALS_MAX, die};
use dodo_common::model::source::api_origin;
use dodo_common::model::stream_id::StreamId;
use dodo_common::stream::raw::RawEntry;
use reqwest::header::{HeaderMap, USER_AGENT};
use url::Url;

use crate::context::Context;
use crate::done::{Done, Effect};
use crate::fetch::fetched::Fetched;
use crate::fetch::resolve::Resolved;
use crate::fetch::{AGENT, decode, host};

/// A host that cannot be prepared is left alone this long at most, milliseconds.
const BACKOFF_MS_MAX: i64 = 600_000;
/// A body may grow to this many times the bound of a transferred one when it is decoded.
const EXPANSION_MAX: usize = 4;
/// A host that says when to come again is left alone for so many times the base, however often it says less.
const ASKED_BASES_MAX: i64 = 10;
/// A job that cannot run for want of Postgres is held this long before it goes back.
const UNREAD_PAUSE: Duration = Duration::from_millis(200);

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
        HostState::Dead if job.host_refusals >= HOST_REFUSALS_MAX => {
            finish(entry, job, Outcome::Dead, &format!("its host is left alone: {}", why()))
        }
        HostState::Dead => finish(entry, job, Outcome::Dead, &format!("its host cannot be reached: {}", why())),
        HostState::New | HostState::Held => prepare(ctx, entry, job, Some(&ready)).await,
    }))
}

async fn prepare(ctx: &Context, entry: StreamId, job: &Job, known: Option<&LoadedHost>) -> Done {
    if known.is_some_and(|host| host.was_prepared(entry)) {
        // It comes back at once, and again where the clocks of the servers differ: not faster than this.
        tokio::select! { () = tokio::time::sleep(UNREAD_PAUSE) => {}, () = ctx.soft.cancelled() => {} }
        return Done::new(entry, Effect::Returned);
    }
    // One that was dead begins anew.
    let failures = known.filter(|host| host.state != HostState::Dead).map_or(0, |host| host.failures.clamp(0, 10));
    let backoff_ms = ctx.settings.retry_base_ms << failures;
    let crawl = match job.kind {
        JobKind::Crawl => match ctx.crawl(&job.key.tenant, job.dispatch).await {
            Ok(crawl) => Some(crawl),
            Err(error) => return unread(ctx, entry, job, "its crawl", &error).await,
        },
        _ => None,
    };
    let mut headers = HeaderMap::new();
    headers.extend(crawl.as_ref().and_then(|crawl| Some((USER_AGENT, crawl.user_agent.clone()?))));
    let caller = (crawl.as_ref().map_or(AGENT, |crawl| crawl.agent()), &headers);
    ctx.confirm().await;
    let backoff_ms = backoff_ms.min(BACKOFF_MS_MAX);
    let Ok(preparation) = host::prepare(&ctx.fetcher, &job.host, caller, known, backoff_ms).await else {
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

/// What comes of an answer that refuses. 429 and 503 are the host's affair: it is held, and the job returns behind
/// the others without a try less, but not for ever. Anything else is a try that failed.
pub fn refused(ctx: &Context, entry: StreamId, job: &Job, fetched: &Fetched) -> Done {
    let why = format!("the server answered {}", fetched.status);
    let mut done = match fetched.status {
        429 | 503 => put_off(ctx, entry, job, hold_ms(ctx, job, fetched), &why),
        _ => retry(ctx, entry, job, &why),
    };
    if let Effect::Finished { job, .. } = &mut done.effect {
        job.status = Some(fetched.status as i16);
    }
    done
}

/// Says of a request that has brought nothing when it was sent, how long that took, as its host may be slow, and with what
/// status it was answered, if it was.
pub fn timed(done: &mut Done, started_ms: Millis, now_ms: Millis, status: Option<u16>) {
    let took_ms = (now_ms - started_ms).clamp(0, i64::from(i32::MAX)) as i32;
    match &mut done.effect {
        Effect::Retry(retry) => {
            retry.took_ms = Some(took_ms);
            retry.status = status.map(|status| status as i16);
        }
        Effect::Finished { job, .. } => {
            job.started_ms.get_or_insert(started_ms);
            job.fetch_ms.get_or_insert(took_ms);
        }
        _ => {}
    }
}

fn policy(ctx: &Context, job: &Job) -> Policy {
    Policy::of(job.kind).scaled(ctx.settings.retry_base_ms)
}

/// For how long a host is left alone that says nothing of it, milliseconds: longer each time.
fn ceiling_ms(ctx: &Context, job: &Job) -> Millis {
    policy(ctx, job).ceiling_ms(job.host_refusals.clamp(0, 30) as i16)
}

fn refuses(job: &Job, ms: Millis, why: &str) -> Hold {
    Hold { host: job.host.clone(), word: Word::Refuses { ms, reason: clean(why) } }
}

/// For how long 429 and 503 ask the host to be left alone, milliseconds; longer each time. What they say of it is the
/// least (RFC 9110 10.2.3): nothing, or too little again and again, is no leave to go on.
fn hold_ms(ctx: &Context, job: &Job, fetched: &Fetched) -> i64 {
    let ceiling_ms = ceiling_ms(ctx, job);
    match fetched.retry_after_ms(ctx.clock.now_ms()) {
        Some(asked_ms) => asked_ms.max(ceiling_ms.min(ASKED_BASES_MAX * policy(ctx, job).base_ms)),
        None => ceiling_ms,
    }
}

/// What 429 and 503 mean for the host.
pub fn hold_of(ctx: &Context, job: &Job, fetched: &Fetched, why: &str) -> Hold {
    refuses(job, hold_ms(ctx, job, fetched), why)
}

/// The host is left alone for so long, and the job returns behind the others without a try less, but not for ever.
fn put_off(ctx: &Context, entry: StreamId, job: &Job, ms: Millis, why: &str) -> Done {
    let mut done = if job.refusals + 1 >= REFUSALS_MAX {
        finish(entry, job, Outcome::Dead, &format!("{why}, {REFUSALS_MAX} times"))
    } else {
        let delay_ms = ms.saturating_add(policy(ctx, job).wait_ms(job.refusals, die(job)));
        let (key, refusals) = (job.key.clone(), Some(job.refusals));
        Done::new(
            entry,
            Effect::Retry(Retry { key, delay_ms, error: clean(why), refusals, status: None, took_ms: None }),
        )
    };
    done.hold = Some(refuses(job, ms, why));
    done
}

/// Forgets a host's refusals when it has given another answer.
pub fn calm(done: &mut Done, host: Option<String>) {
    let answered = matches!(&done.effect, Effect::Finished { job, .. } if job.status.is_some());
    if let Some(host) = host
        && answered
        && done.hold.is_none()
    {
        done.hold = Some(Hold { host, word: Word::Answers });
    }
}

/// The body decoded, within its bound; of one that is cut, what came.
pub fn body_of<'a>(ctx: &Context, fetched: &'a Fetched) -> Result<Cow<'a, [u8]>, String> {
    let limit = ctx.settings.body_bytes_max.saturating_mul(EXPANSION_MAX);
    let encoding = fetched.content_encoding();
    decode::decode(encoding.as_deref(), &fetched.body, fetched.cut.is_none(), limit).map_err(|error| error.to_string())
}

pub fn finish(entry: StreamId, job: &Job, outcome: Outcome, reason: &str) -> Done {
    let finished = Finished::new(job.key.clone(), outcome, Some(clean(reason)));
    Done::new(entry, Effect::Finished { job: Box::new(finished), raw: None, dispatch: job.dispatch })
}

/// Whether a job has no try left after this one.
pub fn is_last_try(job: &Job) -> bool {
    job.key.attempt >= job.retries.unwrap_or(Policy::of(job.kind).tries - 1)
}

/// Another try later, by the policy of its kind; out of tries the job is dead.
pub fn retry(ctx: &Context, entry: StreamId, job: &Job, why: &str) -> Done {
    if is_last_try(job) {
        return finish(entry, job, Outcome::Dead, why);
    }
    let delay_ms = policy(ctx, job).wait_ms(job.key.attempt, die(job));
    let (key, error) = (job.key.clone(), clean(why));
    Done::new(entry, Effect::Retry(Retry { key, delay_ms, error, refusals: None, status: None, took_ms: None }))
}

/// What a job needs of Postgres could not be read. A server that is away is no fault of the job, which goes back untried;
/// what is wrong with its data is.
pub async fn unread(ctx: &Context, entry: StreamId, job: &Job, what: &str, error: &DbError) -> Done {
    if matches!(error, DbError::Input(_)) {
        return retry(ctx, entry, job, &format!("cannot read {what}: {error}"));
    }
    tracing::warn!(job = %job.key.id, %error, "cannot read {what}; the job goes back");
    // It is due again at once.
    tokio::time::sleep(UNREAD_PAUSE).await;
    Done::new(entry, Effect::Returned)
}

/// A request that found nobody at the addresses of its host. They are good for a day, but a site may move sooner. Where it has
/// not, that is the host's affair, as 429 and 503 are: an outage must not cost its jobs their tries.
pub async fn unreachable(ctx: &Context, entry: StreamId, job: &Job, pinned: &[IpAddr], why: &str) -> Done {
    let mut done = put_off(ctx, entry, job, ceiling_ms(ctx, job), why);
    if let Ok(url) = Url::parse(api_origin(&job.host).unwrap_or(&job.host))
        && let Resolved::Addresses(addresses) = ctx.fetcher.resolver.resolve(&url).await
        && addresses.iter().any(|address| !pinned.contains(address))
    {
        done.hold = Some(Hold { host: job.host.clone(), word: Word::Moved });
    }
    done
}

/// The raw result of a job, as this worker writes it; an entry of `items` has no body.
pub fn raw_entry(ctx: &Context, job: &Job, about: Vec<u8>, body: Vec<u8>) -> RawEntry {
    RawEntry {
        tenant: job.key.tenant.clone(),
        generation: ctx.incarnation.generation,
        job: job.key.id,
        attempt: job.key.attempt,
        writer: ctx.incarnation.id,
        about,
        body,
    }
}

/// Adds to what is said of a job's end.
pub fn note(text: &str, finished: &mut Finished) {
    let before = finished.reason.take().map_or(String::new(), |reason| format!("{reason}; "));
    finished.reason = Some(clean(&format!("{before}{text}")));
}

/// Text from the network, fit for a column: no NUL, at most 1000 characters.
pub fn clean(text: &str) -> String {
    text.chars().filter(|c| *c != '\0').take(1000).collect()
}
