//! What a crawl is led to beside plain links: sitemaps, feeds, assets, and links that ask not to be followed.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use crate::cluster::{Cluster, Process};

const LIMIT: Duration = Duration::from_secs(60);

/// A site, another that holds its sitemaps, and a third that both name.
#[derive(Clone)]
struct Sites {
    places: [String; 3],
    /// "site/path" of each request, but for robots.txt.
    hits: Arc<Mutex<BTreeSet<String>>>,
}

async fn answer(State((sites, own)): State<(Sites, usize)>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let name = ["site", "holder", "stranger"][own];
    if path != "/robots.txt" {
        sites.hits.lock().expect("no panic under this lock").insert(format!("{name}{path}"));
    }
    let [site, holder, stranger] = &sites.places;
    let urlset = |urls: &[String]| {
        let urls: String = urls.iter().map(|url| format!("<url><loc>{url}</loc></url>")).collect();
        format!("<urlset xmlns='http://www.sitemaps.org/schemas/sitemap/0.9'>{urls}</urlset>")
    };
    match format!("{name}{path}").as_str() {
        "site/robots.txt" => format!("Sitemap: http://{holder}/index.xml\n").into_response(),
        "site/" => Html("<a rel=nofollow href=/asked-not-to></a><img src=/1.png srcset='/2.png 2x'>").into_response(),
        "site/orphan/1" => ([("x-robots-tag", "dodo: nofollow")], Html("<a href=/asked-not-to>")).into_response(),
        "site/feed" => {
            let feed = format!("<rss><channel><item><link>http://{site}/orphan/4</link></item></channel></rss>");
            ([("content-type", "application/rss+xml")], feed).into_response()
        }
        "holder/index.xml" => {
            let sitemaps: String =
                [format!("{holder}/pages.xml.gz"), format!("{site}/feed"), format!("{stranger}/no.xml")]
                    .iter()
                    .map(|place| format!("<sitemap><loc>http://{place}</loc></sitemap>"))
                    .collect();
            ([("content-type", "text/xml")], format!("<sitemapindex>{sitemaps}</sitemapindex>")).into_response()
        }
        "holder/pages.xml.gz" => {
            let mut urls: Vec<String> = (1..=3).map(|n| format!("http://{site}/orphan/{n}")).collect();
            urls.extend([format!("http://{holder}/no"), format!("http://{stranger}/no")]);
            let mut packed = GzEncoder::new(Vec::new(), Compression::default());
            packed.write_all(urlset(&urls).as_bytes()).expect("a buffer takes all");
            let body = packed.finish().expect("a buffer takes all");
            ([("content-type", "application/octet-stream")], body).into_response()
        }
        path if path.starts_with("site/") => Html("a page").into_response(),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn ground() -> Result<(Cluster, Sites, Vec<Process>)> {
    let mut cluster = Cluster::start().await?;
    let mut listeners = Vec::new();
    for address in ["127.0.1.1:0", "127.0.1.2:0", "127.0.1.3:0"] {
        listeners.push(tokio::net::TcpListener::bind(address).await?);
    }
    let places: Vec<String> = listeners.iter().map(|l| Ok(l.local_addr()?.to_string())).collect::<Result<_>>()?;
    cluster.open(&places);
    let places = places.try_into().ok().context("three places")?;
    let sites = Sites { places, hits: Arc::default() };
    for (own, listener) in listeners.into_iter().enumerate() {
        let app = Router::new().fallback(answer).with_state((sites.clone(), own));
        tokio::spawn(async move {
            let _ = axum::serve(listener, app).await;
        });
    }
    let processes = vec![cluster.scheduler().await?, cluster.worker()?];
    Ok((cluster, sites, processes))
}

/// What a crawl of the first site with these options asks for.
async fn crawl(cluster: &Cluster, sites: &Sites, options: Value) -> Result<(String, BTreeSet<String>)> {
    sites.hits.lock().expect("no panic under this lock").clear();
    let mut body = json!({ "urls": [format!("http://{}/", sites.places[0])], "delay_ms": 0 });
    body.as_object_mut().context("an object")?.extend(options.as_object().cloned().unwrap_or_default());
    let dispatch = cluster.post("/v1/crawls", &body).await?;
    cluster.wait_done(&dispatch, LIMIT).await?;
    Ok((dispatch, sites.hits.lock().expect("no panic under this lock").clone()))
}

fn set(paths: &[&str]) -> BTreeSet<String> {
    paths.iter().map(|path| (*path).to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn sitemaps_lead_to_pages_that_nothing_links_to() -> Result<()> {
    let (cluster, sites, _processes) = ground().await?;
    let (dispatch, hits) = crawl(&cluster, &sites, json!({})).await?;
    let fetched = [
        "holder/index.xml",
        "holder/pages.xml.gz",
        "site/",
        "site/feed",
        "site/orphan/1",
        "site/orphan/2",
        "site/orphan/3",
        "site/orphan/4",
    ];
    assert_eq!(hits, set(&fetched));
    let done = cluster.progress(&dispatch).await?;
    // Three sitemaps, five URLs in one of them, the feed's, the link of the start and the one of the first orphan.
    assert_eq!((&done["progress"]["pages"], &done["progress"]["links"]), (&json!(8), &json!(11)), "{done}");
    let jobs = cluster.get(&format!("/v1/jobs?dispatch={dispatch}&state=ok")).await?;
    for job in jobs.as_array().context("no jobs")? {
        let depth = if job["url"].as_str().is_some_and(|url| url.contains("orphan")) { 1 } else { 0 };
        assert_eq!(job["depth"], depth, "{job}");
    }
    let [site, holder, _] = &sites.places;
    let why = cluster.dodo_text(&["why", &format!("http://{holder}/index.xml")])?;
    assert!(why.contains(&format!("named as a sitemap by the robots.txt of http://{site}, at depth 0")), "{why}");
    let why = cluster.dodo_text(&["why", &format!("http://{holder}/pages.xml.gz")])?;
    assert!(why.contains(&format!("found on http://{holder}/index.xml, at depth 0")), "{why}");

    for options in [json!({ "sitemaps": false }), json!({ "depth": 0 })] {
        assert_eq!(crawl(&cluster, &sites, options).await?.1, set(&["site/"]));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn links_of_other_kinds_are_followed_where_one_asks_for_it() -> Result<()> {
    let (cluster, sites, _processes) = ground().await?;
    let options = json!({ "sitemaps": false, "assets": true });
    let (_, hits) = crawl(&cluster, &sites, options).await?;
    assert_eq!(hits, set(&["site/", "site/1.png", "site/2.png"]));
    let options = json!({ "sitemaps": false, "nofollow": "ignore" });
    let (_, hits) = crawl(&cluster, &sites, options).await?;
    assert_eq!(hits, set(&["site/", "site/asked-not-to"]));
    let body = json!({ "urls": [format!("http://{}/", sites.places[0])], "nofollow": "sometimes" });
    let (status, answer) = cluster.call(reqwest::Method::POST, "/v1/crawls", body.to_string()).await?;
    let line = answer["error"].as_str().unwrap_or_default();
    assert!(status == 422 && line.contains("`honour` or `ignore`") && line.lines().count() == 1, "{status} {answer}");
    Ok(())
}
