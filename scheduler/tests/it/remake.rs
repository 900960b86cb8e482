//! Results that Redis lost after their crawl had spent a budget: they had counted, so they are made again.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::Result;
use reqwest::Method;
use serde_json::{Value, json};

use crate::cluster::{Cluster, Process};
use crate::judge;
use crate::web::Web;

const LIMIT: Duration = Duration::from_secs(60);
const SECONDS_MAX: u64 = 4;

/// Crawls that have spent their budgets, and whose results are in Redis alone.
struct Spent {
    cluster: Cluster,
    dispatches: Vec<String>,
    _processes: Vec<Process>,
}

impl Spent {
    /// One crawl for each of these budgets, at a host of its own.
    async fn start(budgets: &[Value]) -> Result<Self> {
        let mut cluster = Cluster::start().await?;
        let web = Web::start(budgets.len(), 12, Duration::from_millis(2)).await?;
        cluster.open(&web.places);
        let scheduler = cluster.scheduler().await?;
        // Nothing is archived until another worker comes.
        let worker = cluster.worker_with(&[("DODO_ROLES", "fetch")])?;
        // The seconds of a crawl count from when it is submitted.
        let ready = async || Ok(cluster.get("/v1/workers").await?[0]["state"] == "ready");
        cluster.until("the worker is ready", LIMIT, ready).await?;
        let mut dispatches = Vec::new();
        for (budget, urls) in budgets.iter().zip(web.urls().chunks(web.pages)) {
            let mut crawl = json!({ "urls": urls, "delay_ms": 60, "depth": 0 });
            let (crawl_fields, budget) = (crawl.as_object_mut().expect("an object"), budget.as_object().cloned());
            crawl_fields.extend(budget.unwrap_or_default());
            dispatches.push(cluster.post("/v1/crawls", &crawl).await?);
        }
        for dispatch in &dispatches {
            let ended = async || Ok(cluster.progress(dispatch).await?["state"] == "archiving");
            cluster.until("the crawl has ended", LIMIT, ended).await?;
        }
        // Whatever is made again is late, too.
        tokio::time::sleep(Duration::from_secs(SECONDS_MAX)).await;
        Ok(Self { cluster, dispatches, _processes: vec![scheduler, worker] })
    }

    /// The URLs of every result that counted.
    async fn counted(&self) -> Result<HashSet<String>> {
        let counted = "SELECT url FROM crawl_log WHERE outcome = 'ok' AND remake_of IS NULL";
        let rows = self.cluster.sql().await?.query(counted, &[]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// How many jobs that make a result again ended so.
    async fn remade(&self, outcome: &str) -> Result<i64> {
        let remade = "SELECT count(*) FROM crawl_log WHERE remake_of IS NOT NULL AND outcome = $1";
        Ok(self.cluster.sql().await?.query_one(remade, &[&outcome]).await?.get(0))
    }

    async fn order(&self, dispatch: &str, verb: &str) -> Result<u16> {
        Ok(self.cluster.call(Method::POST, &format!("/v1/dispatches/{dispatch}/{verb}"), "").await?.0)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_budget_holds_what_is_made_again() -> Result<()> {
    let budgets = [
        json!({ "max_pages": 4 }),
        json!({ "max_pages_per_host": 3 }),
        json!({ "max_bytes": 700 }),
        json!({ "max_seconds": SECONDS_MAX }),
    ];
    let spent = Spent::start(&budgets).await?;
    let counted = spent.counted().await?;
    assert!(counted.len() >= 4 + 3 + 2 + 2 && counted.len() < 4 * 12, "{}", counted.len());
    spent.cluster.redis_command(&["FLUSHALL"]).await?;
    let _archiver = spent.cluster.worker()?;
    for dispatch in &spent.dispatches {
        spent.cluster.wait_done(dispatch, LIMIT).await?;
    }
    judge::archived(&spent.cluster, &counted)?;
    assert_eq!((spent.remade("ok").await?, spent.remade("budget").await?), (counted.len() as i64, 0));
    assert_eq!(spent.counted().await?, counted, "nothing else was fetched");
    let left = "SELECT count(*) FROM dispatch_progress WHERE scheduled <> finished OR raw <> 0";
    let left: i64 = spent.cluster.sql().await?.query_one(left, &[]).await?.get(0);
    assert_eq!(left, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_its_user_holds_or_ends_what_is_made_again() -> Result<()> {
    let spent = Spent::start(&[json!({ "max_bytes": 700 }), json!({ "max_bytes": 700 })]).await?;
    let [paused, cancelled] = spent.dispatches.as_slice() else { panic!("two crawls") };
    let counted = spent.counted().await?;
    assert_eq!(spent.order(paused, "pause").await?, 200);
    assert_eq!(spent.order(cancelled, "cancel").await?, 200);
    assert_eq!(spent.order(cancelled, "pause").await?, 409, "it is ending");
    spent.cluster.redis_command(&["FLUSHALL"]).await?;
    let _archiver = spent.cluster.worker()?;
    spent.cluster.wait_done(cancelled, LIMIT).await?;
    let ended = spent.remade("cancelled").await?;
    assert!(ended > 0 && spent.remade("ok").await? == 0, "{ended}");
    assert_eq!(spent.order(paused, "resume").await?, 200);
    spent.cluster.wait_done(paused, LIMIT).await?;
    assert_eq!(spent.remade("ok").await? + ended, counted.len() as i64);
    Ok(())
}
