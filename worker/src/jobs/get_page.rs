//! Fetches one page of an API, stores it once, hands its items on, and notices when the count has changed.

use std::time::Duration;

use dodo_common::db::host::{Hold, Word};
use dodo_common::db::load::{Loaded, LoadedPaging};
use dodo_common::db::page::{self, Paged};
use dodo_common::db::pool::DbError;
use dodo_common::fail;
use dodo_common::model::job::{Job, Outcome};
use dodo_common::model::paged::{Metadata, PAGES_MAX, PagedSpec, ROUNDS_MAX};
use dodo_common::model::stream_id::StreamId;
use dodo_common::stream::names::ITEMS;
use serde_json::{Value, json};
use url::Url;

use crate::context::{Context, Paging};
use crate::done::{Done, Effect};
use crate::jobs::end;
use crate::jobs::paging::{self, Answer, NoAnswer};

/// A database that does not answer is asked again this often.
const PAUSE: Duration = Duration::from_millis(100);

pub async fn run(ctx: &Context, entry: StreamId, row: Loaded) -> Done {
    let Loaded { job, host, paging: known, .. } = row;
    if let Some(reason) = needless(&job, &known) {
        return paging::finish(entry, &job, paging::ended(&job, Outcome::Duplicate, &reason), Paged::default());
    }
    let Some(url) = job.url.as_deref().and_then(|url| Url::parse(url).ok()) else {
        return end::finish(entry, &job, Outcome::Failed, "the job has no URL");
    };
    let paging = match paging::load(ctx, entry, &job).await {
        Ok(paging) => paging,
        Err(done) => return *done,
    };
    let once = paging.spec.document.at_most_once;
    if once && let Some(answer) = kept(ctx, &job).await {
        return store_kept(ctx, entry, &job, answer);
    }
    let host = match end::ready(ctx, entry, &job, host).await {
        Ok(host) => host,
        Err(done) => return *done,
    };
    if once {
        match begin(ctx, &job).await {
            Begun::Now => {}
            // Its worker lives or is found out: nothing to do here.
            Begun::Before => return Done::new(entry, Effect::Gone),
            Begun::Perhaps => {
                return end::finish(entry, &job, Outcome::Unknown, "whether its call was begun before cannot be known");
            }
        }
    }
    if once {
        fail::point_async("call-begun").await;
    }
    let sent_ms = ctx.clock.now_ms();
    let answer = paging::ask(ctx, &paging, &url, &host).await;
    if once {
        fail::point_async("call-answered").await;
    }
    match answer {
        Ok(answer) => store(ctx, entry, &job, &paging, known, answer).await,
        Err(NoAnswer::Unsent) if once => {
            take_back(ctx, &job).await;
            Done::new(entry, Effect::Returned)
        }
        // Nobody has heard the call.
        Err(why @ NoAnswer::Unreachable(..)) if once => {
            take_back(ctx, &job).await;
            paging::again(ctx, entry, &job, sent_ms, why).await
        }
        Err(why) if once => end_once(ctx, entry, &job, why),
        Err(why) => paging::again(ctx, entry, &job, sent_ms, why).await,
    }
}

/// Why no request is needed, if so (invariant 3).
fn needless(job: &Job, known: &LoadedPaging) -> Option<String> {
    if let Some(by) = known.stored_by {
        return Some(format!("its page was stored already, by job {by}"));
    }
    let round = round_of(job)?;
    let (_, current) = known.metadata?;
    (round != current).then(|| format!("the count has changed: round {round} is superseded by round {current}"))
}

fn round_of(job: &Job) -> Option<i32> {
    job.payload.as_ref()?["round"].as_i64().map(|round| round as i32)
}

