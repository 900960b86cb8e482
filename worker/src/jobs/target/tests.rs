use std::collections::HashSet;

use dodo_common::model::job::{JobKey, JobKind};
use dodo_common::model::media::MediaTypes;
use dodo_common::model::scope::{Scope, ScopeKind};
use dodo_common::model::spec::CrawlSpec;
use dodo_common::model::url::canonical;
use reqwest::header::HeaderMap;
use serde_json::json;
use uuid::Uuid;

use super::*;

fn crawl(scope: ScopeKind, seed: &str, more: serde_json::Value) -> Crawl {
    let mut spec = json!({ "seeds": [seed], "depth": 2 });
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let spec: CrawlSpec = serde_json::from_value(spec).unwrap();
    let scope = Scope::new(scope, vec![url(seed)]);
    let (rules, headers, seed_hosts) = (spec.rules().unwrap(), HeaderMap::new(), HashSet::new());
    Crawl { spec, scope, rules, media: MediaTypes::default(), headers, seed_hosts, user_agent: None, jar: None }
}

fn url(text: &str) -> Url {
    canonical(text, None).unwrap().url
}

fn job(depth: i16, hops: i16) -> Job {
    Job {
        key: JobKey { tenant: "default".to_owned(), id: Uuid::nil(), attempt: 0 },
        dispatch: Uuid::nil(),
        kind: JobKind::Crawl,
        host: String::new(),
        depth,
        hops,
        url: None,
        payload: None,
        page: None,
        remake_of: None,
        retries: None,
        refusals: 0,
        host_refusals: 0,
    }
}

fn listing(kind: Kind, entries: impl IntoIterator<Item = impl AsRef<str>>) -> Listing {
    let entries = entries.into_iter().map(|entry| canonical(entry.as_ref(), None).unwrap().into()).collect();
    Listing { kind, entries, said: Vec::new(), truncated: false }
}

fn shape(targets: &[Target]) -> Vec<(&str, i16, i16)> {
    targets.iter().map(|target| (target.to.url.as_str(), target.depth, target.hops)).collect()
}

fn led(job: &Job, crawl: &Crawl, page: Vec<Link>, nofollow: bool) -> Vec<Target> {
    links(job, crawl, followed(job, crawl, page, nofollow))
}

const SEED: &str = "http://a.example/";

#[test]
fn links_cost_depth_and_are_followed_unless_they_ask_not_to_be() {
    let page = || {
        [("http://a.example/1", false), ("http://a.example/2", true), ("http://b.example/3", false)]
            .map(|(to, nofollow)| Link { to: canonical(to, None).unwrap().into(), nofollow })
            .to_vec()
    };
    let (honours, ignores) =
        (crawl(ScopeKind::Host, SEED, json!({})), crawl(ScopeKind::Host, SEED, json!({ "nofollow": "ignore" })));
    let (one, two) = (("http://a.example/1", 2, 0), ("http://a.example/2", 2, 0));
    assert_eq!(shape(&led(&job(1, 3), &honours, page(), false)), [one]);
    assert_eq!(shape(&led(&job(1, 3), &honours, page(), true)), []);
    assert_eq!(shape(&led(&job(1, 0), &ignores, page(), true)), [one, two]);
    assert_eq!(shape(&led(&job(2, 0), &ignores, page(), false)), []);
}

#[test]
fn entries_are_links_and_sitemaps_are_hops() {
    let crawl = crawl(ScopeKind::Host, SEED, json!({}));
    let index = url("http://a.example/index.xml");
    let both = ["http://a.example/1", "http://b.example/2"];
    let read = |kind, job: &Job, nofollow| {
        listed(job, &crawl, &index, listing(kind, both), nofollow).map(|(targets, _)| targets)
    };
    assert_eq!(shape(&read(Kind::Pages, &job(1, 4), false).unwrap()), [("http://a.example/1", 2, 0)]);
    assert_eq!(shape(&read(Kind::Sitemaps, &job(1, 4), false).unwrap()), [("http://a.example/1", 1, 5)]);
    for kind in [Kind::Pages, Kind::Sitemaps] {
        assert_eq!(shape(&read(kind, &job(1, 0), true).unwrap()), [], "{kind:?}");
        assert_eq!(shape(&read(kind, &job(2, 0), false).unwrap()), [], "{kind:?}");
    }
    // An index of indexes without end.
    assert!(read(Kind::Sitemaps, &job(0, HOPS_MAX), false).is_err());
}

