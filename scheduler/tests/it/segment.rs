//! Segments of the archive and the raw results that they hold, in Postgres itself.

use std::collections::HashSet;

use anyhow::Result;
use dodo_common::db::commit::{self, Batch};
use dodo_common::db::raw::{self, RawKey};
use dodo_common::db::segment::{self, Place, Segment};
use dodo_common::model::stream_id::StreamId;
use uuid::Uuid;

use crate::commit::{Bench, page};

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_is_recorded_only_by_its_plan() -> Result<()> {
    let bench = Bench::start().await?;
    let key = bench.job(None).await?;
    let batch = Batch { finished: vec![page(&key, 5)], ..Batch::default() };
    commit::commit(&bench.db, &bench.worker, &batch).await?;
    let at = StreamId { ms: 5, seq: 0 };
    let plan = segment_of(("default", "pages", bench.worker.generation), [at, at]);
    assert!(segment::record(&bench.db, &bench.worker, &plan, None).await.is_err(), "nobody has planned it");
    assert_eq!(bench.count("raw_result").await?, 1);
    segment::plan(&bench.db, &bench.worker, &[(&plan, &HashSet::from([at]))]).await?;
    segment::record(&bench.db, &bench.worker, &plan, None).await?;
    assert_eq!(bench.count("raw_result").await?, 0);
    segment::record(&bench.db, &bench.worker, &plan, None).await?;
    assert_eq!(bench.deltas().await?[5], 0, "counted down once");
    Ok(())
}

/// An entry has left the stream, and later ones are in it still: the range of their segment spans its place.
#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_its_segment_has_not_is_made_again() -> Result<()> {
    let bench = Bench::start().await?;
    let commit = async |times: &[u64]| -> Result<()> {
        let mut finished = Vec::new();
        for ms in times {
            finished.push(page(&bench.job(None).await?, *ms));
        }
        commit::commit(&bench.db, &bench.worker, &Batch { finished, ..Batch::default() }).await?;
        Ok(())
    };
    commit(&[5, 7, 9, 11]).await?;
    let at = |ms| StreamId { ms, seq: 0 };
    let of = ("default", "pages", bench.worker.generation);
    let place = async |ms| segment::place_of(&bench.db, "default", "pages", of.2, at(ms)).await;
    let plan = async |s: &Segment, present| segment::plan(&bench.db, &bench.worker, &[(s, present)]).await;
    let record = async |s: &Segment, present| segment::record(&bench.db, &bench.worker, s, Some(present)).await;
    let [whole, gap] = [[at(5), at(5)], [at(7), at(11)]].map(|ends| segment_of(of, ends));
    let (five, others) = (HashSet::from([at(5)]), HashSet::from([at(7), at(11)]));
    assert_eq!(plan(&whole, &five).await?, []);
    assert_eq!(record(&whole, &five).await?, []);
    assert_eq!(plan(&gap, &others).await?.len(), 1);
    assert_eq!(place(7).await?, None, "nothing is planned with that");
    assert_eq!(plan(&gap, &others).await?, []);
    assert_eq!(place(7).await?, Some(Place::Planned(gap.key.clone())));
    // Committed behind the plan: its entry had left before.
    commit(&[8]).await?;
    assert_eq!(record(&gap, &others).await?.len(), 1);
    assert_eq!(record(&gap, &others).await?, []);
    assert_eq!(bench.count("raw_result").await?, 0);
    assert!(matches!(place(7).await?, Some(Place::Verified(key, _)) if key == gap.key));
    for ms in [8, 9] {
        let remade = "SELECT s.id FROM crawl_schedule s JOIN crawl_log l ON l.id = s.remake_of WHERE l.raw_ms = $1";
        let job: Uuid = bench.sql.query_one(remade, &[&(ms as i64)]).await?.get(0);
        assert_eq!(place(ms).await?, Some(Place::Lost(job)), "whatever its segment spans");
    }
    assert_eq!(place(12).await?, None);
    // What another segment holds is not missing, whoever looks.
    commit(&[20, 30]).await?;
    for ms in [20, 30] {
        let other = segment_of(of, [at(ms), at(ms)]);
        assert_eq!(segment::plan(&bench.db, &bench.worker, &[(&other, &HashSet::from([at(ms)]))]).await?, []);
    }
    Ok(())
}

fn segment_of((tenant, stream, generation): (&str, &str, i64), [first, last]: [StreamId; 2]) -> Segment {
    Segment {
        tenant: tenant.to_owned(),
        generation,
        stream: stream.to_owned(),
        first,
        last,
        key: format!("archive/{tenant}/{stream}/{generation}/{first}"),
        entries: 1,
        bytes: 1,
        sha256: String::new(),
    }
}

