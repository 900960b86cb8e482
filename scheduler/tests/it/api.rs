//! The HTTP API as its clients meet it, and what the processes write down.

use std::collections::HashSet;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use dodo_scheduler::local::free_port;
use serde_json::{Value, json};

use crate::cluster::{Cluster, dodo_program};
use crate::web::Web;

#[tokio::test(flavor = "multi_thread")]
async fn resources_are_as_the_document_says() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let _scheduler = cluster.scheduler().await?;
    let _worker = cluster.worker_with(&[("DODO_REGION", "eu-1")])?;
    let dispatch = cluster.post("/v1/noops", &json!({ "count": 10, "payload": {} })).await?;
    cluster.wait_done(&dispatch, Duration::from_secs(30)).await?;

    let document = cluster.get("/openapi.json").await?;
    let paths = document["paths"].as_object().context("no paths")?;
    for path in ["/v1/crawls", "/v1/dispatches/{id}", "/v1/jobs", "/v1/why", "/v1/workers", "/v1/streams", "/metrics"] {
        assert!(paths.contains_key(path), "{path} is not in the document");
    }
    let jobs = cluster.get(&format!("/v1/jobs?dispatch={dispatch}&state=ok")).await?;
    assert_eq!(jobs.as_array().map(Vec::len), Some(10));
    let one = cluster.get(&format!("/v1/jobs/{}", jobs[0]["id"].as_str().unwrap_or_default())).await?;
    assert_eq!(one["state"], "ok");
    // Its last heartbeat may be from when it was busy.
    let ready = async || Ok(cluster.get("/v1/workers").await?[0]["state"] == "ready");
    cluster.until("the worker has nothing to do", Duration::from_secs(10), ready).await?;
    assert_eq!(cluster.get("/v1/workers").await?[0]["region"], "eu-1");
    let streams = cluster.get("/v1/streams").await?;
    let jobs_stream = streams.as_array().and_then(|all| all.iter().find(|s| s["name"] == "dodo:jobs:fetch"));
    let jobs_stream = jobs_stream.context("the jobs stream is not listed")?;
    assert_eq!((&jobs_stream["pending"], &jobs_stream["lag"]), (&json!(0), &json!(0)));
    assert!(jobs_stream["horizon"].is_string());
    let status: Value = serde_json::from_str(&cluster.dodo_text(&["status", "--json"])?)?;
    assert_eq!(status["workers"]["ready"], 1);
    assert_eq!(status["jobs_pending"], 0);

    // Region, address and slot name the worker's log; a job's lines carry its ids.
    let names: Vec<String> = std::fs::read_dir(cluster.dir.path().join("log"))?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    assert!(names.iter().any(|name| name.starts_with("worker-eu-1-") && name.ends_with("-1")), "{names:?}");
    let logs = cluster.logs();
    let line = logs.lines().find(|line| line.contains("job ended")).context("no job was logged")?;
    for field in ["job=", "dispatch=", "tenant=", "host=", "worker="] {
        assert!(line.contains(field), "{field} is missing: {line}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_path_of_the_document_is_served_and_described() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let _scheduler = cluster.scheduler().await?;
    let document = cluster.get("/openapi.json").await?;
    let paths = document["paths"].as_object().context("no paths")?;
    assert!(paths.len() >= 25, "{} paths", paths.len());
    for (path, methods) in paths {
        for (method, about) in methods.as_object().context("no methods")? {
            assert!(about["summary"].as_str().is_some_and(|text| !text.is_empty()), "{method} {path} has no summary");
            let asked = path.replace("{id}", "0198f6a0-0000-7000-8000-000000000000").replace("{name}", "nobody");
            let method = reqwest::Method::from_bytes(method.to_uppercase().as_bytes())?;
            let (status, answer) = cluster.call(method.clone(), &asked, "").await?;
            let unserved = status == 405 || answer["error"].as_str().is_some_and(|text| text.contains("no such path"));
            assert!(!unserved && status < 500, "{method} {path}: {status} {answer}");
            if status >= 400 {
                let line = answer["error"].as_str().unwrap_or_default();
                assert!(!line.is_empty() && line.lines().count() == 1, "{method} {path}: {status} {answer}");
            }
        }
    }
    for (path, body) in
        [("/v1/jobs?limit=many", ""), ("/v1/jobs/no-id", ""), ("/v1/crawls", "{"), ("/v1/dead/replay", "7")]
    {
        let method = if body.is_empty() { reqwest::Method::GET } else { reqwest::Method::POST };
        let (status, answer) = cluster.call(method, path, body).await?;
        let line = answer["error"].as_str().unwrap_or_default();
        assert!((400..500).contains(&status) && line.lines().count() == 1, "{path}: {status} {answer}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tool_waits_for_a_crawl() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let web = Web::start(1, 20, Duration::from_millis(1)).await?;
    cluster.open(&web.places);
    let _scheduler = cluster.scheduler().await?;
    let _worker = cluster.worker()?;
    let out = cluster.dodo_text(&[
        "crawl",
        &web.seeds()[0],
        "--delay",
        "0",
        "--host-concurrency",
        "4",
        "--wait",
        "--json",
    ])?;
    let dispatch: Value = serde_json::from_str(&out)?;
    assert_eq!((&dispatch["state"], &dispatch["progress"]["pages"]), (&json!("done"), &json!(20)));
    let csv = cluster.dodo_text(&[
        "export",
        "links",
        "--dispatch",
        dispatch["id"].as_str().unwrap_or_default(),
        "--format",
        "csv",
    ])?;
    assert_eq!(csv.lines().count() as i64 - 1, dispatch["progress"]["links"].as_i64().unwrap_or_default());
    assert!(cluster.dodo_text(&["workers"])?.contains("ready"));
    let url = cluster.dodo_text(&["url", "HTTP://Example.COM:80/a/../b#c", "--json"])?;
    assert_eq!(serde_json::from_str::<Value>(&url)?["canonical"], "http://example.com/b");
    let robots = format!("{}/robots.txt", web.seeds()[0].trim_end_matches("/0"));
    let judged = cluster.dodo(&["robots", &robots, "/private/x", "/public"]);
    assert_eq!(judged.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&judged.stdout).contains("line 2: Disallow: /private"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_with_many_links_are_exported_a_few_at_a_time() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let _scheduler = cluster.scheduler().await?;
    let dispatch = "01a1fd94-39b6-708a-9242-c3c31d6bc546";
    let (pages, links) = (8, 50_000);
    cluster
        .sql()
        .await?
        .batch_execute(&format!(
            "INSERT INTO page_link (tenant, dispatch, url_hash, job, lines)
             SELECT 'default', '{dispatch}', gen_random_uuid(), gen_random_uuid(),
               (SELECT string_agg(md5((n * {links} + m)::text), E'\\n') FROM generate_series(1, {links}) m)
               FROM generate_series(1, {pages}) n"
        ))
        .await?;
    let first = cluster.get(&format!("/v1/export/links?dispatch={dispatch}")).await?;
    let first = first.as_array().context("no pages")?.len();
    assert!((1..pages).contains(&first), "{first}");
    let lines = cluster.dodo_text(&["export", "links", "--dispatch", dispatch])?;
    assert_eq!(lines.lines().collect::<HashSet<_>>().len(), pages * links);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_guards_everything_but_health() -> Result<()> {
    let cluster = Cluster::start().await?;
    let port = free_port()?;
    let mut child = Command::new(dodo_program())
        .args(["serve", "--listen", &format!("0.0.0.0:{port}")])
        .envs(cluster.env())
        .env("DODO_ADMIN_TOKEN", "sesame")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let http = reqwest::Client::builder().no_proxy().build()?;
    let base = format!("http://127.0.0.1:{port}");
    for _ in 0..500 {
        if http.get(format!("{base}/health/live")).send().await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let status = async |path: &str, token: Option<&str>| -> Result<u16> {
        let mut request = http.get(format!("{base}{path}"));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        Ok(request.send().await?.status().as_u16())
    };
    assert_eq!(status("/health/ready", None).await?, 200);
    assert_eq!(status("/v1/status", None).await?, 401);
    assert_eq!(status("/v1/status", Some("sesam")).await?, 401);
    assert_eq!(status("/v1/status", Some("sesame")).await?, 200);
    assert_eq!(status("/metrics", None).await?, 401);
    let metrics = http.get(format!("{base}/metrics")).bearer_auth("sesame").send().await?.text().await?;
    assert!(metrics.contains("dodo_jobs_pending 0"), "{metrics}");
    let answer = http
        .post(format!("{base}/v1/crawls"))
        .bearer_auth("sesame")
        .body("{broken")
        .header("content-type", "application/json");
    let answer = answer.send().await?;
    assert_eq!(answer.status().as_u16(), 400);
    assert!(answer.json::<Value>().await?["error"].is_string());
    child.kill()?;
    child.wait()?;
    Ok(())
}
