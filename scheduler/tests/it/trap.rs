//! Traps, duplicates, budgets of hosts and media types, on real processes.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{Html, IntoResponse, Response};
use reqwest::Method;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::web::{Asked, Web, noting};

const LIMIT: Duration = Duration::from_secs(90);
const UNIQUE_PAGES: usize = 60;
const SAME_PAGES: usize = 30;
const ALLOWANCE: i64 = 20;

/// Unique pages, one page under many URLs, a calendar without end and a directory within itself without end.
async fn answer(State(asked): State<Asked>, request: Request) -> Response {
    let said = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    asked.lock().expect("no panic under this lock").push(said.clone());
    let number = |text: &str| text.parse::<usize>().unwrap_or_default();
    if said == "/" {
        let mut body = String::from("<a href='/month?n=0'>calendar</a><a href='/loop/'>loop</a>");
        body += &(0..UNIQUE_PAGES).map(|n| format!("<a href='/unique/{n}'>u</a>")).collect::<String>();
        body += &(0..SAME_PAGES).map(|n| format!("<a href='/same/{n}'>s</a>")).collect::<String>();
        Html(body).into_response()
    } else if let Some(n) = said.strip_prefix("/unique/") {
        Html(words(number(n) + 1, 80)).into_response()
    } else if said.starts_with("/same/") {
        Html("the same page under every URL").into_response()
    } else if let Some(n) = said.strip_prefix("/month?n=") {
        let n = number(n.trim_end_matches("&week"));
        let next = format!("<a href='/month?n={0}'>n</a><a href='/month?n={0}&week'>n</a>", n + 1);
        let name = ["january", "may", "june"][n % 3];
        // Every other one says hardly anything.
        let text = if n % 2 == 0 { words(0, 300) } else { String::new() };
        Html(format!("<h1 class='{said}'>{name} {}</h1>{text}{next}", 2026 + n)).into_response()
    } else if said.starts_with("/loop/") {
        Html(format!("{said}<a href='a/b/'>deeper</a>")).into_response()
    } else {
        StatusCode::NOT_FOUND.into_response()
    }
}

/// Words that no other seed has.
fn words(seed: usize, count: usize) -> String {
    let letters = |n: usize| -> String { n.to_string().bytes().map(|digit| char::from(digit - b'0' + b'a')).collect() };
    (0..count).map(|n| format!("{}x{} ", letters(seed), letters(n * 7919))).collect()
}

fn asked_for(asked: &Asked, beginning: &str) -> Vec<String> {
    let mut said: Vec<String> = asked.lock().expect("no panic under this lock").clone();
    said.retain(|said| said.starts_with(beginning));
    said.sort();
    said
}

