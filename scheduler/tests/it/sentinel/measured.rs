//! What is measured, and what happens when it cannot be.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use dodo_common::db::pool::Db;
use dodo_common::stream::connection::Redis;
use dodo_scheduler::sentinel::metric::{Look, Metric};
use dodo_scheduler::sentinel::snapshot;
use nix::sys::signal::Signal;

use crate::cluster::Cluster;
use crate::sentinel::{LEADER, LONG, Watched, watching};

#[tokio::test(flavor = "multi_thread")]
async fn any_metric_that_vanishes_alerts() -> Result<()> {
    let watched = Watched::start(LEADER, "1500ms").await?;
    // The streams of a cluster that runs.
    watched.cluster.redis_command(&["XGROUP", "CREATE", "dodo:jobs:fetch", "workers", "0", "MKSTREAM"]).await?;
    let _sentinel = watched.sentinel(&[])?;
    watching(&watched.cluster, 1).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(watched.subjects(), Vec::<String>::new(), "every metric is there");
    let sql = watched.cluster.sql().await?;
    let ways: [(&str, &str, &[&str]); 3] = [
        (
            "ALTER TABLE manifest_refresh RENAME TO gone",
            "ALTER TABLE gone RENAME TO manifest_refresh",
            &["manifest_refreshes"],
        ),
        (
            "REVOKE SELECT ON leader_lease FROM dodo_pipeline",
            "GRANT SELECT ON leader_lease TO dodo_pipeline",
            &["leader"],
        ),
        (
            "REVOKE SELECT ON worker FROM dodo_pipeline",
            "GRANT SELECT ON worker TO dodo_pipeline",
            &["heartbeat_age_ms", "workers_lost", "workers_ready"],
        ),
    ];
    let mut expected = Vec::new();
    for (away, back, metrics) in ways {
        sql.batch_execute(away).await?;
        expected.extend(metrics.iter().map(|metric| format!("[dodo] vanished:{metric} fired (warning)")));
        watched.reached(expected.len(), expected.len()).await?;
        sql.batch_execute(back).await?;
        expected.extend(metrics.iter().map(|metric| format!("[dodo] vanished:{metric} resolved (warning)")));
        watched.reached(expected.len(), expected.len()).await?;
    }
    watched.cluster.redis_command(&["DEL", "dodo:jobs:fetch"]).await?;
    expected.push("[dodo] vanished:lag fired (warning)".to_owned());
    watched.told(expected.len(), expected.len()).await?;
    let mut subjects = watched.subjects();
    subjects.sort();
    expected.sort();
    assert_eq!(subjects, expected);
    let body = watched.mail.mails()[0].body();
    assert!(body.starts_with("manifest_refreshes has vanished: no sample for "), "{body}");
    assert!(body.contains("relation \"manifest_refresh\" does not exist"), "it says why: {body}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_is_what_the_servers_show() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let db = Db::pipeline(&cluster.postgres.url(), "test", 4)?;
    let redis = Redis::new(&cluster.redis.url(), "test")?;
    let look = async || -> BTreeMap<&'static str, Look> {
        let found = snapshot::look(&db, &redis, |_| 60_000).await;
        found.looks.into_iter().map(|(metric, look)| (metric.as_str(), look)).collect()
    };
    let level = |looks: &BTreeMap<&str, Look>, name: &str| match &looks[name] {
        Look::Level(value) => *value,
        other => panic!("{name}: {other:?}"),
    };
    let events = |looks: &BTreeMap<&str, Look>, name: &str| match &looks[name] {
        Look::Events(events) => events.iter().map(|(_, count)| count).sum::<i64>(),
        other => panic!("{name}: {other:?}"),
    };
    let before = look().await;
    assert_eq!(before.len(), Metric::ALL.len());
    assert_eq!((level(&before, "leader"), level(&before, "workers_ready")), (0.0, 0.0));
    assert!(matches!(&before["lag"], Look::Absent(_)), "there are no streams yet");

    let _scheduler = cluster.scheduler().await?;
    let mut first = cluster.worker()?;
    let mut second = cluster.worker()?;
    let start = Instant::now();
    while level(&look().await, "workers_ready") < 2.0 {
        ensure!(start.elapsed() < LONG, "two workers are ready");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let looks = look().await;
    for (name, expected) in [
        ("leader", 1.0),
        ("postgres_up", 1.0),
        ("redis_up", 1.0),
        ("oldest_due_ms", 0.0),
        ("horizon_age_ms", 0.0),
        ("lag", 0.0),
    ] {
        assert_eq!(level(&looks, name), expected, "{name}");
    }
    assert!(level(&looks, "heartbeat_age_ms") < 2000.0);
    assert_eq!((events(&looks, "workers_lost"), events(&looks, "dead_jobs")), (0, 0));

    // A drain ends one worker, a kill loses the other; only the latter is an event.
    first.signal(Signal::SIGTERM);
    first.ended(LONG).await?;
    second.kill();
    let start = Instant::now();
    while events(&look().await, "workers_lost") != 1 {
        ensure!(start.elapsed() < LONG, "one worker is lost");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(level(&look().await, "workers_ready"), 0.0);

    cluster
        .sql()
        .await?
        .batch_execute(
            "INSERT INTO manifest_refresh (at, ok) SELECT clock_timestamp() - s * interval '10 s', s <> 3 FROM generate_series(1, 9) s;
             INSERT INTO crawl_log (tenant, id, dispatch, kind, host, priority, attempt, depth, hops, created_at, outcome)
             SELECT 'default', gen_random_uuid(), gen_random_uuid(), 'noop', '', 0, 5, 0, 0, now(), o FROM unnest(ARRAY['dead', 'dead', 'ok']) o;
             INSERT INTO crawl_schedule (tenant, id, dispatch, kind, host, run_at)
             SELECT 'default', gen_random_uuid(), gen_random_uuid(), 'crawl', 'http://h' || h, now() - h * interval '1 min' FROM generate_series(1, 7) h",
        )
        .await?;
    cluster.redis_command(&["XADD", "dodo:items", "1000-0", "t", "x"]).await?;
    cluster.redis_command(&["XADD", "dodo:jobs:fetch", "*", "t", "x"]).await?;
    let looks = look().await;
    // Older than the scheduler's own: two went well, at 40 and 50 s; that at 30 s failed, that at 60 s is over.
    let Look::Events(refreshes) = &looks["manifest_refreshes"] else { panic!("{:?}", looks["manifest_refreshes"]) };
    assert_eq!(refreshes.iter().filter(|(age_ms, _)| *age_ms >= 25_000).count(), 2, "{refreshes:?}");
    assert_eq!(events(&looks, "dead_jobs"), 2);
    let oldest = level(&looks, "oldest_due_ms");
    assert!((420_000.0..480_000.0).contains(&oldest), "{oldest}");
    assert!(level(&looks, "horizon_age_ms") > 1e12, "as old as the epoch");
    assert!(level(&looks, "lag") >= 1.0);

    cluster.redis.kill();
    let looks = look().await;
    assert_eq!((level(&looks, "redis_up"), level(&looks, "postgres_up")), (0.0, 1.0));
    for name in ["lag", "horizon_age_ms", "workers_ready", "heartbeat_age_ms"] {
        assert!(matches!(&looks[name], Look::Absent(why) if why.contains("Redis")), "{name}: {:?}", looks[name]);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn too_few_refreshes_on_average_alert() -> Result<()> {
    let rule = "  - {name: manifests, metric: manifest_refreshes, aggregate: avg, per: 1s, window: 3s, comparison: below, \
                threshold: 0.5, for: 0s, clear_for: 0s, grace: 1m, severity: warning}\n";
    let watched = Watched::start(rule, "1h").await?;
    let sql = watched.cluster.sql().await?;
    let refresh = "INSERT INTO manifest_refresh (ok) VALUES (true), (true), (true)";
    let _sentinel = watched.sentinel(&[])?;
    watching(&watched.cluster, 1).await?;
    assert_eq!(watched.web.messages().len(), 0, "a cluster that has just begun has its grace");
    sql.batch_execute(refresh).await?;
    watched.reached(1, 1).await?;
    let body = watched.mail.mails()[0].body();
    assert!(body.starts_with("manifest_refreshes: avg per 1 s over 3 s is 0, below 0.5\n"), "{body}");
    sql.batch_execute("INSERT INTO manifest_refresh (ok) VALUES (false), (false), (false)").await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(watched.web.messages().len(), 1, "a refresh that failed is none");
    sql.batch_execute(refresh).await?;
    watched.reached(2, 2).await?;
    let body = watched.mail.mails()[1].body();
    assert!(body.starts_with("manifest_refreshes: avg per 1 s over 3 s is 1, not below 0.5\n"), "{body}");
    Ok(())
}
