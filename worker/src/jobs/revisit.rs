//! Pages that are visited again: asked for on conditions, compared with the visit before, followed by the next visit.

use dodo_common::db::commit::Finished;
use dodo_common::db::pool::DbResult;
use dodo_common::db::revisit::{Revisited, Spared};
use dodo_common::db::segment::{self, Place};
use dodo_common::model::job::{Job, Outcome};
use dodo_common::model::revisit::{FAILURES_MAX, Last, Original, Plan, Revisit, Seen, VALIDATOR_BYTES_MAX};
use dodo_common::storage::warc;
use dodo_common::stream::names::{PAGES, archive_name};
use reqwest::header::{ETAG, HeaderMap, HeaderName, HeaderValue, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED};
use uuid::Uuid;

use crate::context::{Context, Crawl};
use crate::done::{Done, Effect};
use crate::fetch::fetched::Fetched;
use crate::jobs::end::{note, unread};

/// What a job knows of the visits before, in a crawl that visits its pages again.
#[derive(Debug)]
pub struct Before {
    bounds: Revisit,
    plan: Plan,
    /// The record that holds the page as it was, if it is in the archive. Another one may still be lost with Redis, and
    /// is then made again with another date and perhaps another body: nothing may refer to it.
    original: Option<Original>,
}

impl Before {
    /// Nothing in a crawl that fetches its pages once.
    pub async fn of(ctx: &Context, job: &Job, crawl: &Crawl) -> DbResult<Option<Self>> {
        let Some(bounds) = crawl.spec.revisit else { return Ok(None) };
        let plan = plan_of(job);
        let original = match plan.last.as_ref().and_then(|last| last.seen.original.clone()) {
            Some(original) if is_archived(ctx, job, &original).await? => Some(original),
            _ => None,
        };
        Ok(Some(Self { bounds, plan, original }))
    }

    /// The conditions of its request (RFC 9110 13.1.2 and 13.1.3): both, since some servers know only the elder. None
    /// where the answer 304 could refer to nothing.
    pub fn conditions(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let (Some(last), Some(_)) = (&self.plan.last, &self.original) {
            let value = |text: &Option<String>| text.as_ref().and_then(|text| HeaderValue::from_str(text).ok());
            headers.extend(value(&last.seen.etag).map(|value| (IF_NONE_MATCH, value)));
            headers.extend(value(&last.seen.last_modified).map(|value| (IF_MODIFIED_SINCE, value)));
        }
        headers
    }

    /// What the answer 304 refers to; nothing where no condition was sent.
    pub fn not_modified(&self) -> Option<&Original> {
        self.original.as_ref().filter(|_| !self.conditions().is_empty())
    }

    /// The record of the same body, if there is one.
    pub fn identical(&self, fetched: &Fetched) -> Option<&Original> {
        let original = self.original.as_ref().filter(|_| fetched.cut.is_none())?;
        (original.digest == warc::payload_digest(&fetched.body)).then_some(original)
    }

    /// What follows from an answer: a page, or a redirect.
    pub fn answered(
        &self,
        ctx: &Context,
        job: &Job,
        finished: &Finished,
        fetched: &Fetched,
        kept: Option<(&Original, Spared)>,
    ) -> Box<Revisited> {
        let content = match finished.outcome {
            Outcome::Redirect => finished.location.clone(),
            _ => finished.digest.clone(),
        };
        let is_page = finished.outcome == Outcome::Ok && fetched.cut.is_none();
        let original = match kept {
            Some((original, _)) => Some(original.clone()),
            None => is_page.then(|| Original {
                job: job.key.id,
                date_ms: finished.started_ms.unwrap_or_default(),
                digest: finished.digest.clone().unwrap_or_default(),
                body_bytes: fetched.body.len() as i64,
                generation: ctx.incarnation.generation,
                entry: None,
            }),
        };
        // Of a body that is not whole they would hold on to the part that came.
        let validator = |name| is_page.then(|| validator(fetched, name)).flatten();
        let mut seen = Seen {
            content: content.unwrap_or_default(),
            etag: validator(ETAG),
            last_modified: validator(LAST_MODIFIED),
            original,
        };
        // What the server leaves out of the answer 304 stays as it was (RFC 9111 3.2).
        if let (Some((_, Spared::Transfer(_))), Some(Last { seen: before, .. })) = (kept, &self.plan.last) {
            seen.etag = seen.etag.or_else(|| before.etag.clone());
            seen.last_modified = seen.last_modified.or_else(|| before.last_modified.clone());
        }
        let at_ms = finished.started_ms.unwrap_or_default();
        let next = self.plan.after(&self.bounds, job.key.id, at_ms, Some(seen));
        self.followed_by(job, next, kept.map(|(_, spared)| spared))
    }

    fn followed_by(&self, job: &Job, next: Option<Plan>, spared: Option<Spared>) -> Box<Revisited> {
        Box::new(Revisited {
            next: next.map(|plan| (Uuid::now_v7(), plan)),
            again: self.plan.last.is_some(),
            spared,
            dispatch: job.dispatch,
            hints: Vec::new(),
            modified: Vec::new(),
            min_ms: self.bounds.min_s * 1000,
        })
    }
}

