//! The only HTTP client: pinned addresses, bounded patience, bounded bodies, no redirects of its own.

pub mod block;
pub mod body;
pub mod cookies;
pub mod decode;
pub mod dial;
pub mod exit;
pub mod fetched;
pub mod host;
pub mod proxy;
pub mod resolve;

use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use dodo_common::model::media::MediaTypes;
use dodo_common::model::proxy::Proxy;
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Response};
use tokio::time::{Instant, timeout_at};
use tower::util::MapResultLayer;
use url::Url;

use crate::fetch::body::{Bounds, Cut};
use crate::fetch::dial::{Dial, Moves, Pinned};
use crate::fetch::exit::{Exit, Trip, Way};
use crate::fetch::fetched::Fetched;
use crate::fetch::proxy::{FetchError, Uplink};
use crate::fetch::resolve::Resolver;
use crate::heart::Pulse;
use crate::settings::{Patience, Settings};

/// The product token of our user agent: what robots.txt groups are matched against (RFC 9309 2.2.1).
pub const AGENT: &str = "dodo";
/// How long a connection is kept without a request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Headers of one answer. hyper takes 100 when nothing is said, which honest sites pass. It holds no more than 408 KiB of
/// a head; the 1xx answers before it are dropped as they come, and end with the patience for the head.
const HEADERS_MAX: usize = 256;
/// The same bound for HTTP/2, whose heads are packed: unpacked, bytes.
const HEAD_BYTES_MAX: u32 = 400 << 10;

/// A request.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    pub url: &'a Url,
    /// Those that may be connected to.
    pub addresses: &'a [IpAddr],
    /// Beside our own, or instead of them.
    pub headers: &'a HeaderMap,
    /// What is kept of the body; none means the setting's.
    pub body_bytes_max: Option<usize>,
    /// Of a good answer of another type the body is not read; none means that all are wanted.
    pub media: Option<&'a MediaTypes>,
    /// It must not be sent again, whatever becomes of it.
    pub once: bool,
}

/// The client and the addresses it may connect to.
pub struct Fetcher {
    /// Straight, or by the one proxy; nothing where there is a pool.
    own: Option<Way>,
    /// The pool by address.
    exits: HashMap<String, Arc<Exit>>,
    /// Hosts whose open connections are not to be trusted, since they have moved.
    moves: Moves,
    pulse: Arc<Pulse>,
    pub resolver: Resolver,
    certificates: Vec<Certificate>,
    body_bytes_max: usize,
    patience: Patience,
    /// Connections kept for each host without a request: as many as may be under way, or they would be opened again and again.
    idle_max: usize,
    /// What follows the product in our user agent.
    contact: String,
}

impl Fetcher {
    pub fn new(settings: &Settings, pulse: Arc<Pulse>) -> anyhow::Result<Self> {
        settings.patience.check()?;
        let contact = if settings.contact.is_empty() { String::new() } else { format!(" (+{})", settings.contact) };
        let pool = settings.pool()?;
        let exits = pool.all().iter().map(|pooled| {
            let (region, proxy) = (pooled.region.clone(), pooled.proxy.clone());
            (proxy.to_string(), Arc::new(Exit { region, proxy, way: OnceLock::new() }))
        });
        let mut fetcher = Self {
            own: None,
            exits: exits.collect(),
            moves: Moves::default(),
            pulse,
            resolver: Resolver::new(settings)?,
            certificates: certificates(&settings.fetch_ca_file)?,
            body_bytes_max: settings.body_bytes_max,
            patience: settings.patience.clone(),
            idle_max: usize::from(settings.permits),
            contact,
        };
        if pool.is_empty() {
            fetcher.own = Some(fetcher.way(settings.proxy()?)?);
        }
        Ok(fetcher)
    }

    /// Waits while the one proxy, if there is one, is in trouble.
    pub async fn ready(&self) {
        if let Some(uplink) = self.own.as_ref().and_then(|own| own.uplink.as_ref()) {
            uplink.ready().await;
        }
    }

    /// How the requests of a job leave for which the leader chose the proxy at `address`; none: by this worker's own way.
    ///
    /// # Errors
    /// Leader and worker have not been told of the same pool: nothing may leave.
    pub fn trip(&self, address: Option<&str>) -> Result<Option<Arc<Trip>>, String> {
        match address {
            None if self.exits.is_empty() => Ok(None),
            None => Err("this worker has a pool of proxies, the scheduler has none".to_owned()),
            Some(address) => match self.exits.get(address) {
                Some(exit) => Ok(Some(Trip::by(Arc::clone(exit)))),
                None => Err(format!("the scheduler chose the proxy {address}, which this worker has not been told of")),
            },
        }
    }

