//! Manifests: dropped, edited, deleted, malformed, huge.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::feed::{Behaviour, Feed};
use crate::judge;
use crate::web::Web;

const LIMIT: Duration = Duration::from_secs(60);

async fn drop_file(cluster: &Cluster, name: &str, content: &Value) -> Result<()> {
    cluster.store()?.put(&format!("manifests/{name}"), content.to_string().into()).await?;
    Ok(())
}

/// Waits until a manifest is in a state; returns its row.
async fn recorded(cluster: &Cluster, name: &str, state: &str) -> Result<Value> {
    let mut found = Value::Null;
    cluster
        .until(&format!("{name} is {state}"), LIMIT, async || {
            let list = cluster.get("/v1/manifests").await?;
            let row = list.as_array().and_then(|list| {
                list.iter()
                    .find(|m| m["name"].as_str().is_some_and(|n| n.ends_with(name)) && m["state"] == state)
                    .cloned()
            });
            found = row.unwrap_or(Value::Null);
            Ok(!found.is_null())
        })
        .await?;
    Ok(found)
}

async fn number(cluster: &Cluster, query: &str) -> Result<i64> {
    Ok(cluster.sql().await?.query_one(query, &[]).await?.get(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_starts_both_kinds_of_work_once() -> Result<()> {
    let feed = Feed::start(57, Behaviour::default()).await?;
    let web = Web::start(1, 15, Duration::ZERO).await?;
    let mut cluster = Cluster::start().await?;
    let mut places = web.places.clone();
    places.push(feed.addr.to_string());
    cluster.open(&places);
    let _scheduler = cluster.scheduler().await?;
    let _worker = cluster.worker()?;
    cluster.put("/v1/sources/feed", &feed.document(10)).await?;
    let entries = json!([
        { "service": "crawl", "url": web.seeds()[0], "options": { "delay_ms": 0 },
          "headers": { "x-token": "hush-hush" }, "cookies": { "session": "very-secret" }, "version": 1 },
        { "service": "feed", "url": feed.base(), "headers": { "x-token": "hush-hush" } },
    ]);
    drop_file(&cluster, "both.json", &entries).await?;
    let manifest = recorded(&cluster, "both.json", "accepted").await?;
    let dispatch = manifest["dispatch"].as_str().context("no dispatch")?;
    cluster.wait_done(dispatch, LIMIT).await?;
    let kinds = cluster
        .sql()
        .await?
        .query("SELECT kind, id::text FROM dispatch WHERE parent IS NOT NULL ORDER BY kind", &[])
        .await?;
    let kinds: Vec<(String, String)> = kinds.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(kinds.iter().map(|(kind, _)| kind.as_str()).collect::<Vec<_>>(), ["crawl", "paged"]);
    judge::complete(&cluster, &web, &kinds[0].1).await?;
    assert_eq!(number(&cluster, "SELECT count(*) FROM record").await?, 57);
    // The same file again, by another name of its time: nothing starts.
    drop_file(&cluster, "both.json", &entries).await?;
    let before = number(&cluster, "SELECT count(*) FROM manifest_refresh WHERE ok").await?;
    cluster
        .until("more refreshes", LIMIT, async || {
            Ok(number(&cluster, "SELECT count(*) FROM manifest_refresh WHERE ok").await? > before + 3)
        })
        .await?;
    assert_eq!(number(&cluster, "SELECT count(*) FROM dispatch").await?, 3);
    assert_eq!(number(&cluster, "SELECT count(*) FROM manifest_log").await?, 1);
    // Headers and cookies went to the hosts, and nowhere else.
    let last = feed.asked().pop().context("it was not asked")?;
    assert_eq!(last.headers["x-token"], "hush-hush");
    let mut seen = cluster.logs();
    for path in ["/v1/manifests", "/v1/dispatches", "/v1/jobs?limit=1000"] {
        seen += &cluster.get(path).await?.to_string();
    }
    seen += &cluster.dodo_text(&["archive", "cat"])?;
    for stream in ["dodo:pages", "dodo:items", "dodo:jobs:fetch", "dodo:done"] {
        seen += &format!("{:?}", cluster.redis_command(&["XRANGE", stream, "-", "+"]).await?);
    }
    assert!(!seen.contains("hush-hush") && !seen.contains("very-secret"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_manifest_says_why_and_waits_for_a_change() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let _scheduler = cluster.scheduler().await?;
    let far = json!({ "service": "page", "url": "http://a.test/", "start": "2099-01-01T00:00:00Z" });
    let wrong = json!([far, { "service": "crawl", "url": "ftp://a.test/" }, { "service": "crawl", "url": "http://a.test/", "cout": 1 }]);
    drop_file(&cluster, "bad.json", &wrong).await?;
    cluster.store()?.put("manifests/cut.json", "[{\"service\": ".into()).await?;
    cluster.store()?.put("manifests/notes.txt", "no manifest".into()).await?;
    let bad = recorded(&cluster, "bad.json", "malformed").await?;
    let reasons: Vec<(i64, &str)> = bad["reasons"]
        .as_array()
        .context("no reasons")?
        .iter()
        .map(|r| (r["entry"].as_i64().unwrap_or(-1), r["reason"].as_str().unwrap_or_default()))
        .collect();
    assert_eq!(reasons.iter().map(|(entry, _)| *entry).collect::<Vec<_>>(), [1, 2]);
    assert!(reasons[0].1.contains("ftp") && reasons[1].1.contains("cout"), "{reasons:?}");
    let cut = recorded(&cluster, "cut.json", "malformed").await?;
    assert!(cut["reasons"][0]["entry"].is_null());
    assert_eq!(number(&cluster, "SELECT count(*) FROM crawl_schedule").await?, 0);
    // It is not tried again, and a change is.
    assert_eq!(number(&cluster, "SELECT count(*) FROM manifest_log").await?, 2);
    drop_file(&cluster, "bad.json", &json!([far])).await?;
    recorded(&cluster, "bad.json", "accepted").await?;
    recorded(&cluster, "bad.json", "replaced").await?;
    // `dodo submit` is the same path.
    let file = cluster.dir.path().join("wrong.json");
    std::fs::write(&file, wrong.to_string())?;
    let out = cluster.dodo(&["submit", &file.display().to_string()]);
    assert_eq!(out.status.code(), Some(1));
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(text.contains("entry 1: ") && text.contains("entry 2: "), "{text}");
    std::fs::write(&file, json!([far]).to_string())?;
    let id = cluster.dodo_text(&["submit", &file.display().to_string()])?;
    assert_eq!(cluster.progress(id.trim()).await?["kind"], "manifest");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn edited_and_deleted_manifests_stop_what_has_not_started() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let _scheduler = cluster.scheduler().await?;
    let entry =
        |n: i64| json!({ "service": "page", "url": format!("http://a{n}.test/"), "start": 4_000_000_000_i64 + n });
    let pending = "SELECT count(*) FROM crawl_schedule WHERE kind = 'occurrence'";
    drop_file(&cluster, "later.json", &json!([entry(1), entry(2), entry(3)])).await?;
    cluster.until("three rows", LIMIT, async || Ok(number(&cluster, pending).await? == 3)).await?;
    drop_file(&cluster, "later.json", &json!([entry(4), entry(5)])).await?;
    recorded(&cluster, "later.json", "replaced").await?;
    cluster.until("two rows", LIMIT, async || Ok(number(&cluster, pending).await? == 2)).await?;
    let cancelled = "SELECT count(*) FROM crawl_log WHERE outcome = 'cancelled'";
    assert_eq!(number(&cluster, cancelled).await?, 3);
    cluster.store()?.delete("manifests/later.json").await?;
    recorded(&cluster, "later.json", "deleted").await?;
    assert_eq!(number(&cluster, pending).await?, 0);
    assert_eq!(number(&cluster, cancelled).await?, 5);
    // A known content that comes back goes on where it was.
    drop_file(&cluster, "later.json", &json!([entry(4), entry(5)])).await?;
    recorded(&cluster, "later.json", "accepted").await?;
    assert_eq!(number(&cluster, "SELECT count(*) FROM manifest_log").await?, 2);
    cluster.until("its rows again", LIMIT, async || Ok(number(&cluster, pending).await? == 2)).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_huge_manifest_and_an_endless_one_keep_few_rows() -> Result<()> {
    let web = Web::start(1, 3, Duration::ZERO).await?;
    let mut cluster = Cluster::start().await?;
    cluster.open(&web.places);
    let _scheduler = cluster.scheduler().await?;
    let _worker = cluster.worker()?;
    let seed = &web.seeds()[0];
    let endless =
        json!({ "service": "page", "url": seed, "interval": 1, "count": 1_000_000_000, "options": { "delay_ms": 0 } });
    drop_file(&cluster, "endless.json", &json!([endless])).await?;
    let later = |n: i64| json!({ "service": "page", "url": format!("http://a.test/{n}"), "start": 4_000_000_000_i64, "count": 1_000_000_000, "interval": 1 });
    drop_file(&cluster, "huge.json", &Value::Array((0..100_000).map(later).collect())).await?;
    drop_file(&cluster, "too-many.json", &Value::Array((0..100_001).map(later).collect())).await?;
    let many = recorded(&cluster, "too-many.json", "malformed").await?;
    assert!(many["reasons"][0]["reason"].as_str().is_some_and(|r| r.contains("100001 entries")), "{many}");
    let runs = "SELECT count(*) FROM crawl_log WHERE kind = 'occurrence' AND outcome = 'ok'";
    cluster.until("three runs", LIMIT, async || Ok(number(&cluster, runs).await? >= 3)).await?;
    // One future row an entry, however often it is to run.
    let entries =
        "SELECT count(*) FROM crawl_schedule WHERE kind = 'occurrence' AND run_at > now() + interval '1 hour'";
    cluster.until("100,000 rows", LIMIT, async || Ok(number(&cluster, entries).await? == 100_000)).await?;
    let rows = number(&cluster, "SELECT count(*) FROM crawl_schedule WHERE kind = 'occurrence'").await?;
    ensure!(rows <= 100_001, "{rows} rows");
    let twice = "SELECT count(*) FROM (SELECT 1 FROM crawl_log WHERE kind = 'occurrence' GROUP BY payload HAVING count(*) > 1) t";
    assert_eq!(number(&cluster, twice).await?, 0, "an occurrence ran twice");
    cluster.store()?.delete("manifests/huge.json").await?;
    cluster.store()?.delete("manifests/endless.json").await?;
    recorded(&cluster, "huge.json", "deleted").await?;
    recorded(&cluster, "endless.json", "deleted").await?;
    assert_eq!(number(&cluster, "SELECT count(*) FROM crawl_schedule WHERE kind = 'occurrence'").await?, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_anywhere_every_occurrence_starts_once() -> Result<()> {
    let web = Web::start(1, 2, Duration::ZERO).await?;
    let mut cluster = Cluster::start().await?;
    cluster.open(&web.places);
    let mut schedulers = vec![cluster.scheduler().await?, cluster.scheduler().await?];
    let mut workers = [cluster.worker()?, cluster.worker()?];
    let seed = &web.seeds()[0];
    let entry = json!({ "service": "page", "url": seed, "interval": 1, "count": 8, "options": { "delay_ms": 0 } });
    drop_file(&cluster, "runs.json", &json!([entry])).await?;
    let dispatch = recorded(&cluster, "runs.json", "accepted").await?["dispatch"].as_str().context("none")?.to_owned();
    let runs = "SELECT count(*) FROM crawl_log WHERE kind = 'occurrence' AND outcome = 'ok'";
    for n in [1, 3] {
        cluster.until("runs", LIMIT, async || Ok(number(&cluster, runs).await? >= n)).await?;
        workers[0].kill();
        workers[0] = cluster.worker()?;
        if n == 1 {
            schedulers[0].kill();
            schedulers.remove(0);
        } else {
            cluster.redis_command(&["FLUSHALL"]).await?;
        }
    }
    cluster.wait_done(&dispatch, LIMIT).await?;
    let started = number(&cluster, "SELECT count(*) FROM dispatch WHERE parent IS NOT NULL").await?;
    let ran = number(&cluster, runs).await?;
    assert_eq!(started, ran, "a dispatch for each run");
    // Missed ones coalesce, so there are 8 at most; the last one always runs.
    ensure!((3..=8).contains(&ran), "{ran} runs");
    let last = "SELECT max((payload ->> 'occurrence')::int8) FROM crawl_log WHERE kind = 'occurrence'";
    assert_eq!(number(&cluster, last).await?, 7);
    Ok(())
}
