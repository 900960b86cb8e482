//! What the three kinds of a page dispatch share: its spec, a request to its API, the jobs that follow.

use std::net::IpAddr;
use std::sync::Arc;

use dodo_common::clock::Millis;
use dodo_common::db::commit::Finished;
use dodo_common::db::load::LoadedHost;
use dodo_common::db::page::{NextJob, Paged};
use dodo_common::model::job::{Job, JobKind, Outcome};
use dodo_common::model::paged::{PagedSpec, Place};
use dodo_common::model::source::RateLimit;
use dodo_common::model::stream_id::StreamId;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use url::Url;
use uuid::Uuid;

use crate::context::{Context, Paging};
use crate::done::{Done, Effect};
use crate::fetch::Ask;
use crate::fetch::body::Cut;
use crate::fetch::fetched::Fetched;
use crate::fetch::proxy::FetchError;
use crate::jobs::end::{self, body_of, clean, is_refusal, refused, retry, unreachable, unread};

/// An hour: no API's reset is waited for longer, milliseconds.
const RESET_MS_MAX: i64 = 3_600_000;
/// Cursors that a cursor is compared with: a longer circle ends with the bound of pages.
const BEHIND_MAX: usize = 32;
/// How deep an answer may be nested.
const DEPTH_MAX: usize = 100;

/// The page dispatch of a job; or another try, when it cannot be read.
pub async fn load(ctx: &Context, entry: StreamId, job: &Job) -> Result<Arc<Paging>, Box<Done>> {
    let why = match ctx.paging(&job.key.tenant, job.dispatch).await {
        Ok(paging) => match &paging.missing {
            None => return Ok(paging),
            Some(name) => format!("there is no secret {name}"),
        },
        Err(error) => return Err(Box::new(unread(ctx, entry, job, "its dispatch", &error).await)),
    };
    Err(Box::new(retry(ctx, entry, job, &why)))
}

/// What an API answered.
pub struct Answer {
    pub fetched: Fetched,
    pub value: Value,
    pub started_ms: i64,
}

/// Why there is no answer to work with.
pub enum NoAnswer {
    /// The way out is shut: the API has not seen it.
    Unsent,
    /// Nobody knows whether the API has seen the request.
    Lost(String),
    /// No connection was made to any of these addresses.
    Unreachable(String, Vec<IpAddr>),
    /// It answered with an error.
    Refused(Box<Fetched>),
    /// It answered something else.
    Malformed(Box<Fetched>, String),
}

impl NoAnswer {
    fn status(&self) -> Option<u16> {
        match self {
            NoAnswer::Refused(fetched) | NoAnswer::Malformed(fetched, _) => Some(fetched.status),
            NoAnswer::Unsent | NoAnswer::Lost(_) | NoAnswer::Unreachable(..) => None,
        }
    }
}

/// Asks the API, with the credential where it belongs. Texts of errors never hold it.
pub async fn ask(ctx: &Context, paging: &Paging, url: &Url, host: &LoadedHost) -> Result<Answer, NoAnswer> {
    let mut url = url.clone();
    if let Some((name, value)) = &paging.query {
        url.query_pairs_mut().append_pair(name, value);
    }
    let addresses: Vec<IpAddr> = host.addresses.iter().filter_map(|address| address.parse().ok()).collect();
    ctx.confirm().await;
    let started_ms = ctx.clock.now_ms();
    let ask = Ask {
        url: &url,
        addresses: &addresses,
        headers: &paging.headers,
        body_bytes_max: None,
        media: None,
        once: paging.spec.document.at_most_once,
    };
    let fetched = ctx.fetcher.get(ask).await.map_err(|error| match error {
        FetchError::Failed(why) => NoAnswer::Lost(why),
        FetchError::Unreachable(why) => NoAnswer::Unreachable(why, addresses.clone()),
        FetchError::Proxy(_) | FetchError::Unsent(_) => NoAnswer::Unsent,
    })?;
    if !(200..=299).contains(&fetched.status) {
        return Err(NoAnswer::Refused(Box::new(fetched)));
    }
    if let Some(cut) = &fetched.cut {
        let (why, too_long) = (format!("the answer is cut: {cut}"), matches!(cut, Cut::Length(_)));
        return Err(if too_long { NoAnswer::Malformed(Box::new(fetched), why) } else { NoAnswer::Lost(why) });
    }
    let value = match body_of(ctx, &fetched).map(|body| serde_json::from_slice::<Value>(&body)) {
        Ok(Ok(value)) if is_deeper(&value, DEPTH_MAX) => {
            let why = format!("the answer is nested more than {DEPTH_MAX} deep");
            return Err(NoAnswer::Malformed(Box::new(fetched), why));
        }
        Ok(Ok(value)) => value,
        Ok(Err(error)) => {
            return Err(NoAnswer::Malformed(Box::new(fetched), format!("the answer is no JSON: {error}")));
        }
        Err(error) => return Err(NoAnswer::Malformed(Box::new(fetched), error)),
    };
    Ok(Answer { fetched, value, started_ms })
}

