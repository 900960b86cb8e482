//! The group commit: many jobs end in one transaction (invariants 1, 2 and 12).

mod columns;

use std::collections::HashSet;

use uuid::Uuid;

use crate::db::commit::columns::{Columns, Retries};
use crate::db::host::{self, Hold, HostUpdate};
use crate::db::page::{self, Paged};
use crate::db::pool::{Client, Db, DbError, DbResult};
use crate::db::revisit::{self, Revisited};
use crate::db::tally::{self, Given};
use crate::db::worker::Incarnation;
use crate::model::job::{JobKey, Outcome};
use crate::model::stream_id::StreamId;

/// A job that ended, with every figure that explains it.
#[derive(Clone, Debug)]
pub struct Finished {
    pub key: JobKey,
    pub outcome: Outcome,
    pub reason: Option<String>,
    pub status: Option<i16>,
    pub content_type: Option<String>,
    pub body_bytes: i64,
    pub truncated: Option<String>,
    pub digest: Option<String>,
    pub title: Option<String>,
    pub language: Option<String>,
    pub location: Option<String>,
    pub address: Option<String>,
    /// Milliseconds since the epoch.
    pub started_ms: Option<i64>,
    pub fetch_ms: Option<i32>,
    /// Where its raw result lies: the stream and the entry.
    pub raw: Option<(&'static str, StreamId)>,
    /// Every link of the page in document order, one a line; none where there is no page. A canonical URL has
    /// no line break.
    pub links: Option<String>,
    pub link_count: i32,
    /// Links in scope that this worker knows to be in the seen-set already.
    pub known_count: i32,
    /// Links in scope that may be new.
    pub found: Vec<Found>,
    /// What it means for its page dispatch.
    pub paged: Option<Box<Paged>>,
    /// What it means for the tally of its host, where its crawl keeps one.
    pub given: Option<Box<Given>>,
    /// What it means for the visits of its page.
    pub revisited: Option<Box<Revisited>>,
}

impl Finished {
    pub fn new(key: JobKey, outcome: Outcome, reason: Option<String>) -> Self {
        Self {
            key,
            outcome,
            reason,
            status: None,
            content_type: None,
            body_bytes: 0,
            truncated: None,
            digest: None,
            title: None,
            language: None,
            location: None,
            address: None,
            started_ms: None,
            fetch_ms: None,
            raw: None,
            links: None,
            link_count: 0,
            known_count: 0,
            found: Vec::new(),
            paged: None,
            given: None,
            revisited: None,
        }
    }

    /// It is a page that had been visited before.
    pub fn is_revisit(&self) -> bool {
        self.outcome.is_page() && self.revisited.as_ref().is_some_and(|revisited| revisited.again)
    }
}

/// A link that may become a job: `id` is its id if the seen-set does not hold it yet.
#[derive(Clone, Debug)]
pub struct Found {
    pub id: Uuid,
    pub hash: Uuid,
    pub url: String,
    pub host: String,
    pub depth: i16,
    pub hops: i16,
}

/// A try that failed: its row stays, with its next attempt; or without one, where the server refused.
#[derive(Clone, Debug)]
pub struct Retry {
    pub key: JobKey,
    pub delay_ms: i64,
    pub error: String,
    /// The server refused it (429, 503), or nobody was there, after so many such: no try is counted.
    pub refusals: Option<i16>,
    /// The status of the answer, where there was one, and how long it took to fail, milliseconds, where it was sent.
    pub status: Option<i16>,
    pub took_ms: Option<i32>,
}

/// What one transaction writes.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    pub finished: Vec<Finished>,
    pub retried: Vec<Retry>,
    pub hosts: Vec<HostUpdate>,
    pub holds: Vec<Hold>,
}