/// A page that was there at an earlier visit, and was not to be had at this one, is due again all the same: some times, if
/// the server says that it is gone, and otherwise for ever.
pub async fn missed(ctx: &Context, job: &Job, done: &mut Done) {
    let Effect::Finished { job: finished, .. } = &mut done.effect else { return };
    use Outcome::{Dead, Failed, HttpError, Refused, Robots, Unwanted};
    let is_miss = matches!(finished.outcome, HttpError | Dead | Failed | Robots | Refused | Unwanted);
    if !is_miss || job.payload.is_none() {
        return;
    }
    let crawl = match ctx.crawl(&job.key.tenant, job.dispatch).await {
        Ok(crawl) => crawl,
        Err(error) => {
            let unread = unread(ctx, done.entry, job, "its crawl", &error).await;
            done.effect = unread.effect;
            return;
        }
    };
    if let Some(bounds) = crawl.spec.revisit {
        let before = Before { bounds, plan: plan_of(job), original: None };
        let at_ms = finished.started_ms.unwrap_or_else(|| ctx.clock.now_ms());
        let next = if is_gone(finished) {
            before.plan.after(&before.bounds, job.key.id, at_ms, None)
        } else {
            before.plan.after_silence(&before.bounds, job.key.id, at_ms)
        };
        if next.is_none() && before.plan.last.is_some() {
            note(&format!("gone at {FAILURES_MAX} visits in a row, and not visited any more"), finished);
        }
        finished.revisited = Some(before.followed_by(job, next, None));
    }
}

/// Whether an end speaks of the page. A server that is out of order, that turns us away or that forbids may be of another
/// mind tomorrow.
fn is_gone(finished: &Finished) -> bool {
    finished.outcome == Outcome::Unwanted || matches!(finished.status, Some(404 | 410))
}

/// Of a first visit that no sitemap says anything of there is none.
fn plan_of(job: &Job) -> Plan {
    job.payload.clone().and_then(|payload| serde_json::from_value(payload).ok()).unwrap_or_default()
}

async fn is_archived(ctx: &Context, job: &Job, original: &Original) -> DbResult<bool> {
    let Some(entry) = original.entry else { return Ok(false) };
    let stream = archive_name(PAGES);
    let place = segment::place_of(&ctx.db, &job.key.tenant, stream, original.generation, entry).await?;
    Ok(matches!(place, Some(Place::Verified(..))))
}

/// A validator as it came, if it can be sent back as it came.
fn validator(fetched: &Fetched, name: HeaderName) -> Option<String> {
    let text = fetched.headers.get(name)?.to_str().ok()?;
    (!text.is_empty() && text.len() <= VALIDATOR_BYTES_MAX).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(headers: &[(HeaderName, &str)]) -> Fetched {
        let headers = headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap()));
        Fetched {
            status: 200,
            head: Vec::new(),
            headers: headers.collect(),
            body: b"a page".to_vec(),
            cut: None,
            block: None,
            address: None,
            head_ms: 1,
            fetch_ms: 1,
        }
    }

    fn before(etag: Option<&str>, archived: bool) -> Before {
        let original = Original {
            job: Uuid::nil(),
            date_ms: 1,
            digest: warc::payload_digest(b"a page"),
            body_bytes: 6,
            generation: 1,
            entry: None,
        };
        let seen = Seen {
            content: original.digest.clone(),
            etag: etag.map(str::to_owned),
            last_modified: None,
            original: Some(original.clone()),
        };
        let last = Last { visits: 1, job: Uuid::nil(), at_ms: 1, seen, failures: 0 };
        Before {
            bounds: Revisit { min_s: 1, max_s: 9 },
            plan: Plan { interval_ms: Some(1000), modified_ms: None, last: Some(last) },
            original: archived.then_some(original),
        }
    }

    #[test]
    fn a_condition_is_sent_only_where_its_answer_refers_to_something() {
        let whole = before(Some("W/\"a\""), true);
        assert_eq!(whole.conditions()[IF_NONE_MATCH], "W/\"a\"", "weak ones are sent as they came");
        assert!(whole.not_modified().is_some());
        for nothing in [before(Some("\"a\""), false), before(None, true)] {
            assert!(nothing.conditions().is_empty() && nothing.not_modified().is_none(), "{nothing:?}");
        }
        // Without a validator a body that comes can still be told to be the same.
        assert!(before(None, true).identical(&answer(&[])).is_some());
        assert!(before(None, false).identical(&answer(&[])).is_none());
    }

    #[test]
    fn a_validator_is_kept_as_it_came_or_not_at_all() {
        let long = "x".repeat(VALIDATOR_BYTES_MAX);
        let quoted = format!("\"{}\"", &long[2..]);
        for (value, kept) in [
            ("\"a b\"", true),
            ("unquoted", true),
            (quoted.as_str(), true),
            ("", false),
            ("\"\u{e9}\"", false),
            (&format!("\"{long}\""), false),
        ] {
            let found = validator(&answer(&[(ETAG, value)]), ETAG);
            assert_eq!(found.as_deref(), kept.then_some(value));
        }
    }
}