/// Its items are stored within an object, and what is nested more than 127 deep is not read again.
fn is_deeper(value: &Value, depth: usize) -> bool {
    let inside = |value: &Value| depth == 0 || is_deeper(value, depth - 1);
    match value {
        Value::Array(values) => values.iter().any(inside),
        Value::Object(map) => map.values().any(inside),
        _ => false,
    }
}

/// What comes of a job that was sent then, and is without an answer, which may be asked again.
pub async fn again(ctx: &Context, entry: StreamId, job: &Job, sent_ms: Millis, why: NoAnswer) -> Done {
    let status = why.status();
    let mut done = match why {
        NoAnswer::Unsent => return Done::new(entry, Effect::Returned),
        NoAnswer::Lost(why) => retry(ctx, entry, job, &why),
        NoAnswer::Unreachable(why, pinned) => unreachable(ctx, entry, job, &pinned, &why).await,
        NoAnswer::Refused(fetched) if is_refusal(&fetched) => refused(ctx, entry, job, &fetched),
        NoAnswer::Refused(fetched) => {
            let mut finished = ended(job, Outcome::HttpError, &format!("the API answered {}", fetched.status));
            figures(&mut finished, &fetched, None);
            finish(entry, job, finished, Paged::default())
        }
        NoAnswer::Malformed(_, why) => retry(ctx, entry, job, &why),
    };
    end::timed(&mut done, sent_ms, ctx.clock.now_ms(), status);
    done.requested = true;
    done
}

pub fn ended(job: &Job, outcome: Outcome, reason: &str) -> Finished {
    let reason = Some(clean(reason)).filter(|reason| !reason.is_empty());
    Finished::new(job.key.clone(), outcome, reason)
}

/// What an answer adds to a job's log row.
pub fn figures(finished: &mut Finished, fetched: &Fetched, started_ms: Option<i64>) {
    finished.status = Some(fetched.status as i16);
    finished.content_type = fetched.content_type().map(|kind| clean(&kind));
    finished.body_bytes = fetched.body.len() as i64;
    finished.address = fetched.address.map(|address| address.to_string());
    finished.started_ms = started_ms;
    finished.fetch_ms = Some(fetched.fetch_ms);
}

pub fn finish(entry: StreamId, job: &Job, mut finished: Finished, paged: Paged) -> Done {
    finished.paged = Some(Box::new(paged));
    Done::new(entry, Effect::Finished { job: Box::new(finished), raw: None, dispatch: job.dispatch })
}

/// How long an API that has nothing left asks us to wait, milliseconds.
pub fn rate_hold_ms(limit: &RateLimit, headers: &HeaderMap, now_ms: i64) -> Option<i64> {
    let number = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse::<f64>().ok();
    if number(&limit.remaining)? > 0.0 {
        return None;
    }
    let reset = number(&limit.reset)?;
    // Beyond a thousand million it is a time, not a wait.
    let ms = if reset > 1e9 { reset * 1000.0 - now_ms as f64 } else { reset * 1000.0 };
    Some((ms.max(0.0) as i64).min(RESET_MS_MAX))
}

