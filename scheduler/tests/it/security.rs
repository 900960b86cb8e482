//! Tenants see only their own rows, and nobody meets a schema that is not the one it knows.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use crate::cluster::Cluster;

#[tokio::test(flavor = "multi_thread")]
async fn row_level_security_is_forced() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let _scheduler = cluster.scheduler().await?;
    let _worker = cluster.worker()?;
    let dispatch = cluster.post("/v1/noops", &json!({ "count": 5 })).await?;
    cluster.wait_done(&dispatch, Duration::from_secs(30)).await?;
    let sql = cluster.sql().await?;
    sql.batch_execute("INSERT INTO tenant (id) VALUES ('other')").await?;

    // Every table that names a tenant is under forced row level security, partitions through their parent.
    let open: Vec<String> = sql
        .query(
            "SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant'
              WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relnamespace = 'public'::regnamespace
                AND NOT (c.relrowsecurity AND c.relforcerowsecurity)",
            &[],
        )
        .await?
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert!(open.is_empty(), "not protected: {open:?}");

    let count = async |tenant: &str| -> Result<i64> {
        sql.batch_execute(&format!("BEGIN; SET LOCAL ROLE dodo_tenant; SET LOCAL dodo.tenant = '{tenant}'")).await?;
        let count = sql.query_one("SELECT count(*) FROM crawl_log", &[]).await?.get(0);
        sql.batch_execute("ROLLBACK").await?;
        Ok(count)
    };
    assert_eq!(count("default").await?, 5);
    assert_eq!(count("other").await?, 0);
    sql.batch_execute("BEGIN; SET LOCAL ROLE dodo_tenant; SET LOCAL dodo.tenant = 'other'").await?;
    let forged = sql
        .execute(
            "INSERT INTO dispatch (tenant, id, kind, spec) VALUES ('default', gen_random_uuid(), 'noop', '{}')",
            &[],
        )
        .await;
    assert!(forged.is_err(), "a tenant writes only its own rows");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_schema_is_refused() -> Result<()> {
    let cluster = Cluster::start().await?;
    let sql = cluster.sql().await?;
    sql.batch_execute("INSERT INTO schema_migration (version, name, sha256) VALUES (9999, 'future', '')").await?;
    let out = cluster.dodo(&["serve", "--listen", "127.0.0.1:0"]);
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(1));
    assert!(text.contains("schema version 9999"), "{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_reaches_a_log_and_entries_carry_ids_only() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let _scheduler = cluster.scheduler().await?;
    let dispatch = cluster.post("/v1/noops", &json!({ "count": 3, "payload": { "token": "s3cr3t" } })).await?;
    cluster.until("they are issued", Duration::from_secs(20), async || Ok(cluster.issued().await? == 3)).await?;
    let entries: Vec<(String, Vec<String>)> =
        redis::from_redis_value(cluster.redis_command(&["XRANGE", "dodo:jobs:fetch", "-", "+"]).await?)?;
    for (_, fields) in &entries {
        let names: Vec<&String> = fields.iter().step_by(2).collect();
        assert_eq!(names, ["t", "j", "a"], "tenant, job, attempt");
    }
    let _worker = cluster.worker()?;
    cluster.wait_done(&dispatch, Duration::from_secs(30)).await?;
    let logs = cluster.logs();
    for secret in ["s3cr3t", cluster.s3.secret_key(), &cluster.redis.url(), &cluster.postgres.url()] {
        assert!(!logs.contains(secret), "a secret was logged");
    }
    Ok(())
}
