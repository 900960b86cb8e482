//! What dies while a crawl runs, and that nothing is lost, nothing counts twice and nobody is hurried.

use std::time::Duration;

use anyhow::Result;
use dodo_common::stream::heartbeat::LEASE_MS;
use dodo_scheduler::local::s3::Fault;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::cluster::{Cluster, Process};
use crate::judge;
use crate::web::Web;

const HOSTS: usize = 4;
const PAGES: usize = 40;
const DELAY: Duration = Duration::from_millis(60);
const LIMIT: Duration = Duration::from_secs(90);

/// A crawl under way: some pages are fetched, most are not.
struct Run {
    cluster: Cluster,
    web: Web,
    dispatch: String,
    schedulers: Vec<Process>,
    workers: Vec<Process>,
}

impl Run {
    async fn start(schedulers: usize, workers: usize) -> Result<Self> {
        Self::start_with(schedulers, workers, &[]).await
    }

    async fn start_with(schedulers: usize, workers: usize, env: &[(&str, &str)]) -> Result<Self> {
        Self::on(Cluster::start().await?, schedulers, workers, env).await
    }

    async fn on(mut cluster: Cluster, schedulers: usize, workers: usize, env: &[(&str, &str)]) -> Result<Self> {
        let web = Web::start(HOSTS, PAGES, Duration::from_millis(5)).await?;
        cluster.open(&web.places);
        let mut run_schedulers = Vec::new();
        for _ in 0..schedulers {
            run_schedulers.push(cluster.scheduler().await?);
        }
        let workers = (0..workers).map(|_| cluster.worker_with(env)).collect::<Result<Vec<_>>>()?;
        let body =
            json!({ "urls": web.seeds(), "scope": "any", "delay_ms": DELAY.as_millis() as u64, "host_concurrency": 1 });
        let dispatch = cluster.post("/v1/crawls", &body).await?;
        // A process that is to die at a step has done little by then: the first hosts' preparations are steps as well.
        let finished = if workers.is_empty() {
            0
        } else if env.is_empty() {
            20
        } else {
            1
        };
        cluster.wait_finished(&dispatch, finished).await?;
        Ok(Self { cluster, web, dispatch, schedulers: run_schedulers, workers })
    }

