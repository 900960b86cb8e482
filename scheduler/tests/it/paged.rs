//! APIs read page by page: every item exactly once, whatever the API and the workers do.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::cluster::{Cluster, Process};
use crate::feed::{Behaviour, Feed};

const LIMIT: Duration = Duration::from_secs(60);

/// A cluster with a source named `feed`.
async fn cluster(feed: &Feed, document: &Value, workers: usize) -> Result<(Cluster, Process, Vec<Process>)> {
    let mut cluster = Cluster::start().await?;
    cluster.open(&[feed.addr.to_string()]);
    let scheduler = cluster.scheduler().await?;
    cluster.put("/v1/sources/feed", document).await?;
    let workers = (0..workers).map(|_| cluster.worker()).collect::<Result<_>>()?;
    Ok((cluster, scheduler, workers))
}

async fn run(cluster: &Cluster) -> Result<String> {
    cluster.post("/v1/sources/feed/dispatches", &json!({})).await
}

/// Every item is one record, every page is stored once, every raw result is archived and processed.
async fn judge(cluster: &Cluster, feed: &Feed, dispatch: &str) -> Result<()> {
    let sql = cluster.sql().await?;
    let rows = sql.query("SELECT external_id FROM record", &[]).await?;
    let ids: BTreeSet<String> = rows.iter().map(|row| row.get(0)).collect();
    ensure!(ids.len() == rows.len());
    ensure!(ids == feed.ids(), "{} records of {} items", ids.len(), feed.ids().len());
    let id = uuid::Uuid::parse_str(dispatch)?;
    let twice: i64 = sql
        .query_one(
            "SELECT count(*) FROM (SELECT 1 FROM page_scrape WHERE dispatch = $1 GROUP BY page, total_pages HAVING count(*) > 1) t",
            &[&id],
        )
        .await?
        .get(0);
    ensure!(twice == 0, "{twice} pages were stored twice");
    for left in ["raw_result", "crawl_schedule", "kept_answer", "unfit_item"] {
        let count: i64 = sql.query_one(&format!("SELECT count(*) FROM {left}"), &[]).await?.get(0);
        ensure!(count == 0, "{count} rows are left in {left}");
    }
    let archived = cluster.dodo_text(&["archive", "cat", "items"])?;
    let mut archived_ids = BTreeSet::new();
    for line in archived.lines() {
        let line: Value = serde_json::from_str(line)?;
        for item in line["items"].as_array().into_iter().flatten() {
            archived_ids.insert(item["id"].as_str().unwrap_or_default().to_owned());
        }
    }
    ensure!(archived_ids == feed.ids(), "the archive has {} of {} items", archived_ids.len(), feed.ids().len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn forty_one_pages_with_a_tenth_failing() -> Result<()> {
    let feed = Feed::start(403, Behaviour { fail_every: 10, ..Behaviour::default() }).await?;
    let (cluster, _scheduler, _workers) = cluster(&feed, &feed.document(10), 2).await?;
    let dispatch = run(&cluster).await?;
    cluster.wait_done(&dispatch, LIMIT).await?;
    judge(&cluster, &feed, &dispatch).await?;
    let progress = cluster.progress(&dispatch).await?["progress"].clone();
    assert_eq!((&progress["pages"], &progress["items"], &progress["records"]), (&json!(41), &json!(403), &json!(403)));
    assert!(feed.asked().iter().any(|asked| asked.status == 500), "nothing failed");
    // The count came with the first page; each page was answered well once beside that.
    let served = feed.served();
    assert_eq!(served.len(), 41);
    assert!(served.iter().all(|(page, times)| *times == if *page == 1 { 2 } else { 1 }), "{served:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_count_that_lies_is_not_believed() -> Result<()> {
    for (items, lie) in [(400, -37), (403, -37), (403, 55), (7, -7)] {
        let feed = Feed::start(items, Behaviour { lie, ..Behaviour::default() }).await?;
        let (cluster, _scheduler, _workers) = cluster(&feed, &feed.document(10), 1).await?;
        let dispatch = run(&cluster).await?;
        cluster.wait_done(&dispatch, LIMIT).await?;
        judge(&cluster, &feed, &dispatch).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_goes_in_circles_comes_to_an_end() -> Result<()> {
    let feed = Feed::start(30, Behaviour { circle: true, ..Behaviour::default() }).await?;
    for document in [feed.document(10), feed.cursor_document(10)] {
        let (cluster, _scheduler, _workers) = cluster(&feed, &document, 1).await?;
        let dispatch = run(&cluster).await?;
        cluster.wait_done(&dispatch, LIMIT).await?;
        judge(&cluster, &feed, &dispatch).await?;
    }
    assert!(feed.asked().len() < 20, "{} requests", feed.asked().len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_count_that_changes_is_noticed_and_repaired() -> Result<()> {
    // To another number of pages, and within the same one.
    for (items, more) in [(203, 60), (203, 4)] {
        let behaviour =
            Behaviour { grow: Some((12, more)), latency: Duration::from_millis(20), ..Behaviour::default() };
        let feed = Feed::start(items, behaviour).await?;
        let mut document = feed.document(10);
        document["concurrency"] = json!(3);
        let (cluster, _scheduler, _workers) = cluster(&feed, &document, 2).await?;
        let dispatch = run(&cluster).await?;
        cluster.wait_done(&dispatch, LIMIT).await?;
        judge(&cluster, &feed, &dispatch).await?;
        let rounds: i32 = cluster.sql().await?.query_one("SELECT round FROM page_metadata", &[]).await?.get(0);
        assert_eq!(rounds, 2);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_and_malformed_metadata_is_asked_for() -> Result<()> {
    let feed = Feed::start(95, Behaviour { malformed_counts: 2.into(), ..Behaviour::default() }).await?;
    let mut document = feed.document(10);
    document["paging"]["count"]["url"] = json!("{base}/count");
    let (cluster, _scheduler, _workers) = cluster(&feed, &document, 1).await?;
    let malformed = json!({ "metadata": { "total": "many" } });
    let dispatch = cluster.post("/v1/sources/feed/dispatches", &malformed).await?;
    cluster.wait_done(&dispatch, LIMIT).await?;
    judge(&cluster, &feed, &dispatch).await?;
    let counts = |feed: &Feed| feed.asked().iter().filter(|asked| asked.path == "/count").count();
    assert_eq!(counts(&feed), 3, "two malformed, one good");
    let rows = cluster
        .sql()
        .await?
        .query("SELECT reason FROM crawl_log WHERE kind = 'page_dispatch' ORDER BY id", &[])
        .await?;
    assert!(rows[0].get::<_, String>(0).contains("malformed"));

    // What the caller knows is not asked for.
    let known = json!({ "metadata": { "total": 95 } });
    let dispatch = cluster.post("/v1/sources/feed/dispatches", &known).await?;
    cluster.wait_done(&dispatch, LIMIT).await?;
    assert_eq!(counts(&feed), 3);
    judge(&cluster, &feed, &dispatch).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_is_followed_page_by_page() -> Result<()> {
    let feed = Feed::start(123, Behaviour { fail_every: 7, ..Behaviour::default() }).await?;
    let (cluster, _scheduler, _workers) = cluster(&feed, &feed.cursor_document(10), 2).await?;
    let dispatch = run(&cluster).await?;
    cluster.wait_done(&dispatch, LIMIT).await?;
    judge(&cluster, &feed, &dispatch).await?;
    assert_eq!(feed.served().len(), 13);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_killed_lose_no_item_and_double_none() -> Result<()> {
    let feed =
        Feed::start(403, Behaviour { fail_every: 10, latency: Duration::from_millis(40), ..Behaviour::default() })
            .await?;
    let mut document = feed.document(10);
    document["concurrency"] = json!(4);
    let (cluster, _scheduler, mut workers) = cluster(&feed, &document, 2).await?;
    let dispatch = run(&cluster).await?;
    for finished in [5, 15, 25] {
        cluster.wait_finished(&dispatch, finished).await?;
        workers[0].kill();
        workers.remove(0);
        workers.push(cluster.worker()?);
    }
    cluster.wait_done(&dispatch, LIMIT).await?;
    judge(&cluster, &feed, &dispatch).await
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_wiped_loses_no_item() -> Result<()> {
    let feed = Feed::start(303, Behaviour { latency: Duration::from_millis(30), ..Behaviour::default() }).await?;
    let mut document = feed.document(10);
    document["concurrency"] = json!(4);
    let (cluster, _scheduler, _workers) = cluster(&feed, &document, 2).await?;
    let dispatch = run(&cluster).await?;
    for finished in [8, 20] {
        cluster.wait_finished(&dispatch, finished).await?;
        cluster.redis_command(&["FLUSHALL"]).await?;
    }
    cluster.wait_done(&dispatch, LIMIT).await?;
    assert_eq!(cluster.progress(&dispatch).await?["progress"]["records"], 303, "each is counted once");
    judge(&cluster, &feed, &dispatch).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_made_again_does_not_schedule_the_next_one_again() -> Result<()> {
    let feed = Feed::start(123, Behaviour { latency: Duration::from_millis(30), ..Behaviour::default() }).await?;
    let (cluster, _scheduler, _workers) = cluster(&feed, &feed.cursor_document(10), 2).await?;
    let dispatch = run(&cluster).await?;
    // The dispatch and five pages, none of them archived yet.
    cluster.wait_finished(&dispatch, 6).await?;
    cluster.redis_command(&["FLUSHALL"]).await?;
    cluster.wait_done(&dispatch, LIMIT).await?;
    judge(&cluster, &feed, &dispatch).await?;
    let sql = cluster.sql().await?;
    let count = async |remade: &str| -> Result<i64> {
        let sql_text = format!("SELECT count(*) FROM crawl_log WHERE kind = 'get_page' AND remake_of IS {remade} NULL");
        Ok(sql.query_one(&sql_text, &[]).await?.get(0))
    };
    assert!(count("NOT").await? > 0, "nothing was lost");
    assert_eq!(count("").await?, 13, "a page has one job");
    let progress = cluster.progress(&dispatch).await?["progress"].clone();
    assert_eq!((&progress["pages"], &progress["items"]), (&json!(13), &json!(123)));
    Ok(())
}

/// Rows that nobody has hinted are found within a minute; a test does not wait for that.
async fn hint(cluster: &Cluster, feed: &Feed) -> Result<()> {
    let redis = dodo_common::stream::connection::Redis::new(&cluster.redis.url(), "test")?;
    let gained = vec![("default".to_owned(), format!("api:{}", feed.base()))];
    Ok(dodo_common::stream::queue::hint(&redis, gained).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_page_twice_at_once_is_stored_once() -> Result<()> {
    let feed = Feed::start(30, Behaviour { latency: Duration::from_millis(300), ..Behaviour::default() }).await?;
    let mut document = feed.document(10);
    document["concurrency"] = json!(1);
    let (cluster, _scheduler, _workers) = cluster(&feed, &document, 2).await?;
    let dispatch = run(&cluster).await?;
    cluster.wait_done(&dispatch, LIMIT).await?;
    // So many jobs for page 2, as no page dispatch would ever make them.
    let again = |count: i64| {
        format!(
            "WITH d AS (UPDATE dispatch SET state = 'running' RETURNING tenant, id),
             delta AS (INSERT INTO dispatch_delta (tenant, dispatch, scheduled) SELECT tenant, id, {count} FROM d)
             INSERT INTO crawl_schedule (tenant, id, dispatch, kind, host, url, page, total_pages, payload)
             SELECT tenant, gen_random_uuid(), dispatch, kind, host, url, page, total_pages, payload
               FROM (SELECT * FROM crawl_log WHERE kind = 'get_page' AND page = 2 LIMIT 1) l, generate_series(1, {count})"
        )
    };
    let sql = cluster.sql().await?;
    let before = feed.served()[&2];
    // After the page is stored: no request.
    sql.execute(&again(1), &[]).await?;
    hint(&cluster, &feed).await?;
    cluster.wait_done(&dispatch, LIMIT).await?;
    assert_eq!(feed.served()[&2], before);
    // Two at once, while it is not stored: both may ask, one is stored, and a third asks no more.
    sql.execute("DELETE FROM page_scrape WHERE page = 2", &[]).await?;
    sql.execute("UPDATE dispatch SET spec = jsonb_set(spec, '{document,concurrency}', '2')", &[]).await?;
    sql.execute(&again(2), &[]).await?;
    hint(&cluster, &feed).await?;
    cluster.wait_done(&dispatch, LIMIT).await?;
    let stored: i64 = sql.query_one("SELECT count(*) FROM page_scrape WHERE page = 2", &[]).await?.get(0);
    assert_eq!(stored, 1);
    let outcomes =
        sql.query("SELECT outcome FROM crawl_log WHERE kind = 'get_page' AND page = 2 ORDER BY outcome", &[]).await?;
    let outcomes: Vec<String> = outcomes.iter().map(|row| row.get(0)).collect();
    assert_eq!(outcomes, ["duplicate", "duplicate", "ok", "ok"], "the first, one of the two at once");
    let kept =
        "SELECT count(*) FROM crawl_log WHERE kind = 'get_page' AND (outcome = 'ok') <> (raw_stream IS NOT NULL)";
    assert_eq!(sql.query_one(kept, &[]).await?.get::<_, i64>(0), 0, "what does not count is in no archive");
    let served = feed.served()[&2];
    assert_eq!(served, before + 2, "both asked");
    sql.execute(&again(1), &[]).await?;
    hint(&cluster, &feed).await?;
    cluster.wait_done(&dispatch, LIMIT).await?;
    assert_eq!(feed.served()[&2], served);
    judge(&cluster, &feed, &dispatch).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_may_not_be_repeated_is_not() -> Result<()> {
    let feed =
        Feed::start(203, Behaviour { latency: Duration::from_millis(80), fail_every: 9, ..Behaviour::default() })
            .await?;
    let mut document = feed.document(10);
    document["at_most_once"] = json!(true);
    document["concurrency"] = json!(4);
    document["paging"]["count"]["url"] = json!("{base}/count");
    let (cluster, _scheduler, mut workers) = cluster(&feed, &document, 2).await?;
    let dispatch = cluster.post("/v1/sources/feed/dispatches", &json!({ "metadata": { "total": 203 } })).await?;
    for finished in [4, 10] {
        cluster.wait_finished(&dispatch, finished).await?;
        workers[0].kill();
        workers.remove(0);
        workers.push(cluster.worker()?);
        cluster.redis_command(&["FLUSHALL"]).await?;
    }
    cluster.wait_done(&dispatch, LIMIT).await?;
    let mut pages: Vec<usize> = feed.asked().iter().map(|asked| asked.page).collect();
    pages.sort_unstable();
    let asked = pages.len();
    pages.dedup();
    assert_eq!(asked, pages.len(), "a call was repeated");
    let sql = cluster.sql().await?;
    let rows = sql
        .query("SELECT outcome, count(*) FROM crawl_log WHERE kind = 'get_page' AND remake_of IS NULL GROUP BY 1", &[])
        .await?;
    let total: i64 = rows.iter().map(|row| row.get::<_, i64>(1)).sum();
    assert_eq!(total, 21, "every page ended once");
    assert!(
        rows.iter().any(|row| row.get::<_, String>(0) == "unknown"),
        "no call was under way when its worker was killed"
    );
    // What was answered is kept, though its entry was lost with Redis.
    let stored: i64 = sql.query_one("SELECT sum(items) FROM page_scrape", &[]).await?.get(0);
    let records: i64 = sql.query_one("SELECT count(*) FROM record", &[]).await?.get(0);
    assert_eq!(stored, records);
    // A replay needs to be meant.
    let text = cluster.dodo_text(&["dead", "replay", "--outcome", "unknown"])?;
    assert!(text.starts_with("0 scheduled again"), "{text}");
    cluster.dodo_text(&["dead", "replay", "--force"])?;
    cluster.wait_done(&dispatch, LIMIT).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_goes_to_the_api_and_nowhere_else() -> Result<()> {
    let feed = Feed::start(25, Behaviour::default()).await?;
    for auth in [
        json!({ "secret": "feed", "header": "x-key", "prefix": "Token " }),
        json!({ "secret": "feed", "query": "key" }),
    ] {
        let mut document = feed.document(10);
        document["auth"] = auth.clone();
        let (cluster, _scheduler, _workers) = cluster(&feed, &document, 1).await?;
        let refused = run(&cluster).await.unwrap_err().to_string();
        assert!(refused.contains("no secret feed"), "{refused}");
        cluster.put("/v1/secrets/feed", &json!({ "value": "hush-hush" })).await?;
        let dispatch = run(&cluster).await?;
        cluster.wait_done(&dispatch, LIMIT).await?;
        judge(&cluster, &feed, &dispatch).await?;
        let last = feed.asked().pop().expect("it was asked");
        match auth["query"].is_null() {
            true => assert_eq!(last.headers["x-key"], "Token hush-hush"),
            false => assert_eq!(last.key.as_deref(), Some("hush-hush")),
        }
        let mut seen = cluster.logs();
        for path in ["/v1/secrets", "/v1/sources", "/v1/dispatches", "/v1/jobs?limit=1000"] {
            seen += &cluster.get(path).await?.to_string();
        }
        seen += &cluster.dodo_text(&["archive", "cat", "items"])?;
        let redis = cluster.redis_command(&["XRANGE", "dodo:items", "-", "+"]).await?;
        seen += &format!("{redis:?}");
        assert!(!seen.contains("hush-hush"));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_item_that_does_not_fit_is_kept_and_replayed() -> Result<()> {
    let feed = Feed::start(12, Behaviour::default()).await?;
    let mut document = feed.document(5);
    document["fields"]["rating"] = json!("$.by.name");
    let (cluster, _scheduler, _workers) = cluster(&feed, &document, 1).await?;
    let dispatch = run(&cluster).await?;
    cluster.wait_done(&dispatch, LIMIT).await?;
    let text = cluster.dodo_text(&["records", "unfit"])?;
    assert_eq!(text.lines().count(), 12);
    assert!(text.contains("($.by.name is no number: \"author 0\")"), "{text}");
    cluster.put("/v1/sources/feed", &feed.document(5)).await?;
    assert_eq!(cluster.dodo_text(&["records", "replay", "feed"])?, "12 became records, 0 still do not fit\n");
    judge(&cluster, &feed, &dispatch).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_version_of_a_record_wins() -> Result<()> {
    let feed = Feed::start(12, Behaviour::default()).await?;
    let (cluster, _scheduler, _workers) = cluster(&feed, &feed.document(5), 1).await?;
    let dispatch = run(&cluster).await?;
    cluster.wait_done(&dispatch, LIMIT).await?;
    let sql = cluster.sql().await?;
    // One was renewed by something newer than what comes, one is older than it.
    let newer = "UPDATE record SET text = 'newer', version_at = now() + interval '1 day' WHERE external_id = 'item-3'";
    let older = "UPDATE record SET text = 'older', version_at = now() - interval '1 day' WHERE external_id = 'item-4'";
    sql.execute(newer, &[]).await?;
    sql.execute(older, &[]).await?;
    let dispatch = run(&cluster).await?;
    cluster.wait_done(&dispatch, LIMIT).await?;
    let rows = sql
        .query("SELECT text FROM record WHERE external_id IN ('item-3', 'item-4') ORDER BY external_id", &[])
        .await?;
    let texts: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(texts, ["newer", "word4 for a reader"]);
    // The same API under another name of its instance is another set of records.
    let dispatch = cluster.post("/v1/sources/feed/dispatches", &json!({ "instance": "second" })).await?;
    cluster.wait_done(&dispatch, LIMIT).await?;
    let records: i64 = sql.query_one("SELECT count(*) FROM record", &[]).await?.get(0);
    assert_eq!(records, 24);
    let csv = cluster.dodo_text(&["export", "records", "--source", "feed", "--format", "csv"])?;
    assert_eq!(csv.lines().count(), 25);
    assert!(csv.contains("feed,second,item-11,author 4,word11 for a reader,fr,,2,2023-11-14T22:13:31+00:00"), "{csv}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn why_explains_a_page_and_dead_letters_are_replayed() -> Result<()> {
    let feed = Feed::start(25, Behaviour { fail_every: 1, ..Behaviour::default() }).await?;
    let (cluster, _scheduler, _workers) = cluster(&feed, &feed.document(10), 1).await?;
    let dispatch = run(&cluster).await?;
    cluster.wait_done(&dispatch, LIMIT).await?;
    let dead: Value = serde_json::from_str(&cluster.dodo_text(&["dead", "list", "--json"])?)?;
    assert_eq!((&dead["kind"], &dead["state"]), (&json!("get_metadata"), &json!("dead")));
    let why = cluster.dodo_text(&["why", dead["id"].as_str().unwrap_or_default()])?;
    for line in ["a get_metadata job", "It is an API, asked by agreement", "It ended dead", "at try 5, "] {
        assert!(why.contains(line), "{line} is not in {why}");
    }
    feed.recover();
    assert_eq!(cluster.dodo_text(&["dead", "replay", "--kind", "get_metadata"])?, "1 scheduled again\n");
    cluster.wait_done(&dispatch, LIMIT).await?;
    assert_eq!(cluster.dodo_text(&["dead", "list"])?, "");
    judge(&cluster, &feed, &dispatch).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timer_starts_a_dispatch_every_so_often() -> Result<()> {
    let feed = Feed::start(12, Behaviour::default()).await?;
    let mut document = feed.document(5);
    document["every_s"] = json!(1);
    let (cluster, _scheduler, _workers) = cluster(&feed, &document, 1).await?;
    cluster
        .until("three dispatches", Duration::from_secs(20), async || {
            let list = cluster.get("/v1/dispatches").await?;
            Ok(list.as_array().is_some_and(|list| list.len() >= 3))
        })
        .await?;
    let (status, _) = cluster.call(reqwest::Method::DELETE, "/v1/sources/feed", "").await?;
    assert_eq!(status, 204);
    let sql = cluster.sql().await?;
    let rows = sql.query("SELECT key FROM dispatch ORDER BY id", &[]).await?;
    let keys: BTreeSet<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(keys.len(), rows.len(), "each time once");
    Ok(())
}
