//! Housekeeping on a real Postgres.

use anyhow::{Context as _, Result};
use dodo_common::clock::Clock;
use dodo_common::db::leader;
use dodo_common::db::partition::MOVED_ROWS_MAX;
use dodo_scheduler::context::Term;
use dodo_scheduler::housekeeping::{self, Summary};
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use crate::steps;

/// So many rows of the day that comes in `in_days`, where no partition is.
const FILL: &str = "INSERT INTO crawl_log (tenant, id, finished_at, dispatch, kind, host, priority, attempt, depth, hops,
        created_at, outcome, title)
     SELECT 'default', gen_random_uuid(), date_trunc('day', now(), 'UTC') + $1::int4 * interval '1 day' + n * interval '1 second',
        gen_random_uuid(), 'crawl', 'http://a', 1, 2, 3, 4, now(), 'ok', 'title ' || n FROM generate_series(0, $2::int8 - 1) n";

async fn partition(sql: &tokio_postgres::Client, in_days: i32) -> Result<Option<i64>> {
    let sql_name = "SELECT 'crawl_log_' || to_char((now() AT TIME ZONE 'UTC')::date + $1::int4, 'YYYYMMDD')";
    let name: String = sql.query_one(sql_name, &[&in_days]).await?.get(0);
    if sql.query_one("SELECT to_regclass($1) IS NULL", &[&name]).await?.get(0) {
        return Ok(None);
    }
    Ok(Some(sql.query_one(&format!("SELECT count(*) FROM {name}"), &[]).await?.get(0)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_day_whose_rows_came_before_its_partition_gets_one_and_holds_up_no_other_day() -> Result<()> {
    let cluster = Cluster::start().await?;
    let sql = cluster.sql().await?;
    let ctx = steps::scheduler(&cluster, Clock::System)?;
    let epoch = leader::acquire(&ctx.db, ctx.id).await?.context("another leads")?;
    // Nobody renews it here.
    sql.batch_execute("UPDATE leader_lease SET expires_at = now() + interval '1 hour'").await?;
    let term = Term { epoch, over: CancellationToken::new() };
    let drop_days = "DO $$ BEGIN FOR d IN 0..2 LOOP
        EXECUTE format('DROP TABLE %I', 'crawl_log_' || to_char((now() AT TIME ZONE 'UTC')::date + d, 'YYYYMMDD'));
      END LOOP; END $$";
    sql.batch_execute(drop_days).await?;
    sql.execute(FILL, &[&0_i32, &1000_i64]).await?;
    sql.execute(FILL, &[&2_i32, &(MOVED_ROWS_MAX + 1)]).await?;
    let logged = "SELECT count(*), md5(string_agg(l::text, '' ORDER BY l.id)) FROM crawl_log l";
    let before = sql.query_one(logged, &[]).await?;

    let summary = housekeeping::tick(&ctx, &term).await?;
    assert_eq!(summary, Summary { partitions: 3, moved: 1000, crowded: 1, ..Summary::default() });
    assert_eq!(partition(&sql, 0).await?, Some(1000));
    assert_eq!(partition(&sql, 1).await?, Some(0));
    assert_eq!(partition(&sql, 2).await?, None, "too many at once");
    assert_eq!(partition(&sql, 3).await?, Some(0));
    let after = sql.query_one(logged, &[]).await?;
    assert_eq!(before.get::<_, i64>(0), after.get::<_, i64>(0));
    assert_eq!(before.get::<_, String>(1), after.get::<_, String>(1), "as they were");

    // With as many as may move, it is made; a second look does nothing.
    sql.execute("DELETE FROM crawl_log_default WHERE id = (SELECT id FROM crawl_log_default LIMIT 1)", &[]).await?;
    let summary = housekeeping::tick(&ctx, &term).await?;
    assert_eq!(summary, Summary { partitions: 1, moved: MOVED_ROWS_MAX as u64, ..Summary::default() });
    assert_eq!(housekeeping::tick(&ctx, &term).await?, Summary::default());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_day_that_fails_ends_neither_the_others_nor_the_tick() -> Result<()> {
    let cluster = Cluster::start().await?;
    let sql = cluster.sql().await?;
    let ctx = steps::scheduler(&cluster, Clock::System)?;
    let epoch = leader::acquire(&ctx.db, ctx.id).await?.context("another leads")?;
    let term = Term { epoch, over: CancellationToken::new() };
    let (day_1, day_2) = ("CURRENT_DATE + 1", "CURRENT_DATE + 2");
    // Tomorrow cannot be made: what should be its partition is another's range.
    let break_days = format!(
        "SET timezone = 'UTC'; DO $$ BEGIN
           EXECUTE format('ALTER TABLE %I RENAME TO other', 'crawl_log_' || to_char({day_1}, 'YYYYMMDD'));
           EXECUTE format('DROP TABLE %I', 'crawl_log_' || to_char({day_2}, 'YYYYMMDD'));
         END $$"
    );
    sql.batch_execute(&break_days).await?;
    let summary = housekeeping::tick(&ctx, &term).await?;
    assert_eq!(summary, Summary { partitions: 2, failed: 1, ..Summary::default() });
    assert!(partition(&sql, 2).await?.is_some());
    Ok(())
}
