//! A job of a kind that this worker does not know holds nobody up, and is not lost.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use uuid::Uuid;

use crate::cluster::Cluster;

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_kind_is_handed_back_and_the_rest_goes_on() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let _scheduler = cluster.scheduler().await?;
    let dispatch = cluster.post("/v1/noops", &json!({ "count": 6 })).await?;
    cluster
        .until("all six are issued", Duration::from_secs(10), async || {
            let issued: usize = redis::from_redis_value(cluster.redis_command(&["XLEN", "dodo:jobs:fetch"]).await?)?;
            Ok(issued == 6)
        })
        .await?;
    let sql = cluster.sql().await?;
    let future =
        "UPDATE crawl_schedule SET kind = 'future' WHERE id = (SELECT min(id::text)::uuid FROM crawl_schedule)";
    let id: Uuid = sql.query_one(&format!("{future} RETURNING id"), &[]).await?.get(0);
    let _worker = cluster.worker()?;
    cluster.wait_finished(&dispatch, 5).await?;
    cluster
        .until("it is said", Duration::from_secs(10), async || Ok(cluster.logs().contains("unknown kinds of job")))
        .await?;
    let left = sql.query("SELECT id, attempt FROM crawl_schedule", &[]).await?;
    assert_eq!(left.iter().map(|row| (row.get(0), row.get(1))).collect::<Vec<(Uuid, i16)>>(), [(id, 0)]);
    Ok(())
}