/// The job of a numbered page.
pub fn page_job(
    spec: &PagedSpec,
    dispatch: Uuid,
    round: i32,
    page: i32,
    total: i32,
    behind: Option<String>,
) -> Result<NextJob, String> {
    let url = spec.page_url(Place { page: i64::from(page), cursor: None })?;
    Ok(NextJob {
        kind: JobKind::GetPage,
        host: spec.host(&url),
        url: Some(url.to_string()),
        page: Some((page, total)),
        payload: match behind {
            Some(mark) => json!({ "round": round, "behind": [mark] }),
            None => json!({ "round": round }),
        },
        key: format!("page:{dispatch}:{round}:{page}"),
    })
}

/// The job of a page that a cursor names; the first has none. `behind` marks the cursors before it.
pub fn cursor_job(
    spec: &PagedSpec,
    dispatch: Uuid,
    page: i32,
    cursor: Option<&str>,
    mut behind: Vec<String>,
) -> Result<NextJob, String> {
    behind.extend(cursor.map(|cursor| mark(cursor.as_bytes())));
    let behind = &behind[behind.len().saturating_sub(BEHIND_MAX)..];
    let url = spec.page_url(Place { page: i64::from(page), cursor })?;
    Ok(NextJob {
        kind: JobKind::GetPage,
        host: spec.host(&url),
        url: Some(url.to_string()),
        page: Some((page, 0)),
        payload: json!({ "cursor": cursor, "behind": behind }),
        key: format!("page:{dispatch}:cursor:{page}"),
    })
}

/// What stands for a cursor, or for the items of a page, in the jobs after it.
pub fn mark(bytes: &[u8]) -> String {
    format!("{:016x}", xxhash_rust::xxh3::xxh3_64(bytes))
}

/// The marks of what was fetched just before a job: an API that goes round in circles is noticed by them.
pub fn behind(job: &Job) -> Vec<String> {
    let marks = job.payload.as_ref().and_then(|payload| payload["behind"].as_array());
    marks.map(|marks| marks.iter().filter_map(|mark| Some(mark.as_str()?.to_owned())).collect()).unwrap_or_default()
}

/// The job that emits the pages of a round, from one on.
pub fn pages_job(dispatch: Uuid, round: i32, from: i32) -> NextJob {
    NextJob {
        kind: JobKind::PageDispatch,
        host: String::new(),
        url: None,
        page: None,
        payload: json!({ "round": round, "from": from }),
        key: format!("pages:{dispatch}:{round}:{from}"),
    }
}

/// The job that asks for the count.
pub fn metadata_job(spec: &PagedSpec, dispatch: Uuid) -> Result<NextJob, String> {
    let url = spec.count_url()?;
    Ok(NextJob {
        kind: JobKind::GetMetadata,
        host: spec.host(&url),
        url: Some(url.to_string()),
        page: None,
        payload: json!({}),
        key: format!("metadata:{dispatch}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_api_with_nothing_left_is_left_alone_until_its_reset() {
        let limit = RateLimit { remaining: "x-left".to_owned(), reset: "x-reset".to_owned() };
        let now_ms = 1_800_000_000_000;
        let hold = |left: &'static str, reset: &'static str| {
            let pairs = [("x-left", left), ("x-reset", reset)];
            let headers = pairs
                .into_iter()
                .filter(|(_, value)| !value.is_empty())
                .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
                .collect();
            rate_hold_ms(&limit, &headers, now_ms)
        };
        assert_eq!(hold("3", "60"), None);
        assert_eq!(hold("0", "60"), Some(60_000));
        assert_eq!(hold("0", "1800000007"), Some(7_000));
        assert_eq!(hold("0", "1700000000"), Some(0), "past");
        assert_eq!(hold("0", "999999"), Some(RESET_MS_MAX));
        assert_eq!((hold("0", ""), hold("", "60"), hold("none", "60")), (None, None, None));
    }

    #[test]
    fn an_answer_that_is_too_deep_to_be_stored_is_told() {
        let nested = |depth: usize| -> Value {
            serde_json::from_str(&format!("{}{}", "[".repeat(depth), "]".repeat(depth))).unwrap()
        };
        assert!(!is_deeper(&nested(1), 1) && !is_deeper(&json!({ "a": [1, {}] }), 3) && !is_deeper(&json!("a"), 0));
        assert!(is_deeper(&nested(DEPTH_MAX + 2), DEPTH_MAX) && is_deeper(&json!({ "a": [1, { "b": 2 }] }), 1));
    }
}
