//! Pages appended to a stream, then committed in the same batches: one pipeline, one transaction.

use anyhow::{Context as _, Result, ensure};
use redis::aio::MultiplexedConnection;
use tokio::sync::{mpsc, watch};
use tokio_postgres::{Client, NoTls, Statement};
use uuid::Uuid;

use crate::crawl::{BATCH_MAX, Crawl, Page};
use crate::page::hash;

pub const STREAM: &str = "limit:pages";
/// As a worker's sessions: every query is by key.
const OPTIONS: &str = "-c enable_seqscan=off -c enable_mergejoin=off -c jit=off";

/// What Dodo's own tables hold of a crawl, as narrow as that can be.
const TABLES: &str = "
CREATE TABLE schedule (hash uuid PRIMARY KEY, url text NOT NULL);
CREATE TABLE url (hash uuid PRIMARY KEY);
CREATE TABLE log (hash uuid PRIMARY KEY, url text NOT NULL, body_bytes int8 NOT NULL, digest text NOT NULL,
  entry text NOT NULL, finished_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE page_link (hash uuid PRIMARY KEY, links text NOT NULL)";

/// A whole transaction: the jobs go, their log, their links, the new URLs and the jobs for these come.
const COMMIT: &str = "
WITH page AS MATERIALIZED (
  SELECT * FROM unnest($1::uuid[], $2::int8[], $3::text[], $4::text[], $5::text[])
    AS p(hash, body_bytes, digest, entry, links)
), won AS (
  DELETE FROM schedule s USING page p WHERE s.hash = p.hash
  RETURNING s.hash, s.url, p.body_bytes, p.digest, p.entry, p.links
), logged AS (
  INSERT INTO log (hash, url, body_bytes, digest, entry)
  SELECT hash, url, body_bytes, digest, entry FROM won RETURNING hash
), linked AS (
  INSERT INTO page_link (hash, links) SELECT hash, links FROM won
  RETURNING 1 + length(links) - length(replace(links, E'\\n', '')) AS n
), found AS MATERIALIZED (
  SELECT * FROM unnest($6::uuid[], $7::text[]) AS f(hash, url)
), fresh AS (
  INSERT INTO url (hash) SELECT hash FROM found ORDER BY hash ON CONFLICT DO NOTHING RETURNING hash
), scheduled AS (
  INSERT INTO schedule (hash, url) SELECT f.hash, f.url FROM found f JOIN fresh USING (hash) RETURNING hash
)
SELECT (SELECT count(*) FROM logged), (SELECT coalesce(sum(n), 0) FROM linked), (SELECT count(*) FROM scheduled)";

pub struct Postgres {
    client: Client,
    commit: Statement,
}

impl Postgres {
    /// On an empty database; the seed is scheduled.
    pub async fn connect(url: &str, seed: &str) -> Result<Self> {
        let mut config: tokio_postgres::Config = url.parse()?;
        let (client, connection) = config.options(OPTIONS).connect(NoTls).await?;
        // Its errors are the client's, too.
        tokio::spawn(connection);
        client.batch_execute(TABLES).await?;
        client.execute("INSERT INTO url (hash) VALUES ($1)", &[&hash(seed)]).await?;
        client.execute("INSERT INTO schedule (hash, url) VALUES ($1, $2)", &[&hash(seed), &seed]).await?;
        let commit = client.prepare(COMMIT).await?;
        Ok(Self { client, commit })
    }
}

/// Pages with the ids of their entries.
type Appended = (Vec<Page>, Vec<String>);

/// Takes what has come meanwhile: the slower Redis and Postgres are, the larger the batches.
pub async fn append(
    redis: &mut MultiplexedConnection,
    mut fetched: mpsc::Receiver<Page>,
    appended: mpsc::Sender<Appended>,
) -> Result<()> {
    loop {
        let mut pages = Vec::with_capacity(BATCH_MAX);
        if fetched.recv_many(&mut pages, BATCH_MAX).await == 0 {
            return Ok(());
        }
        let mut pipe = redis::pipe();
        for page in &pages {
            pipe.cmd("XADD").arg(STREAM).arg("*").arg("h").arg(page.hash.as_bytes()).arg("b").arg(&page.member);
        }
        let entries = pipe.query_async(redis).await.context("Redis")?;
        appended.send((pages, entries)).await.context("nobody commits any more")?;
    }
}

#[derive(Debug, Default)]
pub struct Committed {
    pub pages: usize,
    pub links: usize,
    pub commits: usize,
}

/// Only what is committed is fetched, and may be archived: `committed` shows the last entry. Ends the crawl when every
/// URL that was found is committed.
pub async fn commit(
    crawl: &Crawl,
    postgres: Postgres,
    mut appended: mpsc::Receiver<Appended>,
    committed: watch::Sender<String>,
) -> Result<Committed> {
    let (mut all, mut scheduled) = (Committed::default(), 1);
    while let Some((pages, entries)) = appended.recv().await {
        let hashes: Vec<Uuid> = pages.iter().map(|page| page.hash).collect();
        let body_bytes: Vec<i64> = pages.iter().map(|page| page.body_bytes).collect();
        let digests: Vec<&str> = pages.iter().map(|page| page.digest.as_str()).collect();
        let links: Vec<&str> = pages.iter().map(|page| page.links.as_str()).collect();
        let found: Vec<Uuid> = pages.iter().flat_map(|page| &page.found).map(|(hash, _)| *hash).collect();
        let urls: Vec<&str> = pages.iter().flat_map(|page| &page.found).map(|(_, url)| url.as_str()).collect();
        let columns: [&(dyn tokio_postgres::types::ToSql + Sync); 7] =
            [&hashes, &body_bytes, &digests, &entries, &links, &found, &urls];
        let row = postgres.client.query_one(&postgres.commit, &columns).await.context("Postgres")?;
        let [logged, linked, fresh]: [usize; 3] = [0, 1, 2].map(|column| row.get::<_, i64>(column) as usize);
        ensure!(logged == pages.len() && fresh == found.len(), "a page or a URL was committed twice");
        all = Committed { pages: all.pages + logged, links: all.links + linked, commits: all.commits + 1 };
        scheduled += fresh;
        if let Some(last) = entries.into_iter().next_back() {
            committed.send_replace(last);
        }
        crawl.push(pages.into_iter().flat_map(|page| page.found).map(|(_, url)| url).collect::<Vec<_>>().into_iter());
        if all.pages == scheduled {
            crawl.end();
        }
    }
    Ok(all)
}
