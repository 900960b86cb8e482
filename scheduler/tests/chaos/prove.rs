//! Whether the checker sees anything at all: a world that is right is damaged piece by piece, and each damage must be
//! called by its name.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};

use crate::schedule::{self, Past};
use crate::world::World;

/// What is done, and what the checker must say then.
enum Damage {
    Sql(&'static str),
    /// The lines of the sites' log that have a text once more, with other words in them.
    Asked(&'static str, fn(&str) -> String),
    /// The first object that ends so: bytes of it are changed, or it is gone.
    Changed(&'static str),
    Gone(&'static str),
}

const DAMAGES: &[(&str, Damage)] = &[
    (
        "a count is wrong",
        Damage::Sql(
            "UPDATE dispatch_progress SET finished = finished + 1 WHERE ctid = (SELECT min(ctid) FROM dispatch_progress)",
        ),
    ),
    (
        "a job ended twice",
        Damage::Sql(
            "INSERT INTO crawl_log SELECT tenant, id, finished_at + interval '1 s', dispatch, kind, host, priority, attempt, depth, hops, url, url_hash, found_on, payload, remake_of, created_at, outcome FROM crawl_log WHERE kind = 'crawl' LIMIT 1",
        ),
    ),
    (
        "a page was not crawled",
        Damage::Sql(
            "DELETE FROM crawl_log WHERE id = (SELECT max(id::text)::uuid FROM crawl_log WHERE kind = 'crawl')",
        ),
    ),
    (
        "a job is left",
        Damage::Sql(
            "INSERT INTO crawl_schedule (tenant, id, dispatch, kind) SELECT tenant, gen_random_uuid(), id, 'noop' FROM dispatch LIMIT 1",
        ),
    ),
    (
        "links are not stored as they are",
        Damage::Sql(
            "UPDATE page_link SET lines = lines || E'\\nhttp://x/' WHERE ctid = (SELECT min(ctid) FROM page_link)",
        ),
    ),
    ("records are not the items", Damage::Sql("DELETE FROM record WHERE ctid = (SELECT min(ctid) FROM record)")),
    (
        "a record is not its item",
        Damage::Sql("UPDATE record SET text = 'x' WHERE ctid = (SELECT min(ctid) FROM record)"),
    ),
    (
        "stored pages are not those that ended well",
        Damage::Sql("DELETE FROM page_scrape WHERE ctid = (SELECT min(ctid) FROM page_scrape)"),
    ),
    (
        "a wrong outcome",
        Damage::Sql(
            "UPDATE crawl_log SET outcome = 'dead' WHERE id = (SELECT min(id::text)::uuid FROM crawl_log WHERE kind = 'noop' AND outcome = 'ok')",
        ),
    ),
    (
        "an attempt was burned",
        Damage::Sql(
            "UPDATE crawl_log SET attempt = 3 WHERE id = (SELECT min(id::text)::uuid FROM crawl_log WHERE kind = 'page_dispatch')",
        ),
    ),
    (
        "a result is not archived",
        Damage::Sql(
            "INSERT INTO raw_result (tenant, generation, stream, ms, seq, dispatch, job) SELECT 'default', 1, 'pages', 1, 1, id, id FROM dispatch LIMIT 1",
        ),
    ),
    (
        "a dispatch that nobody submitted",
        Damage::Sql(
            "WITH d AS (INSERT INTO dispatch (tenant, id, kind, spec) VALUES ('default', gen_random_uuid(), 'noop', '{}') RETURNING *) INSERT INTO dispatch_progress (tenant, dispatch) SELECT tenant, id FROM d",
        ),
    ),
    (
        "a result is archived other than once",
        Damage::Sql(
            "UPDATE crawl_log SET raw_seq = raw_seq + 1000000 WHERE id = (SELECT min(id::text)::uuid FROM crawl_log WHERE raw_stream = 'pages')",
        ),
    ),
    ("an index is not what its sidecar says", Damage::Gone(".cdxj")),
    ("an archived object is not what its sidecar says", Damage::Changed(".warc.gz")),
    ("an archived object is gone", Damage::Gone(".ndjson.zst")),
    ("too many or too soon at one host", Damage::Asked("/robots.txt", str::to_owned)),
    ("a forbidden page was asked for", Damage::Asked("/robots.txt", |line| line.replace("/robots.txt", "/private/1"))),
    ("a call was repeated that may not be", Damage::Asked("/items?page=1&", str::to_owned)),
];

/// Damages a world that was found right.
pub async fn run(world: &Arc<World>, past: &[Past]) -> Result<()> {
    for (says, damage) in DAMAGES {
        let before = schedule::check(world, past)?;
        ensure!(!before.violations.iter().any(|line| line.starts_with(says)), "{says}: said before the damage");
        match damage {
            Damage::Sql(sql) => {
                let rows = world.sql().await?.execute(*sql, &[]).await.with_context(|| *says)?;
                ensure!(rows > 0, "{says}: nothing to damage");
            }
            Damage::Asked(text, change) => again(&world.dir.path().join("sites.ndjson"), text, *change)?,
            Damage::Changed(end) => {
                let path = object(world, end)?;
                let mut bytes = std::fs::read(&path)?;
                bytes.push(b'x');
                std::fs::write(path, bytes)?;
            }
            Damage::Gone(end) => std::fs::remove_file(object(world, end)?)?,
        }
        let after = schedule::check(world, past)?;
        ensure!(
            after.violations.iter().any(|line| line.starts_with(says)),
            "the checker does not see it: {says}; it says {:?}",
            after.violations
        );
    }
    println!("the checker sees {} kinds of damage", DAMAGES.len());
    Ok(())
}

fn again(log: &Path, text: &str, change: fn(&str) -> String) -> Result<()> {
    let lines = std::fs::read_to_string(log)?;
    let more: String = lines.lines().filter(|line| line.contains(text)).map(|line| change(line) + "\n").collect();
    ensure!(!more.is_empty(), "nobody asked for {text}");
    std::fs::write(log, lines + &more)?;
    Ok(())
}

fn object(world: &World, end: &str) -> Result<PathBuf> {
    let mut dirs = vec![world.dir.path().join("s3/objects").join(crate::cluster::BUCKET).join("archive")];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir)?.flatten() {
            let path = entry.path();
            match path.is_dir() {
                true => dirs.push(path),
                false if path.to_string_lossy().ends_with(end) => return Ok(path),
                false => {}
            }
        }
    }
    anyhow::bail!("no object ends {end}")
}
