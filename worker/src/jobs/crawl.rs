//! Fetches a page, keeps it as a WARC record, stores its links and schedules the new ones.

use std::borrow::Cow;
use std::net::IpAddr;

use dodo_common::db::commit::{Finished, Found};
use dodo_common::db::schedule::Loaded;
use dodo_common::model::job::{HOPS_MAX, Job, Outcome};
use dodo_common::model::stream_id::StreamId;
use dodo_common::model::url::{Canonical, canonical};
use dodo_common::storage::warc;
use dodo_common::stream::names::PAGES;
use dodo_common::stream::raw::RawEntry;
use reqwest::header::HeaderMap;
use url::Url;
use uuid::Uuid;

use crate::committer::{Done, Effect};
use crate::context::{Context, Crawl};
use crate::extract::html::{self, Page};
use crate::fetch::proxy::FetchError;
use crate::fetch::{AGENT, Fetched};
use crate::jobs::end::{body_of, clean, finish, is_refusal, ready, refused, retry, unread};

pub async fn run(ctx: &Context, entry: StreamId, row: Loaded) -> Done {
    let Loaded { job, host, .. } = row;
    let Some(url) = job.url.as_deref().and_then(|url| Url::parse(url).ok()) else {
        return finish(entry, &job, Outcome::Failed, "the job has no URL");
    };
    let ready = match ready(ctx, entry, &job, host).await {
        Ok(ready) => ready,
        Err(done) => return *done,
    };
    let robots = match ctx.robots(&job.host, ready.version).await {
        Ok(robots) => robots,
        Err(error) => return unread(ctx, entry, &job, "robots.txt of its host", &error).await,
    };
    let verdict = robots.decide(AGENT, &path_of(&url));
    if !verdict.allowed {
        let rule = verdict.rule.map_or(String::new(), |rule| format!("robots.txt line {}: {}", rule.line, rule.text));
        return finish(entry, &job, Outcome::Robots, &rule);
    }
    let crawl = match ctx.crawl(&job.key.tenant, job.dispatch).await {
        Ok(crawl) => crawl,
        Err(error) => return unread(ctx, entry, &job, "its crawl", &error).await,
    };
    ctx.confirm().await;
    let started_ms = ctx.clock.now_ms();
    let addresses: Vec<IpAddr> = ready.addresses.iter().filter_map(|address| address.parse().ok()).collect();
    let none = HeaderMap::new();
    let headers = if crawl.seed_hosts.contains(&job.host) { &crawl.headers } else { &none };
    let mut done = match ctx.fetcher.get_with(&url, &addresses, headers, None).await {
        Ok(fetched) => judge(ctx, entry, &job, &crawl, &url, fetched, started_ms),
        Err(FetchError::Failed(why)) => retry(ctx, entry, &job, &why),
        Err(FetchError::Proxy(_)) => return Done::new(entry, Effect::Returned),
    };
    done.requested = true;
    done
}

/// Decides what an answer means.
fn judge(
    ctx: &Context,
    entry: StreamId,
    job: &Job,
    crawl: &Crawl,
    url: &Url,
    fetched: Fetched,
    started_ms: i64,
) -> Done {
    if is_refusal(&fetched) {
        return refused(ctx, entry, job, &fetched);
    }
    let outcome = match fetched.status {
        200..=299 => Outcome::Ok,
        300..=399 if fetched.location().is_some() => Outcome::Redirect,
        300..=399 => Outcome::Ok,
        _ => Outcome::HttpError,
    };
    let mut finished = Finished::new(job.key.clone(), outcome, None);
    finished.status = Some(fetched.status as i16);
    finished.content_type = fetched.content_type().map(clean);
    finished.body_bytes = fetched.body.len() as i64;
    finished.truncated = fetched.truncated.map(str::to_owned);
    finished.address = fetched.address.map(|address| address.to_string());
    finished.started_ms = Some(started_ms);
    finished.fetch_ms = Some(fetched.fetch_ms);
    let mut found = Vec::new();
    if outcome == Outcome::Redirect {
        redirect(job, crawl, url, &fetched, &mut finished, &mut found);
    } else if outcome == Outcome::Ok && is_html(fetched.content_type()) {
        match body_of(ctx, &fetched) {
            Ok(body) => read_page(job, crawl, url, &body, fetched.content_type(), &mut finished, &mut found),
            Err(why) => finished.reason = Some(why),
        }
    }
    keep_unknown(ctx, job, found, &mut finished);
    let raw = record(ctx, job, url, &fetched, started_ms, &mut finished);
    Done::new(entry, Effect::Finished { job: Box::new(finished), raw: Some((PAGES, raw)), dispatch: job.dispatch })
}

