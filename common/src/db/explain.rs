//! Reading the truth back: jobs, what became of a URL, exports by keyset.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::db::pool::{Db, DbResult};
use crate::model::revisit::Plan;
use crate::model::url::UrlHash;
use crate::run_tx;

/// A job, pending or finished, with every figure that explains it.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JobReport {
    pub tenant: String,
    pub id: Uuid,
    pub dispatch: Uuid,
    pub kind: String,
    pub host: String,
    pub url: Option<String>,
    /// Which page of how many, for pages of an API.
    pub page: Option<i32>,
    pub total_pages: Option<i32>,
    /// `pending`, or how it ended: ok, redirect, http_error, robots, refused, unwanted, noindex, budget, dead, failed, duplicate,
    /// cancelled, unknown, quarantined.
    pub state: String,
    pub reason: Option<String>,
    pub attempt: i16,
    /// Workers that were lost while they held it, and those of them that ran nothing else.
    #[serde(default)]
    pub crashes: i16,
    #[serde(default)]
    pub alone_crashes: i16,
    /// The higher goes first at its host.
    #[serde(default)]
    pub priority: i16,
    pub depth: i16,
    pub found_on: Option<Uuid>,
    pub remake_of: Option<Uuid>,
    /// The job that `dodo dead replay` has made of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replayed_by: Option<Uuid>,
    pub created_at: DateTime<Utc>,
    /// Pending: not before this time.
    pub run_at: Option<DateTime<Utc>>,
    pub finished_at: Option<DateTime<Utc>>,
    pub status: Option<i16>,
    pub content_type: Option<String>,
    pub body_bytes: Option<i64>,
    pub truncated: Option<String>,
    pub digest: Option<String>,
    pub title: Option<String>,
    pub language: Option<String>,
    pub location: Option<String>,
    pub address: Option<String>,
    pub link_count: Option<i32>,
    pub new_count: Option<i32>,
    pub fetch_ms: Option<i32>,
    pub worker: Option<Uuid>,
    /// The tries before the last one, oldest first; those that were lost with a worker are `crashes`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tries: Vec<Try>,
    pub raw_stream: Option<String>,
    pub raw_generation: Option<i64>,
    /// The entry of the raw stream, `ms-seq`.
    pub raw_id: Option<String>,
    /// Of a crawl that visits pages again: what this visit was told, of the visits before too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub visit: Option<Plan>,
    /// The page was as it had been. Where its own record is one of a revisit, `visit.last.original` names the job whose
    /// record holds the body.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unchanged: bool,
}

/// A try that failed, and was to be repeated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Try {
    /// When it was over.
    pub at: DateTime<Utc>,
    /// From its request on, where it came to that.
    pub ms: Option<i32>,
    /// Of its answer, where there was one.
    pub status: Option<i16>,
    pub worker: Uuid,
    pub error: String,
}

/// A page and one of its links.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PageLinks {
    pub url_hash: Uuid,
    pub job: Uuid,
    pub page: Option<String>,
    pub links: Vec<String>,
}

/// A host's own account, for `why`.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct HostReport {
    pub host: String,
    pub state: String,
    pub addresses: Vec<String>,
    pub robots_status: Option<i16>,
    /// robots.txt as it was read; nothing where there is none.
    #[serde(skip)]
    pub robots: Option<Vec<u8>>,
    pub crawl_delay_ms: Option<i64>,
    pub failures: i32,
    pub hold_until: Option<DateTime<Utc>>,
    pub last_error: Option<String>,
    pub checked_at: Option<DateTime<Utc>>,
}

const PENDING: &str = "SELECT tenant, id, dispatch, kind, host, url, 'pending' AS state, last_error AS reason, attempt, depth,
    found_on, remake_of, created_at, run_at, NULL::timestamptz AS finished_at, NULL::int2 AS status, NULL AS content_type,
    NULL::int8 AS body_bytes, NULL AS truncated, NULL AS digest, NULL AS title, NULL AS language, NULL AS location,
    NULL AS address, NULL::int4 AS link_count, NULL::int4 AS new_count, NULL::int4 AS fetch_ms, NULL::uuid AS worker,
    NULL AS raw_stream, NULL::int8 AS raw_generation, NULL::int8 AS raw_ms, NULL::int8 AS raw_seq,
    page, total_pages, crashes, alone_crashes, (-priority)::int2 AS priority,
    CASE kind WHEN 'crawl' THEN payload END AS visit, tries, NULL::uuid AS replayed_by FROM crawl_schedule";
