//! Fetches a page, keeps it as a WARC record, stores its links and schedules the new ones.

mod reading;
mod record;

use std::borrow::Cow;
use std::net::IpAddr;

use dodo_common::db::commit::{Finished, Found};
use dodo_common::db::host::{Hold, Word};
use dodo_common::db::load::{Loaded, LoadedHost};
use dodo_common::db::revisit::Spared;
use dodo_common::db::tally::{Given, Novelty};
use dodo_common::model::job::{Job, Outcome};
use dodo_common::model::robots::Robots;
use dodo_common::model::stream_id::StreamId;
use dodo_common::storage::warc::{self, Profile};
use dodo_common::stream::names::PAGES;
use url::Url;
use uuid::Uuid;

use crate::content::Page;
use crate::context::{Context, Crawl};
use crate::done::{Done, Effect};
use crate::fetch::Ask;
use crate::fetch::body::Cut;
use crate::fetch::fetched::Fetched;
use crate::fetch::proxy::FetchError;
use crate::jobs::crawl::reading::Said;
use crate::jobs::end::{clean, finish, is_last_try, is_refusal, note, ready, refused, retry, unreachable, unread};
use crate::jobs::revisit::{self, Before};
use crate::jobs::target::{self, Target};
use crate::jobs::{declaration, end};

pub async fn run(ctx: &Context, entry: StreamId, row: Loaded) -> Done {
    let Loaded { job, host, .. } = row;
    let mut done = fetch(ctx, entry, &job, host).await;
    revisit::missed(ctx, &job, &mut done).await;
    done
}

async fn fetch(ctx: &Context, entry: StreamId, job: &Job, host: Option<LoadedHost>) -> Done {
    let Some(url) = job.url.as_deref().and_then(|url| Url::parse(url).ok()) else {
        return finish(entry, job, Outcome::Failed, "the job has no URL");
    };
    let ready = match ready(ctx, entry, job, host).await {
        Ok(ready) => ready,
        Err(done) => return *done,
    };
    let robots = match ctx.robots(&job.host, ready.version).await {
        Ok(Some(robots)) => robots,
        Ok(None) => return Done::new(entry, Effect::Returned),
        Err(error) => return unread(ctx, entry, job, "robots.txt of its host", &error).await,
    };
    let crawl = match ctx.crawl(&job.key.tenant, job.dispatch).await {
        Ok(crawl) => crawl,
        Err(error) => return unread(ctx, entry, job, "its crawl", &error).await,
    };
    let before = match Before::of(ctx, job, &crawl).await {
        Ok(before) => before,
        Err(error) => return unread(ctx, entry, job, "the visits before", &error).await,
    };
    let verdict = robots.decide(crawl.agent(), &path_of(&url));
    if !verdict.allowed {
        let rule = verdict.rule.map_or(String::new(), |rule| format!("robots.txt line {}: {}", rule.line, rule.text));
        return finish(entry, job, Outcome::Robots, &rule);
    }
    let asked_ms = robots.crawl_delay_ms(crawl.agent()).map(|ms| ms as i64);
    if let Some(ms) = asked_ms.filter(|ms| Some(*ms) > ready.crawl_delay_ms) {
        // Whoever prepared the host goes by another name; the clock that this job was issued by is too fast.
        let mut done = Done::new(entry, Effect::Returned);
        done.hold = Some(Hold { host: job.host.clone(), word: Word::Asks { ms } });
        return done;
    }
    ctx.confirm().await;
    let started_ms = ctx.clock.now_ms();
    let addresses: Vec<IpAddr> = ready.addresses.iter().filter_map(|address| address.parse().ok()).collect();
    let mut headers = crawl.headers_for(&job.host, &url);
    if let Some(before) = &before {
        headers.extend(before.conditions());
    }
    let visit = Visit { ctx, job, crawl: &crawl, url: &url, robots: &robots, before: before.as_ref(), started_ms };
    // On their way to pages, sitemaps are no pages.
    let listings = (job.depth == 0 && job.hops > 0).then(|| crawl.media.and_listings());
    let ask = Ask {
        url: &url,
        addresses: &addresses,
        headers: &headers,
        body_bytes_max: None,
        media: Some(listings.as_ref().unwrap_or(&crawl.media)),
        once: false,
    };
    let mut status = None;
    let mut done = match ctx.fetcher.get(ask).await {
        Ok(fetched) => {
            let head_ms = fetched.head_ms;
            status = Some(fetched.status);
            let mut done = visit.judge(entry, fetched);
            done.head_ms = Some(head_ms);
            done
        }
        Err(FetchError::Failed(why)) => retry(ctx, entry, job, &why),
        Err(FetchError::Unreachable(why)) => unreachable(ctx, entry, job, &addresses, &why).await,
        Err(FetchError::Proxy(_) | FetchError::Unsent(_)) => return Done::new(entry, Effect::Returned),
    };
    end::timed(&mut done, started_ms, ctx.clock.now_ms(), status);
    done.requested = true;
    done
}

