//! Dead letters found by a query, and replayed by one.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::refuse::ground;

const LIMIT: Duration = Duration::from_secs(60);

fn dead(cluster: &Cluster, filter: &[&str]) -> Result<Vec<Value>> {
    let arguments: Vec<&str> = ["dead", "list", "--json"].into_iter().chain(filter.iter().copied()).collect();
    let text = cluster.dodo_text(&arguments)?;
    text.lines().map(|line| serde_json::from_str(line).context("no JSON")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_query_finds_is_what_it_replays() -> Result<()> {
    let (cluster, base, _hits, _processes) = ground("5").await?;
    let crawl = |urls: Vec<String>| json!({ "urls": urls, "delay_ms": 0 });
    // Five tries and the sixth: an answer comes at the seventh.
    let urls = (0..3).map(|n| format!("{base}/{n}/500/6/")).chain([format!("{base}/x/502/5/")]).collect();
    let first = cluster.post("/v1/crawls", &crawl(urls)).await?;
    cluster.wait_done(&first, LIMIT).await?;
    let between = chrono::DateTime::from_timestamp_millis(dodo_common::clock::Clock::System.now_ms() + 1);
    let between = between.context("no time")?.to_rfc3339();
    tokio::time::sleep(Duration::from_millis(10)).await;
    let second = cluster.post("/v1/crawls", &crawl(vec![format!("{base}/y/503/1000000/0")])).await?;
    cluster.wait_done(&second, LIMIT).await?;

    for (filter, count) in [
        (&[][..], 5),
        (&["--outcome", "dead"], 5),
        (&["--outcome", "failed"], 0),
        (&["--reason", "answered 500"], 3),
        (&["--reason", "503, 10 times"], 1),
        (&["--host", &base], 5),
        (&["--host", "http://nobody"], 0),
        (&["--dispatch", &first], 4),
        (&["--kind", "get_page"], 0),
        (&["--since", &between], 1),
        (&["--dispatch", &first, "--since", &between], 0),
        (&["--dispatch", &first, "--reason", "502"], 1),
    ] {
        assert_eq!(dead(&cluster, filter)?.len(), count, "{filter:?}");
    }
    let wrong = cluster.dodo(&["dead", "list", "--since", "yesterday"]);
    assert!(!wrong.status.success());

    assert_eq!(cluster.dodo_text(&["dead", "replay", "--reason", "502"])?, "1 scheduled again\n");
    assert_eq!(cluster.dodo_text(&["dead", "replay", "--reason", "502"])?, "0 scheduled again\n");
    let out = cluster.dodo_text(&["dead", "replay", "--dispatch", &first, "--reason", "answered 500"])?;
    assert_eq!(out, "3 scheduled again\n");
    cluster.wait_done(&first, LIMIT).await?;
    assert_eq!(dead(&cluster, &[])?.len(), 1, "the other dispatch's");
    // A URL has all of its jobs, those that replay others too.
    let why: Value = serde_json::from_str(&cluster.dodo_text(&["why", &format!("{base}/x/502/5/"), "--json"])?)?;
    let jobs = why["jobs"].as_array().context("no jobs")?;
    assert_eq!((&jobs[0]["state"], &jobs[1]["state"], jobs.len()), (&json!("ok"), &json!("dead"), 2), "{why}");
    assert_eq!(jobs[1]["replayed_by"], jobs[0]["id"], "{why}");
    let line = format!("It was replayed: job {} goes on for it.", jobs[0]["id"].as_str().unwrap_or_default());
    assert!(why["lines"].as_array().is_some_and(|lines| lines.contains(&json!(line))), "{why}");
    let done = cluster.progress(&first).await?;
    assert_eq!((&done["progress"]["pages"], &done["progress"]["failed"]), (&json!(4), &json!(0)));
    Ok(())
}