    /// Lets the crawl end and judges it.
    async fn judge(&self) -> Result<()> {
        self.cluster.wait_done(&self.dispatch, LIMIT).await?;
        let judged = judge::complete(&self.cluster, &self.web, &self.dispatch).await;
        let polite = judge::polite(&self.web.hits(), DELAY, |hit| hit.host.clone());
        if judged.is_err() || polite.is_err() {
            self.cluster.print_logs();
        }
        judged.and(polite)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_dies() -> Result<()> {
    let run = Run::start(1, 2).await?;
    run.judge().await?;
    // Nothing was lost, so nothing was asked for twice.
    let pages = run.web.hits().iter().filter(|hit| hit.path != "/robots.txt").count();
    assert_eq!(pages, HOSTS * PAGES);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_killed() -> Result<()> {
    let mut run = Run::start(1, 2).await?;
    run.workers[0].kill();
    run.judge().await
}

#[tokio::test(flavor = "multi_thread")]
async fn all_workers_are_killed() -> Result<()> {
    let mut run = Run::start(1, 2).await?;
    for worker in &mut run.workers {
        worker.kill();
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    run.workers.push(run.cluster.worker()?);
    run.judge().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_drains_on_sigterm() -> Result<()> {
    let mut run = Run::start(1, 2).await?;
    run.workers[0].signal(Signal::SIGTERM);
    assert_eq!(run.workers[0].ended(Duration::from_secs(15)).await?, Some(0));
    run.judge().await?;
    let pages = run.web.hits().iter().filter(|hit| hit.path != "/robots.txt").count();
    assert_eq!(pages, HOSTS * PAGES, "a drain repeats no request");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_ends_on_sigterm_though_postgres_is_away() -> Result<()> {
    let mut run = Run::start_with(1, 1, &[("DODO_DRAIN_MS", "1000")]).await?;
    run.cluster.postgres.kill();
    tokio::time::sleep(Duration::from_millis(500)).await;
    run.workers[0].signal(Signal::SIGTERM);
    assert_eq!(run.workers[0].ended(Duration::from_secs(10)).await?, Some(0));
    run.cluster.postgres.restart()?;
    run.workers.push(run.cluster.worker()?);
    run.judge().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_is_killed_with_a_standby() -> Result<()> {
    let mut run = Run::start(2, 2).await?;
    run.schedulers[0].kill();
    run.judge().await
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_restarts() -> Result<()> {
    let mut run = Run::start(1, 2).await?;
    run.cluster.redis.kill();
    tokio::time::sleep(Duration::from_millis(500)).await;
    run.cluster.redis.restart()?;
    run.judge().await
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_cut() -> Result<()> {
    let run = Run::start(1, 2).await?;
    for _ in 0..5 {
        // A worker reads its pending list again, in which the jobs it runs stand too.
        run.cluster.redis_command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await?;
        let sql = run.cluster.sql().await?;
        sql.batch_execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
            .await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    run.judge().await?;
    let pages = run.web.hits().iter().filter(|hit| hit.path != "/robots.txt").count();
    assert_eq!(pages, HOSTS * PAGES, "a cut connection repeats no request");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_flushed() -> Result<()> {
    let run = Run::start(1, 2).await?;
    run.cluster.redis_command(&["FLUSHALL"]).await?;
    run.judge().await?;
    assert_eq!(
        run.cluster.get("/v1/status").await?["epoch"],
        1,
        "an empty Redis is no reason to wait for another lease"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_jobs_stream_is_deleted() -> Result<()> {
    let run = Run::start(1, 2).await?;
    run.cluster.redis_command(&["DEL", "dodo:jobs:fetch"]).await?;
    run.judge().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pages_stream_is_deleted() -> Result<()> {
    let run = Run::start(1, 2).await?;
    run.cluster.redis_command(&["DEL", "dodo:pages"]).await?;
    run.judge().await
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_starts_from_an_older_snapshot() -> Result<()> {
    older_snapshot(None).await
}

/// Workers go on meanwhile, and the archiver with them: what has left the stream is not to be taken for archived.
#[tokio::test(flavor = "multi_thread")]
async fn redis_starts_from_an_older_snapshot_while_nobody_leads() -> Result<()> {
    older_snapshot(Some(Duration::from_secs(3))).await
}

async fn older_snapshot(leader_sleeps: Option<Duration>) -> Result<()> {
    let mut run = Run::start(1, 2).await?;
    let data = run.cluster.dir.path().join("redis");
    let copy = run.cluster.dir.path().join("redis-before");
    let copied = std::process::Command::new("cp").arg("-a").arg(&data).arg(&copy).status()?;
    assert!(copied.success());
    run.cluster.wait_finished(&run.dispatch, 60).await?;
    if leader_sleeps.is_some() {
        run.schedulers[0].signal(Signal::SIGSTOP);
    }
    run.cluster.redis.kill();
    for entry in std::fs::read_dir(data.join("data"))? {
        let path = entry?.path();
        if path.is_dir() { std::fs::remove_dir_all(path)? } else { std::fs::remove_file(path)? }
    }
    let back = std::process::Command::new("cp").arg("-a").arg(copy.join("data/.")).arg(data.join("data")).status()?;
    assert!(back.success());
    run.cluster.redis.restart()?;
    if let Some(time) = leader_sleeps {
        tokio::time::sleep(time).await;
        run.schedulers[0].signal(Signal::SIGCONT);
    }
    run.judge().await
}

/// By hand, or as a replica that was the master for a while: entries are gone, and nothing else tells of it.
#[tokio::test(flavor = "multi_thread")]
async fn entries_leave_the_stream_unnoticed() -> Result<()> {
    let run = Run::start_with(1, 2, &[("DODO_ARCHIVE_AGE_MS", "60000")]).await?;
    run.cluster.wait_finished(&run.dispatch, 60).await?;
    // The first one, too.
    let delete = "local gone = 0
        for n, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 40)) do
            if n % 2 == 1 then gone = gone + redis.call('XDEL', KEYS[1], entry[1]) end
        end
        return gone";
    run.cluster.redis_command(&["EVAL", delete, "1", "dodo:pages"]).await?;
    run.judge().await?;
    let remade = "SELECT count(*) FROM crawl_log WHERE remake_of IS NOT NULL";
    let remade: i64 = run.cluster.sql().await?.query_one(remade, &[]).await?.get(0);
    assert_eq!(remade, 20);
    Ok(())
}

/// Nothing is behind them, so no segment misses them.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_entries_leave_the_stream_unnoticed() -> Result<()> {
    let mut run = Run::start_with(1, 1, &[("DODO_ARCHIVE_AGE_MS", "60000")]).await?;
    run.cluster.s3.set_fault(Fault::Refuse503);
    let waits = async || Ok(run.cluster.progress(&run.dispatch).await?["state"] == "archiving");
    run.cluster.until("all is fetched", LIMIT, waits).await?;
    run.workers[0].kill();
    run.cluster.redis_command(&["XTRIM", "dodo:pages", "MAXLEN", "0"]).await?;
    // As if its archiver had not come to look.
    run.cluster.sql().await?.execute("DELETE FROM archive_segment WHERE verified_at IS NULL", &[]).await?;
    run.cluster.s3.set_fault(Fault::None);
    run.workers.push(run.cluster.worker()?);
    // It is looked for twice a minute, and must wait from one look to the next.
    run.cluster.wait_done(&run.dispatch, 2 * LIMIT).await?;
    run.judge().await
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_restarts() -> Result<()> {
    let mut run = Run::start(1, 2).await?;
    run.cluster.postgres.kill();
    tokio::time::sleep(Duration::from_millis(1000)).await;
    run.cluster.postgres.restart()?;
    run.judge().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_is_down_for_a_while() -> Result<()> {
    let run = Run::start(1, 2).await?;
    run.cluster.s3.set_fault(Fault::Refuse503);
    run.cluster.wait_finished(&run.dispatch, 100).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    run.cluster.s3.set_fault(Fault::None);
    run.judge().await
}

/// The lock of whoever archives is a session's, which a frozen process keeps.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_archiver_holds_nobody_up() -> Result<()> {
    let mut run = Run::start_with(1, 1, &[("DODO_ARCHIVE_AGE_MS", "1000")]).await?;
    let sql = run.cluster.sql().await?;
    let archives = async || Ok(sql.query_one("SELECT count(*) FROM archive_segment", &[]).await?.get::<_, i64>(0) > 0);
    run.cluster.until("something is archived", LIMIT, archives).await?;
    run.workers[0].signal(Signal::SIGSTOP);
    run.workers.push(run.cluster.worker()?);
    run.judge().await
}

/// A worker dies at a step of its jobs; another goes on.
async fn a_worker_dies_at(point: &str) -> Result<()> {
    let mut run = Run::start_with(1, 1, &[("DODO_FAIL_POINT", point)]).await?;
    assert_eq!(run.workers[0].ended(Duration::from_secs(30)).await?, None, "it was stopped by a signal at {point}");
    run.workers.push(run.cluster.worker()?);
    run.judge().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_dies_before_its_commit() -> Result<()> {
    a_worker_dies_at("raw-appended@12").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_dies_after_its_commit() -> Result<()> {
    a_worker_dies_at("committed@12").await
}

/// The leader dies with entries in the stream that it has not noted.
#[tokio::test(flavor = "multi_thread")]
async fn the_leader_dies_after_a_push() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    cluster.scheduler_env.push(("DODO_FAIL_POINT".to_owned(), "jobs-pushed@20".to_owned()));
    let mut run = Run::on(cluster, 1, 2, &[("DODO_ARCHIVE_AGE_MS", "1500")]).await?;
    run.cluster.scheduler_env.pop();
    assert_eq!(run.schedulers[0].ended(Duration::from_secs(30)).await?, None, "it was stopped by a signal");
    run.schedulers.push(run.cluster.scheduler().await?);
    run.judge().await
}

/// Redis loses results, and the leader dies when the streams are back and nothing is made again yet.
#[tokio::test(flavor = "multi_thread")]
async fn the_leader_dies_before_what_redis_lost_is_made_again() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    // The first time is that of the first generation.
    cluster.scheduler_env.push(("DODO_FAIL_POINT".to_owned(), "streams-recreated@2".to_owned()));
    let mut run = Run::on(cluster, 1, 2, &[("DODO_ARCHIVE_AGE_MS", "60000")]).await?;
    run.cluster.scheduler_env.pop();
    run.cluster.redis_command(&["FLUSHALL"]).await?;
    assert_eq!(run.schedulers[0].ended(Duration::from_secs(30)).await?, None, "it was stopped by a signal");
    run.schedulers.push(run.cluster.scheduler().await?);
    run.judge().await?;
    let sql = run.cluster.sql().await?;
    let remade: i64 = sql.query_one("SELECT count(*) FROM crawl_log WHERE remake_of IS NOT NULL", &[]).await?.get(0);
    assert!(remade > 0, "nothing was lost, so this shows nothing");
    Ok(())
}

/// The archiver dies at a step; a successor resumes its plan.
async fn archiver_dies_at(step: &str) -> Result<()> {
    let mut run = Run::start_with(1, 1, &[("DODO_FAIL_POINT", step), ("DODO_ARCHIVE_AGE_MS", "1500")]).await?;
    assert_eq!(run.workers[0].ended(Duration::from_secs(30)).await?, None, "it was stopped by a signal at {step}");
    run.workers.push(run.cluster.worker()?);
    run.judge().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_archiver_dies_between_plan_and_upload() -> Result<()> {
    archiver_dies_at("archive-planned").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_archiver_dies_between_upload_and_record() -> Result<()> {
    archiver_dies_at("archive-uploaded").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_archiver_dies_between_record_and_trim() -> Result<()> {
    archiver_dies_at("archive-recorded").await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_costs_no_try() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let web = Web::start(2, 8, Duration::from_millis(5)).await?;
    cluster.open(&web.places);
    let _scheduler = cluster.scheduler().await?;
    let _worker = cluster.worker()?;
    let sql = cluster.sql().await?;
    let body = json!({ "urls": web.seeds(), "scope": "any", "delay_ms": 10, "host_concurrency": 1 });
    // What only a worker reads, for each crawl once.
    sql.batch_execute("REVOKE SELECT ON dispatch_secret FROM dodo_pipeline").await?;
    let dispatch = cluster.post("/v1/crawls", &body).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    sql.batch_execute("GRANT SELECT ON dispatch_secret TO dodo_pipeline").await?;
    cluster.wait_done(&dispatch, LIMIT).await?;
    judge::complete(&cluster, &web, &dispatch).await?;
    let tried: i64 = sql.query_one("SELECT count(*) FROM crawl_log WHERE attempt > 0", &[]).await?.get(0);
    assert_eq!(tried, 0);
    Ok(())
}

/// A worker is frozen at a step and wakes up when its jobs are another's, whose hosts it does not ask. A request that has
/// gone to its connection is on its way, which nothing calls back: only where it is frozen by chance can one be seen.
async fn a_worker_is_frozen_at(point: &str) -> Result<()> {
    let mut run = Run::start(1, 0).await?;
    // Nothing else is on its way.
    run.workers.push(run.cluster.worker_with(&[("DODO_FAIL_POINT", point), ("DODO_WORKER_PERMITS", "1")])?);
    let stat = format!("/proc/{}/stat", run.workers[0].id());
    let frozen = async || Ok(std::fs::read_to_string(&stat)?.contains(") T "));
    run.cluster.until("the worker is frozen", Duration::from_secs(30), frozen).await?;
    run.workers.push(run.cluster.worker()?);
    // Its host waits until it is lost.
    tokio::time::sleep(Duration::from_millis(LEASE_MS as u64 + 1500)).await;
    assert_ne!(run.cluster.progress(&run.dispatch).await?["state"], "done", "its host is asked at this moment");
    run.workers[0].signal(Signal::SIGCONT);
    run.judge().await?;
    let hits = run.web.hits();
    let robots = hits.iter().filter(|hit| hit.path == "/robots.txt").count();
    assert_eq!((robots, hits.len()), (HOSTS, HOSTS + HOSTS * PAGES), "what it held was another's");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_frozen_with_its_jobs_asks_for_none_of_them() -> Result<()> {
    a_worker_is_frozen_at("jobs-loaded@12=freeze").await
}

/// The third host's robots.txt: the first request to a host makes its connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_frozen_as_it_connected_sends_nothing() -> Result<()> {
    a_worker_is_frozen_at("connected@3=freeze").await
}