/// How many jobs of a dispatch ended with which outcome and reason.
async fn ends(cluster: &Cluster, dispatch: &str) -> Result<BTreeMap<(String, String), i64>> {
    let sql =
        "SELECT outcome, coalesce(reason, ''), count(*) FROM crawl_log WHERE dispatch = $1::text::uuid GROUP BY 1, 2";
    let rows = cluster.sql().await?.query(sql, &[&dispatch]).await?;
    Ok(rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_without_end_is_crawled_whole_and_comes_to_its_end() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let (place, asked) = noting(Router::new().fallback(answer)).await?;
    cluster.open(std::slice::from_ref(&place));
    let _scheduler = cluster.scheduler().await?;
    let _worker = cluster.worker()?;
    let allowance = ALLOWANCE.to_string();
    let flags = ["--depth", "30000", "--delay", "0", "--host-concurrency", "2", "--host-allowance", &allowance];
    let start = format!("http://{place}/");
    let out = cluster.dodo_text(&[&["crawl", &start, "--wait", "--json"][..], &flags].concat())?;
    let done: Value = serde_json::from_str(&out)?;
    let id = done["id"].as_str().context("no dispatch")?;
    assert_eq!(done["progress"]["scheduled"], done["progress"]["finished"], "{done}");

    let mut unique: Vec<String> = (0..UNIQUE_PAGES).map(|n| format!("/unique/{n}")).collect();
    unique.sort();
    assert_eq!(asked_for(&asked, "/unique/"), unique);
    assert_eq!(asked_for(&asked, "/same/").len(), SAME_PAGES);
    // The segment a may stand three times.
    assert_eq!(asked_for(&asked, "/loop/").len(), 4);

    let line = cluster.dodo_text(&["dispatch", "hosts", id, "--json"])?;
    let tally: Value = serde_json::from_str(&line)?;
    let of = |name: &str| tally[name].as_i64().unwrap_or_default();
    let (pages, fresh) = (of("pages"), of("fresh"));
    assert_eq!(tally["host"], json!(format!("http://{place}")));
    assert_eq!(
        (pages, of("duplicates")),
        (done["progress"]["pages"].as_i64().unwrap_or_default(), SAME_PAGES as i64 - 1)
    );
    assert_eq!(fresh + of("duplicates") + of("near_duplicates"), pages);
    // Start, unique pages, the same page once, the loop, and of the calendar a few.
    let honest = UNIQUE_PAGES as i64 + 6;
    assert!((honest..honest + 8).contains(&fresh), "{tally}");
    assert_eq!(pages, 2 * fresh + ALLOWANCE, "what is new earns as much that is not, and the allowance comes on top");
    assert_eq!(asked_for(&asked, "/month").len() as i64, pages - honest - of("duplicates"));
    let over: Vec<_> = ends(&cluster, id).await?.into_keys().filter(|(outcome, _)| outcome == "budget").collect();
    let reason = format!(
        "its host says too little that is new: {fresh} of {pages} pages did, and its host_allowance is {ALLOWANCE}"
    );
    assert_eq!(over, [("budget".to_owned(), reason)]);

    let why = cluster.dodo_text(&["why", &format!("http://{place}/loop/a/b/a/b/a/b/a/b/")])?;
    let words = format!("It is out of the scope of crawl {id}: a trap: the segment \"a\" stands 4 times in it");
    assert!(why.contains(&words) && why.contains("max_repeats"), "{why}");
    let why = cluster.dodo_text(&["why", &format!("http://{place}/same/{}", SAME_PAGES - 1)])?;
    assert!(why.contains(&format!("Reason: duplicate of http://{place}/same/")), "{why}");
    let why = cluster.dodo_text(&["why", &format!("http://{place}/month?n=9")])?;
    assert!(why.contains(&format!("Reason: near duplicate of http://{place}/month?n=")), "{why}");
    let text = cluster.dodo_text(&["dispatch", "hosts", id])?;
    assert!(
        text.contains(&format!("{pages} pages")) && text.contains(&format!("{} duplicates", SAME_PAGES - 1)),
        "{text}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_host_gives_more_pages_than_it_may_whoever_leads() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let web = Web::start(2, 100, Duration::from_millis(20)).await?;
    cluster.open(&web.places);
    let mut first = cluster.scheduler().await?;
    let _second = cluster.scheduler().await?;
    let _worker = cluster.worker()?;
    let crawl =
        json!({ "urls": web.seeds(), "scope": "any", "delay_ms": 30, "host_concurrency": 4, "max_pages_per_host": 25 });
    let dispatch = cluster.post("/v1/crawls", &crawl).await?;
    cluster.wait_finished(&dispatch, 12).await?;
    first.kill();
    cluster.wait_done(&dispatch, LIMIT).await?;
    for place in &web.places {
        let pages = web.hits().into_iter().filter(|hit| hit.host == *place && hit.path != "/robots.txt").count();
        assert_eq!(pages, 25, "{place}");
    }
    let ends = ends(&cluster, &dispatch).await?;
    let over = ends.keys().find(|(outcome, _)| outcome == "budget").context("nothing ended over budget")?;
    assert_eq!(over.1, "its host has given its crawl 25 pages, the max_pages_per_host");
    let tallies = cluster.get(&format!("/v1/dispatches/{dispatch}/hosts")).await?;
    let pages: Vec<_> = tallies.as_array().context("no list")?.iter().map(|tally| tally["pages"].as_i64()).collect();
    assert_eq!(pages, [Some(25), Some(25)]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_that_is_not_kept_is_cut_off_behind_its_head() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let place = listener.local_addr()?.to_string();
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(files)).await });
    cluster.open(std::slice::from_ref(&place));
    let _scheduler = cluster.scheduler().await?;
    let _worker = cluster.worker()?;
    let of = |types: &[&str]| json!({ "urls": [format!("http://{place}/")], "delay_ms": 0, "content_types": types });
    let dispatch = cluster.post("/v1/crawls", &of(&["text/html", "IMAGE/"])).await?;
    cluster.wait_done(&dispatch, LIMIT).await?;
    let jobs = cluster.get(&format!("/v1/jobs?dispatch={dispatch}")).await?;
    let mut ended = BTreeMap::new();
    for job in jobs.as_array().context("no jobs")? {
        let path = job["url"].as_str().unwrap_or_default().trim_start_matches(&format!("http://{place}")).to_owned();
        let is_archived = !job["raw_stream"].is_null();
        ended.insert(path, (job["state"].as_str().unwrap_or_default().to_owned(), is_archived));
    }
    let expected =
        [("/", "ok", true), ("/a.png", "ok", true), ("/endless", "unwanted", false), ("/list", "unwanted", false)];
    let expected = expected.map(|(path, state, is_archived)| (path.to_owned(), (state.to_owned(), is_archived)));
    assert_eq!(ended, BTreeMap::from(expected), "and nothing that the list links to");
    let done = cluster.progress(&dispatch).await?;
    assert_eq!((&done["progress"]["pages"], &done["progress"]["skipped"]), (&json!(2), &json!(2)), "{done}");
    let why = cluster.dodo_text(&["why", &format!("http://{place}/endless")])?;
    assert!(why.contains("It ended unwanted with status 200"), "{why}");
    assert!(why.contains("content type \"video/mp4; x=y\" is none that its crawl keeps"), "{why}");

    let (status, answer) = cluster.call(Method::POST, "/v1/crawls", of(&["html"]).to_string()).await?;
    assert!(status == 400 && answer["error"].as_str().is_some_and(|line| line.contains("image/")), "{answer}");
    for wrong in [json!({ "max_repeats": 0 }), json!({ "max_pages_per_host": 0 }), json!({ "host_allowance": -1 })] {
        let mut crawl = of(&[]);
        crawl.as_object_mut().context("an object")?.extend(wrong.as_object().cloned().unwrap_or_default());
        let (status, answer) = cluster.call(Method::POST, "/v1/crawls", crawl.to_string()).await?;
        let name = wrong.as_object().and_then(|wrong| wrong.keys().next()).context("a name")?;
        assert!(status == 400 && answer["error"].as_str().is_some_and(|line| line.contains(name)), "{answer}");
    }
    Ok(())
}

async fn files(request: Request) -> Response {
    let typed = |kind: &str, body: Body| ([(CONTENT_TYPE, kind.to_owned())], body).into_response();
    match request.uri().path() {
        "/" => Html("<a href=/a.png>1</a><a href=/endless>2</a><a href=/list>3</a>").into_response(),
        "/a.png" => typed("Image/PNG", "png".into()),
        "/list" => typed("application/xhtml+xml", "<html><a href='/never'>n</a></html>".into()),
        "/endless" => {
            let bytes = futures::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![0_u8; 1 << 16]));
            typed("video/mp4; x=y", Body::from_stream(bytes))
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}