    /// Where a proxy of the pool is.
    pub fn region_of(&self, address: &str) -> Option<&str> {
        self.exits.get(address).map(|exit| exit.region.as_str())
    }

    fn way(&self, proxy: Option<Proxy>) -> anyhow::Result<Way> {
        let uplink = proxy.map(|proxy| Arc::new(Uplink::new(proxy)));
        let client = |idle_max| client(&self.patience, &self.contact, uplink.as_ref(), &self.certificates, idle_max);
        Ok(Way { pooled: client(self.idle_max)?, single: client(0)?, uplink })
    }

    fn way_of<'a>(&self, exit: &'a Exit) -> Result<&'a Way, FetchError> {
        if exit.way.get().is_none() {
            let way = self.way(Some(exit.proxy.clone())).map_err(|error| FetchError::Proxy(format!("{error:#}")))?;
            // Another job may have been faster.
            let _ = exit.way.set(way);
        }
        Ok(exit.way.get().expect("it has just been made"))
    }

    /// The `User-Agent` of requests under another name: whom to write to stays the same.
    pub fn user_agent(&self, product: &str) -> Result<HeaderValue, String> {
        let text = format!("{product}{}", self.contact);
        HeaderValue::from_str(&text).map_err(|_| format!("{text:?} is no user agent"))
    }

    /// One request to pinned addresses. An error means that there is no answer; one that breaks off is an answer.
    pub async fn get(&self, ask: Ask<'_>) -> Result<Fetched, FetchError> {
        if let Some(address) = ask.addresses.iter().find(|address| !self.resolver.may_reach(ask.url, **address)) {
            let why = format!("{address}, where it was found, is private, loopback or reserved, and not open any more");
            return Err(FetchError::Failed(why));
        }
        let Some(trip) = Trip::current() else {
            let own = self.own.as_ref().ok_or_else(|| FetchError::Proxy("no proxy was chosen".to_owned()))?;
            return self.get_by(own, ask).await;
        };
        let mut answer = match self.way_of(&trip.exit) {
            Ok(way) => self.get_by(way, ask).await,
            Err(error) => Err(error),
        };
        trip.note(ask.url, &mut answer);
        answer
    }

    async fn get_by(&self, way: &Way, ask: Ask<'_>) -> Result<Fetched, FetchError> {
        let started = Instant::now();
        let Patience { head_ms, read_ms, total_ms, bytes_per_s_min, .. } = self.patience;
        let mut response = self.send(way, ask, started + Duration::from_millis(head_ms)).await?;
        let head_ms = started.elapsed().as_millis() as i32;
        let mut address = response.remote_addr().map(|address| address.ip());
        if let Some(uplink) = &way.uplink {
            address = uplink.accept(address, response.status().as_u16(), ask.url, ask.addresses)?;
        } else if address.is_some_and(|address| !ask.addresses.contains(&address)) {
            return Err("the connection went to an address that is not pinned".into());
        }
        let total = Duration::from_millis(total_ms);
        let bounds = Bounds {
            bytes_max: ask.body_bytes_max.unwrap_or(self.body_bytes_max),
            bytes_per_s_min,
            silence: Duration::from_millis(read_ms),
            until: started + total,
            total,
        };
        let kind = response.headers().get(CONTENT_TYPE).map(|kind| String::from_utf8_lossy(kind.as_bytes()));
        let is_wanted = !response.status().is_success() || ask.media.is_none_or(|media| media.keeps(kind.as_deref()));
        let (body, cut) = if is_wanted {
            body::read(&mut response, bounds).await
        } else {
            // With the response goes its connection.
            (Vec::new(), Some(Cut::Unwanted))
        };
        let headers = std::mem::take(response.headers_mut());
        Ok(Fetched {
            status: response.status().as_u16(),
            head: fetched::head(response.status(), &headers),
            headers,
            body,
            cut,
            block: None,
            address,
            head_ms,
            fetch_ms: started.elapsed().as_millis() as i32,
        })
    }

    /// Sends a request and waits for the head of its answer. A server may close a connection that it kept open, just as
    /// a request sets out on it: one that breaks there without an answer is sent once more, on a new connection (RFC
    /// 9112 9.3.1 allows it for what is idempotent), and is no failure.
    async fn send(&self, way: &Way, ask: Ask<'_>, until: Instant) -> Result<Response, FetchError> {
        let quiet = IDLE_TIMEOUT + Duration::from_millis(self.patience.total_ms);
        let mut fresh = self.moves.is_moving(ask.url, ask.addresses, quiet);
        loop {
            let dial = Dial::to(ask.addresses, &self.pulse);
            let client = if fresh { &way.single } else { &way.pooled };
            let request = client.get(ask.url.clone()).headers(ask.headers.clone()).send();
            let error = match timeout_at(until, dial.scope(request)).await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(error)) => error.without_url(),
                Err(_) => {
                    let why = format!("timed out: no answer after {} ms", self.patience.head_ms);
                    return Err(FetchError::Failed(why));
                }
            };
            if dial.was_late() {
                return Err(FetchError::Unsent("this worker was silent while it connected".to_owned()));
            }
            if !fresh && !dial.made() && !ask.once && is_broken_off(&error) {
                fresh = true;
                continue;
            }
            return Err(match &way.uplink {
                None if error.is_connect() => FetchError::Unreachable(explain(&error)),
                None => FetchError::Failed(explain(&error)),
                Some(uplink) => uplink.judge(&error, explain(&error)).await,
            });
        }
    }
}

