//! The group commit against Postgres itself: what a batch writes, whatever stands in it.

use anyhow::Result;
use dodo_common::db::commit::{self, Batch, Finished, Found, Retry};
use dodo_common::db::host::{Hold, HostState, HostUpdate, Word};
use dodo_common::db::pool::{Db, DbError};
use dodo_common::db::revisit::{Revisited, Spared};
use dodo_common::db::worker::{self, Incarnation, Registration};
use dodo_common::model::job::{JobKey, Outcome};
use dodo_common::model::revisit::Plan;
use dodo_common::model::stream_id::StreamId;
use uuid::Uuid;

use crate::cluster::Cluster;

/// A crawl with some jobs on servers of its own, and a worker that may commit them.
pub struct Bench {
    pub cluster: Cluster,
    pub sql: tokio_postgres::Client,
    pub db: Db,
    pub worker: Incarnation,
    pub dispatch: Uuid,
}

pub fn registration() -> Registration {
    Registration {
        host: "test".to_owned(),
        address: "127.0.0.1".to_owned(),
        region: None,
        proxy: None,
        roles: vec!["fetch".to_owned()],
        version: "0".to_owned(),
        pid: 1,
        permits: 1,
    }
}

impl Bench {
    pub async fn start() -> Result<Self> {
        let cluster = Cluster::start().await?;
        let sql = cluster.sql().await?;
        let db = Db::pipeline(&cluster.postgres.url(), "test", 2)?;
        let worker = worker::register(&db, Uuid::now_v7(), None, &registration()).await?;
        let dispatch = Uuid::now_v7();
        sql.execute(
            "INSERT INTO dispatch (tenant, id, kind, spec) VALUES ('default', $1, 'crawl', '{}')",
            &[&dispatch],
        )
        .await?;
        Ok(Self { cluster, sql, db, worker, dispatch })
    }

    pub async fn job(&self, remake_of: Option<Uuid>) -> Result<JobKey> {
        let id = Uuid::now_v7();
        self.sql
            .execute(
                "INSERT INTO crawl_schedule (tenant, id, dispatch, kind, host, url, url_hash, remake_of)
                 VALUES ('default', $1, $2, 'crawl', 'http://a', 'http://a/', $1, $3)",
                &[&id, &self.dispatch, &remake_of],
            )
            .await?;
        Ok(JobKey { tenant: "default".to_owned(), id, attempt: 0 })
    }

    /// The sums over every delta: finished, pages, links, duplicates, bytes, raw.
    pub async fn deltas(&self) -> Result<Vec<i64>> {
        let row = self
            .sql
            .query_one(
                "SELECT sum(finished)::int8, sum(pages)::int8, sum(links)::int8, sum(duplicates)::int8, sum(bytes)::int8,
                        sum(raw)::int8 FROM dispatch_delta",
                &[],
            )
            .await?;
        Ok((0..6).map(|column| row.get(column)).collect())
    }

    pub async fn count(&self, of: &str) -> Result<i64> {
        Ok(self.sql.query_one(&format!("SELECT count(*) FROM {of}"), &[]).await?.get(0))
    }
}

