//! The way out through a proxy: where it is now, and whether it is in trouble.
//!
//! A proxy that is down says nothing about a site. What fails because of it is no try of a job and no failure
//! of a host: the job is handed back, and the worker takes no more until its proxy answers.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dodo_common::model::proxy::{Proxy, ProxyKind};
use tokio::net::{TcpStream, lookup_host};
use url::Url;

/// What the HTTP client calls the proxy. No page can have this name (RFC 6761 6.4), so its addresses and those
/// pinned for pages never mix.
pub const NAME: &str = "proxy.dodo.invalid";
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
/// A proxy that does not accept a connection within this long is down.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// It is asked again this often; the first wait doubles with each trouble that follows without a success.
const PAUSE: Duration = Duration::from_secs(1);
const DOUBLINGS_MAX: u32 = 5;
/// So many answers of 407 in a row, after one that was none, may be sites': a proxy passes on what they say.
const UNAUTHORISED_MAX: u32 = 8;
/// Addresses of the proxy that are remembered: idle connections may be to an earlier one.
const ADDRESSES_MAX: usize = 64;

/// What the HTTP client says where CONNECT or SOCKS5 ends with our credentials. Compared as a whole: what a certificate says
/// is in other errors, and is a stranger's.
const REFUSALS: [&str; 4] = [
    "tunnel error: proxy authorization required",
    "SOCKS error: credentials not accepted",
    "SOCKS error: server does not support user/pass authentication",
    "SOCKS error: server implements authentication incorrectly",
];
/// What it says where CONNECT was answered, and by no 200 (RFC 9110 9.3.6).
const NO_TUNNEL: &str = "tunnel error: unsuccessful";

/// Why there is no answer.
#[derive(Debug)]
pub enum FetchError {
    /// No connection was made to the addresses that its host was pinned to, or to a server without its certificate; nor by a
    /// proxy that answers.
    Unreachable(String),
    /// The site's failure, as far as one can tell.
    Failed(String),
    /// The proxy's trouble: nothing was tried.
    Proxy(String),
    /// Nor was it here: this worker must ask first whether the job is still its own.
    Unsent(String),
}

impl From<&str> for FetchError {
    fn from(why: &str) -> Self {
        FetchError::Failed(why.to_owned())
    }
}

#[derive(Debug)]
pub struct Uplink {
    pub proxy: Proxy,
    addresses: Mutex<VecDeque<IpAddr>>,
    trouble: Mutex<Option<String>>,
    /// Troubles since the last success.
    troubles: AtomicU32,
    /// Answers of 407 since the last one that was none; so long as there was none, as many as count against the proxy.
    unauthorised: AtomicU32,
}

impl Uplink {
    pub fn new(proxy: Proxy) -> Self {
        Self {
            proxy,
            addresses: Mutex::default(),
            trouble: Mutex::default(),
            troubles: AtomicU32::new(0),
            unauthorised: AtomicU32::new(UNAUTHORISED_MAX),
        }
    }

    /// The proxy's addresses by the system's resolver; they may be private.
    pub async fn resolve(&self) -> Result<Vec<IpAddr>, String> {
        let found = tokio::time::timeout(RESOLVE_TIMEOUT, lookup_host((self.proxy.host.as_str(), self.proxy.port)));
        let found: Vec<IpAddr> = match found.await {
            Ok(Ok(found)) => found.map(|address| address.ip()).collect(),
            Ok(Err(error)) => return Err(format!("the proxy {} cannot be resolved: {error}", self.proxy)),
            Err(_) => return Err(format!("the proxy {} was not resolved in time", self.proxy)),
        };
        let mut known = self.addresses.lock().expect("no panic under this lock");
        for address in &found {
            if !known.contains(address) {
                known.push_back(*address);
            }
        }
        while known.len() > ADDRESSES_MAX {
            known.pop_front();
        }
        Ok(found)
    }

