//! Pages that are visited again: on conditions, at intervals that follow them, and kept as revisits.

use std::collections::HashMap;
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};
use chrono::DateTime;
use dodo_common::clock::Clock;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::cluster::Cluster;

const LIMIT: Duration = Duration::from_secs(120);
const DATE: &str = "Wed, 21 Oct 2026 07:28:00 GMT";

/// One request: what it asked for, on what condition, and the status of its answer.
#[derive(Clone, Debug)]
struct Hit {
    path: String,
    conditional: bool,
    status: u16,
}

#[derive(Clone)]
struct Site {
    place: String,
    hits: Arc<Mutex<Vec<Hit>>>,
    /// When `/fresh` was modified, as its sitemap says.
    modified: Arc<OnceLock<String>>,
}

impl Site {
    async fn start(cluster: &mut Cluster) -> Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.1.1:0").await?;
        let site = Self { place: listener.local_addr()?.to_string(), hits: Arc::default(), modified: Arc::default() };
        cluster.open(std::slice::from_ref(&site.place));
        let app = Router::new().fallback(answer).with_state(site.clone());
        tokio::spawn(async move {
            let _ = axum::serve(listener, app).await;
        });
        Ok(site)
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.place)
    }

    fn hits(&self, path: &str) -> Vec<Hit> {
        let hits = self.hits.lock().expect("no panic under this lock");
        hits.iter().filter(|hit| hit.path == path).cloned().collect()
    }
}

/// A body of its own for each page, the same at each visit.
fn body_of(path: &str) -> String {
    format!("<title>{path}</title>{}", "as it was ".repeat(200))
}

async fn answer(State(site): State<Site>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    let conditional = header("if-none-match").is_some() || header("if-modified-since").is_some();
    let before = site.hits(&path).len();
    let not_modified = || StatusCode::NOT_MODIFIED.into_response();
    let response = match path.as_str() {
        "/robots.txt" => format!("Sitemap: http://{}/sitemap.xml\n", site.place).into_response(),
        "/sitemap.xml" => {
            // What `/lead` has led to, too.
            let known = if site.hits("/lead").is_empty() { "/listed" } else { "/known" };
            let url = format!("<url><loc>{}</loc><changefreq>always</changefreq></url>", site.url(known));
            ([("content-type", "text/xml")], format!("<urlset>{url}</urlset>")).into_response()
        }
        "/start.xml" => {
            let pages = ["/fresh", "/old"].map(|path| format!("<url><loc>{}</loc></url>", site.url(path))).concat();
            let news = format!("<url><loc>{}</loc><changefreq>always</changefreq></url>", site.url("/news.xml"));
            ([("content-type", "text/xml")], format!("<urlset>{pages}{news}</urlset>")).into_response()
        }
        "/news.xml" => {
            // From its second answer on, and when both pages have been seen, one of them was modified just then.
            let known = before > 0 && ["/fresh", "/old"].iter().all(|path| !site.hits(path).is_empty());
            let now = || DateTime::from_timestamp_millis(Clock::System.now_ms()).unwrap_or_default().to_rfc3339();
            let fresh = if known { site.modified.get_or_init(now) } else { "2001" };
            let urls = [("/fresh", fresh), ("/old", "2999-01-01"), ("/nowhere", "soon")]
                .map(|(path, date)| format!("<url><loc>{}</loc><lastmod>{date}</lastmod></url>", site.url(path)));
            ([("content-type", "text/xml")], format!("<urlset><!-- {before} -->{}</urlset>", urls.concat()))
                .into_response()
        }
        "/" => {
            let links = ["stable", "dated", "moving", "gone", "liar"].map(|to| format!("<a href=/{to}>x</a>"));
            Html(links.concat()).into_response()
        }
        "/lead" => Html("<a href=/known>x</a><a href=/unknown>x</a>").into_response(),
        "/stable" if header("if-none-match") == Some("W/\"s\"") => not_modified(),
        "/stable" => ([("etag", "W/\"s\"")], Html(body_of(&path))).into_response(),
        "/dated" if header("if-modified-since") == Some(DATE) => not_modified(),
        "/dated" => ([("last-modified", DATE)], Html(body_of(&path))).into_response(),
        "/moving" => {
            let late = if before > 0 { "<a href=/late>x</a>" } else { "" };
            let body = format!("<a href=/stable>x</a>{late} visit {before}");
            ([("etag", format!("\"{before}\""))], Html(body)).into_response()
        }
        "/odd" if before == 1 => "no page this time".into_response(),
        "/gone" if before > 0 => StatusCode::NOT_FOUND.into_response(),
        "/shaky" if (1..=8).contains(&before) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        "/walled" if before > 0 => StatusCode::FORBIDDEN.into_response(),
        // What nobody has asked for.
        "/liar" => not_modified(),
        _ => Html(body_of(&path)).into_response(),
    };
    let hit = Hit { path, conditional, status: response.status().as_u16() };
    site.hits.lock().expect("no panic under this lock").push(hit);
    response
}

