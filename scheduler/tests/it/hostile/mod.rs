//! A server on raw sockets that misbehaves in every way it can, a path for each.

mod answer;
mod slow;

use std::net::Ipv4Addr;
use std::sync::{Arc, LazyLock, Mutex};

use anyhow::{Context, Result, bail};
use chrono::DateTime;
use dodo_common::clock::{Clock, Millis};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::hostile::answer::page;

/// A request's head is read up to this, bytes.
const REQUEST_BYTES_MAX: usize = 64 << 10;

/// One request, and what its answer promised.
#[derive(Clone, Debug)]
pub struct Hit {
    pub path: String,
    pub at_ms: Millis,
    /// Not before then it was to come again.
    pub again_ms: Option<Millis>,
}

pub struct Hostile {
    /// Its host:port.
    pub place: String,
    hits: Arc<Mutex<Vec<Hit>>>,
}

/// What becomes of a connection after an answer.
enum After {
    Keep,
    Close,
    /// Closed without care: the client hears a reset.
    Reset,
    /// Nothing more is said on it.
    Silence,
}

impl Hostile {
    /// Its start page links to all of `links`.
    pub async fn start(address: Ipv4Addr, links: &[&str]) -> Result<Self> {
        LazyLock::force(&answer::BOMB);
        let listener = TcpListener::bind((address, 0)).await?;
        let place = listener.local_addr()?.to_string();
        let hits = Arc::new(Mutex::new(Vec::new()));
        let links: String = links.iter().map(|link| format!("<a href=\"{link}\">x</a>\n")).collect();
        let site = Arc::new(Site { start: links, place: place.clone(), hits: Arc::clone(&hits) });
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let site = Arc::clone(&site);
                // A client that goes away is no news.
                tokio::spawn(async move { drop(site.serve(stream).await) });
            }
        });
        Ok(Self { place, hits })
    }

    pub fn hits(&self) -> Vec<Hit> {
        self.hits.lock().expect("no panic under this lock").clone()
    }
}

struct Site {
    start: String,
    place: String,
    hits: Arc<Mutex<Vec<Hit>>>,
}

impl Site {
    async fn serve(&self, mut stream: TcpStream) -> Result<()> {
        let mut requests = 0;
        loop {
            let path = request(&mut stream).await?;
            requests += 1;
            // Only what was served before counts: it is the connection that has grown old.
            if path.starts_with("/stale") && requests > 1 {
                self.note(&path, None);
                return Ok(());
            }
            match self.answer(&mut stream, &path).await? {
                After::Keep => {}
                After::Close => {
                    stream.shutdown().await?;
                    return Ok(());
                }
                After::Reset => {
                    stream.set_zero_linger()?;
                    return Ok(());
                }
                After::Silence => std::future::pending().await,
            }
        }
    }

    /// How often a path was asked for before; the request is noted, the first with what its answer promises.
    fn note(&self, path: &str, again_ms: Option<Millis>) -> usize {
        let mut hits = self.hits.lock().expect("no panic under this lock");
        let before = hits.iter().filter(|hit| hit.path == path).count();
        let again_ms = again_ms.filter(|_| before == 0);
        hits.push(Hit { path: path.to_owned(), at_ms: Clock::System.now_ms(), again_ms });
        before
    }

    async fn answer(&self, stream: &mut TcpStream, path: &str) -> Result<After> {
        let bytes = match path {
            "/" => page(&self.start),
            "/robots.txt" => b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_vec(),
            _ if path.starts_with("/refuses/") => self.refusal(path),
            _ => {
                self.note(path, None);
                match answer::plain(path, &self.place) {
                    Some((bytes, after)) => {
                        stream.write_all(&bytes).await?;
                        return Ok(after);
                    }
                    None => return slow::answer(stream, path).await,
                }
            }
        };
        stream.write_all(&bytes).await?;
        Ok(After::Keep)
    }

    /// An answer that refuses at first and says when to come again, or only that it should be later.
    fn refusal(&self, path: &str) -> Vec<u8> {
        let now_ms = Clock::System.now_ms();
        // A date has no fractions: the next full second but one.
        let at = DateTime::from_timestamp(now_ms / 1000 + 2, 0).unwrap_or_default();
        let date = |form: &str| (Some(at.timestamp_millis()), Some(at.format(form).to_string()));
        let (status, (again_ms, value)) = match path {
            "/refuses/seconds" => ("429 Too Many Requests", (Some(now_ms + 1000), Some("1".to_owned()))),
            "/refuses/imf-fixdate" => ("429 Slow Down", date("%a, %d %b %Y %H:%M:%S GMT")),
            "/refuses/rfc850" => ("429 Slow Down", date("%A, %d-%b-%y %H:%M:%S GMT")),
            "/refuses/asctime" => ("503 Busy", date("%a %b %e %H:%M:%S %Y")),
            _ => ("503 Busy", (None, None)),
        };
        // What flaps does so twice.
        let refusals = if value.is_some() { 1 } else { 2 };
        if self.note(path, again_ms) >= refusals {
            return page(&format!("<title>{path}</title>"));
        }
        let header = value.map_or(String::new(), |value| format!("retry-after: {value}\r\n"));
        format!("HTTP/1.1 {status}\r\n{header}content-length: 0\r\n\r\n").into_bytes()
    }
}

/// Reads a request; returns its path.
async fn request(stream: &mut TcpStream) -> Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > REQUEST_BYTES_MAX {
            bail!("this is no request");
        }
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head);
    Ok(head.split(' ').nth(1).context("no path")?.to_owned())
}