    /// Checks an answer from `url` that came from `remote`; returns the address of the site if that is certain. A SOCKS5
    /// proxy was told the first pinned one; an HTTP proxy resolves names by itself.
    pub fn accept(
        &self,
        remote: Option<IpAddr>,
        status: u16,
        url: &Url,
        pinned: &[IpAddr],
    ) -> Result<Option<IpAddr>, FetchError> {
        let known = |address| self.addresses.lock().expect("no panic under this lock").contains(&address);
        if !remote.is_some_and(known) {
            return Err("the connection did not go to the proxy".into());
        }
        // Only a proxy should say 407 (RFC 9110 15.5.8); taken for a site's answer it would end jobs. What a site says, in a
        // tunnel or by a proxy that passes it on, must not be taken for the proxy's: it would stop this worker.
        if status == 407 && may_answer(&self.proxy, url) {
            let before = self.unauthorised.load(Ordering::Relaxed);
            if before >= UNAUTHORISED_MAX {
                return Err(self.in_trouble("it does not accept our credentials (407)".to_owned()));
            }
            self.unauthorised.store(before + 1, Ordering::Relaxed);
            return Err("407, as a proxy says, from one that has let us in: the site may say it".into());
        }
        self.unauthorised.store(0, Ordering::Relaxed);
        self.troubles.store(0, Ordering::Relaxed);
        Ok(match self.proxy.kind {
            ProxyKind::Socks5 => pinned.first().copied(),
            ProxyKind::Http => None,
        })
    }

    /// Tells the proxy's trouble from the site's after a failed request.
    pub async fn judge(&self, error: &reqwest::Error, why: String) -> FetchError {
        if !error.is_connect() {
            return FetchError::Failed(why);
        }
        let cause = why.split_once(": ").map_or("", |(_, cause)| cause);
        if REFUSALS.contains(&cause) {
            return self.in_trouble(why);
        }
        if cause == NO_TUNNEL {
            // It answers, and has not reached the site: whose fault that is, it does not say.
            return FetchError::Unreachable(format!("the proxy {} did not connect to the site", self.proxy));
        }
        match self.probe().await {
            Ok(()) => FetchError::Unreachable(why),
            Err(why) => self.in_trouble(why),
        }
    }

    /// Waits while the proxy is in trouble; at once when it is not.
    pub async fn ready(&self) {
        let Some(why) = self.trouble.lock().expect("no panic under this lock").take() else { return };
        let troubles = self.troubles.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(proxy = %self.proxy, "the proxy is in trouble; jobs are handed back until it answers: {why}");
        tokio::time::sleep(PAUSE * (1 << troubles.min(DOUBLINGS_MAX))).await;
        while let Err(why) = self.probe().await {
            tracing::debug!(proxy = %self.proxy, "the proxy does not answer yet: {why}");
            tokio::time::sleep(PAUSE).await;
        }
        // What failed while it was away says nothing any more.
        *self.trouble.lock().expect("no panic under this lock") = None;
        tracing::info!(proxy = %self.proxy, "the proxy answers; jobs are taken again");
    }

    fn in_trouble(&self, why: String) -> FetchError {
        *self.trouble.lock().expect("no panic under this lock") = Some(why.clone());
        FetchError::Proxy(why)
    }

    /// Whether it accepts a connection.
    async fn probe(&self) -> Result<(), String> {
        let addresses = self.resolve().await?;
        let targets: Vec<_> = addresses.into_iter().map(|address| (address, self.proxy.port).into()).collect();
        match tokio::time::timeout(PROBE_TIMEOUT, TcpStream::connect(targets.as_slice())).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(format!("the proxy {} does not answer: {error}", self.proxy)),
            Err(_) => Err(format!("the proxy {} does not answer in time", self.proxy)),
        }
    }
}

/// Whether an answer to a request for `url` may be the proxy's own: in a tunnel (CONNECT, SOCKS5) it is the site's.
pub fn may_answer(proxy: &Proxy, url: &Url) -> bool {
    proxy.kind == ProxyKind::Http && url.scheme() == "http"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_site_that_says_407_is_not_for_ever_the_proxys_trouble() {
        let uplink = Uplink::new("http://127.0.0.1:9".parse().unwrap());
        uplink.resolve().await.unwrap();
        let url = Url::parse("http://a.example/").unwrap();
        let answers = |status| uplink.accept(Some(IpAddr::from([127, 0, 0, 1])), status, &url, &[]);
        assert!(matches!(answers(407), Err(FetchError::Proxy(_))), "it has let nothing through yet");
        for _ in 0..3 {
            assert!(answers(200).is_ok());
            for _ in 0..UNAUTHORISED_MAX {
                assert!(matches!(answers(407), Err(FetchError::Failed(_))), "a try that failed");
            }
        }
        assert!(matches!(answers(407), Err(FetchError::Proxy(_))), "it lets nothing through any more");
        assert!(matches!(answers(407), Err(FetchError::Proxy(_))));
        assert!(answers(404).is_ok() && matches!(answers(407), Err(FetchError::Failed(_))));
    }
}
