//! How pages are asked for: by which protocol, under which name, with which cookies, and at which address.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::{Request, State};
use axum::response::{Html, IntoResponse, Redirect, Response};
use dodo_scheduler::local::free_port;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::tls::Ca;
use crate::web::Web;

const LIMIT: Duration = Duration::from_secs(60);
const PAGES: usize = 60;

/// A request as a site saw it.
#[derive(Clone, Debug)]
struct Hit {
    path: String,
    version: String,
    agent: String,
    cookies: Vec<String>,
}

type Hits = Arc<Mutex<Vec<Hit>>>;

/// A site that notes what it is asked, sets cookies and asks for them.
fn site(hits: &Hits) -> Router {
    Router::new().fallback(answer).with_state(Arc::clone(hits))
}

async fn answer(State(hits): State<Hits>, request: Request) -> Response {
    let all = |name: &str| {
        let values = request.headers().get_all(name).iter();
        values.map(|value| value.to_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    let hit = Hit {
        path: request.uri().path().to_owned(),
        version: format!("{:?}", request.version()),
        agent: all("user-agent").join(" and "),
        cookies: all("cookie"),
    };
    hits.lock().expect("no panic under this lock").push(hit.clone());
    let set = |cookies: [&'static str; 2]| cookies.map(|cookie| ("set-cookie", cookie));
    let has = |cookie: &str| hit.cookies.iter().any(|cookies| cookies.split("; ").any(|one| one == cookie));
    match hit.path.as_str() {
        "/robots.txt" => {
            "User-agent: dodo\nDisallow: /closed\n\nUser-agent: examplebot\nDisallow: /private\nCrawl-delay: 0.2\n"
                .into_response()
        }
        "/" => {
            let links = "<a href=/in>1</a><a href=/login>2</a><a href=/private>3</a><a href=/closed>4</a>";
            (axum::response::AppendHeaders(set(["session=1; HttpOnly", "away=1; Domain=example.org"])), Html(links))
                .into_response()
        }
        "/login" => {
            (axum::response::AppendHeaders(set(["user=2; Path=/", "elsewhere=1; Path=/x"])), Redirect::to("/home"))
                .into_response()
        }
        "/in" if !has("session=1") => axum::http::StatusCode::FORBIDDEN.into_response(),
        "/home" if !has("user=2") => axum::http::StatusCode::FORBIDDEN.into_response(),
        path => Html(format!("<title>{path}</title>")).into_response(),
    }
}

async fn plain(hits: &Hits) -> Result<String> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let place = listener.local_addr()?.to_string();
    let site = site(hits);
    tokio::spawn(async move { axum::serve(listener, site).await });
    Ok(place)
}

/// Path and row of each page of a crawl.
fn pages(cluster: &Cluster, dispatch: &str) -> Result<HashMap<String, Value>> {
    let text = cluster.dodo_text(&["export", "pages", "--dispatch", dispatch])?;
    text.lines()
        .map(|line| {
            let job: Value = serde_json::from_str(line)?;
            let url = url::Url::parse(job["url"].as_str().context("no URL")?)?;
            Ok((url.path().to_owned(), job))
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn http_2_is_spoken_where_a_private_ca_vouches_for_it() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let (ca, other) = (Ca::new()?, Ca::new()?);
    let (new, old, unknown) = (Hits::default(), Hits::default(), Hits::default());
    let here = Ipv4Addr::LOCALHOST;
    let places = [
        ca.serve("127.0.0.1", here, &["h2", "http/1.1"], site(&new)).await?,
        ca.serve("127.0.0.1", here, &["http/1.1"], site(&old)).await?,
        other.serve("127.0.0.1", here, &["h2", "http/1.1"], site(&unknown)).await?,
    ]
    .map(|place| place.to_string());
    cluster.open(&places);
    cluster.worker_env.push(("DODO_FETCH_CA_FILE".to_owned(), ca.file().display().to_string()));
    let _scheduler = cluster.scheduler().await?;
    let _worker = cluster.worker()?;
    let urls: Vec<String> = places.iter().map(|place| format!("https://{place}/")).collect();
    let body = json!({ "urls": urls, "delay_ms": 0, "host_concurrency": 4 });
    let dispatch = cluster.post("/v1/crawls", &body).await?;
    cluster.wait_done(&dispatch, LIMIT).await?;
    for (hits, version) in [(&new, "HTTP/2.0"), (&old, "HTTP/1.1")] {
        let hits = hits.lock().expect("no panic under this lock").clone();
        assert!(hits.len() > 4 && hits.iter().all(|hit| hit.version == version), "{hits:?}");
    }
    assert_eq!(unknown.lock().expect("no panic under this lock").len(), 0);
    let jobs = cluster.dodo_text(&["jobs", "--dispatch", &dispatch, "--state", "dead", "--json"])?;
    let dead: Value = serde_json::from_str(jobs.trim())?;
    assert!(dead["reason"].as_str().is_some_and(|why| why.contains("certificate")), "{dead}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn cookies_go_back_within_their_crawl_when_it_asks_for_that() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let hits = Hits::default();
    let place = plain(&hits).await?;
    cluster.open(std::slice::from_ref(&place));
    let _scheduler = cluster.scheduler().await?;
    let _worker = cluster.worker()?;
    for cookies in [true, false, true] {
        hits.lock().expect("no panic under this lock").clear();
        let body = json!({ "urls": [format!("http://{place}/")], "delay_ms": 0, "cookies": cookies });
        let dispatch = cluster.post("/v1/crawls", &body).await?;
        cluster.wait_done(&dispatch, LIMIT).await?;
        let pages = pages(&cluster, &dispatch)?;
        let expected = if cookies { "ok" } else { "http_error" };
        assert_eq!((&pages["/in"]["state"], &pages["/home"]["state"]), (&expected.into(), &expected.into()));
        let hits = hits.lock().expect("no panic under this lock").clone();
        let start = hits.iter().find(|hit| hit.path == "/").context("no start")?;
        assert_eq!(start.cookies, [""; 0], "another crawl's cookies are not its own");
        assert_eq!(hits.iter().any(|hit| !hit.cookies.is_empty()), cookies, "{hits:?}");
        assert!(hits.iter().all(|hit| hit.cookies.len() <= 1), "one header each: {hits:?}");
        assert!(
            hits.iter()
                .flat_map(|hit| &hit.cookies)
                .all(|cookies| !cookies.contains("where") && !cookies.contains("away"))
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crawl_under_another_name_obeys_what_is_said_to_that_name() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let hits = Hits::default();
    let place = plain(&hits).await?;
    cluster.open(std::slice::from_ref(&place));
    cluster.worker_env.push(("DODO_CONTACT".to_owned(), "https://crawler.test/about".to_owned()));
    let _scheduler = cluster.scheduler().await?;
    let _worker = cluster.worker()?;
    let seed = format!("http://{place}/");
    let named = ["crawl", &seed, "--delay", "0", "--user-agent", "ExampleBot/2.1 (for tests)"];
    let other = cluster.dodo_text(&named)?;
    cluster.wait_done(other.trim(), LIMIT).await?;
    let own = cluster.dodo_text(&["crawl", &seed, "--delay", "0"])?;
    for (dispatch, closed, open) in [(own.trim(), "/closed", "/private"), (other.trim(), "/private", "/closed")] {
        cluster.wait_done(dispatch, LIMIT).await?;
        let pages = pages(&cluster, dispatch)?;
        assert_eq!((&pages[closed]["state"], &pages[open]["state"]), (&"robots".into(), &"ok".into()), "{pages:?}");
    }
    let hits = hits.lock().expect("no panic under this lock").clone();
    let agent = |path: &str| hits.iter().find(|hit| hit.path == path).map(|hit| hit.agent.as_str());
    assert_eq!(agent("/closed"), Some("ExampleBot/2.1 (for tests) (+https://crawler.test/about)"));
    let dodo = format!("dodo/{} (+https://crawler.test/about)", env!("CARGO_PKG_VERSION"));
    assert_eq!(agent("/private"), Some(dodo.as_str()));
    assert_eq!(agent("/robots.txt"), agent("/closed"), "who comes first asks");
    let delay = "SELECT crawl_delay_ms FROM host";
    assert_eq!(cluster.sql().await?.query_one(delay, &[]).await?.get::<_, Option<i64>>(0), Some(200));
    let why = cluster.dodo_text(&["why", &format!("{seed}private")])?;
    assert!(why.contains("forbids it to ExampleBot/2.1 (for tests) by line 5") && why.contains("allows it:"), "{why}");
    let out = cluster.dodo(&["crawl", &seed, "--user-agent", "(nobody)"]);
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(text.contains("product") && text.lines().count() == 1 && !out.status.success(), "{text}");
    Ok(())
}

/// One name that two addresses serve.
async fn moving(cluster: &mut Cluster, name: &str, addresses: &[Ipv4Addr]) -> Result<Web> {
    let port = free_port()?;
    let place = format!("{name}:{port}");
    let web = Web::virtual_hosts(&[place], PAGES, Duration::from_millis(2), addresses, port).await?;
    cluster.open(&web.places);
    Ok(web)
}

async fn all_at_the_first_try(cluster: &Cluster, dispatch: &str) -> Result<()> {
    cluster.wait_done(dispatch, LIMIT).await?;
    let pages = pages(cluster, dispatch)?;
    assert_eq!(pages.len(), PAGES);
    assert!(pages.values().all(|page| page["state"] == "ok" && page["attempt"] == 0), "{pages:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_pinned_is_not_resolved_again() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let (first, second) = (Ipv4Addr::new(127, 0, 5, 1), Ipv4Addr::new(127, 0, 5, 2));
    let web = moving(&mut cluster, "rebind.test", &[first, second]).await?;
    let _scheduler = cluster.scheduler().await?;
    let mut worker = cluster.worker_with(&[("DODO_RESOLVE", &format!("rebind.test={first}"))])?;
    let body = json!({ "urls": web.seeds(), "delay_ms": 20 });
    let dispatch = cluster.post("/v1/crawls", &body).await?;
    cluster.wait_finished(&dispatch, 5).await?;
    // The next worker's resolver says something else.
    let _other = cluster.worker_with(&[("DODO_RESOLVE", &format!("rebind.test={second}"))])?;
    worker.signal(nix::sys::signal::Signal::SIGTERM);
    worker.ended(Duration::from_secs(15)).await?;
    all_at_the_first_try(&cluster, &dispatch).await?;
    let hits = web.hits();
    assert!(hits.iter().all(|hit| hit.address == first.to_string()), "{hits:?}");
    assert_eq!(hits.iter().filter(|hit| hit.path == "/robots.txt").count(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_has_moved_is_followed_at_once() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let (first, second) = (Ipv4Addr::new(127, 0, 5, 3), Ipv4Addr::new(127, 0, 5, 4));
    let web = moving(&mut cluster, "mover.test", &[first, second]).await?;
    cluster.worker_env.push(("DODO_RESOLVE".to_owned(), format!("mover.test={first}")));
    let _scheduler = cluster.scheduler().await?;
    let _worker = cluster.worker()?;
    let dispatch = cluster.post("/v1/crawls", &json!({ "urls": web.seeds(), "delay_ms": 20 })).await?;
    cluster.wait_finished(&dispatch, 10).await?;
    // As its next preparation would; the worker's connection to the first address stays open and in use.
    let sql = cluster.sql().await?;
    let moved = "UPDATE host SET addresses = $1, version = version + 1";
    assert_eq!(sql.execute(moved, &[&vec![second.to_string()]]).await?, 1);
    all_at_the_first_try(&cluster, &dispatch).await?;
    let mut hits = web.hits();
    hits.sort_by_key(|hit| hit.start);
    let at = hits.iter().position(|hit| hit.address == second.to_string()).context("it was not followed")?;
    assert!(hits[at..].iter().all(|hit| hit.address == second.to_string()), "{hits:?}");
    assert_eq!(hits.len(), PAGES + 1, "no page was asked for twice");
    Ok(())
}

/// A row of a day, or of a crawl that ended before its host was prepared, must not lead where we do not go any more.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_pinned_before_is_judged_and_aged_again() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let (first, second) = (Ipv4Addr::new(127, 0, 5, 7), Ipv4Addr::new(127, 0, 5, 8));
    let web = moving(&mut cluster, "again.test", &[first, second]).await?;
    cluster.worker_env.push(("DODO_RESOLVE".to_owned(), format!("again.test={first}")));
    let _scheduler = cluster.scheduler().await?;
    let mut worker = cluster.worker()?;
    let body = json!({ "urls": web.seeds(), "delay_ms": 0, "retries": 0 });
    let dispatch = cluster.post("/v1/crawls", &body).await?;
    all_at_the_first_try(&cluster, &dispatch).await?;
    // Resolved, and left so.
    let sql = cluster.sql().await?;
    let old =
        "UPDATE host SET addresses = $1, state = 'new', valid_until = now() - interval '1 s', version = version + 1";
    assert_eq!(sql.execute(old, &[&vec![second.to_string()]]).await?, 1);
    cluster
        .until("its row is read again", LIMIT, async || {
            let again = cluster.post("/v1/crawls", &body).await?;
            all_at_the_first_try(&cluster, &again).await?;
            Ok(sql.query_one("SELECT addresses[1] FROM host", &[]).await?.get::<_, String>(0) == first.to_string())
        })
        .await?;
    assert!(web.hits().iter().all(|hit| hit.address == first.to_string()), "{:?}", web.hits());

    // Its port is open no more.
    worker.signal(nix::sys::signal::Signal::SIGTERM);
    worker.ended(Duration::from_secs(15)).await?;
    cluster.worker_env.retain(|(name, _)| name != "DODO_OPEN");
    let _worker = cluster.worker()?;
    let before = web.hits().len();
    let shut = cluster.post("/v1/crawls", &body).await?;
    cluster.wait_done(&shut, LIMIT).await?;
    let dead = cluster.dodo_text(&["jobs", "--dispatch", &shut, "--state", "dead", "--json"])?;
    assert!(dead.contains("not open any more") && dead.contains(&first.to_string()), "{dead}");
    assert_eq!(web.hits().len(), before);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_nobody_answers_at_is_looked_up_again() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let (there, gone) = (Ipv4Addr::new(127, 0, 5, 5), Ipv4Addr::new(127, 0, 5, 6));
    let web = moving(&mut cluster, "away.test", &[there]).await?;
    let settings = [("DODO_RESOLVE", format!("away.test={there}")), ("DODO_RETRY_BASE_MS", "50".to_owned())];
    cluster.worker_env.extend(settings.map(|(name, value)| (name.to_owned(), value)));
    let _scheduler = cluster.scheduler().await?;
    let _worker = cluster.worker()?;
    let dispatch = cluster.post("/v1/crawls", &json!({ "urls": web.seeds(), "delay_ms": 20 })).await?;
    cluster.wait_finished(&dispatch, 10).await?;
    // As if it had been there when it was prepared.
    let sql = cluster.sql().await?;
    let was = "UPDATE host SET addresses = $1, version = version + 1";
    assert_eq!(sql.execute(was, &[&vec![gone.to_string()]]).await?, 1);
    cluster.wait_done(&dispatch, LIMIT).await?;
    let progress = &cluster.progress(&dispatch).await?["progress"];
    assert_eq!((&progress["pages"], &progress["failed"]), (&json!(PAGES), &json!(0)), "{progress}");
    let addresses: Vec<String> = sql.query_one("SELECT addresses FROM host", &[]).await?.get(0);
    assert_eq!(addresses, [there.to_string()]);
    let id: uuid::Uuid = dispatch.parse()?;
    let tries = "SELECT count(*) FROM crawl_log WHERE dispatch = $1 AND tries IS NOT NULL";
    assert!(sql.query_one(tries, &[&id]).await?.get::<_, i64>(0) > 0, "somebody asked in vain");
    assert_eq!(web.hits().iter().filter(|hit| hit.path == "/robots.txt").count(), 2, "it was prepared anew");
    Ok(())
}