/// What the log and the schedule say of one path.
#[derive(Debug, Default)]
struct Visits {
    /// Of the visits that ended, in their order: how many there were before, and the interval before each.
    ended: Vec<(i64, Option<i64>)>,
    /// The same of those that are pending.
    pending: Vec<(i64, Option<i64>)>,
}

async fn visits(cluster: &Cluster, dispatch: &str, site: &Site) -> Result<HashMap<String, Visits>> {
    let dispatch: Uuid = dispatch.parse()?;
    let rows = cluster
        .sql()
        .await?
        .query(
            "SELECT url, ended, coalesce((payload -> 'last' ->> 'visits')::int8, 0) AS n, (payload ->> 'interval_ms')::int8 FROM (
               SELECT url, payload, true AS ended FROM crawl_log WHERE dispatch = $1 AND outcome <> 'cancelled'
               UNION ALL SELECT url, payload, false FROM crawl_schedule WHERE dispatch = $1) t ORDER BY n",
            &[&dispatch],
        )
        .await?;
    let mut visits = HashMap::<String, Visits>::new();
    for row in rows {
        let path = row.get::<_, String>(0).replace(&site.url(""), "");
        let of = visits.entry(path).or_default();
        let list = if row.get(1) { &mut of.ended } else { &mut of.pending };
        list.push((row.get(2), row.get(3)));
    }
    Ok(visits)
}