fn client(
    patience: &Patience,
    contact: &str,
    uplink: Option<&Arc<Uplink>>,
    certificates: &[Certificate],
    idle_max: usize,
) -> anyhow::Result<Client> {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, "text/html,application/xhtml+xml,*/*;q=0.8".parse()?);
    headers.insert(ACCEPT_ENCODING, decode::ACCEPTED.parse()?);
    let mut builder = Client::builder()
        .user_agent(format!("{AGENT}/{}{contact}", env!("CARGO_PKG_VERSION")))
        .default_headers(headers)
        .redirect(Policy::none())
        .no_proxy()
        .dns_resolver(Arc::new(Pinned { uplink: uplink.cloned() }))
        .connector_layer(MapResultLayer::new(dial::note))
        .connect_timeout(Duration::from_millis(patience.connect_ms))
        .pool_max_idle_per_host(idle_max)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .http1_max_headers(HEADERS_MAX)
        // As RFC 9112 5.2 asks of user agents, and as browsers do with the rest.
        .http1_allow_obsolete_multiline_headers_in_responses(true)
        .http1_allow_spaces_after_header_name_in_responses(true)
        .http1_ignore_invalid_headers_in_responses(true)
        .http2_max_header_list_size(HEAD_BYTES_MAX)
        .tls_certs_merge(certificates.iter().cloned())
        .tcp_nodelay(true);
    if let Some(uplink) = uplink {
        // Its own words could repeat the credentials.
        let all = reqwest::Proxy::all(uplink.proxy.url_at(proxy::NAME));
        builder = builder
            .proxy(all.map_err(|_| anyhow::anyhow!("{}: the HTTP client does not take this proxy", uplink.proxy))?);
    }
    builder.build().context("cannot build the HTTP client")
}

fn certificates(ca_file: &str) -> anyhow::Result<Vec<Certificate>> {
    if ca_file.is_empty() {
        return Ok(Vec::new());
    }
    let wrong = || format!("DODO_FETCH_CA_FILE: {ca_file} holds no PEM certificates");
    let pem = std::fs::read(ca_file).with_context(|| format!("DODO_FETCH_CA_FILE: {ca_file}"))?;
    let found = Certificate::from_pem_bundle(&pem).with_context(wrong)?;
    ensure!(!found.is_empty(), wrong());
    Ok(found)
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

/// Whether a connection ended under a request, before it had an answer.
fn is_broken_off(error: &reqwest::Error) -> bool {
    !error.is_connect()
        && causes(error).any(|cause| {
            if let Some(error) = cause.downcast_ref::<hyper::Error>() {
                return error.is_incomplete_message() || error.is_canceled() || error.is_closed();
            }
            cause.downcast_ref::<io::Error>().is_some_and(|error| {
                use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
                matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
            })
        })
}

/// One line with the innermost cause, which is what one wants to read.
fn explain(error: &reqwest::Error) -> String {
    let kind = match error {
        e if e.is_connect() => "cannot connect",
        e if e.is_timeout() => "timed out",
        _ => "the request failed",
    };
    format!("{kind}: {}", innermost(error))
}

/// Errors must come without their URL: a credential may be in it.
fn innermost(error: &reqwest::Error) -> String {
    causes(error).last().map(ToString::to_string).unwrap_or_default()
}

/// An error and what it was caused by, from the outside in.
fn causes<'e>(error: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn a_ca_file_that_is_none_is_one_line() {
        // This file is no certificate.
        let own = concat!(env!("CARGO_MANIFEST_DIR"), "/src/fetch/mod.rs");
        for file in [own, "/no/such/file.pem"] {
            let settings = Settings::try_parse_from(["dodo-worker", "--fetch-ca-file", file]).unwrap();
            let why = format!("{:#}", Fetcher::new(&settings, Arc::default()).err().expect("it holds no certificate"));
            assert!(why.contains("DODO_FETCH_CA_FILE") && why.contains(file) && why.lines().count() == 1, "{why}");
        }
    }
}