fn redirect(job: &Job, crawl: &Crawl, url: &Url, fetched: &Fetched, finished: &mut Finished, found: &mut Vec<Target>) {
    let location = fetched.location().unwrap_or_default();
    finished.location = Some(clean(location));
    match canonical(location, Some(url)) {
        Err(error) => finished.reason = Some(format!("it redirects to no page: {error}")),
        Ok(_) if job.hops >= HOPS_MAX => finished.reason = Some(format!("more than {HOPS_MAX} redirects in a row")),
        Ok(to) => {
            let decision = crawl.scope.allows(&to.url);
            if decision.allowed {
                found.push(Target { to, depth: job.depth, hops: job.hops + 1 });
            } else {
                finished.reason = Some(format!("it redirects out of scope: {}", decision.reason));
            }
        }
    }
}

fn read_page(
    job: &Job,
    crawl: &Crawl,
    url: &Url,
    body: &[u8],
    content_type: Option<&str>,
    finished: &mut Finished,
    found: &mut Vec<Target>,
) {
    let Page { title, language, nofollow, links, .. } = html::html(body, content_type, url);
    finished.title = title;
    finished.language = language;
    finished.link_count = links.len() as i32;
    finished.links = Some(lines_of(&links));
    if nofollow || job.depth >= crawl.spec.depth {
        return;
    }
    let depth = job.depth + 1;
    found.extend(links.into_iter().filter(|link| crawl.scope.allows(&link.url).allowed).map(|to| Target {
        to,
        depth,
        hops: 0,
    }));
}

/// The links as one text, a line each.
fn lines_of(links: &[Canonical]) -> String {
    let mut lines = String::with_capacity(links.iter().map(|link| link.url.as_str().len() + 1).sum());
    for link in links {
        if !lines.is_empty() {
            lines.push('\n');
        }
        lines.push_str(link.url.as_str());
    }
    lines
}

/// A link in scope.
struct Target {
    to: Canonical,
    depth: i16,
    hops: i16,
}

/// What this worker knows to be seen is only counted; the rest goes to the exact seen-set.
fn keep_unknown(ctx: &Context, job: &Job, found: Vec<Target>, finished: &mut Finished) {
    let unknown = ctx.seen.unknown(job.dispatch, found.iter().map(|target| target.to.hash));
    for (target, unknown) in found.into_iter().zip(unknown) {
        if !unknown {
            finished.known_count += 1;
            continue;
        }
        finished.found.push(Found {
            id: Uuid::now_v7(),
            hash: target.to.hash.to_uuid(),
            url: target.to.url.to_string(),
            host: target.to.host,
            depth: target.depth,
            hops: target.hops,
        });
    }
}

/// The page as one gzip member of a WARC record, with what the index says of it.
fn record(
    ctx: &Context,
    job: &Job,
    url: &Url,
    fetched: &Fetched,
    started_ms: i64,
    finished: &mut Finished,
) -> RawEntry {
    let member = warc::response_member(&warc::Response {
        record_id: job.key.id,
        url: url.as_str(),
        date_ms: started_ms,
        http_head: &fetched.head,
        body: &fetched.body,
        truncated: fetched.truncated,
        ip: fetched.address,
    });
    let mime = fetched.content_type().and_then(|kind| kind.split(';').next()).map_or("unk", str::trim);
    let about = serde_json::json!({
        "url": url.as_str(), "date_ms": started_ms, "status": fetched.status, "mime": clean(mime), "digest": member.payload_digest,
    });
    finished.digest = Some(member.payload_digest);
    RawEntry {
        tenant: job.key.tenant.clone(),
        generation: ctx.incarnation.generation,
        job: job.key.id,
        attempt: job.key.attempt,
        writer: ctx.incarnation.id,
        about: about.to_string().into_bytes(),
        body: member.bytes,
    }
}

fn is_html(content_type: Option<&str>) -> bool {
    content_type.is_some_and(|kind| {
        let kind = kind.split(';').next().unwrap_or_default().trim();
        kind.eq_ignore_ascii_case("text/html") || kind.eq_ignore_ascii_case("application/xhtml+xml")
    })
}

fn path_of(url: &Url) -> Cow<'_, str> {
    match url.query() {
        None => Cow::Borrowed(url.path()),
        Some(query) => Cow::Owned(format!("{}?{query}", url.path())),
    }
}
