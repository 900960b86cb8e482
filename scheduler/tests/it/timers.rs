//! What recurs, on real processes: each time once, whoever leads; what was missed is one.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::{Context, Result};
use reqwest::Method;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::web::Web;

const LIMIT: Duration = Duration::from_secs(60);

/// The keys of the dispatches that timers have started.
async fn fired(sql: &tokio_postgres::Client) -> Result<Vec<String>> {
    let rows = sql.query("SELECT key FROM dispatch WHERE key LIKE 'timer:%' ORDER BY id", &[]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timer_goes_off_once_each_time_whoever_leads() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let web = Web::start(1, 3, Duration::from_millis(1)).await?;
    cluster.open(&web.places);
    let mut first = cluster.scheduler().await?;
    let _second = cluster.scheduler().await?;
    let _worker = cluster.worker()?;
    let sql = cluster.sql().await?;
    let request =
        json!({ "count": 2, "cron": "* * * * * *", "timezone": "Europe/Berlin", "key": "beat", "priority": 3 });
    let (status, timer) = cluster.call(Method::POST, "/v1/noops", request.to_string()).await?;
    assert!(status == 202 && timer["next_at"].is_string(), "{status} {timer}");
    let (_, again) = cluster.call(Method::POST, "/v1/noops", request.to_string()).await?;
    assert_eq!(again["id"], timer["id"], "a known key is the same timer");
    cluster.until("it has gone off", LIMIT, async || Ok(fired(&sql).await?.len() >= 2)).await?;
    // A crawl by the tool, listed and deleted.
    let out = cluster.dodo_text(&["crawl", &web.seeds()[0], "--delay", "0", "--cron", "*/2 * * * * *", "--json"])?;
    let crawl: Value = serde_json::from_str(&out)?;
    let id = crawl["id"].as_str().context("no timer")?;
    cluster.until("the site is crawled", LIMIT, async || Ok(web.hits().iter().any(|hit| hit.path == "/2"))).await?;
    let listed = cluster.dodo_text(&["timers", "list"])?;
    assert!(listed.contains("noop beat  * * * * * * Europe/Berlin  next ") && listed.contains(id), "{listed}");
    cluster.dodo_text(&["timers", "delete", id])?;

    first.kill();
    let before = fired(&sql).await?.len();
    cluster.until("it goes off again", LIMIT, async || Ok(fired(&sql).await?.len() >= before + 3)).await?;
    let beat = format!("timer:{}:", timer["id"].as_str().unwrap_or_default());
    let keys: Vec<String> = fired(&sql).await?.into_iter().filter(|key| key.starts_with(&beat)).collect();
    assert_eq!(keys.iter().collect::<HashSet<_>>().len(), keys.len());
    // Between two leaders some seconds were missed: they are one time, and no second came twice.
    let mut times: Vec<i64> = keys.iter().filter_map(|key| key.rsplit(':').next()?.parse().ok()).collect();
    assert!(times.iter().all(|at| at % 1000 == 0) && times.is_sorted(), "{times:?}");
    times.dedup();
    assert_eq!(times.len(), keys.len());
    let dispatches = cluster.get("/v1/dispatches").await?;
    assert_eq!((&dispatches[0]["spec"]["jobs"], &dispatches[0]["terms"]["priority"]), (&json!(2), &json!(3)));

    let path = format!("/v1/timers/{}", timer["id"].as_str().unwrap_or_default());
    assert_eq!(cluster.call(Method::DELETE, &path, "").await?.0, 204);
    assert_eq!(cluster.get("/v1/timers").await?, json!([]));
    let count = fired(&sql).await?.len();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(fired(&sql).await?.len(), count, "a deleted timer is silent");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn missed_times_are_one_and_wrong_timers_are_refused() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let mut scheduler = cluster.scheduler().await?;
    let sql = cluster.sql().await?;
    let daily = json!({ "count": 1, "cron": "0 3 * * *" });
    let (_, timer) = cluster.call(Method::POST, "/v1/noops", daily.to_string()).await?;
    scheduler.kill();
    // Nobody led for ten days.
    sql.execute("UPDATE timer SET next_at = next_at - interval '10 days'", &[]).await?;
    let _scheduler = cluster.scheduler().await?;
    cluster.until("it has gone off", LIMIT, async || Ok(!fired(&sql).await?.is_empty())).await?;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(fired(&sql).await?.len(), 1);
    let listed = cluster.get("/v1/timers").await?;
    assert_eq!(listed[0]["next_at"], timer["next_at"], "the next one is to come");

    let document = json!({ "url": "http://127.0.0.1:1/?p={page}", "paging": { "style": "numbered", "size": 10, "count": { "path": "$.n" } },
        "items": "$", "id": "$.id", "every_s": 3600 });
    cluster.put("/v1/sources/shop", &document).await?;
    let of_source = cluster.get("/v1/timers").await?;
    let of_source = of_source.as_array().and_then(|all| all.iter().find(|t| t["source"] == "shop")).cloned();
    let id = of_source.context("the document has no timer")?["id"].as_str().unwrap_or_default().to_owned();
    assert_eq!(cluster.call(Method::DELETE, &format!("/v1/timers/{id}"), "").await?.0, 409);
    assert_eq!(cluster.call(Method::DELETE, "/v1/timers/0198f6a0-0000-7000-8000-000000000000", "").await?.0, 404);
    cluster.call(Method::DELETE, "/v1/sources/shop", "").await?;
    assert_eq!(cluster.get("/v1/timers").await?.as_array().map(Vec::len), Some(1));
    for (more, word) in [
        (json!({ "cron": "soon" }), "cron \"soon\""),
        (json!({ "cron": "0 0 30 2 *" }), "never comes"),
        (json!({ "cron": "* * * * *", "timezone": "Europe/Atlantis" }), "Europe/Atlantis"),
        (json!({ "timezone": "Europe/Berlin" }), "belongs to cron"),
        (json!({ "cron": "* * * * *", "start_in_ms": 5 }), "not both"),
    ] {
        let mut body = json!({ "count": 1 });
        body.as_object_mut().context("an object")?.extend(more.as_object().cloned().unwrap_or_default());
        let (status, answer) = cluster.call(Method::POST, "/v1/noops", body.to_string()).await?;
        let line = answer["error"].as_str().unwrap_or_default();
        assert!(status == 400 && line.contains(word) && line.lines().count() == 1, "{status} {answer}");
    }
    let waits = cluster.dodo(&["crawl", "http://127.0.0.1:1/", "--cron", "* * * * *", "--wait"]);
    assert!(!waits.status.success());
    Ok(())
}
