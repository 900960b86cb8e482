//! Bodies as large as they may be, many at once: every step moves them in bounded parts.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::http::header;
use axum::response::Html;
use axum::routing::get;
use dodo_common::model::stream_id::StreamId;
use dodo_common::stream::connection::Redis;
use dodo_common::stream::names::PAGES;
use dodo_common::stream::raw::{self, RawEntry};
use rand::RngCore;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::cluster::Cluster;

const BODY_BYTES: usize = 9 << 20;
const HEAD: StreamId = StreamId { ms: 0, seq: 0 };

fn entry(body: Vec<u8>) -> RawEntry {
    RawEntry {
        tenant: "default".to_owned(),
        generation: 7,
        job: Uuid::now_v7(),
        attempt: 0,
        writer: Uuid::now_v7(),
        about: b"{}".to_vec(),
        body,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_large_entries_pass_in_bounded_parts() -> Result<()> {
    let cluster = Cluster::start().await?;
    let redis = Redis::new(&cluster.redis.url(), "test")?;
    cluster.redis_command(&["XGROUP", "CREATE", PAGES, "once", "0", "MKSTREAM"]).await?;
    let large = entry(vec![0xa5; BODY_BYTES]);
    let entries = [&large; 20];
    let mut ids = Vec::new();
    while ids.len() < entries.len() {
        let part = raw::append(&redis, PAGES, &entries[ids.len()..], raw::BYTES_MAX).await?;
        assert_eq!(part.len(), 1, "each of them fills a part");
        ids.extend(part);
    }
    let small = entry(vec![1; 100]);
    ids.extend(raw::append(&redis, PAGES, &[&small; 150], raw::BYTES_MAX).await?);
    let length: usize = redis::from_redis_value(cluster.redis_command(&["XLEN", PAGES]).await?)?;
    assert_eq!((ids.len(), length), (170, 170), "every entry once");

    let (mut from, mut read) = (HEAD, Vec::new());
    loop {
        let part = raw::range(&redis, PAGES, from, None, 200).await?;
        let Some(last) = part.last() else { break };
        from = last.id.next();
        let bytes: usize = part.iter().map(|stored| stored.entry.body.len()).sum();
        assert!(bytes < 2 * BODY_BYTES, "{bytes} bytes in one answer");
        read.extend(part.iter().map(|stored| stored.id));
    }
    assert_eq!(read, ids);
    let bounded = raw::range(&redis, PAGES, ids[20], Some(ids[29]), 200).await?;
    assert_eq!(bounded.len(), 10, "both ends included");

    let mut asked = ids.clone();
    asked.push(StreamId { ms: 1, seq: 1 });
    let mut expected = vec![Some(7); ids.len()];
    expected.push(None);
    assert_eq!(raw::present(&redis, PAGES, &asked).await?, expected);

    // Heavy ones that nothing announces.
    cluster.redis_command(&["XTRIM", PAGES, "MAXLEN", "0"]).await?;
    raw::append(&redis, PAGES, &[&small; 15], raw::BYTES_MAX).await?;
    for _ in 0..6 {
        raw::append(&redis, PAGES, &[&large], raw::BYTES_MAX).await?;
    }
    let part = raw::range(&redis, PAGES, HEAD, None, 200).await?;
    assert!((16..=19).contains(&part.len()), "{} entries in one answer", part.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn large_pages_are_archived_once_each() -> Result<()> {
    const COUNT: usize = 12;
    let mut cluster = Cluster::start().await?;
    let mut body = vec![0; BODY_BYTES];
    rand::rng().fill_bytes(&mut body);
    let body = bytes::Bytes::from(body);
    let start: String = (0..COUNT).map(|n| format!("<a href=/large/{n}>x</a>")).collect();
    let site = Router::new()
        .route("/", get(async move || Html(start)))
        .route("/large/{n}", get(async move || ([(header::CONTENT_TYPE, "application/octet-stream")], body.clone())));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let place = listener.local_addr()?.to_string();
    tokio::spawn(async move { axum::serve(listener, site).await });
    cluster.open(std::slice::from_ref(&place));
    let _scheduler = cluster.scheduler().await?;
    let _worker = cluster.worker()?;
    let crawl = json!({ "urls": [format!("http://{place}/")], "delay_ms": 0, "host_concurrency": COUNT });
    let dispatch = cluster.post("/v1/crawls", &crawl).await?;
    cluster.wait_done(&dispatch, Duration::from_secs(180)).await?;

    let mut counts: HashMap<String, usize> = HashMap::new();
    for line in cluster.dodo_text(&["archive", "cat", "pages"])?.lines() {
        let entry: Value = serde_json::from_str(line)?;
        *counts.entry(entry["url"].as_str().context("no URL")?.to_owned()).or_default() += 1;
    }
    assert_eq!(counts.len(), COUNT + 1);
    assert!(counts.values().all(|count| *count == 1), "archived more than once: {counts:?}");
    Ok(())
}
