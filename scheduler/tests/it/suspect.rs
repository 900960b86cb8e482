//! Jobs that are lost with their workers: one that kills them is quarantined, one that was only near is not harmed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dodo_common::db::pool::{Db, DbError};
use dodo_common::db::suspect::{self, Counted};
use dodo_common::db::{leader, worker};
use dodo_common::model::job::JobKey;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::cluster::{Cluster, Process};
use crate::commit::registration;

const LIMIT: Duration = Duration::from_secs(60);

/// A finished job as it counts here.
#[derive(Debug)]
struct Ended {
    id: Uuid,
    outcome: String,
    attempt: i16,
    crashes: i16,
    alone_crashes: i16,
    reason: String,
    worker: Option<Uuid>,
}

async fn ended(cluster: &Cluster, dispatch: &str) -> Result<Vec<Ended>> {
    let sql = "SELECT id, outcome, attempt, crashes, alone_crashes, coalesce(reason, ''), worker FROM crawl_log
                WHERE dispatch = $1 ORDER BY id";
    let rows = cluster.sql().await?.query(sql, &[&Uuid::parse_str(dispatch)?]).await?;
    Ok(rows
        .iter()
        .map(|row| Ended {
            id: row.get(0),
            outcome: row.get(1),
            attempt: row.get(2),
            crashes: row.get(3),
            alone_crashes: row.get(4),
            reason: row.get(5),
            worker: row.get(6),
        })
        .collect())
}

/// Every job of a dispatch ended well, each once and with its first try.
async fn all_well(cluster: &Cluster, dispatch: &str, count: usize) -> Result<Vec<Ended>> {
    let jobs = ended(cluster, dispatch).await?;
    assert_eq!(jobs.len(), count, "each once");
    for job in &jobs {
        assert_eq!((job.outcome.as_str(), job.attempt), ("ok", 0), "{job:?}");
    }
    let mut ids: Vec<Uuid> = jobs.iter().map(|job| job.id).collect();
    ids.dedup();
    assert_eq!(ids.len(), count, "each once");
    Ok(jobs)
}

async fn is_done(cluster: &Cluster, dispatch: &str) -> bool {
    cluster.progress(dispatch).await.is_ok_and(|value| value["state"] == "done")
}