/// A page with two links, one of them known already.
pub fn page(key: &JobKey, ms: u64) -> Finished {
    let hash = Uuid::now_v7();
    let found = Found {
        id: Uuid::now_v7(),
        hash,
        url: format!("http://a/{hash}"),
        host: "http://a".to_owned(),
        depth: 1,
        hops: 0,
    };
    Finished {
        body_bytes: 100,
        raw: Some(("pages", StreamId { ms, seq: 0 })),
        links: Some("http://a/known\nhttp://a/new".to_owned()),
        link_count: 2,
        known_count: 1,
        found: vec![found],
        ..Finished::new(key.clone(), Outcome::Ok, None)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_twice_in_a_batch_has_each_effect_once() -> Result<()> {
    let bench = Bench::start().await?;
    let key = bench.job(None).await?;
    let batch = Batch { finished: vec![page(&key, 1), page(&key, 2)], ..Batch::default() };
    let committed = commit::commit(&bench.db, &bench.worker, &batch).await?;
    assert_eq!(committed.won.len(), 1);
    assert_eq!(bench.deltas().await?, [1, 1, 2, 1, 100, 1]);
    assert_eq!(bench.count("crawl_log").await?, 1);
    assert_eq!(bench.count("raw_result").await?, 1);
    assert_eq!(bench.count("crawl_schedule").await?, 1, "the one new link");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_of_several_pages_of_a_batch_is_scheduled_once() -> Result<()> {
    let bench = Bench::start().await?;
    let (first, second, third) = (bench.job(None).await?, bench.job(None).await?, bench.job(None).await?);
    let mut pages = vec![page(&first, 1), page(&second, 2), page(&third, 3)];
    let (shared, own) = (pages[0].found[0].clone(), pages[2].found[0].clone());
    pages[1].found = vec![Found { id: Uuid::now_v7(), depth: 0, ..shared.clone() }];
    pages[2].found.push(Found { id: Uuid::now_v7(), depth: 7, ..shared.clone() });
    pages[2].links = None;
    let committed = commit::commit(&bench.db, &bench.worker, &Batch { finished: pages, ..Batch::default() }).await?;
    assert_eq!((committed.won.len(), committed.spoiled.len()), (3, 0));
    // Three links known and four found, of which two were new.
    assert_eq!(bench.deltas().await?, [3, 3, 4, 5, 300, 3]);
    assert_eq!((bench.count("url").await?, bench.count("page_link").await?), (2, 2));
    let rows = bench.sql.query("SELECT url_hash, depth FROM crawl_schedule ORDER BY depth", &[]).await?;
    let scheduled: Vec<(Uuid, i16)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(scheduled, [(shared.hash, 0), (own.hash, 1)], "by the shortest way to it");
    let new: i64 = bench.sql.query_one("SELECT sum(new_count) FROM crawl_log", &[]).await?.get(0);
    assert_eq!(new, 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_remade_page_is_not_counted_again() -> Result<()> {
    let bench = Bench::start().await?;
    let first = bench.job(None).await?;
    let batch = Batch { finished: vec![page(&first, 1)], ..Batch::default() };
    commit::commit(&bench.db, &bench.worker, &batch).await?;
    let counted = bench.deltas().await?;
    assert_eq!(counted, [1, 1, 2, 1, 100, 1]);
    let again = bench.job(Some(first.id)).await?;
    let batch = Batch { finished: vec![page(&again, 2)], ..Batch::default() };
    commit::commit(&bench.db, &bench.worker, &batch).await?;
    // It ended and its result is to be archived; what it found is what was found before.
    assert_eq!(bench.deltas().await?, [2, 1, 2, 1, 100, 2]);
    Ok(())
}

/// Results of several visits of a page that Redis lost are made again all at once.
#[tokio::test(flavor = "multi_thread")]
async fn of_several_visits_in_a_batch_the_last_one_says_the_links() -> Result<()> {
    let bench = Bench::start().await?;
    let (first, second, third) = (bench.job(None).await?, bench.job(None).await?, bench.job(None).await?);
    bench.sql.execute("UPDATE crawl_schedule SET url_hash = $1, remake_of = id", &[&first.id]).await?;
    let visit = |key: &JobKey, ms: u64, started_ms: i64, links: &str| Finished {
        started_ms: Some(started_ms),
        links: Some(links.to_owned()),
        ..page(key, ms)
    };
    let finished = vec![visit(&first, 1, 10, "x"), visit(&second, 2, 30, "y\nz"), visit(&third, 3, 20, "x")];
    let committed = commit::commit(&bench.db, &bench.worker, &Batch { finished, ..Batch::default() }).await?;
    assert_eq!((committed.won.len(), committed.spoiled.len()), (3, 0));
    assert_eq!((bench.count("crawl_log").await?, bench.count("raw_result").await?), (3, 3));
    let row = bench.sql.query_one("SELECT job, lines FROM page_link", &[]).await?;
    assert_eq!((row.get::<_, Uuid>(0), row.get::<_, &str>(1)), (second.id, "y\nz"));
    Ok(())
}

/// No statement is to write a row twice; if one does, only what does so ends as failed.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_written_twice_is_the_fault_of_the_data() -> Result<()> {
    let bench = Bench::start().await?;
    let twice = "INSERT INTO host (host) VALUES ('a'), ('a') ON CONFLICT (host) DO UPDATE SET host = excluded.host";
    let error = bench.sql.batch_execute(twice).await.expect_err("a row may be written once");
    assert_eq!(error.code().map(|code| code.code()), Some("21000"));
    assert!(DbError::of(error).is_data());
    Ok(())
}

fn host(name: &str) -> HostUpdate {
    HostUpdate {
        host: name.to_owned(),
        addresses: vec!["10.0.0.1".to_owned()],
        state: HostState::Ready,
        robots: None,
        robots_status: None,
        robots_url: None,
        robots_hops: 0,
        robots_at: None,
        crawl_delay_ms: None,
        failures: 0,
        hold_ms: None,
        valid_ms: 1000,
        last_error: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_stored_is_found_in_every_list() -> Result<()> {
    let bench = Bench::start().await?;
    // A NUL is no text to Postgres.
    let retry = |key: &JobKey, error: &str| Retry {
        key: key.clone(),
        delay_ms: 5,
        error: error.to_owned(),
        refusals: None,
        status: None,
        took_ms: None,
    };
    let hold = |name: &str, reason: &str| Hold {
        host: name.to_owned(),
        word: Word::Refuses { ms: 60_000, reason: reason.to_owned() },
    };
    let mut keys = Vec::new();
    for _ in 0..6 {
        keys.push(bench.job(None).await?);
    }
    let bad = Finished { title: Some("a\0b".to_owned()), ..page(&keys[1], 2) };
    let batch = Batch {
        finished: vec![page(&keys[0], 1), bad, page(&keys[2], 3)],
        retried: vec![retry(&keys[3], "busy"), retry(&keys[4], "a\0b"), retry(&keys[5], "busy")],
        hosts: vec![host("http://a"), host("http://b\0"), host("http://c")],
        holds: vec![hold("http://a", "slow"), hold("http://c", "a\0b")],
    };
    let committed = commit::commit(&bench.db, &bench.worker, &batch).await?;
    assert_eq!(committed.won.len(), 3);
    assert_eq!(committed.spoiled.into_iter().collect::<Vec<_>>(), [keys[1].id]);
    assert_eq!(bench.count("crawl_log WHERE outcome = 'ok'").await?, 2);
    assert_eq!(bench.count("crawl_log WHERE outcome = 'failed'").await?, 1);
    assert_eq!(bench.count("crawl_schedule WHERE attempt = 1 AND last_error = 'busy'").await?, 2);
    assert_eq!(bench.count("host").await?, 2);
    assert_eq!(bench.count("host WHERE hold_until > now() AND last_error = 'slow'").await?, 1);
    Ok(())
}

/// A sitemap brings those visits forward that it says anything new about, and none sooner than its crawl allows.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_modified_is_visited_sooner() -> Result<()> {
    const MIN_MS: i64 = 60_000;
    let bench = Bench::start().await?;
    let now_ms: i64 = bench.sql.query_one("SELECT (extract(epoch FROM now()) * 1000)::int8", &[]).await?.get(0);
    // Each a page with a visit to come in an hour: how long ago the last one was, and its attempt.
    let visited = async |ago_ms: i64, attempt: i16| -> Result<Uuid> {
        let id = Uuid::now_v7();
        let plan = serde_json::json!({ "interval_ms": 3_600_000, "last": { "at_ms": now_ms - ago_ms } });
        let row = "WITH r AS (INSERT INTO revisit (tenant, url_hash, dispatch, last, next) VALUES ('default', $1, $2, $1, $1))
             INSERT INTO crawl_schedule (tenant, id, dispatch, kind, host, url, url_hash, attempt, payload, run_at)
             VALUES ('default', $1, $2, 'crawl', 'http://b', 'http://b/', $1, $3, $4, now() + interval '1 hour')";
        bench.sql.execute(row, &[&id, &bench.dispatch, &attempt, &plan]).await?;
        Ok(id)
    };
    let [news, soon, old, again] =
        [visited(600_000, 0).await?, visited(20_000, 0).await?, visited(600_000, 0).await?, visited(600_000, 1).await?];
    let in_s = async |id: Uuid| -> Result<i64> {
        let sql = "SELECT round(extract(epoch FROM run_at - to_timestamp($2::int8 / 1000.0)))::int8 FROM crawl_schedule WHERE id = $1";
        Ok(bench.sql.query_one(sql, &[&id, &now_ms]).await?.get(0))
    };
    let commit = async |key: &JobKey, job: &JobKey| {
        let modified = [news, soon, again, Uuid::now_v7()].map(|id| (id, now_ms - 10_000)).into_iter();
        let modified = modified.chain([(old, now_ms - 600_000)]).collect();
        let revisited = Revisited { modified, min_ms: MIN_MS, ..Revisited::default() };
        let finished = Finished { key: key.clone(), revisited: Some(Box::new(revisited)), ..page(job, 1) };
        commit::commit(&bench.db, &bench.worker, &Batch { finished: vec![finished], ..Batch::default() }).await
    };
    // The result of a job that has moved on changes nothing.
    let sitemap = bench.job(None).await?;
    commit(&JobKey { attempt: 3, ..sitemap.clone() }, &sitemap).await?;
    assert_eq!(in_s(news).await?, 3600);
    let committed = commit(&sitemap, &sitemap).await?;
    assert!(committed.gained.contains(&("default".to_owned(), "http://b".to_owned())), "{committed:?}");
    assert!((0..30).contains(&in_s(news).await?), "at once");
    assert_eq!(in_s(soon).await?, (MIN_MS - 20_000) / 1000, "no sooner than the crawl allows");
    assert_eq!([in_s(old).await?, in_s(again).await?], [3600, 3600], "nothing new, and what waits for another try");
    let told = format!("crawl_schedule WHERE (payload ->> 'modified_ms')::int8 = {}", now_ms - 10_000);
    assert_eq!(bench.count(&told).await?, 2);
    Ok(())
}

/// A page that is to be visited again: its next visit comes from the job whose turn it is, and from no other.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_goes_on_by_one_job() -> Result<()> {
    let bench = Bench::start().await?;
    let visit = |key: &JobKey, ms: u64, again: bool| {
        let plan = Plan { interval_ms: Some(3_600_000), ..Plan::default() };
        let next = Some((Uuid::now_v7(), plan));
        let revisited =
            Revisited { next, again, spared: again.then_some(Spared::Transfer(70)), ..Revisited::default() };
        let found = page(key, ms);
        let (dispatch, hints) = (bench.dispatch, vec![(found.found[0].hash, 5), (Uuid::now_v7(), 6)]);
        Finished { revisited: Some(Box::new(Revisited { dispatch, hints, ..revisited })), ..found }
    };
    let commit = async |finished: Finished| {
        let batch = Batch { finished: vec![finished], ..Batch::default() };
        commit::commit(&bench.db, &bench.worker, &batch).await
    };
    let first = bench.job(None).await?;
    let committed = commit(visit(&first, 1, false)).await?;
    assert!(committed.gained.contains(&("default".to_owned(), "http://a".to_owned())));
    let pending = "crawl_schedule WHERE url = 'http://a/' AND run_at > now() + interval '59 minutes'";
    assert_eq!(bench.count(pending).await?, 1);
    assert_eq!(
        bench.count("crawl_schedule WHERE payload = '{\"interval_ms\": 5}'").await?,
        1,
        "the hint of a new page"
    );
    // Its commit again, and a result of it that is made again: neither is a visit.
    commit(visit(&first, 2, false)).await?;
    let same_page = |id: Uuid| format!("UPDATE crawl_schedule SET url_hash = '{}' WHERE id = '{id}'", first.id);
    let remake = bench.job(Some(first.id)).await?;
    bench.sql.batch_execute(&same_page(remake.id)).await?;
    commit(visit(&remake, 3, true)).await?;
    assert_eq!(bench.count(pending).await?, 1);
    // The next visit; then another job of the same page, as a replay is: the page has gone on without it.
    let next: Uuid = bench.sql.query_one(&format!("SELECT id FROM {pending}"), &[]).await?.get(0);
    commit(visit(&JobKey { id: next, ..first.clone() }, 4, true)).await?;
    let other = bench.job(None).await?;
    bench.sql.batch_execute(&same_page(other.id)).await?;
    commit(visit(&other, 5, true)).await?;
    assert_eq!(bench.count(&format!("{pending} AND id <> '{next}'")).await?, 1);
    let counted = "SELECT sum(revisits)::int8, sum(not_modified)::int8, sum(bytes_saved)::int8 FROM dispatch_delta";
    let row = bench.sql.query_one(counted, &[]).await?;
    assert_eq!((row.get(0), row.get(1), row.get(2)), (2_i64, 2_i64, 140_i64), "the remake counts nothing");
    Ok(())
}

/// After a burst the planner may take the schedule for empty: every index that can answer costs it the same then, and
/// one that holds a whole tenant under one key would be walked for each job.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_looked_up_by_its_key_whatever_the_planner_believes() -> Result<()> {
    let bench = Bench::start().await?;
    bench.job(None).await?;
    // The owner of these servers may write what a vacuum would.
    bench
        .sql
        .batch_execute(
            "UPDATE pg_class SET reltuples = 0, relpages = 100 WHERE oid = 'crawl_schedule'::regclass
                OR oid IN (SELECT indexrelid FROM pg_index WHERE indrelid = 'crawl_schedule'::regclass);
             SET enable_seqscan = off; SET ROLE dodo_pipeline",
        )
        .await?;
    let plan = async |query: &str| -> Result<String> {
        let rows = bench.sql.query(&format!("EXPLAIN (COSTS OFF) {query}"), &[]).await?;
        Ok(rows.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>().join("\n"))
    };
    let key = "c.tenant = k.tenant AND c.id = k.id";
    for query in [
        format!(
            "SELECT s.id FROM unnest(ARRAY['default'], ARRAY[gen_random_uuid()]) AS k(tenant, id),
             LATERAL (SELECT * FROM crawl_schedule c WHERE {key} AND c.attempt = 0 OFFSET 0) s"
        ),
        format!(
            "SELECT s.place FROM unnest(ARRAY['default'], ARRAY[gen_random_uuid()]) AS k(tenant, id),
             LATERAL (SELECT ctid AS place FROM crawl_schedule c WHERE {key} FOR UPDATE) s"
        ),
    ] {
        let plan = plan(&query).await?;
        assert!(plan.contains("crawl_schedule_pkey"), "{plan}");
    }
    let due = "SELECT id FROM crawl_schedule WHERE tenant = 'default' AND host = '' AND priority = 0
               AND run_at <= statement_timestamp() AND started_at IS NULL ORDER BY run_at, id LIMIT 10";
    let plan = plan(due).await?;
    assert!(plan.contains("crawl_schedule_frontier") && !plan.contains("Sort"), "{plan}");
    Ok(())
}
