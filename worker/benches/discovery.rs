//! What discovery costs: pages read for their links, each spelt canonically and looked up in the seen-set of a worker.
//!
//! `cargo bench --bench discovery` prints a line of JSON: links a second on one core.

use std::time::Instant;

use dodo_common::model::url_rules::UrlRules;
use dodo_worker::extract::html::{Reading, html};
use dodo_worker::seen::Seen;
use url::{Position, Url};
use uuid::Uuid;

const PAGES: usize = 2_000;
const LINKS: usize = 50;
/// Text between two links, bytes: pages of some 20 KB.
const TEXT_BYTES: usize = 350;
const ROUNDS: usize = 10;

fn main() {
    let pages: Vec<(Url, String)> = (0..PAGES).map(page).collect();
    let (seen, dispatch) = (Seen::default(), Uuid::now_v7());
    let reading =
        Reading { assets: false, rules: UrlRules::none(), agent: "dodo", canonical: false, fingerprint: false };
    let (mut links, mut fresh) = (0, 0);
    let start = Instant::now();
    for _ in 0..ROUNDS {
        for (url, body) in &pages {
            let page = html(body.as_bytes(), Some("text/html; charset=utf-8"), url, reading);
            let hashes = || page.links.iter().map(|link| link.to.hash);
            let unknown = seen.unknown(dispatch, hashes());
            seen.remember(dispatch, hashes().zip(&unknown).filter_map(|(hash, new)| new.then_some(hash)));
            links += page.links.len();
            fresh += unknown.into_iter().filter(|new| *new).count();
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    assert_eq!((links, fresh), (ROUNDS * PAGES * LINKS, PAGES * LINKS), "every link is found, and is new once");
    println!("{}", serde_json::json!({ "links_per_s": links as f64 / seconds, "links": links, "new": fresh }));
}

/// Links of the kinds that pages have: absolute paths, relative ones, full URLs, with queries and fragments.
fn page(number: usize) -> (Url, String) {
    let url = Url::parse(&format!("https://site{}.example/section/{number}/", number % 100)).expect("a URL");
    let mut body = String::from("<!doctype html><html lang=en><head><title>A page</title></head><body>");
    for n in 0..LINKS {
        let id = number * LINKS + n;
        let href = match n % 5 {
            0 => format!("/item/{id}.html"),
            1 => format!("part-{id}.html#top"),
            2 => format!("{}/item/{id}?page=2&amp;sort=name", &url[..Position::BeforePath]),
            3 => format!("../{number}/up-{id}"),
            _ => format!("https://other{}.example/%7Euser/{id}", id % 1000),
        };
        body.push_str("<p>");
        body.extend("lorem ipsum dolor sit amet ".chars().cycle().take(TEXT_BYTES));
        body.push_str(&format!("</p><a class=\"link\" href=\"{href}\">link {n}</a>"));
    }
    body.push_str("</body></html>");
    (url, body)
}