pub(crate) const LOGGED: &str = "SELECT tenant, id, dispatch, kind, host, url, outcome AS state, reason, attempt, depth,
    found_on, remake_of, created_at, NULL::timestamptz AS run_at, finished_at, status, content_type, body_bytes, truncated,
    digest, title, language, location, address, link_count, new_count, fetch_ms, worker, raw_stream, raw_generation,
    raw_ms, raw_seq, page, total_pages, crashes, alone_crashes, (-priority)::int2 AS priority,
    CASE kind WHEN 'crawl' THEN payload END AS visit, tries, replayed_by FROM crawl_log";

/// One job by its id.
pub async fn job(db: &Db, tenant: &str, id: Uuid) -> DbResult<Option<JobReport>> {
    run_tx!(db, "explain-job", tenant: tenant, |tx| {
        let sql = format!(
            "-- explain-job\n{PENDING} WHERE tenant = $1 AND id = $2 UNION ALL {LOGGED} WHERE tenant = $1 AND id = $2 LIMIT 1"
        );
        Ok(tx.query_opt(&sql, &[&tenant, &id]).await?.map(|row| of_row(&row)))
    })
}

/// Every job of every dispatch that was scheduled for this URL, newest first, with those that replay them or make their lost
/// results again; of a page that is visited again the first, the last and the next.
pub async fn url(db: &Db, tenant: &str, hash: UrlHash) -> DbResult<Vec<JobReport>> {
    run_tx!(db, "explain-url", tenant: tenant, |tx| {
        let ids = tx
            .query(
                "-- explain-url-jobs
                 WITH RECURSIVE own AS (
                   (SELECT job AS id FROM url WHERE tenant = $1 AND hash = $2 ORDER BY job DESC LIMIT 100)
                   UNION (SELECT unnest(ARRAY[last, next]) FROM revisit WHERE tenant = $1 AND url_hash = $2 ORDER BY 1 DESC LIMIT 100)
                 ), line AS (
                   SELECT id FROM own WHERE id IS NOT NULL
                   UNION
                   SELECT heir.id FROM line JOIN crawl_log l ON l.tenant = $1 AND l.id = line.id, LATERAL (
                     SELECT l.replayed_by AS id WHERE l.replayed_by IS NOT NULL
                     UNION ALL SELECT x.remade_by FROM lost_result x WHERE x.tenant = l.tenant AND x.stream = l.raw_stream
                        AND x.generation = l.raw_generation AND x.ms = l.raw_ms AND x.seq = l.raw_seq) heir
                 ) SELECT id FROM line LIMIT 1000",
                &[&tenant, &hash.to_uuid()],
            )
            .await?;
        let ids: Vec<Uuid> = ids.iter().map(|row| row.get(0)).collect();
        let sql = format!(
            "-- explain-url\nSELECT * FROM ({PENDING} WHERE tenant = $1 AND id = ANY ($2)
             UNION ALL {LOGGED} WHERE tenant = $1 AND id = ANY ($2)) t ORDER BY created_at DESC"
        );
        Ok(tx.query(&sql, &[&tenant, &ids]).await?.iter().map(of_row).collect())
    })
}

/// Which jobs to list.
#[derive(Clone, Copy, Debug)]
pub struct JobQuery<'a> {
    pub tenant: &'a str,
    /// Pending ones, or logged ones.
    pub pending: bool,
    pub dispatch: Option<Uuid>,
    pub state: Option<&'a str>,
    /// The last id of the page before.
    pub after: Option<Uuid>,
    pub limit: i64,
}

/// Jobs in the order of their ids.
pub async fn jobs(db: &Db, query: &JobQuery<'_>) -> DbResult<Vec<JobReport>> {
    run_tx!(db, "list-jobs", tenant: query.tenant, |tx| {
        let source = if query.pending { PENDING } else { LOGGED };
        let sql = format!(
            "-- list-jobs\nSELECT * FROM ({source} WHERE tenant = $1 AND id > $2 AND ($3::uuid IS NULL OR dispatch = $3)) t
             WHERE $4::text IS NULL OR state = $4 ORDER BY id LIMIT $5"
        );
        let after = query.after.unwrap_or_default();
        let rows = tx.query(&sql, &[&query.tenant, &after, &query.dispatch, &query.state, &query.limit]).await?;
        Ok(rows.iter().map(of_row).collect())
    })
}

/// Bytes of links, as they are stored, after which an answer of [`links`] ends: a page may have thousands of them.
const LINK_BYTES_MAX: i64 = 4 << 20;