async fn store(
    ctx: &Context,
    entry: StreamId,
    job: &Job,
    paging: &Paging,
    known: LoadedPaging,
    answer: Answer,
) -> Done {
    let spec = &paging.spec;
    let hold = spec.document.rate_limit.as_ref().and_then(|limit| {
        let ms = paging::rate_hold_ms(limit, &answer.fetched.headers, ctx.clock.now_ms())?;
        Some(Hold {
            host: job.host.clone(),
            word: Word::Waits { ms, reason: "its rate limit has nothing left".to_owned() },
        })
    });
    let items = match spec.items(&answer.value) {
        Ok(items) => items,
        Err(why) if spec.document.at_most_once => {
            return end_once(ctx, entry, job, NoAnswer::Malformed(Box::new(answer.fetched), why));
        }
        Err(why) => {
            let answered = NoAnswer::Malformed(Box::new(answer.fetched), why);
            let mut done = paging::again(ctx, entry, job, answer.started_ms, answered).await;
            done.hold = hold;
            return done;
        }
    };
    let (mut paged, reason) = match follow(spec, job, known.metadata, &items, &answer.value) {
        Ok(following) => following,
        Err(why) => {
            let mut done = end::finish(entry, job, Outcome::Failed, &why);
            done.requested = true;
            return done;
        }
    };
    if !paged.stores {
        let mut done = paging::finish(entry, job, paging::ended(job, Outcome::Duplicate, &reason), Paged::default());
        (done.requested, done.hold) = (true, hold);
        return done;
    }
    let about = about_of(spec, job, &items, answer.started_ms);
    if spec.document.at_most_once {
        paged.kept = Some(about.clone());
    }
    let mut finished = paging::ended(job, Outcome::Ok, &reason);
    paging::figures(&mut finished, &answer.fetched, Some(answer.started_ms));
    finished.paged = Some(Box::new(paged));
    let raw = Some((ITEMS, end::raw_entry(ctx, job, about, Vec::new())));
    let mut done = Done::new(entry, Effect::Finished { job: Box::new(finished), raw, dispatch: job.dispatch });
    done.requested = true;
    done.hold = hold;
    done
}

/// What follows a page: the next one where a cursor or a full last page says so, a new round where the count changed.
/// A page that repeats the one before it is not stored.
fn follow(
    spec: &PagedSpec,
    job: &Job,
    known: Option<(Metadata, i32)>,
    items: &[Value],
    answer: &Value,
) -> Result<(Paged, String), String> {
    let mut paged = Paged { items: items.len() as i32, stores: true, ..Paged::default() };
    let Some((page, total)) = job.page else { return Err("the job has no page".to_owned()) };
    let Some(round) = round_of(job) else {
        let before = paging::behind(job);
        let next = spec.next_cursor(answer)?;
        return Ok(match next.as_deref() {
            None => (paged, "the last page".to_owned()),
            Some(cursor) if before.contains(&paging::mark(cursor.as_bytes())) => {
                (paged, "the API names a cursor again".to_owned())
            }
            Some(_) if i64::from(page) >= PAGES_MAX => (paged, format!("no more than {PAGES_MAX} pages are fetched")),
            // The first run's commit has scheduled what follows: once more, it would be fetched and counted beside it.
            Some(_) if job.remake_of.is_some() => (paged, "made again; the next page is scheduled already".to_owned()),
            Some(cursor) => {
                paged.next.push(paging::cursor_job(spec, job.dispatch, page + 1, Some(cursor), before)?);
                (paged, String::new())
            }
        });
    };
    let changed = known.zip(spec.counts_in_pages().then(|| spec.metadata(answer).ok()).flatten());
    if let Some(((before, _), now)) = changed
        && before.total_items != now.total_items
        && round < ROUNDS_MAX
    {
        paged.metadata = Some((Some(round), now));
        paged.next.push(paging::pages_job(job.dispatch, round + 1, 1));
        let reason = format!(
            "the count changed from {} to {}: the pages are fetched again",
            before.total_items, now.total_items
        );
        return Ok((paged, reason));
    }
    // A count may be too low: a full last page is not believed to be the last.
    if page >= total && items.len() as i64 >= spec.document.page_size() {
        let own = paging::mark(Value::from(items).to_string().as_bytes());
        if paging::behind(job).contains(&own) {
            paged.stores = false;
            return Ok((paged, format!("the API answers the items of page {} again", page - 1)));
        }
        if job.remake_of.is_some() {
            return Ok((paged, "made again; the next page is scheduled already".to_owned()));
        }
        if i64::from(page) >= PAGES_MAX {
            return Ok((paged, format!("no more than {PAGES_MAX} pages are fetched")));
        }
        paged.next.push(paging::page_job(spec, job.dispatch, round, page + 1, total, Some(own))?);
        return Ok((paged, format!("page {page} of {total} is full: the next one is looked at")));
    }
    Ok((paged, String::new()))
}

