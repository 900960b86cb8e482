//! Bad input is normal: one clear line each, nothing lost, no panic.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::get;
use futures::{StreamExt as _, stream};
use serde_json::{Value, json};

use crate::cluster::{Cluster, dodo_program};

/// One line on standard error, and the exit code.
fn complains(cluster: &Cluster, arguments: &[&str]) -> (String, Option<i32>) {
    let out = cluster.dodo(arguments);
    (String::from_utf8_lossy(&out.stderr).trim().to_owned(), out.status.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_says_what_is_wrong() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let (text, code) = complains(&cluster, &["status"]);
    assert!(text.contains("no scheduler answers at"), "{text}");
    assert_eq!((text.lines().count(), code), (1, Some(1)));
    let _scheduler = cluster.scheduler().await?;

    let (text, code) = complains(&cluster, &["crawl", "ftp://example.com/"]);
    assert!(text.contains("ftp") && text.lines().count() == 1, "{text}");
    assert_eq!(code, Some(1));
    let (text, _) = complains(&cluster, &["crawl", "https://example.com/"]);
    assert!(text.contains("DODO_CONTACT"), "{text}");
    let (text, _) = complains(&cluster, &["crawl", "http://127.0.0.1/", "--scope", "galaxy"]);
    assert!(text.lines().count() == 1 && text.contains("galaxy"), "{text}");
    let (text, _) = complains(&cluster, &["crawl", "http://127.0.0.1/", "--delay", "-5"]);
    assert!(!text.is_empty(), "{text}");
    let (text, code) = complains(&cluster, &["status", "--no-such-flag"]);
    assert!(text.contains("--no-such-flag"), "{text}");
    assert_eq!(code, Some(2));
    let (text, code) = complains(&cluster, &["why", "0198f6a0-0000-7000-8000-000000000000"]);
    assert!(text.contains("no such job"), "{text}");
    assert_eq!(code, Some(1));
    let (text, _) = complains(&cluster, &["robots", "/no/such/file", "/"]);
    assert!(text.contains("/no/such/file") && text.lines().count() == 1, "{text}");

    // Sources, manifests, records.
    let file = cluster.dir.path().join("source.json");
    let path = file.display().to_string();
    let paged = json!({ "url": "https://api.example.com/?p={page}", "paging": { "style": "numbered", "size": 10, "count": { "path": "$.n" } },
        "items": "$", "id": "$.id" });
    for (document, word) in [("{", "EOF"), ("{\"url\": 1}", "string"), ("{\"typo\": 1}", "typo")] {
        std::fs::write(&file, document)?;
        let (text, code) = complains(&cluster, &["sources", "put", "shop", &path]);
        assert!(text.contains(word) && text.lines().count() == 1, "{text}");
        assert_eq!(code, Some(1));
    }
    std::fs::write(&file, paged.to_string())?;
    let (text, _) = complains(&cluster, &["sources", "put", "No Name", &path]);
    assert!(text.contains("a source's name") && text.lines().count() == 1, "{text}");
    let (text, _) = complains(&cluster, &["sources", "put", "crawl", &path]);
    assert!(text.contains("not crawl or page"), "{text}");
    assert_eq!(cluster.dodo_text(&["sources", "put", "shop", &path])?, "shop version 1\n");
    assert_eq!(cluster.dodo_text(&["sources", "put", "shop", &path])?, "shop version 1\n", "nothing changed");
    for (arguments, word) in [
        (&["sources", "run", "shop"][..], "DODO_CONTACT"),
        (&["sources", "run", "nobody"], "no such source"),
        (&["sources", "run", "shop", "--subject", "x"], "name=value"),
        (&["sources", "delete", "nobody"], "no such source"),
        (&["records", "replay", "nobody"], "no such source"),
        (&["submit", "/no/such/file.json"], "/no/such/file.json"),
        (&["export", "pages"], "--dispatch"),
        (&["report", "--out", "/no/such/directory/report.json"], "/no/such/directory"),
    ] {
        let (text, code) = complains(&cluster, arguments);
        assert!(text.contains(word), "{arguments:?}: {text}");
        assert!(matches!(code, Some(1 | 2)), "{arguments:?}");
    }

    // A bucket that is not there, a wrong password, a taken port, a public address without a token.
    let run = |name: &str, value: &str, arguments: &[&str]| {
        let out =
            std::process::Command::new(dodo_program()).args(arguments).envs(cluster.env()).env(name, value).output();
        let out = out.expect("dodo runs");
        let text = String::from_utf8_lossy(&out.stderr).trim().to_owned();
        let last = text.lines().last().unwrap_or_default().to_owned();
        assert_eq!(out.status.code(), Some(1), "{text}");
        assert!(!text.contains("panicked"), "{text}");
        last
    };
    let text = run("DODO_S3_BUCKET", "absent", &["archive", "list"]);
    assert!(text.contains("absent"), "{text}");
    let wrong = cluster.postgres.url().replace("dodo:", "dodo:wrong");
    let text = run("DODO_DATABASE_URL", &wrong, &["serve", "--listen", "127.0.0.1:0"]);
    assert!(text.contains("password") && !text.contains(&wrong), "{text}");
    let text = run("DODO_REDIS_URL", "redis://127.0.0.1:1/0", &["serve", "--listen", "127.0.0.1:0"]);
    assert!(text.contains("Redis"), "{text}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let text = run("DODO_X", "", &["serve", "--listen", &taken.local_addr()?.to_string()]);
    assert!(text.contains("cannot listen"), "{text}");
    let text = run("DODO_X", "", &["serve", "--listen", "0.0.0.0:0"]);
    assert!(text.contains("DODO_ADMIN_TOKEN"), "{text}");
    Ok(())
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).expect("memory takes it");
    encoder.finish().expect("memory takes it")
}

/// A site on which everything is wrong in its own way.
fn hostile() -> Router {
    let bomb = gzip(&vec![b'a'; 300 << 20]);
    let start = "<a href=/loop>1</a><a href=/big>2</a><a href=/broken>3</a><a href=/nul>4</a><a href=/bomb>5</a>\
        <a href=/cut>6</a><a href='http://127.0.0.1:1/dead'>7</a><a href='ftp://x/'>8</a><a href=/private/x>9</a>\
        <a href=/far>10</a><a href='http://no-such-name.invalid/'>11</a><a href='/flaky'>12</a><a href='/location'>13</a>\
        <a href='http://127.0.0.3/closed'>14</a>";
    let flaky = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    Router::new()
        .route("/", get(move || async move { Html(start) }))
        .route("/robots.txt", get(async || "User-agent: *\nDisallow: /private/\n"))
        .route("/loop", get(async || Redirect::temporary("/loop2")))
        .route("/loop2", get(async || Redirect::temporary("/loop")))
        .route("/far", get(async || Redirect::temporary("http://elsewhere.invalid/")))
        .route("/big", get(async || ([(header::CONTENT_TYPE, "text/html")], vec![b'x'; 50 << 20])))
        .route("/broken", get(async || ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], b"<title>\xff\xfe\xc3</title><a href=/ok>x</a>".to_vec())))
        .route("/nul", get(async || Html("<title>a\0b</title><a href='/o\0k'>x</a><a href=/ok>y</a>")))
        .route("/ok", get(async || Html("fine")))
        .route("/bomb", get(move || {
            let bomb = bomb.clone();
            async move { ([(header::CONTENT_TYPE, "text/html"), (header::CONTENT_ENCODING, "gzip")], bomb) }
        }))
        .route("/cut", get(async || -> Response {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, "text/html".parse().expect("it is a header"));
            // What came first is only sent while the rest is waited for.
            let rest = async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                Err(std::io::Error::other("cut"))
            };
            let chunks = stream::once(async { Ok("<p>half") }).chain(stream::once(rest));
            (headers, Body::from_stream(chunks)).into_response()
        }))
        .route("/flaky", get(move || {
            let first = flaky.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0;
            async move { if first { StatusCode::BAD_GATEWAY.into_response() } else { Html("better").into_response() } }
        }))
        .route("/location", get(async || (StatusCode::FOUND, [(header::LOCATION, "http://[broken")])))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_site_is_crawled_to_its_end() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let place = listener.local_addr()?.to_string();
    tokio::spawn(async move { axum::serve(listener, hostile()).await });
    // 127.0.0.1:1 is opened and dead; 127.0.0.3 is not opened.
    cluster.open(&[place.clone(), "127.0.0.1:1".to_owned()]);
    let _scheduler = cluster.scheduler().await?;
    let _worker = cluster.worker()?;
    let body = json!({ "urls": [format!("http://{place}/")], "scope": "any", "delay_ms": 0, "host_concurrency": 4 });
    let dispatch = cluster.post("/v1/crawls", &body).await?;
    cluster.wait_done(&dispatch, Duration::from_secs(90)).await?;
    let text = cluster.dodo_text(&["export", "pages", "--dispatch", &dispatch])?;
    let jobs: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let of = |path: &str| {
        jobs.iter()
            .find(|job| job["url"].as_str().is_some_and(|url| url.ends_with(path)))
            .with_context(|| format!("{path} has no row: {text}"))
    };
    assert_eq!(of("/loop")?["state"], "redirect");
    assert_eq!(of("/loop2")?["state"], "redirect");
    assert_eq!(of("/far")?["state"], "redirect");
    assert_eq!(of("/big")?["truncated"], "length");
    assert_eq!(of("/broken")?["state"], "ok");
    assert_eq!(of("/nul")?["title"], "a b");
    assert_eq!(of("/ok")?["state"], "ok");
    assert!(of("/bomb")?["reason"].as_str().is_some_and(|why| !why.is_empty()), "{}", of("/bomb")?);
    assert_eq!((&of("/cut")?["state"], &of("/cut")?["attempt"]), (&"ok".into(), &4.into()), "after the last try");
    assert_eq!(of("/cut")?["truncated"], "disconnect");
    assert_eq!(of("/dead")?["state"], "dead");
    assert_eq!(of("no-such-name.invalid/")?["state"], "dead");
    assert_eq!(of("/private/x")?["state"], "robots");
    assert!(of("/private/x")?["reason"].as_str().is_some_and(|why| why.contains("line 2")));
    assert_eq!(of("/flaky")?["state"], "ok");
    assert_eq!(of("/flaky")?["attempt"], 1);
    assert_eq!(of("/location")?["state"], "redirect");
    assert_eq!(of("127.0.0.3/closed")?["state"], "refused");
    assert!(!cluster.logs().contains("panicked"));

    // Every decision can be asked for.
    let why = cluster.dodo_text(&["why", &format!("http://{place}/private/x")])?;
    assert!(why.contains("forbids it by line 2") && why.contains("found on"), "{why}");
    let why = cluster.dodo_text(&["why", &format!("http://{place}/ok")])?;
    assert!(why.contains("is archived in archive/default/pages/"), "{why}");
    let why = cluster.dodo_text(&["why", &format!("http://{place}/never-linked")])?;
    assert!(why.contains("No crawl has it"), "{why}");
    assert!(cluster.dodo_text(&["archive", "verify"])?.contains(" 0 bad"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_and_a_key_hold() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let web = crate::web::Web::start(2, 60, Duration::from_millis(1)).await?;
    cluster.open(&web.places);
    let _scheduler = cluster.scheduler().await?;
    let _workers = [cluster.worker()?, cluster.worker()?];
    let body = json!({ "urls": web.seeds(), "scope": "any", "delay_ms": 0, "host_concurrency": 8, "max_pages": 25, "key": "nightly" });
    let dispatch = cluster.post("/v1/crawls", &body).await?;
    assert_eq!(cluster.post("/v1/crawls", &body).await?, dispatch, "the key is known");
    cluster.wait_done(&dispatch, Duration::from_secs(60)).await?;
    let progress = cluster.progress(&dispatch).await?;
    assert_eq!(progress["progress"]["pages"], 25, "{progress}");
    let pages = web.hits().iter().filter(|hit| hit.path != "/robots.txt").count();
    assert_eq!(pages, 25, "no page beyond the budget is requested");
    let skipped = cluster.dodo_text(&["jobs", "--dispatch", &dispatch, "--state", "budget", "--json"])?;
    let first: Value = serde_json::from_str(skipped.lines().next().context("nothing was skipped")?)?;
    assert!(first["reason"].as_str().is_some_and(|why| why.contains("as many pages")));
    Ok(())
}
