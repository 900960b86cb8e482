//! What is told of one job: where it was found, its tries, and how it ended.

use chrono::SubsecRound as _;
use dodo_common::db::dispatch;
use dodo_common::db::explain::{self, JobReport, Try};
use dodo_common::model::job::{ALONE_CRASHES_MAX, SUSPECT_CRASHES, TENANT_DEFAULT};
use dodo_common::model::revisit::{Last, Revisit};
use dodo_common::model::robots::Robots;
use dodo_common::model::spec::CrawlSpec;
use dodo_common::model::url::ruled;
use dodo_common::model::url_rules::UrlRules;
use url::Url;
use uuid::Uuid;

use crate::api::ApiResult;
use crate::api::why::{moment, spec_of};
use crate::context::Context;

/// It runs alone: too many workers were lost while they held it.
pub fn is_suspect(job: &JobReport) -> bool {
    job.state == "pending" && job.crashes >= SUSPECT_CRASHES
}

/// Who was lost with it, and what follows of that.
fn crash_line(job: &JobReport) -> Option<String> {
    let (crashes, alone) = (job.crashes, job.alone_crashes);
    let then = match () {
        () if crashes == 0 => return None,
        () if is_suspect(job) => {
            format!(": it is a suspect and runs alone; {ALONE_CRASHES_MAX} losses while it does end it")
        }
        () => String::new(),
    };
    let workers = if crashes == 1 { "1 worker was".to_owned() } else { format!("{crashes} workers were") };
    Some(format!("{workers} lost while holding it, {alone} of them while running nothing else{then}."))
}

/// Where a job was found: on the page of another, or in the robots.txt of that page's host, as that is now.
async fn found_on(ctx: &Context, job: &JobReport, page: Uuid) -> ApiResult<String> {
    let Some(JobReport { host, url: Some(page), .. }) = explain::job(&ctx.db, TENANT_DEFAULT, page).await? else {
        return Ok(format!("found by job {page}"));
    };
    if job.depth == 0 {
        let robots = explain::host(&ctx.db, &host).await?.and_then(|host| host.robots).unwrap_or_default();
        let base = Url::parse(&host).ok();
        let rules = spec_of(ctx, job.dispatch).await?.and_then(|crawl| crawl.rules().ok());
        let rules = rules.as_ref().unwrap_or(UrlRules::none());
        let is_it = |line: &String| {
            ruled(line, base.as_ref(), rules).is_ok_and(|sitemap| job.url.as_deref() == Some(sitemap.url.as_str()))
        };
        if Robots::parse(&robots).sitemaps().iter().any(is_it) {
            return Ok(format!("named as a sitemap by the robots.txt of {host}"));
        }
    }
    Ok(format!("found on {page}"))
}

/// Of a page that is visited again: which visit this is, and what came of the one before.
fn visit_line(job: &JobReport) -> Option<String> {
    let visit = job.visit.as_ref()?;
    let Last { visits, job: before, seen, failures, .. } = visit.last.as_ref()?;
    let (number, s) = (visits + 1, visit.interval_ms.unwrap_or_default() as f64 / 1000.0);
    let mut line = format!("It is visit {number} of the page, {s:.1} s after visit {visits} by job {before}");
    if let Some(at) = visit.modified_ms {
        line.push_str(&format!(" or sooner, since a sitemap says that the page was modified at {}", moment(at)));
    }
    line.extend(seen.etag.as_ref().map(|etag| format!(", ETag {etag}")));
    line.extend(seen.last_modified.as_ref().map(|date| format!(", Last-Modified {date}")));
    if *failures > 0 {
        line.push_str(&format!("; the last {failures} have found no page"));
    }
    line.push_str(match job.state.as_str() {
        "ok" | "noindex" if job.unchanged => ". It found the page as it had been.",
        "ok" | "noindex" => ". It found that the page had changed.",
        _ => ".",
    });
    Some(line)
}

