//! Single steps on one thread over real pages of the site: the bare ones, and those of a worker beside them.

use std::fs;
use std::hint::black_box;
use std::path::Path;

use anyhow::{Result, ensure};
use dodo_common::model::url_rules::UrlRules;
use dodo_common::storage::warc::{Response, response_member};
use dodo_worker::extract::html::{Reading, html};
use serde_json::{Value, json};
use url::Url;
use uuid::Uuid;

use crate::page::{Seen, digest, links, member, references};

const PAGES_MAX: usize = 2_000;
/// CPU time of each step: the clock counts hundredths.
const LONG_S: f64 = 2.0;
const ORIGIN: &str = "http://127.0.0.1:8080";
/// As nginx answers.
const HTTP_HEAD: &str = "HTTP/1.1 200 OK\r\nserver: nginx/1.22.1\r\ndate: Mon, 01 Jan 2024 00:00:00 GMT\r\n\
    content-type: text/html\r\ncontent-length: 20000\r\nlast-modified: Mon, 01 Jan 2024 00:00:00 GMT\r\n\
    connection: keep-alive\r\netag: \"65920080-4e20\"\r\naccept-ranges: bytes\r\n\r\n";

struct Sample {
    url: Url,
    body: Vec<u8>,
}

/// Microseconds of CPU a page.
pub fn measure(site: &Path) -> Result<Value> {
    let mut pages = Vec::new();
    while pages.len() < PAGES_MAX
        && let Ok(body) = fs::read(site.join(format!("p{}.html", pages.len())))
    {
        pages.push(Sample { url: Url::parse(&format!("{ORIGIN}/p{}.html", pages.len()))?, body });
    }
    ensure!(!pages.is_empty(), "{} has no pages", site.display());
    let reading =
        Reading { assets: false, rules: UrlRules::none(), agent: "dodo", canonical: false, fingerprint: false };
    let mut seen = Seen::default();
    Ok(json!({
        "scan_us": each(&pages, |page| references(&page.body).count())?,
        "links_us": each(&pages, |page| {
            links(&page.body, ORIGIN).iter().filter(|(hash, _)| seen.insert(*hash)).count()
        })?,
        "sha1_us": each(&pages, |page| digest(&page.body))?,
        "gzip_us": each(&pages, |page| member(page.url.as_str(), HTTP_HEAD, &page.body, ""))?,
        "worker_links_us": each(&pages, |page| html(&page.body, Some("text/html"), &page.url, reading))?,
        "worker_record_us": each(&pages, |page| response_member(&response(page)))?,
    }))
}

fn response(page: &Sample) -> Response<'_> {
    Response {
        record_id: Uuid::now_v7(),
        url: page.url.as_str(),
        date_ms: 1_700_000_000_123,
        http_head: HTTP_HEAD.as_bytes(),
        body: &page.body,
        truncated: None,
        ip: None,
    }
}

fn each<T>(pages: &[Sample], mut step: impl FnMut(&Sample) -> T) -> Result<f64> {
    let (began_s, mut steps) = (crate::cpu_s()?, 0);
    loop {
        for page in pages {
            black_box(step(page));
        }
        steps += pages.len();
        let spent_s = crate::cpu_s()? - began_s;
        if spent_s >= LONG_S {
            return Ok(spent_s * 1e6 / steps as f64);
        }
    }
}
