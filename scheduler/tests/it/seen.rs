//! The seen-set under many hands: a link is one job of its crawl, whoever finds it and when.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use dodo_common::db::commit::{self, Batch, Finished, Found};
use dodo_common::db::pool::Db;
use dodo_common::db::worker;
use dodo_common::model::job::{JobKey, Outcome};
use futures::future::try_join_all;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use uuid::Uuid;

use crate::commit::{Bench, registration};

/// Workers that commit at the same time, and the batches of each.
const WORKERS: u64 = 4;
const BATCHES: usize = 40;
/// Jobs that are there from the start; any worker may run any of them.
const STARTS: usize = 400;
/// Links that there are in the world.
const LINKS: u128 = 500;
/// Jobs of a batch that links of the last one have become, or have not.
const NEXT_MAX: usize = 8;

/// A job and its dispatch.
type Owned = (JobKey, Uuid);

/// A result with links drawn by lot, and some more that its worker knew.
fn result(key: &JobKey, dice: &mut ChaCha8Rng) -> Finished {
    let link = |n: u128| Found {
        id: Uuid::now_v7(),
        hash: Uuid::from_u128(n),
        url: format!("http://a/{n}"),
        host: "http://a".to_owned(),
        depth: 1,
        hops: 0,
    };
    let found = (0..dice.random_range(0..12)).map(|_| link(dice.random_range(0..LINKS))).collect();
    Finished { found, known_count: dice.random_range(0..3), ..Finished::new(key.clone(), Outcome::Ok, None) }
}

/// Commits the batches of one worker. Returns the results that counted, each with its dispatch.
async fn work(bench: &Bench, starts: &[Owned], n: u64) -> Result<Vec<(Uuid, Finished)>> {
    let db = Db::worker(&bench.cluster.postgres.url(), "test", 1)?;
    let worker = worker::register(&db, Uuid::now_v7(), None, &registration()).await?;
    let mut dice = ChaCha8Rng::seed_from_u64(n);
    let (mut counted, mut next) = (Vec::new(), Vec::new());
    for _ in 0..BATCHES {
        let mut jobs: Vec<Owned> = (0..3).map(|_| starts[dice.random_range(0..STARTS)].clone()).collect();
        jobs.append(&mut next);
        jobs.sort();
        jobs.dedup();
        let finished = jobs.iter().map(|(key, _)| result(key, &mut dice)).collect();
        let batch = Batch { finished, ..Batch::default() };
        let committed = commit::commit(&db, &worker, &batch).await?;
        ensure!(committed.spoiled.is_empty(), "a result could not be stored");
        for (job, (key, dispatch)) in batch.finished.into_iter().zip(jobs) {
            next.extend(job.found.iter().take(2).map(|found| (JobKey { id: found.id, ..key.clone() }, dispatch)));
            if committed.won.contains(&key.id) {
                counted.push((dispatch, job));
            }
        }
        next.truncate(NEXT_MAX);
    }
    Ok(counted)
}

/// Pairs of a link and a job, in order.
async fn pairs(bench: &Bench, query: &str, dispatch: Uuid) -> Result<Vec<(Uuid, Uuid)>> {
    let rows = bench.sql.query(query, &[&dispatch]).await?;
    let mut pairs: Vec<(Uuid, Uuid)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    pairs.sort();
    Ok(pairs)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_many_find_at_once_is_one_job_and_counted_as_one() -> Result<()> {
    let bench = Bench::start().await?;
    // Another crawl finds the same links.
    let other = Uuid::now_v7();
    let sql = "INSERT INTO dispatch (tenant, id, kind, spec) VALUES ('default', $1, 'crawl', '{}')";
    bench.sql.execute(sql, &[&other]).await?;
    let mut starts = Vec::new();
    for n in 0..STARTS {
        let dispatch = if n % 8 == 0 { other } else { bench.dispatch };
        starts.push((bench.job(None).await?, dispatch));
    }
    let of_other: Vec<Uuid> = starts.iter().filter(|(_, of)| *of == other).map(|(key, _)| key.id).collect();
    bench.sql.execute("UPDATE crawl_schedule SET dispatch = $1 WHERE id = ANY($2)", &[&other, &of_other]).await?;

    let counted = try_join_all((0..WORKERS).map(|n| work(&bench, &starts, n))).await?.concat();
    let ended: BTreeSet<Uuid> = counted.iter().map(|(_, job)| job.key.id).collect();
    assert_eq!(ended.len(), counted.len(), "a job ended twice");
    assert!(bench.count("crawl_log WHERE found_on IS NOT NULL").await? > 0, "links have ended, and were found again");
    for dispatch in [bench.dispatch, other] {
        let jobs: Vec<&Finished> = counted.iter().filter(|(of, _)| *of == dispatch).map(|(_, job)| job).collect();
        let found: BTreeSet<Uuid> = jobs.iter().flat_map(|job| &job.found).map(|found| found.hash).collect();
        // All that were ever scheduled for a link, and what the seen-set says of them.
        let scheduled = "SELECT url_hash, id FROM crawl_schedule WHERE dispatch = $1 AND found_on IS NOT NULL
             UNION ALL SELECT url_hash, id FROM crawl_log WHERE dispatch = $1 AND found_on IS NOT NULL";
        let scheduled = pairs(&bench, scheduled, dispatch).await?;
        let seen = pairs(&bench, "SELECT hash, job FROM url WHERE dispatch = $1", dispatch).await?;
        assert!(scheduled.iter().map(|(hash, _)| hash).eq(&found), "{} jobs, {} links", scheduled.len(), found.len());
        assert!(scheduled == seen, "{} jobs, {} seen", scheduled.len(), seen.len());

        let met: i64 = jobs.iter().map(|job| job.found.len() as i64 + i64::from(job.known_count)).sum();
        let (new, ended) = (found.len() as i64, jobs.len() as i64);
        let counts = "SELECT sum(scheduled)::int8, sum(duplicates)::int8, sum(finished)::int8,
                             (SELECT sum(new_count) FROM crawl_log WHERE dispatch = $1)
                        FROM dispatch_delta WHERE dispatch = $1";
        let row = bench.sql.query_one(counts, &[&dispatch]).await?;
        assert_eq!((row.get(0), row.get(1), row.get(2), row.get(3)), (new, met - new, ended, new));
        assert!(0 < new && new < met, "nothing was found twice");
    }
    Ok(())
}