/// The entry of `items`: the items of the page and where they are from.
fn about_of(spec: &PagedSpec, job: &Job, items: &[Value], fetched_ms: i64) -> Vec<u8> {
    let (page, total_pages) = job.page.unwrap_or_default();
    json!({
        "source": spec.source, "instance": spec.instance, "dispatch": job.dispatch, "page": page,
        "total_pages": total_pages, "url": job.url, "fetched_ms": fetched_ms, "items": items,
    })
    .to_string()
    .into_bytes()
}

/// The end of a call that may not be repeated and gave nothing to store.
fn end_once(ctx: &Context, entry: StreamId, job: &Job, why: NoAnswer) -> Done {
    let (outcome, reason, fetched) = match why {
        NoAnswer::Unsent => (Outcome::Unknown, String::new(), None),
        NoAnswer::Lost(why) | NoAnswer::Unreachable(why, _) => (Outcome::Unknown, why, None),
        NoAnswer::Refused(fetched) => (
            Outcome::HttpError,
            format!("the API answered {}; the call is not repeated", fetched.status),
            Some(fetched),
        ),
        NoAnswer::Malformed(fetched, why) => {
            (Outcome::Failed, format!("{why}; the call is not repeated"), Some(fetched))
        }
    };
    let mut finished = paging::ended(job, outcome, &reason);
    let refusal = fetched.as_ref().filter(|fetched| matches!(fetched.status, 429 | 503));
    let hold = refusal.map(|fetched| end::hold_of(ctx, job, fetched, &reason));
    if let Some(fetched) = fetched {
        paging::figures(&mut finished, &fetched, None);
    }
    let mut done = paging::finish(entry, job, finished, Paged::default());
    (done.requested, done.hold) = (true, hold);
    done
}

/// The answer that the first run of a call has kept, when its result was lost with Redis.
async fn kept(ctx: &Context, job: &Job) -> Option<Vec<u8>> {
    let before = job.remake_of?;
    loop {
        match page::kept_answer(&ctx.db, &job.key.tenant, before).await {
            Ok(answer) => return answer,
            Err(error) => tracing::warn!(%error, "cannot read a kept answer; asking again"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn store_kept(ctx: &Context, entry: StreamId, job: &Job, answer: Vec<u8>) -> Done {
    let items = serde_json::from_slice::<Value>(&answer).ok().and_then(|about| Some(about["items"].as_array()?.len()));
    let paged =
        Paged { items: items.unwrap_or(0) as i32, stores: true, kept: Some(answer.clone()), ..Paged::default() };
    let mut finished = paging::ended(job, Outcome::Ok, "made again of the answer that was kept");
    finished.paged = Some(Box::new(paged));
    let raw = Some((ITEMS, end::raw_entry(ctx, job, answer, Vec::new())));
    Done::new(entry, Effect::Finished { job: Box::new(finished), raw, dispatch: job.dispatch })
}

/// Whether a call may be made now.
enum Begun {
    Now,
    Before,
    /// An earlier try got no answer, so it may have been that one which began it.
    Perhaps,
}

/// Commits that the call is about to be made.
async fn begin(ctx: &Context, job: &Job) -> Begun {
    let mut unsure = false;
    loop {
        match page::begin(&ctx.db, &ctx.incarnation, &job.key).await {
            Ok(true) => return Begun::Now,
            Ok(false) if unsure => return Begun::Perhaps,
            Ok(false) => return Begun::Before,
            Err(DbError::WorkerRefused(why)) => {
                ctx.refuse(&why);
                std::future::pending::<()>().await;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot begin a call; trying again");
                unsure = true;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Nothing was sent after all: the call may be begun again.
async fn take_back(ctx: &Context, job: &Job) {
    while let Err(error) = page::take_back(&ctx.db, &ctx.incarnation, &job.key).await {
        if let DbError::WorkerRefused(why) = error {
            // The next leader's look ends the call as unknown, which is the safe side.
            return ctx.refuse(&why);
        }
        tracing::warn!(%error, "cannot take a call back; trying again");
        tokio::time::sleep(PAUSE).await;
    }
}
