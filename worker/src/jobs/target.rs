//! Targets: which of the URLs that an answer names may become jobs, at what depth.
//!
//! A link costs depth. What only stands between does not: a redirect, a sitemap that robots.txt names, one that an index
//! lists. Each of those is a hop, and so many in a row are enough.

use dodo_common::model::job::{HOPS_MAX, Job};
use dodo_common::model::robots::Robots;
use dodo_common::model::scope::ScopeDecision;
use dodo_common::model::spec::Nofollow;
use dodo_common::model::spelling::Spelt;
use dodo_common::model::url::{Canonical, ruled};
use url::Url;

use crate::context::Crawl;
use crate::extract::html::Link;
use crate::extract::listing::{Kind, Listing};
use crate::fetch::fetched::Fetched;

/// Sitemaps taken of one robots.txt.
const SITEMAPS_MAX: usize = 100;
/// And of those out of scope of one index: a site that is crawled in part may list all of it there.
const INDEXED_MAX: usize = 1000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub to: Canonical,
    pub depth: i16,
    pub hops: i16,
}

/// Where a redirect of `url` leads.
///
/// # Errors
/// Why it is not followed.
pub fn redirect(job: &Job, crawl: &Crawl, url: &Url, location: &str) -> Result<Target, String> {
    let to = ruled(location, Some(url), &crawl.rules).map_err(|error| format!("it redirects to no page: {error}"))?;
    if job.hops >= HOPS_MAX {
        return Err(format!("more than {HOPS_MAX} redirects and sitemaps in a row"));
    }
    if to.url == *url {
        return Err("it redirects to itself, as this crawl spells URLs".to_owned());
    }
    let decision = hop(crawl, url, &to);
    // A start page need not be like the pages that are included, and neither need what it redirects to.
    let starts = job.depth == 0 && decision.by_rule && crawl.scope.excluded(&to.url).is_none();
    if decision.allowed || starts {
        Ok(Target { to, depth: job.depth, hops: job.hops + 1 })
    } else {
        Err(format!("it redirects out of scope: {}", decision.reason))
    }
}

/// The links of a page that may be followed, wherever they lead; `nofollow`: it asks that none of them be.
pub fn followed(job: &Job, crawl: &Crawl, links: Vec<Link>, nofollow: bool) -> Vec<Spelt> {
    if is_end(job, crawl, nofollow) {
        return Vec::new();
    }
    links.into_iter().filter(|link| !is_honoured(crawl, link.nofollow)).map(|link| link.to).collect()
}

/// Those links that are in scope.
pub fn links(job: &Job, crawl: &Crawl, followed: Vec<Spelt>) -> Vec<Target> {
    let parsed = followed.into_iter().filter_map(|link| link.canonical().ok());
    let targets = parsed.filter(|to| crawl.scope.allows(&to.url).allowed);
    targets.map(|to| Target { to, depth: job.depth + 1, hops: 0 }).collect()
}

/// Whether an answer of `url` redirects to `url`.
pub fn is_itself(crawl: &Crawl, url: &Url, fetched: &Fetched) -> bool {
    let to = fetched.location().and_then(|location| ruled(&location, Some(url), &crawl.rules).ok());
    to.is_some_and(|to| to.url == *url)
}

/// What `url` lists, if that is a sitemap or a feed: its pages are links, the sitemaps of an index are hops. Returns also how
/// many sitemaps are left out.
///
/// # Errors
/// Why the sitemaps of an index are not fetched.
pub fn listed(
    job: &Job,
    crawl: &Crawl,
    url: &Url,
    listing: Listing,
    nofollow: bool,
) -> Result<(Vec<Target>, usize), String> {
    if is_end(job, crawl, nofollow) {
        return Ok((Vec::new(), 0));
    }
    if listing.kind == Kind::Pages {
        return Ok((links(job, crawl, listing.entries), 0));
    }
    if job.hops >= HOPS_MAX {
        return Err(format!("more than {HOPS_MAX} redirects and sitemaps in a row"));
    }
    let (count, mut room) = (listing.entries.len(), INDEXED_MAX);
    let sitemaps = listing.entries.into_iter().filter_map(|link| link.canonical().ok()).filter(|to| {
        if crawl.scope.allows(&to.url).allowed {
            return true;
        }
        let taken = room > 0 && hop(crawl, url, to).allowed;
        room -= usize::from(taken);
        taken
    });
    let targets: Vec<Target> = sitemaps.map(|to| Target { to, depth: job.depth, hops: job.hops + 1 }).collect();
    let left_out = count - targets.len();
    Ok((targets, left_out))
}

/// The sitemaps that the robots.txt of a seed's host names, if this is a seed, as no other job at depth 0 has made no hop, or the
/// page that one redirects to.
/// They may lie anywhere that is not excluded: a site says by its robots.txt that others hold its sitemaps (sitemaps.org,
/// "Sitemaps & Cross Submits"). What they list is held to the scope.
pub fn named(job: &Job, crawl: &Crawl, url: &Url, robots: &Robots, is_page: bool) -> Vec<Target> {
    if !crawl.spec.sitemaps || crawl.spec.depth == 0 || job.depth > 0 || job.hops >= HOPS_MAX {
        return Vec::new();
    }
    let in_scope = || {
        let decision = crawl.scope.allows(url);
        decision.allowed || decision.by_rule
    };
    if job.hops > 0 && !(is_page && in_scope()) {
        return Vec::new();
    }
    // To be written in full, and often relative to the file itself.
    let Ok(root) = url.join("/") else { return Vec::new() };
    let sitemaps = robots.sitemaps().iter().filter_map(|line| ruled(line, Some(&root), &crawl.rules).ok());
    let sitemaps = sitemaps.filter(|to| crawl.scope.excluded(&to.url).is_none());
    sitemaps.take(SITEMAPS_MAX).map(|to| Target { to, depth: 0, hops: job.hops + 1 }).collect()
}

/// Whether nothing that the page names is followed: it asks for that, or lies at the last level.
fn is_end(job: &Job, crawl: &Crawl, nofollow: bool) -> bool {
    is_honoured(crawl, nofollow) || job.depth >= crawl.spec.depth
}

fn is_honoured(crawl: &Crawl, nofollow: bool) -> bool {
    nofollow && crawl.spec.nofollow == Nofollow::Honour
}

/// Whether a hop from `url` is allowed. What is out of scope itself is a sitemap that a robots.txt has named, and may lead
/// on within its own host: an index lists sitemaps of its own site (sitemaps.org, "Using Sitemap index files").
fn hop(crawl: &Crawl, url: &Url, to: &Canonical) -> ScopeDecision {
    let decision = crawl.scope.allows(&to.url);
    let leads_on = || !crawl.scope.allows(url).allowed && to.url.host() == url.host();
    if !decision.allowed && crawl.scope.excluded(&to.url).is_none() && leads_on() {
        return ScopeDecision {
            allowed: true,
            reason: "the host of a sitemap that robots.txt names".into(),
            by_rule: false,
        };
    }
    decision
}

#[cfg(test)]
mod tests;
