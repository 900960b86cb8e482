//! Where a connection may go, and whether a request needed one: what the HTTP client asks while it serves a request.
//!
//! The client keeps one pool for all hosts and asks for the addresses of a name only when it connects. Both answers belong
//! to the request that waits for them, so they travel with its task.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dodo_common::fail;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tower::BoxError;
use url::{Position, Url};

use crate::fetch::proxy::{self, Uplink};
use crate::heart::Pulse;

/// Hosts whose addresses are remembered.
const PINNED_MAX: usize = 100_000;

tokio::task_local! {
    static DIAL: Arc<Dial>;
}

/// The connection of one request.
#[derive(Debug)]
pub struct Dial {
    addresses: Vec<IpAddr>,
    made: AtomicBool,
    late: AtomicBool,
    pulse: Arc<Pulse>,
}

impl Dial {
    /// Only these addresses may be connected to.
    pub fn to(addresses: &[IpAddr], pulse: &Arc<Pulse>) -> Arc<Self> {
        let (made, late) = (AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(Self { addresses: addresses.to_vec(), made, late, pulse: Arc::clone(pulse) })
    }

    /// Runs a request that this belongs to.
    pub async fn scope<F: Future>(self: &Arc<Self>, request: F) -> F::Output {
        DIAL.scope(Arc::clone(self), request).await
    }

    /// False: the request went out on a connection that was there already.
    pub fn made(&self) -> bool {
        self.made.load(Ordering::Relaxed)
    }

    /// True: its connection was made too late, and the request was not sent.
    pub fn was_late(&self) -> bool {
        self.late.load(Ordering::Relaxed)
    }
}

/// Notes that the running request has a connection of its own. One that is finished in the background, since another
/// became free meanwhile, is nobody's.
///
/// # Errors
/// This worker may have been frozen while it connected, and another may ask the host by now.
pub fn note<C>(made: Result<C, BoxError>) -> Result<C, BoxError> {
    let connection = made?;
    fail::point("connected");
    let dial = DIAL.try_with(Arc::clone).ok();
    if let Some(dial) = dial {
        dial.made.store(true, Ordering::Relaxed);
        if !dial.pulse.is_felt() {
            dial.late.store(true, Ordering::Relaxed);
            return Err("too late".into());
        }
    }
    Ok(connection)
}

/// The resolver of the client: it knows the addresses of the running request and asks nobody, but for the proxy.
#[derive(Debug, Default)]
pub struct Pinned {
    pub uplink: Option<Arc<Uplink>>,
}

impl Resolve for Pinned {
    fn resolve(&self, name: Name) -> Resolving {
        let uplink = self.uplink.clone().filter(|_| name.as_str() == proxy::NAME);
        let known = DIAL.try_with(|dial| dial.addresses.clone()).ok();
        Box::pin(async move {
            let addresses = match uplink {
                Some(uplink) => uplink.resolve().await?,
                None => known.ok_or("nobody waits for this name any more")?,
            };
            let addresses: Addrs = Box::new(addresses.into_iter().map(|address| SocketAddr::new(address, 0)));
            Ok(addresses)
        })
    }
}

/// The addresses that each host had last: a connection outlives the time they are good for.
#[derive(Debug, Default)]
pub struct Moves {
    hosts: Mutex<HashMap<String, Place>>,
}

#[derive(Debug)]
struct Place {
    addresses: Vec<IpAddr>,
    moved: Option<Instant>,
}

impl Moves {
    /// Whether connections may still be open to addresses that the host of `url` had before and has no longer; they are
    /// closed when `quiet` has passed since it moved.
    pub fn is_moving(&self, url: &Url, addresses: &[IpAddr], quiet: Duration) -> bool {
        let host = &url[..Position::BeforePath];
        let mut hosts = self.hosts.lock().expect("no panic under this lock");
        match hosts.get_mut(host) {
            Some(place) => {
                if place.addresses != addresses {
                    if place.addresses.iter().any(|address| !addresses.contains(address)) {
                        place.moved = Some(Instant::now());
                    }
                    place.addresses = addresses.to_vec();
                }
                place.moved.is_some_and(|moved| moved.elapsed() < quiet)
            }
            None => {
                if hosts.len() >= PINNED_MAX {
                    hosts.clear();
                }
                hosts.insert(host.to_owned(), Place { addresses: addresses.to_vec(), moved: None });
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_moves_when_it_leaves_an_address() {
        let moves = Moves::default();
        let moving = |url: &str, addresses: &[&str], quiet_s: u64| {
            let addresses: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
            moves.is_moving(&Url::parse(url).unwrap(), &addresses, Duration::from_secs(quiet_s))
        };
        assert!(!moving("http://a.test/1", &["192.0.2.1"], 60));
        assert!(!moving("http://a.test/2", &["192.0.2.1", "192.0.2.2"], 60), "one more is no move");
        assert!(!moving("https://a.test/", &["192.0.2.9"], 60), "another host");
        assert!(moving("http://a.test/3", &["192.0.2.2"], 60));
        assert!(moving("http://a.test/4", &["192.0.2.2"], 60));
        assert!(!moving("http://a.test/5", &["192.0.2.2"], 0), "it is over");
    }
}