pub async fn job_lines(ctx: &Context, job: &JobReport) -> ApiResult<Vec<String>> {
    let mut lines = Vec::new();
    let page = job.page.map_or(String::new(), |page| match job.total_pages {
        Some(total) if total > 0 => format!(" (page {page} of {total})"),
        _ => format!(" (page {page})"),
    });
    let origin = match job.found_on {
        Some(page) => found_on(ctx, job, page).await?,
        None if job.kind == "crawl" => "given as a start".to_owned(),
        None => format!("a {} job{page}", job.kind),
    };
    lines.push(format!(
        "Job {} of dispatch {}: {origin}, at depth {}, scheduled {}.",
        job.id, job.dispatch, job.depth, job.created_at
    ));
    if let Some(before) = job.remake_of {
        lines.push(format!("It makes the result of job {before} again, which Redis lost before it was archived."));
    }
    lines.extend(crash_line(job));
    lines.extend(visit_line(job));
    if job.state == "pending" {
        let due = job.run_at.map_or(String::new(), |at| format!(", due at {at}"));
        lines.extend(job.tries.iter().map(try_line));
        lines.push(format!("It is pending with {} tries behind it{}{due}.", job.attempt, for_nothing(job)));
        let told = job.tries.last().map(|last| &last.error);
        lines.extend(job.reason.as_ref().filter(|why| told != Some(why)).map(|why| format!("Its last try: {why}.")));
        if let Some(dispatch) = dispatch::get(&ctx.db, TENANT_DEFAULT, job.dispatch).await? {
            let revisit = serde_json::from_value::<CrawlSpec>(dispatch.spec).ok().and_then(|spec| spec.revisit);
            lines.extend(revisit.map(|Revisit { min_s, max_s }| {
                format!("Its crawl visits each page every {min_s} to {max_s} s, as often as it changes.")
            }));
            lines.extend(dispatch.paused_at.map(|at| format!("Its dispatch is paused since {at}.")));
            lines.extend(dispatch.note.map(|note| format!("Its dispatch is ending: {note}.")));
        }
        return Ok(lines);
    }
    lines.extend(job.tries.iter().map(try_line));
    let mut end = format!("It ended {}", job.state);
    if let Some(status) = job.status {
        end.push_str(&format!(" with status {status}"));
    }
    if let Some(ms) = job.fetch_ms {
        end.push_str(&format!(" in {ms} ms"));
    }
    if let Some(address) = &job.address {
        end.push_str(&format!(" from {address}"));
    }
    end.push_str(&format!(" at try {}{}", job.attempt + 1, for_nothing(job)));
    if let Some(at) = job.finished_at {
        end.push_str(&format!(", {}", at.trunc_subsecs(3)));
    }
    if let Some(worker) = job.worker {
        end.push_str(&format!(", by worker {worker}"));
    }
    lines.push(format!("{end}."));
    lines.extend(job.reason.as_ref().map(|why| format!("Reason: {why}.")));
    lines.extend(job.location.as_ref().map(|to| format!("It redirects to {to}.")));
    lines.extend(job.digest.as_ref().map(|digest| format!("Its body has the digest {digest}.")));
    lines.extend(job.replayed_by.map(|by| format!("It was replayed: job {by} goes on for it.")));
    Ok(lines)
}

/// Tries that were refused, or found nobody, cost none.
fn for_nothing(job: &JobReport) -> String {
    match job.tries.len().saturating_sub(job.attempt.max(0) as usize) {
        0 => String::new(),
        1 => ", and one that did not count".to_owned(),
        n => format!(", and {n} that did not count"),
    }
}

fn try_line(Try { at, ms, status, worker, error }: &Try) -> String {
    let mut line = format!("A try failed {}", at.trunc_subsecs(3));
    line.extend(status.map(|status| format!(" with status {status}")));
    line.extend(ms.map(|ms| format!(" after {ms} ms")));
    line.push_str(&format!(", by worker {worker}: {error}."));
    line
}
