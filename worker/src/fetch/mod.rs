//! The only HTTP client: pinned addresses, bounded bodies, no redirects of its own.

pub mod decode;
pub mod host;
pub mod proxy;
pub mod resolve;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use anyhow::Context as _;
use dodo_common::clock::Millis;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER,
};
use reqwest::redirect::Policy;
use url::Url;

use crate::fetch::proxy::{FetchError, Uplink};
use crate::fetch::resolve::Resolver;
use crate::settings::Settings;

/// The product token of our user agent: what robots.txt groups are matched against (RFC 9309 2.2.1).
pub const AGENT: &str = "dodo";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two reads of a body.
const READ_TIMEOUT: Duration = Duration::from_secs(15);
/// The whole exchange.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(60);
/// Idle connections kept for each host, and for how long.
const IDLE_MAX: usize = 64;
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Hosts whose addresses are pinned in memory.
const PINNED_MAX: usize = 100_000;
/// A Retry-After beyond this is cut down, milliseconds.
const RETRY_AFTER_MS_MAX: i64 = 3_600_000;

/// What a server answered.
#[derive(Debug)]
pub struct Fetched {
    pub status: u16,
    /// The status line and the headers as the archive keeps them.
    pub head: Vec<u8>,
    pub headers: HeaderMap,
    /// As transferred: still encoded, without chunks.
    pub body: Vec<u8>,
    /// Why the body is not whole.
    pub truncated: Option<&'static str>,
    pub address: Option<IpAddr>,
    pub fetch_ms: i32,
}

