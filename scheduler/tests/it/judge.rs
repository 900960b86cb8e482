//! The judge of a crawl: reads only what the system left behind, in Postgres, in S3 and in the web's log.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use uuid::Uuid;

use crate::cluster::Cluster;
use crate::web::{Hit, Web, links};

/// Every page ended once and well, every link is stored, and the archive holds one response that counts.
pub async fn complete(cluster: &Cluster, web: &Web, dispatch: &str) -> Result<()> {
    let dispatch: Uuid = dispatch.parse()?;
    let expected: HashSet<String> = web.urls().into_iter().collect();
    let sql = cluster.sql().await?;
    let rows = sql.query("SELECT id, url, outcome, remake_of FROM crawl_log WHERE dispatch = $1", &[&dispatch]).await?;
    let mut first: HashMap<String, usize> = HashMap::new();
    let ids: HashSet<Uuid> = rows.iter().map(|row| row.get(0)).collect();
    ensure!(ids.len() == rows.len(), "a job has two rows in the log");
    let mut replaced = HashSet::new();
    for row in &rows {
        let (url, outcome, remake_of): (String, String, Option<Uuid>) = (row.get(1), row.get(2), row.get(3));
        ensure!(outcome == "ok", "{url} ended {outcome}");
        match remake_of {
            None => *first.entry(url).or_default() += 1,
            Some(before) => {
                ensure!(ids.contains(&before), "a remade result replaces a row that is not there");
                ensure!(replaced.insert(before), "a result was remade twice from the same row");
            }
        }
    }
    let found: HashSet<String> = first.keys().cloned().collect();
    ensure!(
        found == expected,
        "pages missing {:?}, unexpected {:?}",
        sample(&expected, &found),
        sample(&found, &expected)
    );
    ensure!(first.values().all(|count| *count == 1), "a page was logged twice");
    let left: i64 = sql.query_one("SELECT count(*) FROM crawl_schedule", &[]).await?.get(0);
    ensure!(left == 0, "{left} jobs are left");
    stored_links(&sql, web, dispatch).await?;
    archived(cluster, &expected)
}

async fn stored_links(sql: &tokio_postgres::Client, web: &Web, dispatch: Uuid) -> Result<()> {
    let rows = sql
        .query(
            "SELECT DISTINCT u.url, string_to_array(p.lines, E'\\n') FROM page_link p JOIN crawl_log u ON u.tenant = p.tenant AND u.url_hash = p.url_hash
              WHERE p.dispatch = $1",
            &[&dispatch],
        )
        .await?;
    let stored: HashMap<String, Vec<String>> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    ensure!(rows.len() == stored.len(), "a page has two rows of links");
    for place in &web.places {
        for n in 0..web.pages {
            let expected = links(&web.places, place, n, web.pages);
            ensure!(
                stored.get(&format!("http://{place}/{n}")) == Some(&expected),
                "the links of {place}/{n} are not stored"
            );
        }
    }
    Ok(())
}

/// From S3 alone: each URL has exactly one archived response.
pub fn archived(cluster: &Cluster, expected: &HashSet<String>) -> Result<()> {
    let mut counts: HashMap<String, usize> = HashMap::new();
    for line in cluster.dodo_text(&["archive", "cat", "pages"])?.lines() {
        let entry: Value = serde_json::from_str(line)?;
        *counts.entry(entry["url"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
    }
    let found: HashSet<String> = counts.keys().cloned().collect();
    ensure!(
        found == *expected,
        "archive: missing {:?}, unexpected {:?}",
        sample(expected, &found),
        sample(&found, expected)
    );
    let twice: Vec<_> = counts.iter().filter(|(_, count)| **count != 1).collect();
    ensure!(twice.is_empty(), "archived more than once: {twice:?}");
    cluster.dodo_text(&["archive", "verify"])?;
    Ok(())
}

/// The web's log: never two requests at once, never sooner than the delay, judged by `key`.
pub fn polite(hits: &[Hit], delay: Duration, key: impl Fn(&Hit) -> String) -> Result<()> {
    let mut by_key: HashMap<String, Vec<&Hit>> = HashMap::new();
    for hit in hits {
        by_key.entry(key(hit)).or_default().push(hit);
    }
    for (key, mut hits) in by_key {
        hits.sort_by_key(|hit| hit.start);
        for pair in hits.windows(2) {
            let gap = pair[1].start.checked_duration_since(pair[0].end);
            ensure!(
                gap.is_some_and(|gap| gap >= delay),
                "{key}: {} came {gap:?} after {} ended; {delay:?} was asked for",
                pair[1].path,
                pair[0].path
            );
        }
    }
    Ok(())
}

fn sample(of: &HashSet<String>, without: &HashSet<String>) -> Vec<String> {
    of.difference(without).take(5).cloned().collect()
}
