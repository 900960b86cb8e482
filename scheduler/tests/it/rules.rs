//! URL rules and patterns of a crawl, on real processes: a site with a session id in every link.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Redirect, Response};
use reqwest::Method;
use serde_json::{Value, json};

use crate::cluster::{Cluster, dodo_program};
use crate::web::{Asked, noting};

const LIMIT: Duration = Duration::from_secs(60);
const SHOP_PAGES: usize = 6;

/// Each answer invents session ids of its own, so that without rules no two pages name a page alike.
async fn answer(State(asked): State<Asked>, request: Request) -> Response {
    let said = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    let n = {
        let mut asked = asked.lock().expect("no panic under this lock");
        asked.push(said.clone());
        asked.len()
    };
    if said == "/robots.txt" {
        return StatusCode::NOT_FOUND.into_response();
    }
    if said.starts_with("/go") {
        return Redirect::temporary(&format!("/go;jsessionid={n}")).into_response();
    }
    let mut body =
        String::from("<a href='/fixed?b=1&amp;a=2'>f</a><a href='/go'>g</a><a href='/calendar/2026?day=1'>c</a>");
    for page in 0..SHOP_PAGES {
        body += &format!(
            "<a href='/shop/{page};jsessionid={n:032x}?v=1&amp;utm_source=p{n}&amp;c=2'>1</a>
             <a href='/(S(a{n}))/shop/{page}?sid={n:032X}&amp;c=2&amp;v=1&amp;ref={n}'>2</a>
             <a href='/shop/calendar/{n}{page}'>c</a>"
        );
    }
    Html(body).into_response()
}

/// How often each was asked for, but for robots.txt.
fn counts(asked: &Asked) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for said in asked.lock().expect("no panic under this lock").iter().filter(|said| *said != "/robots.txt") {
        *counts.entry(said.clone()).or_default() += 1;
    }
    counts
}