/// What a job knows when its answer comes.
struct Visit<'a> {
    ctx: &'a Context,
    job: &'a Job,
    crawl: &'a Crawl,
    url: &'a Url,
    robots: &'a Robots,
    before: Option<&'a Before>,
    started_ms: i64,
}

impl Visit<'_> {
    /// Decides what an answer means.
    fn judge(&self, entry: StreamId, fetched: Fetched) -> Done {
        let Visit { ctx, job, crawl, url, .. } = *self;
        let has_set = crawl.jar.as_ref().is_some_and(|jar| jar.keep(url, &fetched.headers));
        if is_refusal(&fetched) {
            return refused(ctx, entry, job, &fetched);
        }
        if fetched.status == 304 {
            return self.not_modified(entry, &fetched);
        }
        let cut = fetched.cut.as_ref();
        let outcome = match fetched.status {
            200..=299 if cut == Some(&Cut::Unwanted) => Outcome::Unwanted,
            200..=299 => Outcome::Ok,
            300..=399 if fetched.location().is_some() => Outcome::Redirect,
            300..=399 => Outcome::Ok,
            _ => Outcome::HttpError,
        };
        if has_set && outcome == Outcome::Redirect && !is_last_try(job) && target::is_itself(crawl, url, &fetched) {
            // It wants to see the cookie that it has just set.
            return retry(ctx, entry, job, "it set a cookie and redirects to itself");
        }
        let blocked = fetched.block.map(|sign| format!("it looks blocked: {sign}"));
        if let Some(why) = &blocked
            && !is_last_try(job)
        {
            // Another proxy may be let in.
            return retry(ctx, entry, job, why);
        }
        let why = cut.map(|cut| match cut {
            Cut::Unwanted => unwanted(&fetched),
            cut => clean(&format!("the body is cut: {cut}")),
        });
        let why = why.or(blocked);
        if outcome == Outcome::Ok && cut.is_some_and(Cut::may_pass) && !is_last_try(job) {
            return retry(ctx, entry, job, &why.unwrap_or_default());
        }
        let mut finished = self.ended(outcome, why, &fetched);
        let same = self.before.filter(|_| outcome == Outcome::Ok).and_then(|before| before.identical(&fetched));
        let is_page = outcome == Outcome::Ok && same.is_none() && self.is_page(&fetched);
        // Whatever a seed answers, the sitemaps of its host may lead further.
        let mut found = target::named(job, crawl, url, self.robots, is_page);
        let mut said = Said::default();
        let led = match outcome {
            Outcome::Redirect => {
                let location = fetched.location().unwrap_or_default();
                finished.location = Some(clean(&location));
                target::redirect(job, crawl, url, &location).map(|target| vec![target])
            }
            // The same page has the same links.
            Outcome::Ok if same.is_some() => Ok(Vec::new()),
            Outcome::Ok if is_page => self.read_page(&fetched, &mut finished, &mut said),
            Outcome::Ok => self.read_listing(&fetched, &mut finished, &mut said),
            _ => Ok(Vec::new()),
        };
        match led {
            Ok(targets) => found.extend(targets),
            Err(why) => finished.reason = Some(why),
        }
        keep_unknown(ctx, job, found, &mut finished);
        // What is as it was has been kept before, and not read again.
        let is_kept = said.listing || same.is_some() || crawl.media.keeps(fetched.content_type().as_deref());
        if outcome == Outcome::Ok && !is_kept {
            // It was read only since it might have been a sitemap.
            finished.outcome = Outcome::Unwanted;
            note(&unwanted(&fetched), &mut finished);
        }
        if let Some(canonical) = said.canonical.filter(|canonical| declaration::names_another(crawl, url, canonical)) {
            note(&format!("canonical: {}", canonical.text), &mut finished);
        }
        if finished.outcome == Outcome::Ok
            && let Some(by) = declaration::noindex(crawl, &fetched, said.noindex)
        {
            leave_out(by, warc::payload_digest(&fetched.body), &mut finished);
        }
        let raw = match same {
            _ if matches!(finished.outcome, Outcome::Unwanted | Outcome::Noindex) => None,
            Some(original) => {
                Some(self.revisit_record(&fetched, original, Profile::IdenticalPayloadDigest, &mut finished))
            }
            None => Some(self.record(&fetched, &mut finished)),
        };
        let is_there = finished.outcome.is_page() || outcome == Outcome::Redirect;
        if let Some(before) = self.before.filter(|_| is_there) {
            let kept = same.map(|original| (original, Spared::Storage(finished.body_bytes)));
            let mut revisited = before.answered(ctx, job, &finished, &fetched, kept);
            revisited.hints = said.hints.into_iter().map(|(hash, ms)| (hash.to_uuid(), ms)).collect();
            revisited.modified = said.modified;
            finished.revisited = Some(revisited);
        }
        if finished.outcome.is_page() && !finished.is_revisit() {
            self.tally(&mut finished, said.print);
        }
        let raw = raw.map(|raw| (PAGES, raw));
        Done::new(entry, Effect::Finished { job: Box::new(finished), raw, dispatch: job.dispatch })
    }

    /// The server says that the page is as it was (RFC 9110 15.4.5): its links are, too.
    fn not_modified(&self, entry: StreamId, fetched: &Fetched) -> Done {
        let Visit { ctx, job, crawl, url, .. } = *self;
        let Some((before, original)) = self.before.and_then(|before| Some((before, before.not_modified()?))) else {
            let mut done = retry(ctx, entry, job, "the server answered 304 to a request without a condition");
            if let Effect::Finished { job, .. } = &mut done.effect {
                job.status = Some(fetched.status as i16);
            }
            return done;
        };
        let mut finished = self.ended(Outcome::Ok, None, fetched);
        keep_unknown(ctx, job, target::named(job, crawl, url, self.robots, false), &mut finished);
        let raw = match declaration::noindex(crawl, fetched, false) {
            Some(by) => {
                leave_out(by, original.digest.clone(), &mut finished);
                None
            }
            None => Some(self.revisit_record(fetched, original, Profile::ServerNotModified, &mut finished)),
        };
        let kept = Some((original, Spared::Transfer(original.body_bytes)));
        finished.revisited = Some(before.answered(ctx, job, &finished, fetched, kept));
        let raw = raw.map(|raw| (PAGES, raw));
        Done::new(entry, Effect::Finished { job: Box::new(finished), raw, dispatch: job.dispatch })
    }

    /// What is to be said of every answer.
    fn ended(&self, outcome: Outcome, why: Option<String>, fetched: &Fetched) -> Finished {
        let mut finished = Finished::new(self.job.key.clone(), outcome, why);
        finished.status = Some(fetched.status as i16);
        finished.content_type = fetched.content_type().map(|kind| clean(&kind));
        finished.body_bytes = fetched.body.len() as i64;
        finished.truncated = fetched.cut.as_ref().map(|cut| cut.word().to_owned());
        finished.address = fetched.address.map(|address| address.to_string());
        finished.started_ms = Some(self.started_ms);
        finished.fetch_ms = Some(fetched.fetch_ms);
        finished
    }

    /// Counts a page for its host, and says what it repeats, if it does.
    fn tally(&self, finished: &mut Finished, print: Option<u64>) {
        let Visit { ctx, job, crawl, url, .. } = *self;
        if !crawl.spec.counts_hosts() || job.remake_of.is_some() {
            return;
        }
        let digest = finished.digest.as_deref().unwrap_or_default();
        let page = Page { dispatch: job.dispatch, host: &job.host, url: url.as_str(), digest, print };
        let (novelty, original) = ctx.contents.look(page);
        if let Some(original) = original {
            let word = if novelty == Novelty::Duplicate { "duplicate" } else { "near duplicate" };
            note(&format!("{word} of {original}"), finished);
        }
        let (dispatch, host, bytes) = (job.dispatch, job.host.clone(), finished.body_bytes);
        finished.given = Some(Box::new(Given { dispatch, host, bytes, novelty }));
    }
}

