//! A wall clock that is put back and forward: dispatch neither stands still nor hurries.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use dodo_common::clock::Clock;
use dodo_common::db::pool::Db;
use dodo_common::model::proxy_pool::ProxyPool;
use dodo_scheduler::context::{Bounds, Context, Duties};
use dodo_scheduler::leader;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use crate::judge;
use crate::web::Web;

const HOUR_MS: i64 = 3_600_000;
const DELAY: Duration = Duration::from_millis(300);

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    duties: Duties,
    #[command(flatten)]
    bounds: Bounds,
}

/// A scheduler of this process that has this clock and does nothing yet.
pub fn scheduler(cluster: &Cluster, clock: Clock) -> Result<Arc<Context>> {
    let flags = Flags::try_parse_from(["test"])?;
    let db = Db::pipeline(&cluster.postgres.url(), "dodo-test", 8)?;
    let (redis_url, store, pool) = (cluster.redis.url(), cluster.store()?, ProxyPool::default());
    let soft = CancellationToken::new();
    let mut ctx = Context::new(db, &redis_url, store, flags.duties, flags.bounds, pool, soft)?;
    Arc::get_mut(&mut ctx).context("it is shared already")?.clock = clock;
    Ok(ctx)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_of_the_wall_clock_neither_stops_nor_hurries_a_crawl() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let web = Web::start(2, 12, Duration::from_millis(5)).await?;
    cluster.open(&web.places);
    let by_ms = Arc::new(AtomicI64::new(0));
    let ctx = scheduler(&cluster, Clock::Stepped(Arc::clone(&by_ms)))?;
    let leading = tokio::spawn(leader::run(Arc::clone(&ctx)));
    let leads = async || Ok(ctx.window_ready.load(Ordering::Relaxed));
    cluster.until("it leads", Duration::from_secs(20), leads).await?;
    // A standby, whose API is asked.
    let _scheduler = cluster.scheduler().await?;
    let _worker = cluster.worker()?;
    let body = json!({ "urls": web.seeds(), "delay_ms": DELAY.as_millis() as u64, "host_concurrency": 1 });
    let dispatch = cluster.post("/v1/crawls", &body).await?;
    for (pages, step_ms) in [(4, -HOUR_MS), (8, HOUR_MS), (12, -HOUR_MS)] {
        cluster.until("so many pages", Duration::from_secs(20), async || Ok(web.hits().len() >= pages)).await?;
        by_ms.store(step_ms, Ordering::Relaxed);
    }
    cluster.wait_done(&dispatch, Duration::from_secs(30)).await?;
    judge::complete(&cluster, &web, &dispatch).await?;
    judge::polite(&web.hits(), DELAY, |hit| hit.host.clone())?;
    ctx.soft.cancel();
    Ok(leading.await?)
}