fn shop() -> Vec<String> {
    (0..SHOP_PAGES).map(|page| format!("/shop/{page}?c=2&v=1")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_spelling_of_each_page_is_fetched_and_nothing_that_is_excluded() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let (place, asked) = noting(Router::new().fallback(answer)).await?;
    cluster.open(std::slice::from_ref(&place));
    let _scheduler = cluster.scheduler().await?;
    let _worker = cluster.worker()?;
    // Beside it on the same worker, a crawl that takes the site at its word.
    let plain = json!({ "urls": [format!("http://{place}/?sid=0123456789abcdef&x")], "delay_ms": 0, "depth": 1, "include": ["/fixed"] });
    let plain = cluster.post("/v1/crawls", &plain).await?;
    let start = format!("http://{place}/;jsessionid=1?utm_medium=mail");
    let flags = ["--url-rules", "tracking,sessions,sort", "--drop-param", "ref", "--exclude", "/calendar/"];
    let out = cluster.dodo_text(&[&["crawl", &start, "--delay", "0", "--wait", "--json"][..], &flags].concat())?;
    let done: Value = serde_json::from_str(&out)?;
    cluster.wait_done(&plain, LIMIT).await?;

    let mut expected = shop();
    expected.extend(["/", "/?sid=0123456789abcdef&x", "/fixed?a=2&b=1", "/fixed?b=1&a=2", "/go"].map(str::to_owned));
    assert_eq!(counts(&asked), expected.into_iter().map(|said| (said, 1)).collect::<BTreeMap<_, usize>>());

    let id = done["id"].as_str().context("no dispatch")?;
    // What is no crawl spells nothing.
    for _ in 0..6 {
        cluster.post("/v1/noops", &json!({ "count": 1 })).await?;
    }
    let why = cluster.dodo_text(&["why", &format!("http://{place}/shop/calendar/7?utm_term=x")])?;
    assert!(why.contains(&format!("It is out of the scope of crawl {id}: excluded by /calendar/.")), "{why}");
    assert!(why.contains(&format!("the scope of crawl {plain}: not matched by any include pattern.")), "{why}");
    let why = cluster.dodo_text(&["why", &format!("http://{place}/shop/3;jsessionid=9?v=1&gclid=x&c=2")])?;
    let form = format!("By the URL rules of crawl {id} it is http://{place}/shop/3?c=2&v=1.");
    assert!(why.contains(&form) && why.contains("It ended ok with status 200"), "{why}");
    let why = cluster.dodo_text(&["why", &format!("http://{place}/go")])?;
    assert!(why.contains("Reason: it redirects to itself, as this crawl spells URLs."), "{why}");
    assert!(why.contains(&format!("the scope of crawl {plain}: not matched by any include pattern.")), "{why}");
    // Links are stored as they would be fetched.
    let links = cluster.dodo_text(&["export", "links", "--dispatch", id])?;
    assert!(links.contains("/shop/3?c=2&v=1") && !links.contains("jsessionid") && !links.contains("utm_"), "{links}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_has_rules_too_and_wrong_ones_are_refused_in_one_line() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let (place, asked) = noting(Router::new().fallback(answer)).await?;
    cluster.open(std::slice::from_ref(&place));
    let _scheduler = cluster.scheduler().await?;
    let _worker = cluster.worker()?;
    let url = format!("http://{place}/?PHPSESSID=1");
    let options = json!({ "url_rules": ["sessions", "tracking"], "drop_params": ["re*"], "include": ["/shop/[0-5]"],
                          "exclude": ["/shop/[3-9]"], "delay_ms": 0 });
    let entries = json!([{ "service": "crawl", "url": url, "options": options }]);
    let (status, manifest) = cluster.call(Method::POST, "/v1/manifests?name=rules", entries.to_string()).await?;
    assert!((200..300).contains(&status), "{status} {manifest}");
    cluster.wait_done(manifest["dispatch"].as_str().context("no dispatch")?, LIMIT).await?;
    // Not sorted here: both orders are pages of their own.
    let mut expected = BTreeMap::from([("/".to_owned(), 1)]);
    expected.extend(
        (0..3).flat_map(|n| [format!("/shop/{n}?c=2&v=1"), format!("/shop/{n}?v=1&c=2")]).map(|said| (said, 1)),
    );
    assert_eq!(counts(&asked), expected);

    for (wrong, words) in [
        (json!({ "exclude": ["/calendar(/"] }), &["exclude", "/calendar(/", "unclosed group"][..]),
        (json!({ "include": ["(a{1000}){1000}"] }), &["include", "too large"]),
        (json!({ "include": [""] }), &["include", "empty"]),
        (json!({ "exclude": ["^http"] }), &["cannot be a start", "excluded by ^http"]),
        (json!({ "drop_params": ["a*b"] }), &["drop_params", "a*b"]),
        (json!({ "url_rules": ["sorted"] }), &["sorted", "tracking"]),
    ] {
        let mut crawl = wrong.clone();
        crawl["urls"] = json!([url]);
        let (status, answer) = cluster.call(Method::POST, "/v1/crawls", crawl.to_string()).await?;
        let line = answer["error"].as_str().unwrap_or_default();
        assert!((400..=422).contains(&status) && line.lines().count() == 1, "{status} {answer}");
        assert!(words.iter().all(|word| line.contains(word)), "{line}");
        let entries = json!([{ "service": "page", "url": url, "options": wrong }]);
        let (_, manifest) = cluster.call(Method::POST, "/v1/manifests?name=wrong", entries.to_string()).await?;
        let text = manifest.to_string();
        assert!(text.contains("malformed") && words.iter().all(|word| text.contains(word)), "{text}");
    }
    for flags in [["--exclude", "("], ["--include", "(?=x)"], ["--drop-param", "*x"], ["--url-rules", "sort,x"]] {
        let out = cluster.dodo(&["crawl", &url, flags[0], flags[1]]);
        let text = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code() == Some(2) && text.contains(flags[0]), "{text}");
    }
    Ok(())
}

#[test]
fn each_rule_is_a_step_of_a_url() -> Result<()> {
    let url = ["url", "x;jsessionid=1?b=%7e&gclid=2&ref=3&a=4", "--base", "http://A.test/"];
    let dodo = |arguments: &[&str]| -> Result<String> {
        Ok(String::from_utf8(Command::new(dodo_program()).args(arguments).output()?.stdout)?)
    };
    let flags = ["--url-rules", "sort,sessions,tracking", "--drop-param", "ref"];
    let text = dodo(&[&url[..], &flags].concat())?;
    let steps = text.lines().filter_map(|line| line.rsplit_once(' '));
    assert_eq!(
        steps.skip(1).map(|(step, outcome)| (step.trim(), outcome)).collect::<Vec<_>>(),
        [
            ("parsed", "http://a.test/x;jsessionid=1?b=%7e&gclid=2&ref=3&a=4"),
            ("percent-encoding normalised", "http://a.test/x;jsessionid=1?b=~&gclid=2&ref=3&a=4"),
            ("session ids dropped", "http://a.test/x?b=~&gclid=2&ref=3&a=4"),
            ("tracking parameters dropped", "http://a.test/x?b=~&ref=3&a=4"),
            ("named parameters dropped", "http://a.test/x?b=~&a=4"),
            ("parameters sorted", "http://a.test/x?a=4&b=~"),
        ]
    );
    assert!(dodo(&url)?.ends_with(" http://a.test/x;jsessionid=1?b=~&gclid=2&ref=3&a=4\n"));
    Ok(())
}
