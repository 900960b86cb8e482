//! The bare crawl: connections that fetch and read pages, one task that appends them, one that commits them.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::future::poll_fn;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{HeaderMap, Request, header};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use uuid::Uuid;

use crate::archive::{self, Archived};
use crate::commit::{self, Postgres};
use crate::page::{Seen, digest, hash, links, member};

/// Two workers have a core each.
const THREADS: usize = 2;
/// Requests under way, each on a connection of its own.
const CONNECTIONS: usize = 256;
/// Pages of one pipeline to Redis and of one transaction.
pub const BATCH_MAX: usize = 64;
/// Of the generated site (scripts/lib/bench_site.py).
const LINKS_A_PAGE: usize = 50;

pub struct Asked<'a> {
    pub seed: &'a str,
    pub pages: usize,
    pub redis: &'a str,
    pub postgres: &'a str,
    /// Where the objects go; without it nothing is archived.
    pub archive: Option<&'a str>,
}

/// A page that was fetched and read.
pub struct Page {
    pub hash: Uuid,
    pub body_bytes: i64,
    pub digest: String,
    pub member: Vec<u8>,
    /// All of them, one a line.
    pub links: String,
    /// Those that nobody had found before.
    pub found: Vec<(Uuid, String)>,
}

/// What the tasks share.
pub struct Crawl {
    /// `http://host:port`.
    origin: String,
    authority: String,
    queue: Mutex<VecDeque<String>>,
    /// A permit for each URL of the queue; closed when the crawl is over.
    queued: Semaphore,
    seen: Mutex<Seen>,
}

impl Crawl {
    pub fn push(&self, urls: impl ExactSizeIterator<Item = String>) {
        let count = urls.len();
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).extend(urls);
        self.queued.add_permits(count);
    }

    pub fn end(&self) {
        self.queued.close();
    }

    async fn pop(&self) -> Option<String> {
        self.queued.acquire().await.ok()?.forget();
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// Everything that is done with a page on its own.
    fn read(&self, url: &str, headers: &HeaderMap, body: &[u8]) -> Page {
        let mut http_head = String::from("HTTP/1.1 200 OK\r\n");
        for (name, value) in headers {
            let value = String::from_utf8_lossy(value.as_bytes());
            write!(http_head, "{name}: {value}\r\n").expect("a String takes every write");
        }
        http_head.push_str("\r\n");
        let digest = digest(body);
        let member = member(url, &http_head, body, &digest);
        let mut found = links(body, &self.origin);
        let all = found.iter().map(|(_, url)| url.as_str()).collect::<Vec<_>>().join("\n");
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        found.retain(|(hash, _)| seen.insert(*hash));
        drop(seen);
        Page { hash: hash(url), body_bytes: body.len() as i64, digest, member, links: all, found }
    }
}

pub fn run(asked: Asked<'_>) -> Result<Value> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?;
    runtime.block_on(crawl(asked))
}

async fn crawl(asked: Asked<'_>) -> Result<Value> {
    let authority = asked.seed.strip_prefix("http://").and_then(|rest| rest.split('/').next());
    let authority = authority.context("the seed is http://HOST:PORT/PATH")?.to_owned();
    let redis = redis::Client::open(asked.redis)?;
    let mut appending = redis.get_multiplexed_async_connection().await?;
    let mut archiving = redis.get_multiplexed_async_connection().await?;
    let postgres = Postgres::connect(asked.postgres, asked.seed).await?;
    let crawl = Arc::new(Crawl {
        origin: format!("http://{authority}"),
        authority,
        queue: Mutex::default(),
        queued: Semaphore::new(0),
        seen: Mutex::new(Seen::from_iter([hash(asked.seed)])),
    });

    let (began, began_cpu_s) = (Instant::now(), crate::cpu_s()?);
    let (fetched, to_append) = mpsc::channel(BATCH_MAX);
    let (appended, to_commit) = mpsc::channel(1);
    let (committed, to_archive) = watch::channel(String::new());
    let mut fetchers: JoinSet<Result<()>> = JoinSet::new();
    for _ in 0..CONNECTIONS {
        fetchers.spawn(fetch(Arc::clone(&crawl), fetched.clone()));
    }
    // The first that fails ends it all: the others wait for what would come of its page.
    let fetchers = async {
        while let Some(ended) = fetchers.join_next().await {
            ended??;
        }
        Ok(())
    };
    drop(fetched);
    let appender = tokio::spawn(async move { commit::append(&mut appending, to_append, appended).await });
    let committer = tokio::spawn({
        let crawl = Arc::clone(&crawl);
        async move { commit::commit(&crawl, postgres, to_commit, committed).await }
    });
    let archiver = tokio::spawn({
        let directory = asked.archive.map(Path::new).map(Path::to_owned);
        async move {
            match directory {
                Some(directory) => archive::archive(&mut archiving, &directory, to_archive).await.map(Some),
                None => Ok(None),
            }
        }
    });
    crawl.push([asked.seed.to_owned()].into_iter());
    let ((), (), done, archived) = tokio::try_join!(fetchers, joined(appender), joined(committer), joined(archiver))?;
    let (seconds, cpu_s) = (began.elapsed().as_secs_f64(), crate::cpu_s()? - began_cpu_s);

    ensure!(done.pages == asked.pages, "{} pages were committed instead of {}", done.pages, asked.pages);
    ensure!(done.links == asked.pages * LINKS_A_PAGE, "{} links were stored", done.links);
    let Archived { pages, objects, bytes } = archived.unwrap_or_default();
    ensure!(asked.archive.is_none() || pages == asked.pages, "{pages} pages were archived");
    Ok(json!({
        "pages": done.pages, "links": done.links, "commits": done.commits, "seconds": seconds, "cpu_s": cpu_s,
        "archived_pages": pages, "archived_objects": objects, "archived_bytes": bytes,
    }))
}

async fn joined<T>(task: JoinHandle<Result<T>>) -> Result<T> {
    task.await?
}

/// One connection, kept alive: fetches one page after the other until the crawl is over.
async fn fetch(crawl: Arc<Crawl>, fetched: mpsc::Sender<Page>) -> Result<()> {
    let stream = TcpStream::connect(&crawl.authority).await.context("the site")?;
    stream.set_nodelay(true)?;
    let (mut client, connection) = handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    while let Some(url) = crawl.pop().await {
        let (headers, body) = get(&crawl, &mut client, &url).await.with_context(|| url.clone())?;
        let page = crawl.read(&url, &headers, &body);
        fetched.send(page).await.context("nobody appends any more")?;
    }
    drop(client);
    Ok(connection.await??)
}

async fn get(crawl: &Crawl, client: &mut SendRequest<String>, url: &str) -> Result<(HeaderMap, Vec<u8>)> {
    let request = Request::get(&url[crawl.origin.len()..])
        .header(header::HOST, &crawl.authority)
        .header(header::USER_AGENT, "dodo-limit")
        .body(String::new())?;
    client.ready().await?;
    let (head, mut incoming) = client.send_request(request).await?.into_parts();
    ensure!(head.status == 200, "status {}", head.status);
    let mut body = Vec::with_capacity(incoming.size_hint().lower() as usize);
    while let Some(frame) = poll_fn(|context| Pin::<&mut Incoming>::new(&mut incoming).poll_frame(context)).await {
        if let Ok(bytes) = frame?.into_data() {
            body.extend_from_slice(&bytes);
        }
    }
    Ok((head.headers, body))
}