/// Pages with their links by URL hash after `after`, of one dispatch; none where there are no more.
pub async fn links(db: &Db, tenant: &str, dispatch: Uuid, after: Option<Uuid>, limit: i64) -> DbResult<Vec<PageLinks>> {
    run_tx!(db, "export-links", tenant: tenant, |tx| {
        let rows = tx
            .query(
                "-- export-links
                 SELECT p.url_hash, p.job, l.url, string_to_array(p.lines, E'\\n') FROM (
                   SELECT q.*, sum(pg_column_size(q.lines)) OVER (ORDER BY q.url_hash) - pg_column_size(q.lines) AS before FROM (
                     SELECT * FROM page_link WHERE tenant = $1 AND dispatch = $2 AND url_hash > $3
                      ORDER BY url_hash LIMIT $4) q) p
                   LEFT JOIN LATERAL (SELECT url FROM crawl_log l WHERE l.tenant = p.tenant AND l.id = p.job LIMIT 1) l ON true
                  WHERE p.before < $5 ORDER BY p.url_hash",
                &[&tenant, &dispatch, &after.unwrap_or_default(), &limit, &LINK_BYTES_MAX],
            )
            .await?;
        Ok(rows
            .iter()
            .map(|row| PageLinks { url_hash: row.get(0), job: row.get(1), page: row.get(2), links: row.get(3) })
            .collect())
    })
}

/// What is known of a host.
pub async fn host(db: &Db, name: &str) -> DbResult<Option<HostReport>> {
    let client = db.client().await?;
    let row = client
        .query_opt(
            "-- explain-host
             SELECT host, state, addresses, robots_status, robots, crawl_delay_ms, failures, hold_until, last_error, checked_at
               FROM host WHERE host = $1",
            &[&name],
        )
        .await?;
    Ok(row.map(|row| HostReport {
        host: row.get(0),
        state: row.get(1),
        addresses: row.get(2),
        robots_status: row.get(3),
        robots: row.get(4),
        crawl_delay_ms: row.get(5),
        failures: row.get(6),
        hold_until: row.get(7),
        last_error: row.get(8),
        checked_at: row.get(9),
    }))
}

pub(crate) fn of_row(row: &tokio_postgres::Row) -> JobReport {
    let raw_ms: Option<i64> = row.get("raw_ms");
    let raw_seq: Option<i64> = row.get("raw_seq");
    let visit: Option<serde_json::Value> = row.get("visit");
    let visit: Option<Plan> = visit.and_then(|visit| serde_json::from_value(visit).ok());
    let tries: Option<serde_json::Value> = row.get("tries");
    let (state, digest): (String, Option<String>) = (row.get("state"), row.get("digest"));
    let last = visit.as_ref().and_then(|visit| visit.last.as_ref());
    let unchanged = matches!(state.as_str(), "ok" | "noindex")
        && last.is_some_and(|last| Some(&last.seen.content) == digest.as_ref());
    JobReport {
        tenant: row.get("tenant"),
        id: row.get("id"),
        dispatch: row.get("dispatch"),
        kind: row.get("kind"),
        host: row.get("host"),
        url: row.get("url"),
        page: row.get("page"),
        total_pages: row.get("total_pages"),
        state,
        reason: row.get("reason"),
        attempt: row.get("attempt"),
        crashes: row.get("crashes"),
        alone_crashes: row.get("alone_crashes"),
        priority: row.get("priority"),
        depth: row.get("depth"),
        found_on: row.get("found_on"),
        remake_of: row.get("remake_of"),
        replayed_by: row.get("replayed_by"),
        created_at: row.get("created_at"),
        run_at: row.get("run_at"),
        finished_at: row.get("finished_at"),
        status: row.get("status"),
        content_type: row.get("content_type"),
        body_bytes: row.get("body_bytes"),
        truncated: row.get("truncated"),
        digest,
        title: row.get("title"),
        language: row.get("language"),
        location: row.get("location"),
        address: row.get("address"),
        link_count: row.get("link_count"),
        new_count: row.get("new_count"),
        fetch_ms: row.get("fetch_ms"),
        worker: row.get("worker"),
        tries: tries.and_then(|tries| serde_json::from_value(tries).ok()).unwrap_or_default(),
        raw_stream: row.get("raw_stream"),
        raw_generation: row.get("raw_generation"),
        raw_id: raw_ms.zip(raw_seq).map(|(ms, seq)| format!("{ms}-{seq}")),
        visit,
        unchanged,
    }
}