impl Fetched {
    pub fn text(&self, name: reqwest::header::HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub fn content_type(&self) -> Option<&str> {
        self.text(CONTENT_TYPE)
    }

    pub fn content_encoding(&self) -> Option<&str> {
        self.text(CONTENT_ENCODING)
    }

    pub fn location(&self) -> Option<&str> {
        self.text(LOCATION)
    }

    /// How long the server asks us to wait (RFC 9110 10.2.3: seconds or a date), milliseconds.
    pub fn retry_after_ms(&self, now: Millis) -> Option<i64> {
        let text = self.text(RETRY_AFTER)?.trim();
        let ms = match text.parse::<i64>() {
            Ok(seconds) => seconds.saturating_mul(1000),
            Err(_) => {
                let at = chrono::DateTime::parse_from_rfc2822(text).ok()?;
                at.timestamp_millis() - now
            }
        };
        Some(ms.clamp(0, RETRY_AFTER_MS_MAX))
    }
}

/// The client and the addresses it may connect to.
pub struct Fetcher {
    client: reqwest::Client,
    pinned: Arc<Pinned>,
    uplink: Option<Arc<Uplink>>,
    pub resolver: Resolver,
    body_bytes_max: usize,
}

impl Fetcher {
    pub fn new(settings: &Settings) -> anyhow::Result<Self> {
        let contact = if settings.contact.is_empty() { String::new() } else { format!(" (+{})", settings.contact) };
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, "text/html,application/xhtml+xml,*/*;q=0.8".parse()?);
        headers.insert(ACCEPT_ENCODING, "gzip, br, zstd".parse()?);
        let uplink = settings.proxy()?.map(|proxy| Arc::new(Uplink::new(proxy)));
        let pinned = Arc::new(Pinned { uplink: uplink.clone(), ..Pinned::default() });
        let mut builder = reqwest::Client::builder()
            .user_agent(format!("{AGENT}/{}{contact}", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            .redirect(Policy::none())
            .no_proxy()
            .dns_resolver(Arc::clone(&pinned))
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .timeout(TOTAL_TIMEOUT)
            .pool_max_idle_per_host(IDLE_MAX)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .tcp_nodelay(true);
        if let Some(uplink) = &uplink {
            // Its own words could repeat the credentials.
            let all = reqwest::Proxy::all(uplink.proxy.url_at(proxy::NAME));
            builder = builder.proxy(all.map_err(|_| anyhow::anyhow!("DODO_PROXY: the HTTP client does not take it"))?);
        }
        let client = builder.build().context("cannot build the HTTP client")?;
        let resolver = Resolver::new(settings)?;
        Ok(Self { client, pinned, uplink, resolver, body_bytes_max: settings.body_bytes_max })
    }

    /// Waits while the proxy, if there is one, is in trouble.
    pub async fn ready(&self) {
        if let Some(uplink) = &self.uplink {
            uplink.ready().await;
        }
    }

    /// One request to pinned addresses; at most `body_bytes_max` of the body, or the setting's.
    pub async fn get(
        &self,
        url: &Url,
        addresses: &[IpAddr],
        body_bytes_max: Option<usize>,
    ) -> Result<Fetched, FetchError> {
        self.get_with(url, addresses, &HeaderMap::new(), body_bytes_max).await
    }

    /// The same with headers beside our own.
    pub async fn get_with(
        &self,
        url: &Url,
        addresses: &[IpAddr],
        headers: &HeaderMap,
        body_bytes_max: Option<usize>,
    ) -> Result<Fetched, FetchError> {
        let name = url.host_str().ok_or("the URL has no host")?;
        self.pinned.pin(name, addresses);
        let started = std::time::Instant::now();
        let request = self.client.get(url.clone()).headers(headers.clone());
        let mut response = match (request.send().await, &self.uplink) {
            (Ok(response), _) => response,
            (Err(error), None) => return Err(FetchError::Failed(explain(&error))),
            (Err(error), Some(uplink)) => return Err(uplink.judge(&error, explain(&error)).await),
        };
        let mut address = response.remote_addr().map(|address| address.ip());
        if let Some(uplink) = &self.uplink {
            address = uplink.accept(address, response.status().as_u16(), addresses)?;
        } else if address.is_some_and(|address| !addresses.contains(&address)) {
            return Err("the connection went to an address that is not pinned".into());
        }
        let limit = body_bytes_max.unwrap_or(self.body_bytes_max);
        let (mut body, mut truncated) = (Vec::new(), None);
        while let Some(chunk) = response.chunk().await.map_err(|error| FetchError::Failed(explain(&error)))? {
            let room = limit - body.len();
            body.extend_from_slice(&chunk[..chunk.len().min(room)]);
            if chunk.len() > room {
                truncated = Some("length");
                break;
            }
        }
        let status = response.status();
        let headers = response.headers().clone();
        Ok(Fetched {
            status: status.as_u16(),
            head: head(status, &headers),
            headers,
            body,
            truncated,
            address,
            fetch_ms: started.elapsed().as_millis() as i32,
        })
    }
}

/// The head as the archive keeps it: HTTP/1.1 whatever the version was, and no transfer coding, since the
/// body is kept without its chunks.
fn head(status: reqwest::StatusCode, headers: &HeaderMap) -> Vec<u8> {
    let reason = status.canonical_reason().unwrap_or("");
    let mut head = format!("HTTP/1.1 {} {reason}\r\n", status.as_u16()).into_bytes();
    for (name, value) in headers {
        if name == reqwest::header::TRANSFER_ENCODING {
            continue;
        }
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// Headers as they were given, each marked as secret: no debug output shows its value.
pub fn secret_headers<'a>(headers: impl IntoIterator<Item = (&'a String, &'a String)>) -> Result<HeaderMap, String> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("{name:?} is no header name"))?;
        let mut value =
            HeaderValue::from_str(value).map_err(|_| format!("the value of header {name} is not allowed"))?;
        value.set_sensitive(true);
        map.append(name, value);
    }
    Ok(map)
}

/// One line with the innermost cause, which is what one wants to read, and no URL.
fn explain(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let kind = match error {
        e if e.is_timeout() => "timed out",
        e if e.is_connect() => "cannot connect",
        e if e.is_body() || e.is_decode() => "the body broke off",
        _ => "the request failed",
    };
    format!("{kind}: {cause}")
}

/// The resolver of the client: it knows pinned names and asks nobody, but for the proxy.
#[derive(Debug, Default)]
struct Pinned {
    names: RwLock<HashMap<String, Vec<IpAddr>>>,
    uplink: Option<Arc<Uplink>>,
}

impl Pinned {
    fn pin(&self, name: &str, addresses: &[IpAddr]) {
        if self.names.read().expect("no panic under this lock").get(name).is_some_and(|known| known == addresses) {
            return;
        }
        let mut names = self.names.write().expect("no panic under this lock");
        if names.len() >= PINNED_MAX {
            names.clear();
        }
        names.insert(name.to_owned(), addresses.to_vec());
    }
}

impl Resolve for Pinned {
    fn resolve(&self, name: Name) -> Resolving {
        let uplink = self.uplink.clone().filter(|_| name.as_str() == proxy::NAME);
        let known = self.names.read().expect("no panic under this lock").get(name.as_str()).cloned();
        Box::pin(async move {
            let addresses = match uplink {
                Some(uplink) => uplink.resolve().await?,
                None => known.ok_or("the name is not pinned")?,
            };
            let addresses: Addrs = Box::new(addresses.into_iter().map(|address| SocketAddr::new(address, 0)));
            Ok(addresses)
        })
    }
}
