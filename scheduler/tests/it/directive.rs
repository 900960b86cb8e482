//! What pages say of themselves: that they are not to be indexed, and what their own URL is.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};
use reqwest::Method;
use serde_json::{Value, json};

use crate::cluster::{Cluster, Process};
use crate::web::{Asked, noting};

const LIMIT: Duration = Duration::from_secs(90);

async fn answer(State(asked): State<Asked>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    asked.lock().expect("no panic under this lock").push(path.clone());
    let conditional = request.headers().contains_key("if-none-match");
    match path.as_str() {
        "/" => {
            Html(["meta", "named", "file", "other"].map(|to| format!("<a href=/{to}>x</a>")).concat()).into_response()
        }
        "/meta" => Html("<title>secret</title><meta name=robots content=noindex><a href=/behind>").into_response(),
        "/named" => Html("<meta name=Dodo content=none><a href=/never>").into_response(),
        "/file" => ([("x-robots-tag", "otherbot: nofollow, dodo: noindex")], "a text").into_response(),
        "/other" => Html("<meta name=otherbot content=noindex>").into_response(),
        "/behind" => Html("a page").into_response(),
        // Canonical URLs: of the page itself, of others, of one that is not there, out of scope, of one another.
        "/copies" => {
            let links = (1..=6).map(|n| format!("<a href=/copy/{n}>x</a>")).collect::<String>();
            Html(format!("<link rel=canonical href=/copies>{links}")).into_response()
        }
        "/copy/1" => Html("<link rel=canonical href=/whole>").into_response(),
        "/copy/2" => ([("link", "</first>; rel=first, </whole-text>; rel=canonical")], "a text").into_response(),
        "/copy/3" => Html("<link rel=canonical href=/gone>").into_response(),
        "/copy/4" => Html("<link rel=canonical href='http://b.test/'>").into_response(),
        "/copy/5" => Html("<link rel=canonical href=/copy/6>").into_response(),
        "/copy/6" => ([("link", "</never>; rel=canonical")], Html("<link rel=canonical href=/copy/5>")).into_response(),
        "/whole" | "/whole-text" => Html("a page").into_response(),
        // Once it is known it does not want to be kept any more.
        "/turning" if conditional => (StatusCode::NOT_MODIFIED, [("x-robots-tag", "noindex")]).into_response(),
        "/turning" => ([("etag", "\"a\"")], Html("as it was")).into_response(),
        "/never-kept" => ([("etag", "\"b\"")], Html("<meta name=robots content=noindex>")).into_response(),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn ground() -> Result<(Cluster, String, Asked, Vec<Process>)> {
    let mut cluster = Cluster::start().await?;
    let (place, asked) = noting(Router::new().fallback(answer)).await?;
    cluster.open(std::slice::from_ref(&place));
    let processes = vec![cluster.scheduler().await?, cluster.worker()?];
    Ok((cluster, place, asked, processes))
}

async fn crawl(cluster: &Cluster, place: &str, paths: &[&str], options: Value) -> Result<String> {
    let urls: Vec<String> = paths.iter().map(|path| format!("http://{place}{path}")).collect();
    let mut body = json!({ "urls": urls, "delay_ms": 0, "sitemaps": false });
    body.as_object_mut().context("an object")?.extend(options.as_object().cloned().unwrap_or_default());
    cluster.post("/v1/crawls", &body).await
}

/// How each path ended, in the order of its visits: the state, whether its record is in the archive, and the job.
async fn ended(cluster: &Cluster, place: &str, dispatch: &str) -> Result<BTreeMap<String, Vec<(String, bool, Value)>>> {
    let jobs = cluster.get(&format!("/v1/export/pages?dispatch={dispatch}")).await?;
    let mut ended = BTreeMap::<String, Vec<_>>::new();
    for job in jobs.as_array().context("no jobs")? {
        let path = job["url"].as_str().unwrap_or_default().trim_start_matches(&format!("http://{place}")).to_owned();
        let state = job["state"].as_str().unwrap_or_default().to_owned();
        ended.entry(path).or_default().push((state, !job["raw_stream"].is_null(), job.clone()));
    }
    Ok(ended)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_asks_not_to_be_indexed_is_read_and_not_kept() -> Result<()> {
    let (cluster, place, asked, _processes) = ground().await?;
    let dispatch = crawl(&cluster, &place, &["/"], json!({ "noindex": true })).await?;
    cluster.wait_done(&dispatch, LIMIT).await?;
    let found = ended(&cluster, &place, &dispatch).await?;
    let states: Vec<(&str, &str, bool)> =
        found.iter().map(|(path, visits)| (path.as_str(), visits[0].0.as_str(), visits[0].1)).collect();
    let expected = [
        ("/", "ok", true),
        ("/behind", "ok", true),
        ("/file", "noindex", false),
        ("/meta", "noindex", false),
        ("/named", "noindex", false),
        ("/other", "ok", true),
    ];
    assert_eq!(states, expected, "and nothing that is linked where none says so");
    let meta = &found["/meta"][0].2;
    assert_eq!((&meta["title"], &meta["link_count"], &meta["new_count"]), (&Value::Null, &json!(1), &json!(1)));
    // Each is a page; what is stored is what is kept.
    let progress = cluster.progress(&dispatch).await?["progress"].clone();
    let counts = ["pages", "finished", "scheduled", "failed", "skipped"].map(|name| progress[name].as_i64());
    assert_eq!(counts, [6, 6, 6, 0, 0].map(Some), "{progress}");
    assert_eq!(cluster.dodo_text(&["archive", "cat", "pages"])?.lines().count(), 3);
    assert!(cluster.dodo(&["archive", "verify"]).status.success());
    let why = cluster.dodo_text(&["why", &format!("http://{place}/meta")])?;
    for part in ["It ended noindex with status 200", "noindex, says its meta element: its body is not kept"] {
        assert!(why.contains(part), "{part}: {why}");
    }
    assert!(cluster.dodo_text(&["why", &format!("http://{place}/file")])?.contains("noindex, says its X-Robots-Tag"));

    // A crawl under another name is spoken to by that.
    let options = json!({ "noindex": true, "user_agent": "OtherBot/2.0 (for tests)" });
    let dispatch = crawl(&cluster, &place, &["/named", "/file", "/other"], options).await?;
    cluster.wait_done(&dispatch, LIMIT).await?;
    let found = ended(&cluster, &place, &dispatch).await?;
    let states: Vec<(&str, &str)> = found.iter().map(|(path, visits)| (path.as_str(), visits[0].0.as_str())).collect();
    assert_eq!(states, [("/file", "ok"), ("/named", "ok"), ("/never", "http_error"), ("/other", "noindex")]);

    // They spend the budget of pages like all others; and without the setting they are kept like all others.
    asked.lock().expect("no panic under this lock").clear();
    let dispatch = crawl(&cluster, &place, &["/meta"], json!({ "noindex": true, "max_pages": 1 })).await?;
    cluster.wait_done(&dispatch, LIMIT).await?;
    assert_eq!(*asked.lock().expect("no panic under this lock"), ["/meta"]);
    let dispatch = crawl(&cluster, &place, &["/meta", "/file"], json!({ "depth": 0 })).await?;
    cluster.wait_done(&dispatch, LIMIT).await?;
    let found = ended(&cluster, &place, &dispatch).await?;
    assert!(found.values().flatten().all(|(state, is_archived, _)| state == "ok" && *is_archived), "{found:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_turns_noindex_is_visited_on_and_its_visits_are_not_kept() -> Result<()> {
    let (cluster, place, _, _processes) = ground().await?;
    let options = json!({ "noindex": true, "depth": 0, "revisit": { "min_s": 2, "max_s": 2 } });
    let dispatch = crawl(&cluster, &place, &["/turning", "/never-kept"], options).await?;
    let visits = async || ended(&cluster, &place, &dispatch).await;
    let has_come = async || {
        let found = visits().await?;
        let turned = |visits: &Vec<(_, _, Value)>| visits.iter().filter(|(_, _, job)| job["status"] == 304).count();
        Ok(found.get("/turning").is_some_and(|visits| turned(visits) >= 2) && found["/never-kept"].len() >= 3)
    };
    cluster.until("the visits", LIMIT, has_come).await?;
    let (status, answer) = cluster.call(Method::POST, &format!("/v1/dispatches/{dispatch}/cancel"), "").await?;
    ensure!(status == 200, "{answer}");
    cluster.wait_done(&dispatch, LIMIT).await?;
    let mut found = visits().await?;
    for visits in found.values_mut() {
        visits.retain(|(state, _, _)| state != "cancelled");
    }
    let turning = &found["/turning"];
    let turns = turning.iter().position(|(_, _, job)| job["status"] == 304).context("it never turned")?;
    for (n, (state, is_archived, job)) in turning.iter().enumerate() {
        let expected = if n < turns { ("ok", true, 200) } else { ("noindex", false, 304) };
        assert_eq!(
            (state.as_str(), *is_archived, &job["status"]),
            (expected.0, expected.1, &json!(expected.2)),
            "{job}"
        );
        assert_eq!(job["unchanged"] == true, n > 0, "{job}");
        assert_eq!(job["digest"], turning[0].2["digest"], "{job}");
    }
    // What is not kept has nothing that a 304 could refer to: it is asked for without a condition, and compared.
    for (n, (state, is_archived, job)) in found["/never-kept"].iter().enumerate() {
        assert_eq!((state.as_str(), *is_archived, &job["status"]), ("noindex", false, &json!(200)), "{job}");
        assert_eq!(job["unchanged"] == true, n > 0, "{job}");
    }
    let progress = cluster.progress(&dispatch).await?["progress"].clone();
    let pages: usize = found.values().map(Vec::len).sum();
    let not_modified = turning.len() - turns;
    let expected = [("pages", pages), ("revisits", pages - 2), ("not_modified", not_modified)];
    for (name, count) in expected {
        assert_eq!(progress[name], json!(count), "{name}: {progress}");
    }
    assert_eq!(cluster.dodo_text(&["archive", "cat", "pages"])?.lines().count(), turns);
    assert!(cluster.dodo(&["archive", "verify"]).status.success());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_page_says_is_its_url_is_followed_and_noted() -> Result<()> {
    let (cluster, place, _, _processes) = ground().await?;
    let url = |path: &str| format!("http://{place}{path}");
    let dispatch = crawl(&cluster, &place, &["/copies"], json!({ "follow_canonical": true })).await?;
    cluster.wait_done(&dispatch, LIMIT).await?;
    let mut found = ended(&cluster, &place, &dispatch).await?;
    let reasons: Vec<(String, Value, bool)> = std::mem::take(&mut found)
        .into_iter()
        .map(|(path, mut visits)| (path, visits[0].2["reason"].take(), visits[0].1))
        .collect();
    let says = |path: &str| json!(format!("canonical: {}", url(path)));
    let expected = [
        ("/copies", Value::Null),
        ("/copy/1", says("/whole")),
        ("/copy/2", says("/whole-text")),
        ("/copy/3", says("/gone")),
        ("/copy/4", Value::Null),
        ("/copy/5", says("/copy/6")),
        ("/copy/6", says("/copy/5")),
        ("/gone", Value::Null),
        ("/whole", Value::Null),
        ("/whole-text", Value::Null),
    ];
    // Each of them is kept: nobody could bring back the copy of what is gone.
    assert_eq!(reasons, expected.map(|(path, reason)| (path.to_owned(), reason, true)));
    let why = cluster.dodo_text(&["why", &url("/copy/2")])?;
    assert!(why.contains(&format!("Reason: canonical: {}.", url("/whole-text"))), "{why}");

    // Without the setting the header is not read.
    let dispatch = crawl(&cluster, &place, &["/copies"], json!({})).await?;
    cluster.wait_done(&dispatch, LIMIT).await?;
    let found = ended(&cluster, &place, &dispatch).await?;
    assert!(found.values().flatten().all(|(_, _, job)| job["reason"].is_null()), "{found:?}");
    assert!(found.contains_key("/whole") && !found.contains_key("/whole-text"), "{found:?}");
    Ok(())
}
