//! Who is declared lost, and who is not; the leader ends the sessions of a worker with an open transaction.

use std::time::Duration;

use anyhow::{Context, Result};
use dodo_common::db::leader;
use dodo_common::db::pool::Db;
use dodo_common::db::worker::{self, session_name};
use uuid::Uuid;

use crate::cluster::Cluster;
use crate::commit::registration;

/// A worker sits in a transaction that share-locks its row; it is declared lost by a session of `url`'s login.
async fn a_frozen_worker_is_declared_lost(url: &str) -> Result<()> {
    let id = Uuid::now_v7();
    let (frozen, other) =
        (Db::pipeline(url, &session_name(id), 1)?, Db::pipeline(url, &session_name(Uuid::now_v7()), 1)?);
    let incarnation = worker::register(&frozen, id, None, &registration()).await?;
    let (held, bystander) = (frozen.client().await?, other.client().await?);
    held.batch_execute("BEGIN").await?;
    held.execute("SELECT authorise_worker($1, $2)", &[&incarnation.id, &incarnation.generation]).await?;

    let ours = Db::pipeline(url, "dodo-scheduler", 2)?;
    let epoch = leader::acquire(&ours, Uuid::now_v7()).await?.context("the lease is free")?;
    worker::mark_lost(&ours, epoch, id, "frozen").await?;
    assert!(!worker::is_current(&ours, &incarnation).await?);
    assert!(held.batch_execute("COMMIT").await.is_err(), "its session was ended");
    bystander.batch_execute("SELECT 1").await?;
    leader::release(&ours, epoch).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_a_frozen_worker_are_ended() -> Result<()> {
    let cluster = Cluster::start().await?;
    let sql = cluster.sql().await?;
    let superuser: bool = sql.query_one("SELECT usesuper FROM pg_user WHERE usename = session_user", &[]).await?.get(0);
    assert!(superuser, "the login of the test servers");
    a_frozen_worker_is_declared_lost(&cluster.postgres.url()).await?;
    sql.batch_execute("CREATE ROLE plain LOGIN PASSWORD 'plain' IN ROLE dodo_pipeline").await?;
    let url = cluster.postgres.url();
    let (_, place) = url.split_once('@').context("a login and a place")?;
    a_frozen_worker_is_declared_lost(&format!("postgres://plain:plain@{place}")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_heartbeats_redis_has_lost_has_a_lease() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let _scheduler = cluster.scheduler().await?;
    let _worker = cluster.worker()?;
    let sql = cluster.sql().await?;
    cluster
        .until("a worker", Duration::from_secs(20), async || {
            Ok(sql.query_opt("SELECT 1 FROM worker", &[]).await?.is_some())
        })
        .await?;
    // It has been watched for longer than a lease.
    tokio::time::sleep(Duration::from_millis(5000)).await;
    for _ in 0..20 {
        cluster.redis_command(&["DEL", "dodo:heartbeats"]).await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let lost: i64 = sql.query_one("SELECT count(*) FROM worker WHERE lost_at IS NOT NULL", &[]).await?.get(0);
    assert_eq!(lost, 0);
    Ok(())
}