/// Lets the crawl end and judges what it has left: the progress by the log, the archive by tools that are not ours.
async fn end(cluster: &Cluster, dispatch: &str) -> Result<Value> {
    let (status, answer) =
        cluster.call(reqwest::Method::POST, &format!("/v1/dispatches/{dispatch}/cancel"), "").await?;
    ensure!(status == 200, "{answer}");
    cluster.wait_done(dispatch, LIMIT).await?;
    let progress = cluster.progress(dispatch).await?["progress"].clone();
    let id: Uuid = dispatch.parse()?;
    let row = cluster
        .sql()
        .await?
        .query_one(
            "SELECT count(*) FILTER (WHERE status = 304 AND outcome = 'ok'), count(raw_ms),
                    count(*) FILTER (WHERE outcome = 'ok' AND payload ? 'last'), count(*) FILTER (WHERE outcome = 'ok')
               FROM crawl_log WHERE dispatch = $1",
            &[&id],
        )
        .await?;
    let (not_modified, records, revisits, pages): (i64, i64, i64, i64) =
        (row.get(0), row.get(1), row.get(2), row.get(3));
    ensure!(progress["not_modified"] == not_modified, "{not_modified} in the log: {progress}");
    ensure!(
        progress["revisits"] == revisits && progress["pages"] == pages,
        "{revisits}, {pages} in the log: {progress}"
    );

    ensure!(cluster.dodo(&["archive", "verify"]).status.success());
    ensure!(cluster.dodo_text(&["archive", "cat", "pages"])?.lines().count() as i64 == records);
    let mut files = Vec::new();
    for line in cluster.dodo_text(&["archive", "list", "pages", "--json"])?.lines() {
        let key = serde_json::from_str::<Value>(line)?["key"].as_str().context("no key")?.to_owned();
        files.push(cluster.object_file(&key));
    }
    let python = std::env::var("DODO_TEST_PYTHON").context("run scripts/test: it makes the Python environment")?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/check_revisits.py");
    let out = Command::new(python).arg(script).args(&files).output()?;
    ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let archived: Value = serde_json::from_slice(&out.stdout)?;
    ensure!(archived["not_modified"] == not_modified, "{archived} {progress}");
    ensure!(archived["identical"] == progress["identical"], "{archived} {progress}");
    let all: i64 = archived.as_object().into_iter().flatten().filter_map(|(_, count)| count.as_i64()).sum();
    ensure!(all == records, "{records} in the log: {archived}");
    Ok(progress)
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_visited_again_as_often_as_they_change() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let site = Site::start(&mut cluster).await?;
    let _processes = [cluster.scheduler().await?, cluster.worker()?];
    // The budget is of pages, however often each is visited: `/`, the sitemap, five pages that are there, `/late`.
    let body = json!({ "urls": [site.url("/")], "delay_ms": 0, "host_concurrency": 4, "max_pages": 8,
        "retries": 1, "revisit": { "min_s": 1, "max_s": 16 } });
    let dispatch = cluster.post("/v1/crawls", &body).await?;
    let has_come = async || {
        let seen = visits(&cluster, &dispatch, &site).await?;
        let ended = |path: &str| seen.get(path).map_or(0, |visits| visits.ended.len());
        let again = ended("/stable") >= 3 && ended("/dated") >= 3 && ended("/") >= 3 && ended("/gone") >= 2;
        Ok(again && ended("/moving") >= 5 && ended("/late") >= 1 && ended("/listed") >= 2)
    };
    cluster.until("the visits", LIMIT, has_come).await?;

    let why = cluster.dodo_text(&["why", &site.url("/stable")])?;
    for part in ["ETag W/\"s\"", "It is visit", "every 1 to 16 s", "found the page as it had been"] {
        assert!(why.contains(part), "{part}: {why}");
    }
    let seen = visits(&cluster, &dispatch, &site).await?;
    let next = |path: &str| seen[path].pending[0].1.context("no interval");
    let first = 4000;
    assert_eq!(seen["/stable"].ended[1].1, Some(first), "the geometric mean of the bounds");
    assert!(next("/stable")? > first && next("/moving")? == 1000 && next("/gone")? > first, "{seen:?}");
    assert_eq!(seen["/listed"].ended[..2], [(0, Some(0)), (1, Some(1000))], "always, says the sitemap");
    for (path, visits) in &seen {
        let (ended, pending) = (&visits.ended, &visits.pending);
        let numbers: Vec<i64> = ended.iter().chain(pending).map(|(number, _)| *number).collect();
        assert_eq!(numbers, (0..numbers.len() as i64).collect::<Vec<_>>(), "{path}: one after another");
        assert_eq!(pending.len(), usize::from(path != "/liar"), "{path}");
    }

    // The first answer has no condition; later ones have, once it is archived, and then refer to it.
    for path in ["/stable", "/dated"] {
        let hits = site.hits(path);
        assert!(!hits[0].conditional && hits.iter().any(|hit| hit.status == 304), "{hits:?}");
        assert!(hits.iter().all(|hit| hit.conditional == (hit.status == 304)), "{hits:?}");
    }
    assert!(site.hits("/gone").iter().skip(1).all(|hit| hit.status == 404));
    let liar = cluster.get(&format!("/v1/jobs?dispatch={dispatch}&state=dead")).await?;
    assert_eq!(liar[0]["url"], site.url("/liar"), "{liar}");
    assert!(liar[0]["reason"].as_str().is_some_and(|why| why.contains("304")), "{liar}");

    let progress = end(&cluster, &dispatch).await?;
    let jobs = cluster.get(&format!("/v1/export/pages?dispatch={dispatch}")).await?;
    let spared = |status: u16| -> i64 {
        let same =
            jobs.as_array().into_iter().flatten().filter(|job| job["unchanged"] == true && job["status"] == status);
        same.map(|job| job["visit"]["last"]["original"]["body_bytes"].as_i64().unwrap_or_default()).sum()
    };
    assert!(progress["not_modified"].as_i64() >= Some(2) && progress["identical"].as_i64() >= Some(1), "{progress}");
    assert_eq!(progress["bytes_saved"], spared(304), "{progress}");
    let line = cluster.dodo_text(&["dispatch", "get", &dispatch])?;
    assert!(
        line.contains(&format!("{} of them again, {} not modified", progress["revisits"], progress["not_modified"])),
        "{line}"
    );
    let report = cluster.get("/v1/report").await?;
    assert_eq!(report["revisits"]["bytes_saved"], progress["bytes_saved"], "{report}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sitemap_that_says_what_was_modified_brings_a_visit_forward() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let site = Site::start(&mut cluster).await?;
    let _processes = [cluster.scheduler().await?, cluster.worker()?];
    // Without a word of the sitemap pages are visited again after a minute.
    let body = json!({ "urls": [site.url("/start.xml")], "delay_ms": 0, "sitemaps": false, "depth": 1,
        "revisit": { "min_s": 1, "max_s": 3600 } });
    let dispatch = cluster.post("/v1/crawls", &body).await?;
    let told = async || Ok(site.modified.get().is_some());
    cluster.until("the sitemap's word", LIMIT, told).await?;
    let reads = site.hits("/news.xml").len();
    let has_come = async || Ok(site.hits("/news.xml").len() >= reads + 3 && site.hits("/fresh").len() > 1);
    cluster.until("the visit", Duration::from_secs(40), has_come).await?;
    let seen = visits(&cluster, &dispatch, &site).await?;
    let numbers = |path: &str| (seen[path].ended.len(), seen[path].pending.len());
    assert_eq!([numbers("/fresh"), numbers("/old")], [(2, 1), (1, 1)], "each word counts once: {seen:?}");
    let why = cluster.dodo_text(&["why", &site.url("/fresh")])?;
    assert_eq!(why.matches("since a sitemap says that the page was modified at").count(), 1, "{why}");
    end(&cluster, &dispatch).await?;
    Ok(())
}

/// A visit needs no budget of pages: `why` names what it really waits for.
#[tokio::test(flavor = "multi_thread")]
async fn why_names_no_budget_for_a_visit() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let site = Site::start(&mut cluster).await?;
    let _processes = [cluster.scheduler().await?, cluster.worker()?];
    let urls = ["/stable", "/plain"].map(|path| site.url(path));
    let body =
        json!({ "urls": urls, "delay_ms": 4000, "depth": 0, "max_pages": 2, "revisit": { "min_s": 1, "max_s": 1 } });
    let dispatch = cluster.post("/v1/crawls", &body).await?;
    cluster.wait_finished(&dispatch, 2).await?;
    let waits = async || {
        for url in &urls {
            let why: Value = serde_json::from_str(&cluster.dodo_text(&["why", url, "--json"])?)?;
            ensure!(why["standing"]["cause"] != "budget", "{why}");
            if why["standing"]["cause"] == "delay" {
                ensure!(why["standing"]["until_ms"].is_i64(), "{why}");
                return Ok(true);
            }
        }
        Ok(false)
    };
    cluster.until("a visit that waits for the delay", LIMIT, waits).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_loses_no_visit() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let site = Site::start(&mut cluster).await?;
    let paths = ["/stable", "/dated", "/moving", "/plain"];
    let _scheduler = cluster.scheduler().await?;
    let urls = paths.map(|path| site.url(path));
    let body = json!({ "urls": urls, "delay_ms": 0, "host_concurrency": 4, "depth": 0,
        "revisit": { "min_s": 1, "max_s": 2 } });
    let dispatch = cluster.post("/v1/crawls", &body).await?;
    // One falls with its answers unwritten, the next one with its commit unacknowledged.
    for point in ["raw-appended@6", "committed@6"] {
        let mut worker = cluster.worker_with(&[("DODO_FAIL_POINT", point)])?;
        ensure!(worker.ended(LIMIT).await? != Some(0), "{point}");
    }
    let _worker = cluster.worker()?;
    let so_far = visits(&cluster, &dispatch, &site).await?;
    let has_come = async || {
        let seen = visits(&cluster, &dispatch, &site).await?;
        let of = |seen: &HashMap<String, Visits>, path: &str| seen.get(path).map_or(0, |visits| visits.ended.len());
        Ok(paths.iter().all(|path| of(&seen, path) >= of(&so_far, path) + 2))
    };
    cluster.until("visits by the third worker", LIMIT, has_come).await?;
    for (path, visits) in visits(&cluster, &dispatch, &site).await? {
        let numbers: Vec<i64> = visits.ended.iter().chain(&visits.pending).map(|(number, _)| *number).collect();
        assert_eq!(numbers, (0..numbers.len() as i64).collect::<Vec<_>>(), "{path}: none lost, none twice");
        assert_eq!(visits.pending.len(), 1, "{path}");
    }
    end(&cluster, &dispatch).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_answer_of_another_type_ends_no_visits() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let site = Site::start(&mut cluster).await?;
    let _scheduler = cluster.scheduler().await?;
    let _worker = cluster.worker()?;
    let crawl = json!({ "urls": [site.url("/odd")], "delay_ms": 0, "depth": 0, "sitemaps": false, "content_types": ["text/html"],
        "revisit": { "min_s": 1, "max_s": 2 } });
    let dispatch = cluster.post("/v1/crawls", &crawl).await?;
    let visited = async || Ok(site.hits("/odd").len() >= 4);
    cluster.until("it is visited on", LIMIT, visited).await?;
    let id: Uuid = dispatch.parse()?;
    let unwanted = "SELECT count(*) FROM crawl_log WHERE dispatch = $1 AND outcome = 'unwanted'";
    assert_eq!(cluster.sql().await?.query_one(unwanted, &[&id]).await?.get::<_, i64>(0), 1);
    Ok(())
}

