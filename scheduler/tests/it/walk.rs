//! Many jobs of a paused dispatch stand before one of another: each refill looks at few of them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dodo_common::db::pool::Db;
use dodo_common::db::schedule::{self, Look, PAST_ROWS_MAX, Past, Position};
use serde_json::json;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::cluster::Cluster;

const PAUSED: i64 = 5000;
const LIMIT: i64 = 32;

/// A dispatch with so many no-op jobs, one due each millisecond until `until_ms` ago.
async fn add(sql: &Client, count: i64, priority: i16, until_ms: f64, paused: bool) -> Result<Uuid> {
    let id = Uuid::now_v7();
    let paused_at = "CASE WHEN $2 THEN now() END";
    let dispatch = format!(
        "INSERT INTO dispatch (tenant, id, kind, spec, paused_at) VALUES ('default', $1, 'noop', '{{\"jobs\": 1}}', {paused_at})"
    );
    sql.execute(&dispatch, &[&id, &paused]).await?;
    let progress = "INSERT INTO dispatch_progress (tenant, dispatch) VALUES ('default', $1)";
    sql.execute(progress, &[&id]).await?;
    let delta = "INSERT INTO dispatch_delta (tenant, dispatch, scheduled) VALUES ('default', $1, $2)";
    sql.execute(delta, &[&id, &count]).await?;
    let jobs = "INSERT INTO crawl_schedule (tenant, id, dispatch, kind, priority, run_at)
        SELECT 'default', gen_random_uuid(), $1, 'noop', $3, now() - ($4::float8 + n) * interval '1 millisecond'
          FROM generate_series(1, $2::int8) n";
    sql.execute(jobs, &[&id, &count, &priority, &until_ms]).await?;
    Ok(id)
}

/// Rows of the schedule that indexes have led to, as far as everybody has told.
async fn read_rows(sql: &Client) -> Result<i64> {
    let fetched = "SELECT idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'crawl_schedule'";
    Ok(sql.query_one(fetched, &[]).await?.get(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_passes_over_a_bounded_number_of_rows_and_the_next_goes_on() -> Result<()> {
    let cluster = Cluster::start().await?;
    let sql = cluster.sql().await?;
    let paused = add(&sql, PAUSED, 3, 10_000.0, true).await?;
    let urgent = add(&sql, 1, 2, 0.0, false).await?;
    let other = add(&sql, 1, 3, 0.0, false).await?;
    let last = add(&sql, 40, 4, 20_000.0, false).await?;
    // One connection: what it has read is told before the next look.
    let db = Db::pipeline(&cluster.postgres.url(), "test", 1)?;
    let told = async || -> Result<i64> {
        db.client().await?.batch_execute("SELECT pg_stat_force_next_flush()").await?;
        db.client().await?.batch_execute("SELECT 1").await?;
        read_rows(&sql).await
    };
    let past = Past { all: vec![paused], ..Past::default() };
    let look = |after| Look { tenant: "default".to_owned(), host: String::new(), limit: LIMIT, after };
    let (mut found, mut after, mut looks): (Vec<Uuid>, Option<Position>, usize) = (Vec::new(), None, 0);
    loop {
        let before = told().await?;
        let refill = schedule::refill(&db, &[look(after)], &past).await?.pop().context("no answer")?;
        let read = told().await? - before;
        ensure!(read <= LIMIT + PAST_ROWS_MAX + 10, "{read} rows read");
        looks += 1;
        found.extend(refill.due.iter().map(|job| job.dispatch));
        let Some(upto) = refill.upto else { break };
        ensure!(after.is_none_or(|after| after < upto), "it goes on");
        after = Some(upto);
    }
    let expected: Vec<Uuid> = [urgent, other].into_iter().chain(std::iter::repeat_n(last, 40)).collect();
    assert_eq!(found, expected, "each once, in order");
    assert!((3..=6).contains(&looks), "{looks} looks");
    // With nothing to pass over a look reads what it returns.
    let before = told().await?;
    let refill = schedule::refill(&db, &[look(None)], &Past::default()).await?.pop().context("no answer")?;
    let read = told().await? - before;
    assert_eq!((refill.due.len() as i64, refill.due[1].dispatch), (LIMIT, paused));
    assert!((LIMIT..=LIMIT + 10).contains(&read), "{read} rows read");
    Ok(())
}

/// Between a refill and the look ahead jobs are issued; what becomes due meanwhile is in neither, if each goes by its own time.
#[tokio::test(flavor = "multi_thread")]
async fn what_becomes_due_between_two_looks_is_told() -> Result<()> {
    let cluster = Cluster::start().await?;
    let sql = cluster.sql().await?;
    let db = Db::pipeline(&cluster.postgres.url(), "test", 1)?;
    // It connects before the time runs.
    drop(db.client().await?);
    add(&sql, 1, 3, -2000.0, false).await?;
    let look = Look { tenant: "default".to_owned(), host: String::new(), limit: LIMIT, after: None };
    let elsewhere = Look { host: "http://nowhere".to_owned(), ..look.clone() };
    let refills = schedule::refill(&db, &[elsewhere, look], &Past::default()).await?;
    assert!(refills.iter().all(|refill| refill.due.is_empty() && refill.upto.is_none()), "{refills:?}");
    tokio::time::sleep(Duration::from_millis(2200)).await;
    let flows: Vec<_> = refills.into_iter().map(|refill| ((refill.tenant, refill.host), refill.read_at)).collect();
    assert_eq!(schedule::next_due(&db, &flows).await?, [(flows[1].0.clone(), 0)]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_behind_many_of_a_paused_dispatch_is_done_and_those_when_it_goes_on() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let sql = cluster.sql().await?;
    let paused = add(&sql, PAUSED, 0, 10_000.0, true).await?;
    let _scheduler = cluster.scheduler().await?;
    let _worker = cluster.worker()?;
    for _ in 0..3 {
        let other = cluster.post("/v1/noops", &json!({ "count": 1 })).await?;
        cluster.wait_done(&other, Duration::from_secs(20)).await?;
    }
    let finished = cluster.progress(&paused.to_string()).await?["progress"]["finished"].as_i64();
    assert_eq!(finished, Some(0));
    let (status, answer) =
        cluster.call(reqwest::Method::POST, &format!("/v1/dispatches/{paused}/resume"), String::new()).await?;
    ensure!(status == 200, "{status} {answer}");
    cluster.wait_done(&paused.to_string(), Duration::from_secs(60)).await?;
    let done = "SELECT count(*) FROM crawl_log WHERE dispatch = $1 AND outcome = 'ok' AND attempt = 0";
    assert_eq!(sql.query_one(done, &[&paused]).await?.get::<_, i64>(0), PAUSED);
    Ok(())
}
