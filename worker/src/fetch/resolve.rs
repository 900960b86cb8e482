//! Names to addresses, checked after resolution: private, loopback and link-local ones are refused unless
//! opened for exactly that host and port.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::bail;
use dodo_common::model::address::{Openings, is_public};
use url::{Host, Url};

use crate::settings::Settings;

const TIMEOUT: Duration = Duration::from_secs(5);
/// Addresses kept of one name.
const ADDRESSES_MAX: usize = 8;

#[derive(Debug, PartialEq, Eq)]
pub enum Resolved {
    Addresses(Vec<IpAddr>),
    /// It may not be fetched; why.
    Refused(String),
    /// It could not be resolved now.
    Failed(String),
}

/// How names are resolved, by settings and by the system.
#[derive(Debug)]
pub struct Resolver {
    given: HashMap<String, IpAddr>,
    open: Openings,
    has_contact: bool,
}

impl Resolver {
    pub fn new(settings: &Settings) -> anyhow::Result<Self> {
        let mut given = HashMap::new();
        for pair in settings.resolve.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let Some((name, address)) = pair.split_once('=') else {
                bail!("DODO_RESOLVE: {pair} is not name=address");
            };
            let Ok(address) = address.trim().parse() else {
                bail!("DODO_RESOLVE: {address} is not an address");
            };
            given.insert(name.trim().to_lowercase(), address);
        }
        Ok(Self { given, open: settings.open.clone(), has_contact: !settings.contact.is_empty() })
    }

    /// The addresses of a URL's host that may be connected to.
    pub async fn resolve(&self, url: &Url) -> Resolved {
        let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else {
            return Resolved::Refused("the URL has no host".to_owned());
        };
        let found = match host {
            Host::Ipv4(address) => vec![IpAddr::V4(address)],
            Host::Ipv6(address) => vec![IpAddr::V6(address)],
            Host::Domain(name) => match self.look_up(name, port).await {
                Ok(found) => found,
                Err(why) => return Resolved::Failed(why),
            },
        };
        self.judge(&host.to_string(), port, found)
    }

    /// Whether a pinned address may still be connected to: what was open when it was resolved may not be now.
    pub fn may_reach(&self, url: &Url, address: IpAddr) -> bool {
        let opens = |host: &str| url.port_or_known_default().is_some_and(|port| self.open.opens(host, port));
        is_public(address) || url.host_str().is_some_and(opens)
    }

    fn judge(&self, name: &str, port: u16, found: Vec<IpAddr>) -> Resolved {
        let opened = self.open.opens(name, port);
        let refused = found.iter().find(|address| !is_public(**address)).copied();
        let mut allowed: Vec<IpAddr> = found.into_iter().filter(|address| opened || is_public(*address)).collect();
        allowed.truncate(ADDRESSES_MAX);
        match (allowed.is_empty(), refused) {
            (true, Some(address)) => Resolved::Refused(format!(
                "{name}:{port} resolves to {address}, which is private, loopback or reserved; DODO_OPEN={name}:{port} opens it"
            )),
            (true, None) => Resolved::Failed(format!("{name} has no address")),
            (false, _) if !self.has_contact && allowed.iter().any(|address| !address.is_loopback()) => {
                Resolved::Refused(
                    "no contact is configured: set DODO_CONTACT to your address or a page about your crawler"
                        .to_owned(),
                )
            }
            (false, _) => Resolved::Addresses(allowed),
        }
    }

    async fn look_up(&self, name: &str, port: u16) -> Result<Vec<IpAddr>, String> {
        let mut tail = name;
        if let Some(address) = self.given.get(name) {
            return Ok(vec![*address]);
        }
        while let Some((_, rest)) = tail.split_once('.') {
            if let Some(address) = self.given.get(&format!("*.{rest}")) {
                return Ok(vec![*address]);
            }
            tail = rest;
        }
        match tokio::time::timeout(TIMEOUT, tokio::net::lookup_host((name, port))).await {
            Err(_) => Err(format!("{name} was not resolved within {} s", TIMEOUT.as_secs())),
            Ok(Err(error)) => Err(format!("{name} cannot be resolved: {error}")),
            Ok(Ok(found)) => {
                let mut addresses: Vec<IpAddr> = found.map(|address| address.ip()).collect();
                addresses.dedup();
                Ok(addresses)
            }
        }
    }
}
