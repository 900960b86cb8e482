//! Declarations: what an answer says of its own page, by its headers and in its body.

use dodo_common::model::spelling::{Spelt, spell};
use reqwest::header::LINK;
use url::Url;

use crate::context::Crawl;
use crate::extract::{directive, link_header};
use crate::fetch::fetched::Fetched;

/// By what a good answer asks not to be indexed, where its crawl heeds that; `by_meta`: its body does.
pub fn noindex(crawl: &Crawl, fetched: &Fetched, by_meta: bool) -> Option<&'static str> {
    if !crawl.spec.noindex {
        return None;
    }
    if robots_tag(crawl, fetched, "noindex") {
        return Some("its X-Robots-Tag");
    }
    by_meta.then_some("its meta element")
}

/// Whether its headers ask that none of its links be followed.
pub fn nofollow(crawl: &Crawl, fetched: &Fetched) -> bool {
    robots_tag(crawl, fetched, "nofollow")
}

/// What the answer of `url` says that its page's own URL is (RFC 6596), where its crawl asks for that: its body, or else its
/// headers.
pub fn canonical(crawl: &Crawl, url: &Url, fetched: &Fetched, by_body: Option<Spelt>) -> Option<Spelt> {
    if !crawl.spec.follow_canonical {
        return None;
    }
    by_body.or_else(|| {
        let headers = fetched.headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok());
        let mut targets = headers.flat_map(|header| link_header::targets(header, "canonical"));
        targets.find_map(|target| spell(target, url, &crawl.rules).ok())
    })
}

/// Whether that is another page of the crawl. The page is a duplicate by its own word, then, and kept all the same: whether
/// the other one is there, is allowed and says the same is known later, to another worker, if ever. Two pages may even
/// name one another.
pub fn names_another(crawl: &Crawl, url: &Url, canonical: &Spelt) -> bool {
    canonical.text != url.as_str() && canonical.canonical().is_ok_and(|to| crawl.scope.allows(&to.url).allowed)
}

/// Whether an `X-Robots-Tag` says this word to the crawl.
fn robots_tag(crawl: &Crawl, fetched: &Fetched, word: &str) -> bool {
    let headers = fetched.headers.get_all("x-robots-tag").iter().filter_map(|value| value.to_str().ok());
    directive::says(headers, crawl.product(), word)
}