impl Batch {
    fn len(&self) -> usize {
        self.finished.len() + self.retried.len() + self.hosts.len() + self.holds.len()
    }
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Committed {
    /// The jobs whose row this transaction deleted; the others had ended already.
    pub won: HashSet<Uuid>,
    /// Those of them that were logged as failed, since what they brought could not be stored.
    pub spoiled: HashSet<Uuid>,
    /// (tenant, host) that gained jobs.
    pub gained: Vec<(String, String)>,
}

const FINISH: &str = "-- finish-jobs
WITH j AS MATERIALIZED (
  SELECT * FROM unnest($1::text[], $2::uuid[], $3::int2[], $4::text[], $5::text[], $6::int2[], $7::text[],
    $8::int8[], $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::int8[],
    $16::int4[], $17::text[], $18::int8[], $19::int8[], $20::text[], $21::int4[], $22::int4[], $32::int4[])
  WITH ORDINALITY AS j(tenant, id, attempt, outcome, reason, status, content_type, body_bytes, truncated, digest, title,
    language, location, address, started_ms, fetch_ms, raw_stream, raw_ms, raw_seq, links, link_count, known_count, items, n)
), locked AS MATERIALIZED (
  -- LATERAL with a lock is one index lookup a job, whatever the planner believes of the table's size.
  SELECT s.place, j.n FROM j, LATERAL (
    SELECT c.ctid AS place FROM crawl_schedule c
     WHERE c.tenant = j.tenant AND c.id = j.id AND c.attempt = j.attempt FOR UPDATE) s
), gone AS (
  DELETE FROM crawl_schedule c WHERE c.ctid = ANY (ARRAY(SELECT place FROM locked)) RETURNING c.*, c.ctid AS place
), won AS MATERIALIZED (
  -- Joined by one column each: by three the planner expects a single row, and loops over all of them for each link. The
  -- links stay where they are: they are most of it.
  SELECT gone.*, j.n, j.outcome, j.reason, j.status, j.content_type, j.body_bytes, j.truncated, j.digest, j.title, j.language,
         j.location, j.address, j.started_ms, j.fetch_ms, j.raw_stream, j.raw_ms, j.raw_seq, j.link_count,
         j.known_count, j.items,
         -- A page that another job has stored meanwhile: this one's answer does not count.
         gone.kind = 'get_page' AND j.outcome = 'ok' AND NOT EXISTS (
           SELECT 1 FROM page_scrape p WHERE p.tenant = gone.tenant AND p.dispatch = gone.dispatch AND p.page = gone.page
              AND p.total_pages = gone.total_pages AND p.job = gone.id) AS beaten
    FROM gone JOIN locked ON locked.place = gone.place JOIN j ON j.n = locked.n
), f AS MATERIALIZED (
  SELECT * FROM unnest($23::uuid[], $24::uuid[], $25::uuid[], $26::text[], $27::text[], $28::int2[], $29::int2[])
  AS f(parent, id, hash, url, host, depth, hops)
), fresh AS (
  INSERT INTO url (tenant, hash, dispatch, job)
  -- In one order everywhere (no deadlocks), by what tells them apart at once.
  SELECT DISTINCT ON (f.hash, won.dispatch, won.tenant) won.tenant, f.hash, won.dispatch, f.id
    FROM f JOIN won ON won.id = f.parent
   ORDER BY f.hash, won.dispatch, won.tenant, f.depth, f.hops
  ON CONFLICT DO NOTHING RETURNING tenant, dispatch, hash, job
), scheduled AS (
  INSERT INTO crawl_schedule (tenant, id, dispatch, kind, host, priority, depth, hops, url, url_hash, found_on)
  SELECT fresh.tenant, f.id, fresh.dispatch, 'crawl', f.host, won.priority, f.depth, f.hops, f.url, f.hash, f.parent
    FROM fresh JOIN f ON f.id = fresh.job JOIN won ON won.id = f.parent
   -- Ids grow: each goes behind the last one.
   ORDER BY f.id
  RETURNING tenant, host, found_on
), gained AS MATERIALIZED (
  SELECT found_on, count(*) AS n FROM scheduled GROUP BY found_on
), logged AS (
  INSERT INTO crawl_log (tenant, id, finished_at, dispatch, kind, host, priority, attempt, depth, hops, url, url_hash,
    found_on, payload, remake_of, created_at, outcome, reason, status, content_type, body_bytes, truncated,
    digest, title, language, location, address, link_count, new_count, started_at, fetch_ms, worker,
    raw_stream, raw_generation, raw_ms, raw_seq, page, total_pages, crashes, alone_crashes, tries)
  SELECT w.tenant, w.id, clock_timestamp(), w.dispatch, w.kind, w.host, w.priority, w.attempt, w.depth, w.hops, w.url,
    w.url_hash, w.found_on, w.payload, w.remake_of, w.created_at, CASE WHEN w.beaten THEN 'duplicate' ELSE w.outcome END,
    w.reason, w.status, w.content_type, w.body_bytes, w.truncated, w.digest, w.title, w.language, w.location, w.address,
    w.link_count, coalesce(g.n, 0), to_timestamp(w.started_ms / 1000.0), w.fetch_ms, $30,
    -- What does not count is not archived.
    CASE WHEN NOT w.beaten THEN w.raw_stream END, CASE WHEN w.raw_stream IS NOT NULL AND NOT w.beaten THEN $31::int8 END,
    CASE WHEN NOT w.beaten THEN w.raw_ms END, CASE WHEN NOT w.beaten THEN w.raw_seq END, w.page, w.total_pages, w.crashes,
    w.alone_crashes, w.tries
    FROM won w LEFT JOIN gained g ON g.found_on = w.id
), raw AS (
  INSERT INTO raw_result (tenant, generation, stream, ms, seq, dispatch, job, processed)
  SELECT w.tenant, $31, w.raw_stream, w.raw_ms, w.raw_seq, w.dispatch, w.id, w.raw_stream <> 'items'
    FROM won w WHERE w.raw_stream IS NOT NULL AND NOT w.beaten
), linked AS (
  INSERT INTO page_link (tenant, dispatch, url_hash, job, lines)
  -- Of several visits of a page, as remakes are, the last one: a row may be written once in a statement.
  SELECT DISTINCT ON (w.tenant, w.dispatch, w.url_hash) w.tenant, w.dispatch, w.url_hash, w.id, j.links
    FROM won w JOIN j ON j.n = w.n WHERE j.links IS NOT NULL AND w.url_hash IS NOT NULL
   ORDER BY 1, 2, 3, w.started_ms DESC NULLS LAST, w.id DESC
  ON CONFLICT (tenant, dispatch, url_hash) DO UPDATE SET job = excluded.job, lines = excluded.lines
), delta AS (
  INSERT INTO dispatch_delta (tenant, dispatch, scheduled, finished, pages, failed, skipped, links, duplicates, bytes, raw, items)
  SELECT w.tenant, w.dispatch, coalesce(sum(g.n), 0), count(*),
    count(*) FILTER (WHERE w.outcome IN ('ok', 'noindex') AND w.remake_of IS NULL AND w.kind IN ('crawl', 'noop', 'get_page')
      AND NOT w.beaten),
    count(*) FILTER (WHERE w.outcome IN ('dead', 'failed', 'http_error', 'unknown')),
    count(*) FILTER (WHERE w.outcome IN ('robots', 'refused', 'unwanted', 'budget', 'cancelled')),
    coalesce(sum(w.link_count) FILTER (WHERE w.remake_of IS NULL), 0),
    coalesce(sum(w.known_count - coalesce(g.n, 0)) FILTER (WHERE w.remake_of IS NULL), 0)
      + (SELECT count(*) FROM f JOIN won p ON p.id = f.parent WHERE p.dispatch = w.dispatch AND p.remake_of IS NULL),
    coalesce(sum(w.body_bytes) FILTER (WHERE w.remake_of IS NULL), 0), count(w.raw_stream) FILTER (WHERE NOT w.beaten),
    coalesce(sum(w.items) FILTER (WHERE w.remake_of IS NULL AND NOT w.beaten), 0)
    FROM won w LEFT JOIN gained g ON g.found_on = w.id
   GROUP BY w.tenant, w.dispatch
)
SELECT id, NULL AS tenant, NULL AS host FROM won
UNION ALL SELECT DISTINCT NULL::uuid, tenant, host FROM scheduled";

/// Tries of a job that are kept: the last ones, more than a policy allows.
const TRIES_KEPT: i32 = 20;
const RETRY: &str = "-- retry-jobs
WITH j AS MATERIALIZED (
  SELECT * FROM unnest($1::text[], $2::uuid[], $3::int2[], $4::int8[], $5::text[], $6::int2[], $7::int2[], $8::int4[])
    AS j(tenant, id, attempt, delay_ms, error, refusals, status, took_ms)
), locked AS MATERIALIZED (
  SELECT s.place, j.* FROM j, LATERAL (
    SELECT c.ctid AS place FROM crawl_schedule c
     WHERE c.tenant = j.tenant AND c.id = j.id AND c.attempt = j.attempt
       AND (j.refusals IS NULL OR c.refusals = j.refusals) FOR UPDATE) s
)
UPDATE crawl_schedule c
   SET attempt = c.attempt + CASE WHEN l.refusals IS NULL THEN 1::int2 ELSE 0::int2 END,
       refusals = c.refusals + CASE WHEN l.refusals IS NULL THEN 0::int2 ELSE 1::int2 END, last_error = l.error, run_at = clock_timestamp() + l.delay_ms * interval '1 millisecond',
       tries = CASE WHEN jsonb_array_length(c.tries) >= $10 THEN c.tries - 0 ELSE coalesce(c.tries, '[]') END || jsonb_build_object(
         'at', clock_timestamp(), 'ms', l.took_ms, 'status', l.status, 'worker', $9::uuid, 'error', l.error)
  FROM locked l WHERE c.ctid = l.place";

/// Commits a batch as `worker`. A batch that the data spoils is bisected down to the one bad job, which
/// is then logged as failed, with the server's words.
///
/// # Errors
/// [`DbError::WorkerRefused`] when the incarnation is lost or its generation over: nothing was written.
pub async fn commit(db: &Db, worker: &Incarnation, batch: &Batch) -> DbResult<Committed> {
    match once(db, worker, batch).await {
        Err(error) if error.is_data() => bisect(db, worker, batch.clone(), &error).await,
        other => other,
    }
}

async fn bisect(db: &Db, worker: &Incarnation, batch: Batch, error: &DbError) -> DbResult<Committed> {
    let count = batch.len();
    let Batch { mut finished, retried, hosts, holds } = batch;
    if count <= 1 {
        let Some(bad) = finished.pop() else {
            // A retry or a host that cannot be written is dropped: the job's row is unchanged and is issued again.
            tracing::warn!(%error, "a retry or host update could not be stored and was dropped");
            return Ok(Committed::default());
        };
        let reason = format!("its result cannot be stored: {error}").replace('\0', "");
        tracing::warn!(job = %bad.key.id, %error, "a result cannot be stored; its job is logged as failed");
        let failed = Finished::new(bad.key, Outcome::Failed, Some(reason));
        let mut committed = once(db, worker, &Batch { finished: vec![failed], ..Batch::default() }).await?;
        committed.spoiled.clone_from(&committed.won);
        return Ok(committed);
    }
    // Half of one list each: every part is smaller than the whole, so this ends, whatever is at fault.
    let mut parts = Vec::with_capacity(8);
    parts.extend(halves(hosts).map(|hosts| Batch { hosts, ..Batch::default() }));
    parts.extend(halves(retried).map(|retried| Batch { retried, ..Batch::default() }));
    parts.extend(halves(holds).map(|holds| Batch { holds, ..Batch::default() }));
    parts.extend(halves(finished).map(|finished| Batch { finished, ..Batch::default() }));
    let mut all = Committed::default();
    for part in parts {
        if part.len() == 0 {
            continue;
        }
        let committed = Box::pin(commit(db, worker, &part)).await?;
        all.won.extend(committed.won);
        all.spoiled.extend(committed.spoiled);
        all.gained.extend(committed.gained);
    }
    Ok(all)
}

fn halves<T>(mut list: Vec<T>) -> [Vec<T>; 2] {
    let second = list.split_off(list.len() / 2);
    [list, second]
}

async fn once(db: &Db, worker: &Incarnation, batch: &Batch) -> DbResult<Committed> {
    if let Some(bad) = batch.finished.iter().find(|job| job.has_nul()) {
        return Err(DbError::Input(format!("job {} has a NUL byte in its result", bad.key.id)));
    }
    let started = std::time::Instant::now();
    let mut client = db.client().await?;
    let committed = transaction(&mut client, worker, batch).await.map_err(|error| match error {
        DbError::Postgres(error) => DbError::of(error),
        other => other,
    })?;
    metrics::histogram!("dodo_transaction_seconds", "name" => "commit").record(started.elapsed().as_secs_f64());
    Ok(committed)
}

/// BEGIN, authorise, write and COMMIT are sent without waiting for one another: if the authority is
/// refused, everything after it fails and COMMIT rolls back.
async fn transaction(client: &mut Client, worker: &Incarnation, batch: &Batch) -> DbResult<Committed> {
    let authorise = client.prepare_cached("SELECT authorise_worker($1, $2)").await?;
    let finish = client.prepare_cached(FINISH).await?;
    let retry = client.prepare_cached(RETRY).await?;
    let finished = distinct(&batch.finished, |job| &job.key);
    let paged: Vec<(&JobKey, &Paged)> =
        finished.iter().filter_map(|job| Some((&job.key, job.paged.as_deref()?))).collect();
    let pages = page::prepare(client, &paged).await?;
    let visits = revisit::prepare(client, &finished).await?;
    let tx = client.transaction().await?;
    let columns = Columns::of(&finished);
    let retries = Retries::of(&distinct(&batch.retried, |job| &job.key));
    let authority = async { tx.execute(&authorise, &[&worker.id, &worker.generation]).await.map_err(DbError::of) };
    // Before the jobs' rows go: it is they that say what a page dispatch may still do.
    let paging = page::settle(&tx, pages.as_ref());
    let revisiting = revisit::schedule(&tx, visits.as_ref());
    let finishing = async {
        if batch.finished.is_empty() {
            return Ok::<_, DbError>(Vec::new());
        }
        tx.query(&finish, &columns.parameters(worker)).await.map_err(DbError::of)
    };
    let hinting = revisit::hint(&tx, visits.as_ref());
    let retrying = async {
        if !batch.retried.is_empty() {
            tx.execute(&retry, &retries.parameters(worker)).await.map_err(DbError::of)?;
        }
        Ok::<_, DbError>(())
    };
    // In one order everywhere (no deadlocks); of one host the update first.
    let updates = batch.hosts.iter().map(|update| (&update.host, Some(update), None));
    let mut words: Vec<(&String, Option<&HostUpdate>, Option<&Hold>)> =
        updates.chain(batch.holds.iter().map(|hold| (&hold.host, None, Some(hold)))).collect();
    words.sort_by_key(|(host, ..)| *host);
    let hosts = async {
        for (_, update, hold) in words {
            if let Some(update) = update {
                host::update(&tx, update).await?;
            }
            if let Some(hold) = hold {
                host::hold(&tx, hold).await?;
            }
        }
        Ok::<_, DbError>(())
    };
    // The first error is the one that counts: the refusal, not the "transaction is aborted" that follows it.
    let (authority, paging, revisited, rows, hinted, retried, hosts) =
        futures::join!(authority, paging, revisiting, finishing, hinting, retrying, hosts);
    authority?;
    let mut gained = paging?;
    gained.extend(revisited?);
    let rows = rows?;
    hinted?;
    retried?;
    hosts?;
    let mut committed = Committed { gained, ..Committed::default() };
    for row in rows {
        match row.get::<_, Option<Uuid>>(0) {
            Some(id) => {
                committed.won.insert(id);
            }
            None => committed.gained.push((row.get(1), row.get(2))),
        }
    }
    // Only of jobs that were won; nothing at all where no crawl asks for it.
    let given = finished.iter().filter_map(|job| Some((&job.key, job.given.as_deref()?)));
    let won = given.filter(|(key, _)| committed.won.contains(&key.id));
    let pages: Vec<_> = won.map(|(key, given)| (key.tenant.as_str(), given)).collect();
    tally::add(&tx, &pages).await?;
    tx.commit().await.map_err(DbError::of)?;
    Ok(committed)
}

/// In key order (no deadlocks), and once each: a job twice in one statement would have each effect twice.
fn distinct<T>(jobs: &[T], key: impl Fn(&T) -> &JobKey) -> Vec<&T> {
    let mut distinct: Vec<&T> = jobs.iter().collect();
    distinct.sort_by(|a, b| key(a).cmp(key(b)));
    distinct.dedup_by(|later, first| key(later) == key(first));
    distinct
}

impl Finished {
    fn has_nul(&self) -> bool {
        [&self.reason, &self.content_type, &self.title, &self.language, &self.location]
            .into_iter()
            .flatten()
            .any(|text| text.contains('\0'))
    }
}