fn unwanted(fetched: &Fetched) -> String {
    let kind = fetched.content_type().unwrap_or_default();
    clean(&format!("content type {kind:?} is none that its crawl keeps; the body is neither read nor kept"))
}

/// A page that asks not to be indexed: its links, its figures and its digest, by which a change is told, are all that
/// stays of it.
fn leave_out(by: &str, digest: String, finished: &mut Finished) {
    (finished.outcome, finished.digest, finished.title) = (Outcome::Noindex, Some(digest), None);
    note(&format!("noindex, says {by}: its body is not kept"), finished);
}

/// What this worker knows to be seen is only counted; the rest goes to the exact seen-set.
fn keep_unknown(ctx: &Context, job: &Job, mut found: Vec<Target>, finished: &mut Finished) {
    finished.known_count += ctx.seen.drop_known(job.dispatch, &mut found, |target| target.to.hash) as i32;
    finished.found.extend(found.into_iter().map(|target| Found {
        id: Uuid::now_v7(),
        hash: target.to.hash.to_uuid(),
        url: target.to.url.into(),
        host: target.to.host,
        depth: target.depth,
        hops: target.hops,
    }));
}

fn path_of(url: &Url) -> Cow<'_, str> {
    match url.query() {
        None => Cow::Borrowed(url.path()),
        Some(query) => Cow::Owned(format!("{}?{query}", url.path())),
    }
}