#[test]
fn a_seed_leads_to_the_sitemaps_of_its_robots_txt() {
    let text =
        "Sitemap: 1.xml\nSitemap: https://cdn.example/2.xml.gz\nSitemap: ftp://a.example/3.xml\nsitemap: http://[/\n";
    let robots = Robots::parse(text.as_bytes());
    let named_by = |job: Job, more| {
        let crawl = crawl(ScopeKind::Prefix, "http://a.example/docs/", more);
        shape(&named(&job, &crawl, &url("http://a.example/docs/"), &robots, false)).len()
    };
    let crawl = crawl(ScopeKind::Prefix, "http://a.example/docs/", json!({}));
    assert_eq!(
        shape(&named(&job(0, 0), &crawl, &url("http://a.example/docs/"), &robots, false)),
        [("http://a.example/1.xml", 0, 1), ("https://cdn.example/2.xml.gz", 0, 1)]
    );
    assert_eq!(named_by(job(0, 0), json!({ "sitemaps": false })), 0);
    assert_eq!(named_by(job(0, 0), json!({ "depth": 0 })), 0);
    assert_eq!(named_by(job(0, 1), json!({})), 0, "a sitemap itself");
    let led_to = |at: &str, hops| named(&job(0, hops), &crawl, &url(at), &robots, true).len();
    assert_eq!(led_to("http://www.a.example/docs/", 1), 2, "the page that a seed redirects to");
    assert_eq!(led_to("http://cdn.example/docs/", 1), 0, "what answers with a page in place of a sitemap");
    assert_eq!(led_to("http://a.example/docs/", HOPS_MAX), 0);
    assert_eq!(named_by(job(1, 0), json!({})), 0);
    let many: String = (0..1000).map(|n| format!("Sitemap: /{n}.xml\n")).collect();
    let many = Robots::parse(many.as_bytes());
    assert_eq!(named(&job(0, 0), &crawl, &url("http://a.example/docs/"), &many, false).len(), SITEMAPS_MAX);
}

#[test]
fn a_sitemap_out_of_scope_leads_within_its_own_host() {
    let crawl = crawl(ScopeKind::Host, SEED, json!({}));
    let (inside, outside) = (url("http://a.example/index.xml"), url("http://cdn.example/index.xml"));
    let hop = |from: &Url, to: &str| redirect(&job(0, 1), &crawl, from, to).map(|target| target.to.url.to_string());
    assert_eq!(hop(&outside, "https://cdn.example/x").as_deref(), Ok("https://cdn.example/x"));
    assert_eq!(hop(&outside, "http://a.example/x").as_deref(), Ok("http://a.example/x"));
    assert_eq!(
        hop(&inside, "http://cdn.example/x"),
        Err("it redirects out of scope: not the host of a seed".to_owned())
    );
    assert!(hop(&outside, "http://other.example/x").is_err());

    let entries = || (0..1200).map(|n| format!("http://cdn.example/{n}.xml")).chain([SEED.to_owned()]);
    let from = |index: &Url, kind| listed(&job(0, 1), &crawl, index, listing(kind, entries()), false).unwrap();
    let (taken, left_out) = from(&outside, Kind::Sitemaps);
    assert_eq!((taken.len(), left_out), (INDEXED_MAX + 1, 200));
    let (taken, left_out) = from(&inside, Kind::Sitemaps);
    assert_eq!((shape(&taken), left_out), (vec![(SEED, 0, 2)], 1200));
    let (taken, left_out) = from(&outside, Kind::Pages);
    assert_eq!((shape(&taken), left_out), (vec![(SEED, 1, 0)], 0), "links out of scope are no sitemaps");
}

#[test]
fn what_is_excluded_is_no_sitemap_either() {
    let crawl = crawl(ScopeKind::Host, SEED, json!({ "exclude": [r"\.xml$"] }));
    let judge = crawl.spec.judge().unwrap();
    let crawl = Crawl { scope: judge, ..crawl };
    let robots = Robots::parse(b"Sitemap: /1.xml\nSitemap: /2.txt\n");
    assert_eq!(shape(&named(&job(0, 0), &crawl, &url(SEED), &robots, false)), [("http://a.example/2.txt", 0, 1)]);
    let outside = url("http://cdn.example/index.txt");
    let entries = ["http://cdn.example/1.xml", "http://cdn.example/2.txt"];
    let (taken, left_out) = listed(&job(0, 1), &crawl, &outside, listing(Kind::Sitemaps, entries), false).unwrap();
    assert_eq!((shape(&taken), left_out), (vec![("http://cdn.example/2.txt", 0, 2)], 1));
}

#[test]
fn redirects_end() {
    let crawl = crawl(ScopeKind::Host, SEED, json!({}));
    let target = redirect(&job(1, 2), &crawl, &url(SEED), "x").unwrap();
    assert_eq!(shape(&[target]), [("http://a.example/x", 1, 3)]);
    assert!(redirect(&job(1, HOPS_MAX), &crawl, &url(SEED), "x").unwrap_err().contains("in a row"));
    assert!(redirect(&job(1, 0), &crawl, &url(SEED), "mailto:x").unwrap_err().contains("to no page"));
}

#[test]
fn what_a_start_page_redirects_to_need_not_be_included() {
    let patterns = json!({ "include": ["/product/"], "exclude": ["/private/"] });
    let crawl = crawl(ScopeKind::Host, SEED, patterns);
    let judge = crawl.spec.judge().unwrap();
    let crawl = Crawl { scope: judge, ..crawl };
    let to = |depth, to: &str| redirect(&job(depth, 0), &crawl, &url(SEED), to).map(|target| target.to.url.to_string());
    assert_eq!(to(0, "https://www.a.example/").as_deref(), Ok("https://www.a.example/"));
    assert_eq!(to(1, "/product/1").as_deref(), Ok("http://a.example/product/1"));
    assert!(to(1, "https://www.a.example/").unwrap_err().contains("not matched by any include pattern"));
    assert!(to(0, "/private/").unwrap_err().contains("excluded by /private/"));
    assert!(to(0, "http://b.example/").unwrap_err().contains("not the host of a seed"));
}
