//! Headers that a crawl is given: which site gets which, and that nobody else reads them.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};
use reqwest::Method;
use serde_json::{Value, json};

use crate::cluster::Cluster;

const LIMIT: Duration = Duration::from_secs(60);

/// What a site was asked for: host, path, `Accept-Language` and `Authorization`.
type Asked = Arc<Mutex<Vec<[String; 4]>>>;

/// Two sites; each page links to the start page of the second, and to one more page of its own.
async fn sites(asked: &Asked) -> Result<[String; 2]> {
    let mut listeners = Vec::new();
    for n in 1..=2 {
        listeners.push(tokio::net::TcpListener::bind((Ipv4Addr::new(127, 0, 6, n), 0)).await?);
    }
    let [first, second] = [listeners[0].local_addr()?.to_string(), listeners[1].local_addr()?.to_string()];
    for listener in listeners {
        let app = Router::new().fallback(answer).with_state((Arc::clone(asked), second.clone()));
        tokio::spawn(async move { axum::serve(listener, app).await });
    }
    Ok([first, second])
}

async fn answer(State((asked, second)): State<(Asked, String)>, request: Request) -> Response {
    let header = |name: &str| {
        let values = request.headers().get_all(name).iter();
        values.map(|value| value.to_str().unwrap_or_default()).collect::<Vec<_>>().join(" and ")
    };
    let path = request.uri().path().to_owned();
    let hit = [header("host"), path.clone(), header("accept-language"), header("authorization")];
    asked.lock().expect("no panic under this lock").push(hit);
    match path.as_str() {
        "/robots.txt" => StatusCode::NOT_FOUND.into_response(),
        _ => Html(format!("<a href='/more'>1</a><a href='http://{second}/'>2</a>")).into_response(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wishes_go_to_every_host_and_credentials_to_the_seeds_alone() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let asked = Asked::default();
    let [first, second] = sites(&asked).await?;
    cluster.open(&[first.clone(), second.clone()]);
    let _scheduler = cluster.scheduler().await?;
    let _worker = cluster.worker()?;
    let seed = format!("http://{first}/");
    let body = json!({ "urls": [seed], "scope": "any", "delay_ms": 0,
                       "headers": { "Accept-Language": "de", "Authorization": "Bearer hush-hush" } });
    let secret = cluster.dir.path().join("headers.txt");
    std::fs::write(&secret, "\nAuthorization:Bearer hush-hush\n")?;
    let secret = format!("@{}", secret.display());
    let flags = ["--header", "accept-language: de", "--header", &secret];
    let mut dispatches = Vec::new();
    for by_tool in [false, true] {
        asked.lock().expect("no panic under this lock").clear();
        let dispatch = match by_tool {
            false => cluster.post("/v1/crawls", &body).await?,
            true => {
                let arguments = [&["crawl", &seed, "--scope", "any", "--delay", "0"][..], &flags].concat();
                cluster.dodo_text(&arguments)?.trim().to_owned()
            }
        };
        cluster.wait_done(&dispatch, LIMIT).await?;
        let mut pages = asked.lock().expect("no panic under this lock").clone();
        pages.retain(|hit| hit[1] != "/robots.txt");
        pages.sort();
        let expected = [(&first, "Bearer hush-hush"), (&second, "")].into_iter().flat_map(|(host, credential)| {
            ["/", "/more"].map(|path| [host.as_str(), path, "de", credential].map(str::to_owned))
        });
        let mut expected: Vec<[String; 4]> = expected.collect();
        expected.sort();
        assert_eq!(pages, expected, "by the tool: {by_tool}");
        dispatches.push(dispatch);
    }

    let mut seen = cluster.logs();
    for dispatch in &dispatches {
        let jobs = cluster.get(&format!("/v1/jobs?dispatch={dispatch}")).await?;
        let id = jobs[0]["id"].as_str().context("no jobs")?;
        for path in [format!("/v1/dispatches/{dispatch}"), format!("/v1/jobs/{id}")] {
            seen += &cluster.get(&path).await?.to_string();
        }
        seen += &jobs.to_string();
        seen += &cluster.dodo_text(&["dispatch", "get", dispatch])?;
        seen += &cluster.dodo_text(&["dispatch", "get", dispatch, "--json"])?;
        seen += &cluster.dodo_text(&["why", id])?;
    }
    for arguments in
        [&["why", &seed][..], &["why", &seed, "--json"], &["dispatch", "list", "--json"], &["archive", "cat"]]
    {
        seen += &cluster.dodo_text(arguments)?;
    }
    for stream in ["dodo:pages", "dodo:jobs:fetch", "dodo:done"] {
        seen += &format!("{:?}", cluster.redis_command(&["XRANGE", stream, "-", "+"]).await?);
    }
    assert!(seen.contains(&dispatches[0]) && !seen.contains("hush"), "a credential is to be read");
    // It is kept in one place, for each dispatch once.
    let sql = cluster.sql().await?;
    let kept = "SELECT count(*) FROM dispatch_secret WHERE headers::text LIKE '%hush%'";
    assert_eq!(sql.query_one(kept, &[]).await?.get::<_, i64>(0), 2);
    let specs = "SELECT count(*) FROM dispatch WHERE spec::text LIKE '%header%' OR spec::text LIKE '%hush%'";
    assert_eq!(sql.query_one(specs, &[]).await?.get::<_, i64>(0), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_header_is_refused_in_one_line_without_its_value() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let _scheduler = cluster.scheduler().await?;
    let seed = "http://127.0.0.1:1/";
    let refused = async |body: &Value| -> Result<(u16, String)> {
        let (status, answer) = cluster.call(Method::POST, "/v1/crawls", body.to_string()).await?;
        let line = answer["error"].as_str().with_context(|| format!("{status} {answer}"))?;
        assert!(line.lines().count() == 1 && !line.contains("hush"), "{line}");
        Ok((status, line.to_owned()))
    };
    for (headers, word) in [
        (json!({ "a b": "hush" }), "\"a b\" is no header name"),
        (json!({ "x": "hush\nhush: x" }), "the value of header x"),
        (json!({ "Host": "hush" }), "the client's own"),
        (json!({ "Cookie": "hush", "cookie": "hush" }), "twice"),
    ] {
        let (status, line) = refused(&json!({ "urls": [seed], "headers": headers })).await?;
        assert!(status == 400 && line.contains(word), "{status} {line}");
    }
    // One that is no text is another shape of request.
    let (status, line) = refused(&json!({ "urls": [seed], "headers": { "x": ["hush"] } })).await?;
    assert!(status == 422 && line.contains("\"x\" is no text"), "{status} {line}");
    let recurring = json!({ "urls": [seed], "headers": { "x\n": "hush" }, "cron": "* * * * *" });
    let (status, line) = refused(&recurring).await?;
    assert!(status == 400 && line.contains("is no header name"), "{status} {line}");
    assert_eq!(cluster.get("/v1/timers").await?, json!([]));
    assert_eq!(cluster.get("/v1/dispatches").await?, json!([]));

    for (headers, word) in [
        (&["hush-hush"][..], "say --header 'Accept-Language: de'"),
        (&["a b: hush"], "a name and a colon are missing"),
        (&["User-Agent: hush"], "say user_agent"),
        (&["@/no/such/file"], "cannot read /no/such/file"),
        (&["x: hush", "x: hush"], "given twice"),
        (&["Host: hush"], "leave it out"),
    ] {
        let flags: Vec<&str> = headers.iter().flat_map(|header| ["--header", header]).collect();
        let out = cluster.dodo(&[&["crawl", seed][..], flags.as_slice()].concat());
        let text = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code() == Some(1) && text.contains("--header: ") && text.contains(word), "{text}");
        assert!(text.lines().count() == 1 && !text.contains("hush"), "{text}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_recurs_sends_its_headers_each_time_and_shows_them_to_nobody() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let asked = Asked::default();
    let [first, second] = sites(&asked).await?;
    cluster.open(&[first.clone(), second.clone()]);
    let mut scheduler = cluster.scheduler().await?;
    let _worker = cluster.worker()?;
    let seed = format!("http://{first}/");
    let flags =
        ["--delay", "0", "--header", "Authorization: Bearer hush-hush", "--cron", "* * * * * *", "--key", "beat"];
    let arguments = [&["crawl", &seed, "--json"][..], &flags].concat();
    let mut seen = cluster.dodo_text(&arguments)?;
    let timer: Value = serde_json::from_str(&seen)?;
    let starts = || {
        let asked = asked.lock().expect("no panic under this lock");
        asked.iter().filter(|hit| hit[1] == "/").map(|hit| hit[3].clone()).collect::<Vec<_>>()
    };
    cluster.until("it has gone off twice", LIMIT, async || Ok(starts().len() >= 2)).await?;
    for arguments in [&["timers", "list"][..], &["timers", "list", "--json"], &["dispatch", "list", "--json"]] {
        seen += &cluster.dodo_text(arguments)?;
    }
    // The next leader knows no more than what is written down.
    scheduler.kill();
    let before = starts().len();
    let _scheduler = cluster.scheduler().await?;
    cluster.until("it goes off again", LIMIT, async || Ok(starts().len() > before + 1)).await?;
    assert!(starts().iter().all(|credential| credential == "Bearer hush-hush"), "{:?}", starts());

    // A known key changes nothing of it.
    let other = json!({ "urls": [seed], "headers": { "x": "hush too" }, "cron": "* * * * * *", "key": "beat" });
    let (status, again) = cluster.call(Method::POST, "/v1/crawls", other.to_string()).await?;
    assert!(status == 202 && again["id"] == timer["id"], "{status} {again}");
    let sql = cluster.sql().await?;
    let kept = "SELECT headers::text FROM timer_secret";
    let kept = async || Ok::<_, anyhow::Error>(sql.query(kept, &[]).await?.iter().map(|row| row.get(0)).collect());
    let secrets: Vec<String> = kept().await?;
    assert!(secrets.len() == 1 && secrets[0].contains("hush-hush"), "{secrets:?}");

    seen += &(again.to_string() + &cluster.get("/v1/timers").await?.to_string());
    seen += &cluster.logs();
    let id = timer["id"].as_str().context("no timer")?;
    assert!(seen.contains(id) && !seen.contains("hush"), "a credential is to be read");
    assert_eq!(cluster.call(Method::DELETE, &format!("/v1/timers/{id}"), "").await?.0, 204);
    let secrets: Vec<String> = kept().await?;
    assert!(secrets.is_empty(), "they go with their timer");
    Ok(())
}
