//! What a body says: its links, where it is a page, a sitemap or a feed, and what it asks for.

use std::collections::HashMap;

use dodo_common::clock::Millis;
use dodo_common::db::commit::Finished;
use dodo_common::model::media::essence;
use dodo_common::model::spelling::Spelt;
use dodo_common::model::url::UrlHash;
use uuid::Uuid;

use crate::extract::html::{LINK_BYTES_MAX, LINKS_MAX, Link, Reading, XHTML, html};
use crate::extract::listing::{ENTRIES_MAX, ENTRY_BYTES_MAX, File, Listing, listing};
use crate::extract::sniff::looks_like_html;
use crate::fetch::fetched::Fetched;
use crate::jobs::crawl::Visit;
use crate::jobs::declaration;
use crate::jobs::end::{body_of, note};
use crate::jobs::target::{self, Target};

/// What a body says, beside its links.
#[derive(Default)]
pub struct Said {
    /// The fingerprint of its words, where the crawl wants to know.
    pub print: Option<u64>,
    /// It is a sitemap or a feed.
    pub listing: bool,
    /// A meta element asks not to be indexed.
    pub noindex: bool,
    /// The URL that it says is its own.
    pub canonical: Option<Spelt>,
    /// Of the pages that a sitemap lists, their first interval, milliseconds.
    pub hints: HashMap<UrlHash, i64>,
    /// Of the same pages, when they were modified, milliseconds since the epoch.
    pub modified: Vec<(Uuid, Millis)>,
}

impl Visit<'_> {
    /// Whether an answer is to be read as HTML: as it says itself, or where it says nothing, as it looks.
    pub fn is_page(&self, fetched: &Fetched) -> bool {
        match fetched.content_type().filter(|kind| !essence(kind).is_empty()) {
            Some(kind) => is_html(&kind),
            None => body_of(self.ctx, fetched).is_ok_and(|body| looks_like_html(&body)),
        }
    }

    /// The links of a page.
    pub fn read_page(
        &self,
        fetched: &Fetched,
        finished: &mut Finished,
        said: &mut Said,
    ) -> Result<Vec<Target>, String> {
        let body = body_of(self.ctx, fetched)?;
        let spec = &self.crawl.spec;
        let fingerprint = spec.tells_near_duplicates();
        let (rules, agent) = (&self.crawl.rules, self.crawl.product());
        let reading = Reading { assets: spec.assets, rules, agent, canonical: spec.follow_canonical, fingerprint };
        let page = html(&body, fetched.content_type().as_deref(), self.url, reading);
        (said.print, said.noindex) = (page.fingerprint, page.noindex);
        finished.title = page.title;
        finished.language = page.language;
        if page.links_truncated {
            note(
                &format!(
                    "it has more than {LINKS_MAX} links or {LINK_BYTES_MAX} bytes of them, or too many references; the others are not read"
                ),
                finished,
            );
        }
        let mut links = page.links;
        if let Some(canonical) = declaration::canonical(self.crawl, self.url, fetched, page.canonical) {
            // That of a link element is among them.
            if links.len() < LINKS_MAX && links.iter().all(|link| link.to.hash != canonical.hash) {
                links.push(Link { to: canonical.clone(), nofollow: false });
            }
            said.canonical = Some(canonical);
        }
        let nofollow = page.nofollow || declaration::nofollow(self.crawl, fetched);
        Ok(self.follow(links, nofollow, finished))
    }

    /// Keeps the links of a page; those that may be new are followed.
    fn follow(&self, links: Vec<Link>, nofollow: bool, finished: &mut Finished) -> Vec<Target> {
        keep_links(links.iter().map(|link| &link.to), finished);
        let mut followed = target::followed(self.job, self.crawl, links, nofollow);
        // What is known needs no second look: it is in scope, or its job would not be.
        finished.known_count += self.ctx.seen.drop_known(self.job.dispatch, &mut followed, |link| link.hash) as i32;
        target::links(self.job, self.crawl, followed)
    }

    /// A sitemap or a feed; of anything else there is nothing to read but its headers.
    pub fn read_listing(
        &self,
        fetched: &Fetched,
        finished: &mut Finished,
        said: &mut Said,
    ) -> Result<Vec<Target>, String> {
        let (encoding, content_type) = (fetched.content_encoding(), fetched.content_type());
        let file = File {
            is_whole: fetched.cut.is_none(),
            body: &fetched.body,
            encoding: encoding.as_deref(),
            content_type: content_type.as_deref(),
            url: self.url,
        };
        let read = listing(file, &self.crawl.rules).map_err(|error| error.to_string())?;
        let nofollow = || declaration::nofollow(self.crawl, fetched);
        let Some(listing) = read else {
            said.canonical = declaration::canonical(self.crawl, self.url, fetched, None);
            let Some(canonical) = said.canonical.clone() else { return Ok(Vec::new()) };
            return Ok(self.follow(vec![Link { to: canonical, nofollow: false }], nofollow(), finished));
        };
        said.listing = true;
        keep_links(listing.entries.iter(), finished);
        if self.before.is_some() {
            said.hints.extend(hints_of(&listing));
            said.modified.extend(self.modified_of(&listing));
        }
        if listing.truncated {
            note(
                &format!(
                    "it lists more than {ENTRIES_MAX} URLs, or alternates, or {ENTRY_BYTES_MAX} bytes of them; the others are not read"
                ),
                finished,
            );
        }
        let (targets, left_out) = target::listed(self.job, self.crawl, self.url, listing, nofollow())?;
        if left_out > 0 {
            note(&format!("{left_out} sitemaps that it lists are out of scope, or too many, and not read"), finished);
        }
        Ok(targets)
    }

    /// When listed pages were modified. What was before the crawl began is later than no visit of it, and what is still to
    /// come is a mistake, by which a page would always seem to be newer than its last visit.
    fn modified_of(&self, listing: &Listing) -> impl Iterator<Item = (Uuid, Millis)> {
        let begun_ms = self.job.dispatch.get_timestamp().map_or(0, |at| at.to_unix().0.saturating_mul(1000) as Millis);
        let plausible = begun_ms..=self.ctx.clock.now_ms();
        let said = listing.entries.iter().zip(&listing.said);
        said.filter_map(move |(entry, said)| {
            Some((entry.hash.to_uuid(), said.modified_ms.filter(|at| plausible.contains(at))?))
        })
    }
}

fn hints_of(listing: &Listing) -> impl Iterator<Item = (UrlHash, i64)> + '_ {
    let said = listing.entries.iter().zip(&listing.said);
    said.filter_map(|(entry, said)| Some((entry.hash, said.change?.interval_ms())))
}

/// The links of a page as one text, a line each.
fn keep_links<'l>(links: impl Iterator<Item = &'l Spelt> + Clone, finished: &mut Finished) {
    let mut lines = String::with_capacity(links.clone().map(|link| link.text.len() + 1).sum());
    for link in links {
        if !lines.is_empty() {
            lines.push('\n');
        }
        lines.push_str(&link.text);
        finished.link_count += 1;
    }
    finished.links = Some(lines);
}

fn is_html(content_type: &str) -> bool {
    let kind = essence(content_type);
    kind.eq_ignore_ascii_case("text/html") || kind.eq_ignore_ascii_case(XHTML)
}