/// An outage, or a wall, says nothing of a page: only one that is gone is given up.
#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_gone_is_given_up() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let site = Site::start(&mut cluster).await?;
    let _processes = [cluster.scheduler().await?, cluster.worker()?];
    let urls = ["/shaky", "/walled", "/gone"].map(|path| site.url(path));
    let crawl = json!({ "urls": urls, "delay_ms": 0, "depth": 0, "sitemaps": false, "retries": 1,
        "revisit": { "min_s": 1, "max_s": 1 } });
    let dispatch = cluster.post("/v1/crawls", &crawl).await?;
    let visited = async || {
        let (shaky, walled) = (site.hits("/shaky"), site.hits("/walled"));
        Ok(shaky.iter().filter(|hit| hit.status == 200).count() >= 2 && walled.len() >= 7)
    };
    cluster.until("both are visited on", LIMIT, visited).await?;
    assert_eq!(site.hits("/shaky").iter().filter(|hit| hit.status == 500).count(), 8);
    assert_eq!(site.hits("/gone").len(), 4, "once there, and three times gone");
    let why = cluster.dodo_text(&["why", &site.url("/gone")])?;
    assert!(why.contains("gone at 3 visits in a row, and not visited any more"), "{why}");
    let seen = visits(&cluster, &dispatch, &site).await?;
    let pending = ["/shaky", "/walled", "/gone"].map(|path| seen[path].pending.len());
    assert_eq!(pending, [1, 1, 0], "{seen:?}");
    Ok(())
}