/// Waits until a worker that is none of `others` holds so many jobs.
async fn holds(cluster: &Cluster, count: u64, others: &[Uuid]) -> Result<Uuid> {
    let start = Instant::now();
    while start.elapsed() < LIMIT {
        let workers = cluster.get("/v1/workers").await.unwrap_or_default();
        for worker in workers.as_array().into_iter().flatten() {
            let id = Uuid::parse_str(worker["id"].as_str().context("no id")?)?;
            if !others.contains(&id) && worker["state"] == "busy" && worker["in_flight"] == count {
                return Ok(id);
            }
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    cluster.print_logs();
    anyhow::bail!("no worker holds {count} jobs within {LIMIT:?}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poison_job_is_quarantined_and_no_other() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    cluster.worker_env.push(("DODO_WORKER_PERMITS".to_owned(), "16".to_owned()));
    let _scheduler = cluster.scheduler().await?;
    let start = || cluster.worker_with(&[("DODO_ALLOW_ABORT", "1")]);
    let mut workers = [start()?, start()?];
    let innocent = json!({ "count": 100, "sleep_ms": 300 });
    let before = cluster.post("/v1/noops", &innocent).await?;
    let poison = cluster.post("/v1/noops", &json!({ "count": 1, "abort": true, "sleep_ms": 100 })).await?;
    let after = cluster.post("/v1/noops", &innocent).await?;

    // Whoever dies is started again, as every supervisor does.
    let (begun, mut deaths) = (Instant::now(), 0);
    while begun.elapsed() < Duration::from_secs(120) {
        for worker in &mut workers {
            if worker.has_ended()? {
                deaths += 1;
                *worker = start()?;
            }
        }
        if is_done(&cluster, &before).await && is_done(&cluster, &poison).await && is_done(&cluster, &after).await {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    if !is_done(&cluster, &poison).await {
        cluster.print_logs();
    }
    let quarantined = ended(&cluster, &poison).await?;
    assert_eq!(quarantined.len(), 1);
    let job = &quarantined[0];
    assert_eq!(
        (job.outcome.as_str(), job.attempt, job.crashes, job.alone_crashes),
        ("quarantined", 0, 5, 3),
        "{job:?}"
    );
    assert_eq!(deaths, 5, "nobody else died");
    assert!(job.reason.contains("3 of them while they ran nothing else"), "{}", job.reason);
    assert_eq!(job.reason.matches("its connection is closed").count(), 5, "{}", job.reason);
    for dispatch in [&before, &after] {
        let jobs = all_well(&cluster, dispatch, 100).await?;
        assert!(jobs.iter().all(|job| job.alone_crashes == 0), "{jobs:?}");
    }
    assert_eq!(cluster.progress(&poison).await?["progress"]["failed"], 1);

    // It can be read everywhere, and replayed; where it may not abort anybody it ends at once.
    let id = job.id.to_string();
    let why = cluster.dodo_text(&["why", &id])?;
    assert!(why.contains("It ended quarantined") && why.contains("5 workers were lost while holding it, 3"), "{why}");
    let listed = cluster.dodo_text(&["jobs", "--state", "quarantined"])?;
    assert!(listed.contains(&id) && listed.contains("5 workers lost, 3 while it ran alone"), "{listed}");
    assert!(cluster.dodo_text(&["dead", "list", "--outcome", "quarantined"])?.contains(&id));
    let metrics = cluster.text("/metrics").await?;
    for line in ["dodo_jobs_quarantined_total 1", "dodo_jobs_suspect 0"] {
        assert!(metrics.lines().any(|m| m == line), "{line}: {metrics}");
    }
    for worker in &mut workers {
        worker.signal(Signal::SIGTERM);
        assert_eq!(worker.ended(LIMIT).await?, Some(0));
    }
    let _worker = cluster.worker()?;
    assert!(cluster.dodo_text(&["dead", "replay", "--outcome", "quarantined"])?.starts_with("1 scheduled again"));
    cluster.wait_done(&poison, LIMIT).await?;
    let last = ended(&cluster, &poison).await?.pop().context("it was replayed")?;
    assert_eq!((last.outcome.as_str(), last.crashes, last.alone_crashes), ("failed", 0, 0), "{last:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_whose_workers_are_killed_twice_end_well() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let _scheduler = cluster.scheduler().await?;
    let mut first = cluster.worker()?;
    let long = cluster.post("/v1/noops", &json!({ "count": 6, "sleep_ms": 3000, "payload": { "kept": true } })).await?;
    let mut killed = vec![holds(&cluster, 6, &[]).await?];
    first.kill();
    let mut second = cluster.worker()?;
    killed.push(holds(&cluster, 6, &killed).await?);
    second.kill();

    // One after the other runs; what comes meanwhile runs on another worker.
    let mut slow = cluster.worker()?;
    holds(&cluster, 1, &killed).await?;
    let _quick = cluster.worker()?;
    let others = cluster.post("/v1/noops", &json!({ "count": 50 })).await?;
    cluster.wait_done(&others, Duration::from_secs(8)).await?;
    assert!(!is_done(&cluster, &long).await, "six times three seconds have not passed");
    cluster.wait_done(&long, LIMIT).await?;
    let jobs = all_well(&cluster, &long, 6).await?;
    assert!(jobs.iter().all(|job| (job.crashes, job.alone_crashes) == (2, 0)), "{jobs:?}");
    assert_eq!(cluster.logs().matches("a suspect runs alone").count(), 6);
    slow.signal(Signal::SIGTERM);
    assert_eq!(slow.ended(LIMIT).await?, Some(0));
    Ok(())
}

/// A dispatch of jobs that a leader finds with two crashes each, as if their workers had been lost.
async fn submit_suspects(cluster: &Cluster, jobs: &[Uuid], sleep_ms: i64) -> Result<String> {
    let dispatch = Uuid::now_v7();
    let spec = json!({ "jobs": jobs.len(), "sleep_ms": sleep_ms });
    let sql = cluster.sql().await?;
    sql.execute(
        "WITH d AS (INSERT INTO dispatch (tenant, id, kind, spec) VALUES ('default', $1, 'noop', $3)),
              p AS (INSERT INTO dispatch_progress (tenant, dispatch, scheduled) VALUES ('default', $1, cardinality($2::uuid[])))
         INSERT INTO crawl_schedule (tenant, id, dispatch, kind, crashes) SELECT 'default', id, $1, 'noop', 2 FROM unnest($2::uuid[]) id",
        &[&dispatch, &jobs, &spec],
    )
    .await?;
    // Its coming is told by that of another.
    cluster.post("/v1/noops", &json!({ "count": 1 })).await?;
    Ok(dispatch.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_hands_a_waiting_suspect_back() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let _scheduler = cluster.scheduler().await?;
    let mut leaving = cluster.worker_with(&[("DODO_DRAIN_MS", "30000")])?;
    let long = cluster.post("/v1/noops", &json!({ "count": 1, "sleep_ms": 12000 })).await?;
    let first = holds(&cluster, 1, &[]).await?;
    let suspect = submit_suspects(&cluster, &[Uuid::now_v7()], 0).await?;
    holds(&cluster, 2, &[]).await?;
    leaving.signal(Signal::SIGTERM);
    let _other = cluster.worker()?;
    cluster.wait_done(&suspect, Duration::from_secs(8)).await?;
    let suspect = all_well(&cluster, &suspect, 1).await?.remove(0);
    assert_eq!((suspect.crashes, suspect.alone_crashes), (2, 0));
    assert!(suspect.worker.is_some() && suspect.worker != Some(first), "{suspect:?}");
    assert!(!leaving.has_ended()?, "the one that leaves still has its long job");
    assert_eq!(leaving.ended(LIMIT).await?, Some(0));
    cluster.wait_done(&long, LIMIT).await?;
    assert_eq!(all_well(&cluster, &long, 1).await?[0].crashes, 0, "who drains is not lost");
    Ok(())
}

/// One worker may have one suspect: the other waits for its turn, and no clock says when that comes.
#[tokio::test(flavor = "multi_thread")]
async fn why_says_that_a_suspect_waits_for_another() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let _scheduler = cluster.scheduler().await?;
    let _worker = cluster.worker()?;
    let jobs = [Uuid::now_v7(), Uuid::now_v7()];
    let dispatch = submit_suspects(&cluster, &jobs, 5000).await?;
    holds(&cluster, 1, &[]).await?;
    let mut why = Vec::new();
    for job in jobs {
        why.push(serde_json::from_str::<Value>(&cluster.dodo_text(&["why", &job.to_string(), "--json"])?)?);
    }
    why.sort_by_key(|why| why["holder"].is_null());
    let [held, waits] = &why[..] else { anyhow::bail!("{why:?}") };
    assert!(held["lines"].to_string().contains("As a suspect it begins there when all else"), "{held}");
    assert_eq!((&waits["holder"], &waits["standing"]["cause"]), (&Value::Null, &json!("suspects")), "{waits}");
    assert!(waits["standing"]["until_ms"].is_null(), "{waits}");
    let lines = waits["lines"].to_string();
    assert!(lines.contains("it is a suspect and runs alone") && lines.contains("It waits: other suspects"), "{lines}");
    cluster.wait_done(&dispatch, LIMIT).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loss_counts_once_though_the_leader_dies() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    cluster.scheduler_env.push(("DODO_FAIL_POINT".to_owned(), "crashes-counted".to_owned()));
    let mut leader = cluster.scheduler().await?;
    let ready = async || Ok(cluster.get("/v1/status").await?["dispatching"] == json!(true));
    cluster.until("the first scheduler leads", LIMIT, ready).await?;
    cluster.scheduler_env.pop();
    let _standby = cluster.scheduler().await?;
    let mut worker = cluster.worker()?;
    let long = cluster.post("/v1/noops", &json!({ "count": 4, "sleep_ms": 5000 })).await?;
    holds(&cluster, 4, &[]).await?;
    worker.kill();
    assert_eq!(leader.ended(LIMIT).await?, None, "it was stopped by a signal");
    let rows = cluster.sql().await?.query("SELECT crashes FROM crawl_schedule", &[]).await?;
    assert_eq!(rows.iter().map(|row| row.get(0)).collect::<Vec<i16>>(), [1; 4], "counted, and not taken back");
    let _worker: Process = cluster.worker()?;
    cluster.wait_done(&long, LIMIT).await?;
    let jobs = all_well(&cluster, &long, 4).await?;
    assert!(jobs.iter().all(|job| (job.crashes, job.alone_crashes) == (1, 0)), "{jobs:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loss_counts_once_and_a_drain_never() -> Result<()> {
    let cluster = Cluster::start().await?;
    let db = Db::pipeline(&cluster.postgres.url(), "test", 3)?;
    let epoch = leader::acquire(&db, Uuid::now_v7()).await?.context("the lease is free")?;
    let sql = cluster.sql().await?;
    let dispatch = Uuid::now_v7();
    sql.execute("INSERT INTO dispatch (tenant, id, kind, spec) VALUES ('default', $1, 'noop', '{}')", &[&dispatch])
        .await?;
    let mut keys = Vec::new();
    for _ in 0..3 {
        let id = Uuid::now_v7();
        let row = "INSERT INTO crawl_schedule (tenant, id, dispatch, kind) VALUES ('default', $1, $2, 'noop')";
        sql.execute(row, &[&id, &dispatch]).await?;
        keys.push(JobKey { tenant: "default".to_owned(), id, attempt: 0 });
    }
    let counts = async || -> Result<Vec<(i16, i16)>> {
        let rows = sql.query("SELECT crashes, alone_crashes FROM crawl_schedule ORDER BY id", &[]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    };
    let lost = async |drains: bool| -> Result<worker::Incarnation> {
        let incarnation = worker::register(&db, Uuid::now_v7(), None, &registration()).await?;
        if drains {
            worker::drain(&db, incarnation.id).await?;
        }
        Ok(incarnation)
    };
    let moved_on = JobKey { attempt: 1, ..keys[2].clone() };

    // One that lives, then one that is lost; the same again; one that was leaving when it was lost.
    let first = lost(false).await?;
    let held = [keys[0].clone(), keys[1].clone(), keys[0].clone(), moved_on];
    assert_eq!(suspect::count(&db, epoch, first.id, &held).await?, Counted::default(), "it is not lost");
    worker::mark_lost(&db, epoch, first.id, "it fell").await?;
    assert_eq!(suspect::count(&db, epoch, first.id, &held).await?, Counted { jobs: 2, suspects: 0 });
    assert_eq!(suspect::count(&db, epoch, first.id, &held).await?, Counted::default(), "it was counted");
    let leaving = lost(true).await?;
    assert!(suspect::begin_alone(&db, &leaving, &keys[0]).await?);
    worker::mark_lost(&db, epoch, leaving.id, "out of grace").await?;
    assert_eq!(suspect::count(&db, epoch, leaving.id, &held).await?, Counted::default());
    assert_eq!(counts().await?, [(1, 0), (1, 0), (0, 0)]);

    // The second loss makes suspects. From then on one of them after the other runs alone, seven times.
    let second = lost(false).await?;
    worker::mark_lost(&db, epoch, second.id, "it fell").await?;
    assert_eq!(suspect::count(&db, epoch, second.id, &held).await?, Counted { jobs: 2, suspects: 2 });
    assert_eq!(suspect::pending(&db).await?, 2);
    let refused = suspect::begin_alone(&db, &second, &keys[0]).await;
    assert!(matches!(refused, Err(DbError::WorkerRefused(_))), "{refused:?}");
    let mut seen = BTreeMap::new();
    for round in 1..=7 {
        let alone = lost(false).await?;
        assert!(!suspect::begin_alone(&db, &alone, &held[3]).await?, "it has moved on");
        assert!(suspect::begin_alone(&db, &alone, &keys[0]).await?);
        suspect::end_alone(&db, &alone, &keys[0]).await?;
        assert!(suspect::begin_alone(&db, &alone, &keys[1]).await?);
        worker::mark_lost(&db, epoch, alone.id, "it fell").await?;
        // Redis was lost with it: its list is empty.
        suspect::count(&db, epoch, alone.id, &[]).await?;
        suspect::count(&db, epoch, alone.id, &[]).await?;
        seen.insert(round, suspect::doomed(&db, 10).await?.len());
    }
    assert_eq!(counts().await?, [(2, 0), (9, 7), (0, 0)]);
    assert_eq!(seen.into_values().collect::<Vec<_>>(), [0, 0, 1, 1, 1, 1, 1]);
    let (tenant, id, reason) = suspect::doomed(&db, 10).await?.pop().context("one is doomed")?;
    assert_eq!((tenant.as_str(), id), ("default", keys[1].id));
    assert_eq!(reason.matches("it fell").count(), 5, "the latest reasons are kept: {reason}");
    assert!(reason.starts_with("9 workers"), "{reason}");
    Ok(())
}