/// What no segment holds is made again when Redis loses it; what one holds, verified or not, is the archiver's.
#[tokio::test(flavor = "multi_thread")]
async fn an_entry_is_held_by_the_last_segment_that_begins_before_it() -> Result<()> {
    let bench = Bench::start().await?;
    bench.sql.batch_execute("INSERT INTO tenant (id) VALUES ('other')").await?;
    let generation = bench.worker.generation;
    let of = ("default", "pages", generation);
    let plan = async |of, ends: [(u64, u64); 2]| -> Result<Segment> {
        let segment = segment_of(of, ends.map(|(ms, seq)| StreamId { ms, seq }));
        segment::plan(&bench.db, &bench.worker, &[(&segment, &HashSet::new())]).await?;
        Ok(segment)
    };
    let early = plan(of, [(10, 5), (20, 5)]).await?;
    let late = plan(of, [(30, 0), (30, 9)]).await?;
    let one = plan(of, [(40, 1), (40, 1)]).await?;
    // Those of others begin nearer to some of the entries, or hold them.
    for of in [("other", "pages", generation), ("default", "items", generation), ("default", "pages", generation + 1)] {
        plan(of, [(12, 0), (12, 0)]).await?;
        plan(of, [(22, 0), (28, 0)]).await?;
    }
    segment::record(&bench.db, &bench.worker, &late, None).await?;
    let entries = [
        ((9, 0), None),
        ((10, 4), None),
        ((10, 5), Some(&early)),
        ((15, 0), Some(&early)),
        ((20, 5), Some(&early)),
        ((20, 6), None),
        ((25, 0), None),
        ((30, 0), Some(&late)),
        ((30, 4), Some(&late)),
        ((30, 10), None),
        ((40, 0), None),
        ((40, 1), Some(&one)),
        ((40, 2), None),
        ((50, 0), None),
    ];
    let row = "INSERT INTO raw_result (tenant, generation, stream, ms, seq, dispatch, job) VALUES ('default', $1, 'pages', $2, $3, $4, $4)";
    for ((ms, seq), holds) in entries {
        bench.sql.execute(row, &[&generation, &(ms as i64), &(seq as i64), &bench.dispatch]).await?;
        let place = match segment::place_of(&bench.db, "default", "pages", generation, StreamId { ms, seq }).await? {
            Some(Place::Verified(key, _)) => Some((key, true)),
            Some(Place::Planned(key)) => Some((key, false)),
            other => other.map(|place| (format!("{place:?}"), false)),
        };
        let expected = holds.map(|segment| (segment.key.clone(), segment.key == late.key));
        assert_eq!(place, expected, "{ms}-{seq}");
    }
    let expected: Vec<(u64, u64)> =
        entries.iter().filter(|(_, holds)| holds.is_none()).map(|(entry, _)| *entry).collect();
    let mut found: Vec<RawKey> = Vec::new();
    loop {
        let page = raw::page(&bench.db, found.last(), 3).await?;
        if page.is_empty() {
            break;
        }
        found.extend(page);
    }
    assert_eq!(found.iter().map(|key| (key.id.ms, key.id.seq)).collect::<Vec<_>>(), expected);
    Ok(())
}

/// Each entry costs one descent of the index, however many segments there are and whatever the planner knows of them.
#[tokio::test(flavor = "multi_thread")]
async fn what_segments_hold_is_looked_up_and_not_searched() -> Result<()> {
    let bench = Bench::start().await?;
    let client = bench.db.client().await?;
    client
        .batch_execute(&format!(
            "PREPARE page(text, text, int8, int8, int8, int8) AS {};
             PREPARE place(text, text, int8, int8, int8) AS {}",
            raw::PAGE,
            segment::PLACE
        ))
        .await?;
    let look = async |what: &str| -> Result<()> {
        for ask in ["page('', '', 0, 0, 0, 10000)", "place('default', 'pages', 1, 25000, 3)"] {
            let explain = format!("EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) EXECUTE {ask}");
            let rows = client.query(&explain, &[]).await?;
            let plan = rows.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>().join("\n");
            let looks_up = plan.contains("Index Scan Backward using archive_segment_pkey");
            // A row read and left out is one of `raw_result`, or the one segment that was looked up.
            assert!(looks_up && plan.matches("archive_segment").count() == 2, "{what}: {plan}");
        }
        Ok(())
    };
    look("empty").await?;
    bench
        .sql
        .batch_execute(&format!(
            "INSERT INTO archive_segment (tenant, generation, stream, first_ms, first_seq, last_ms, last_seq, key, entries,
                    bytes, sha256)
             SELECT 'default', 1, 'pages', n * 10, 0, n * 10 + 5, 0, n::text, 1, 1, '' FROM generate_series(1, 5000) n;
             INSERT INTO raw_result (tenant, generation, stream, ms, seq, dispatch, job)
             SELECT 'default', 1, 'pages', n * 10 + 5 * (n % 2), n % 2, '{id}', '{id}' FROM generate_series(1, 5000) n",
            id = bench.dispatch
        ))
        .await?;
    look("not analysed").await?;
    assert_eq!(raw::page(&bench.db, None, 10_000).await?.len(), 2500, "every second one is right behind a segment");
    bench.sql.batch_execute("ANALYZE archive_segment, raw_result").await?;
    look("analysed").await
}