/// A link had found the page before the sitemap was read.
#[tokio::test(flavor = "multi_thread")]
async fn a_sitemap_says_how_often_a_page_changes_whoever_has_found_it() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let site = Site::start(&mut cluster).await?;
    let _processes = [cluster.scheduler().await?, cluster.worker()?];
    // One request at a time: the sitemap comes before the links.
    let body = json!({ "urls": [site.url("/lead")], "delay_ms": 100, "revisit": { "min_s": 1, "max_s": 3600 } });
    let dispatch = cluster.post("/v1/crawls", &body).await?;
    let has_come = async || Ok(["/known", "/unknown"].iter().all(|path| !site.hits(path).is_empty()));
    cluster.until("the first visits", LIMIT, has_come).await?;
    let scheduled = async || {
        let seen = visits(&cluster, &dispatch, &site).await?;
        Ok(["/known", "/unknown"].iter().all(|path| seen.get(*path).is_some_and(|visits| !visits.ended.is_empty())))
    };
    cluster.until("their next ones", LIMIT, scheduled).await?;
    let seen = visits(&cluster, &dispatch, &site).await?;
    let first = |path: &str| seen[path].ended.get(1).or(seen[path].pending.first()).and_then(|visit| visit.1);
    assert_eq!((first("/known"), first("/unknown")), (Some(1000), Some(60_000)), "{seen:?}");
    Ok(())
}

/// A sitemap is read whatever media types are kept; one that has not changed is read no less.
#[tokio::test(flavor = "multi_thread")]
async fn a_sitemap_that_stays_as_it_was_is_visited_on() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let site = Site::start(&mut cluster).await?;
    let _processes = [cluster.scheduler().await?, cluster.worker()?];
    let crawl = json!({ "urls": [site.url("/stable")], "delay_ms": 0, "depth": 1, "content_types": ["text/html"],
        "revisit": { "min_s": 1, "max_s": 1 } });
    let dispatch = cluster.post("/v1/crawls", &crawl).await?;
    cluster.until("it is visited on", LIMIT, async || Ok(site.hits("/sitemap.xml").len() >= 6)).await?;
    let id: Uuid = dispatch.parse()?;
    let outcomes = "SELECT DISTINCT outcome FROM crawl_log WHERE dispatch = $1 AND url LIKE '%/sitemap.xml'";
    let outcomes = cluster.sql().await?.query(outcomes, &[&id]).await?;
    assert_eq!(outcomes.iter().map(|row| row.get(0)).collect::<Vec<String>>(), ["ok"]);
    Ok(())
}
