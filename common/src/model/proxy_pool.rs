//! A pool of proxies as it is configured: which there are, and in what region each is.

use std::collections::{BTreeSet, HashSet};
use std::str::FromStr;

use crate::model::proxy::{Proxy, ProxyError};

/// Proxies of one pool.
pub const POOL_MAX: usize = 256;
/// The name of a region, bytes.
pub const REGION_BYTES_MAX: usize = 40;

/// A proxy and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pooled {
    pub region: String,
    pub proxy: Proxy,
}

/// `region=URL`, separated by commas or line breaks; a line that begins with `#` is a comment. Each proxy is known by its
/// address, host:port, which is there once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxyPool(Vec<Pooled>);

/// Says which entry is wrong, from 1, and never what was given: that may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    #[error("entry {0} is not region=URL, with a region of letters, digits, '.', '_' and '-'")]
    Form(usize),
    #[error("entry {0}: {1}; a comma in user or password is percent-encoded")]
    Proxy(usize, ProxyError),
    #[error("entry {0} has the address of another: a proxy is known by host:port")]
    Twice(usize),
    #[error("it has more than {POOL_MAX} proxies")]
    TooMany,
}

impl ProxyPool {
    pub fn all(&self) -> &[Pooled] {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn regions(&self) -> BTreeSet<&str> {
        self.0.iter().map(|pooled| pooled.region.as_str()).collect()
    }

    /// One line if there is no proxy in that region.
    pub fn check_region(&self, region: &str) -> Result<(), String> {
        let regions = self.regions();
        if regions.contains(region) {
            return Ok(());
        }
        if regions.is_empty() {
            return Err(format!("there is no proxy in region {region:?}: DODO_PROXIES names none"));
        }
        let regions: Vec<&str> = regions.into_iter().collect();
        Err(format!("there is no proxy in region {region:?}, only in {}", regions.join(", ")))
    }
}

impl FromStr for ProxyPool {
    type Err = PoolError;

    fn from_str(text: &str) -> Result<ProxyPool, PoolError> {
        let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
        let entries = lines.flat_map(|line| line.split(',')).map(str::trim).filter(|entry| !entry.is_empty());
        let (mut pool, mut addresses) = (Vec::new(), HashSet::new());
        for (number, entry) in (1..).zip(entries) {
            if number > POOL_MAX {
                return Err(PoolError::TooMany);
            }
            let (region, url) = entry.split_once('=').ok_or(PoolError::Form(number))?;
            if !is_region(region) {
                return Err(PoolError::Form(number));
            }
            let proxy: Proxy = url.parse().map_err(|error| PoolError::Proxy(number, error))?;
            if !addresses.insert(proxy.to_string()) {
                return Err(PoolError::Twice(number));
            }
            pool.push(Pooled { region: region.to_owned(), proxy });
        }
        Ok(ProxyPool(pool))
    }
}

/// Whether a text can name a region.
pub fn is_region(text: &str) -> bool {
    let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
    (1..=REGION_BYTES_MAX).contains(&text.len()) && text.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_and_a_file_name_the_same_pool() {
        let list: ProxyPool = "eu=http://u:p@10.0.0.7:3128, eu=socks5://b.example ,us=http://10.0.0.8".parse().unwrap();
        let file =
            "# ours, all of them\neu=http://u:p@10.0.0.7:3128\r\n\n  eu=socks5://b.example\nus=http://10.0.0.8\n";
        assert_eq!(file.parse(), Ok(list.clone()));
        let named: Vec<(String, String)> =
            list.all().iter().map(|pooled| (pooled.region.clone(), pooled.proxy.to_string())).collect();
        let expected = [("eu", "10.0.0.7:3128"), ("eu", "b.example:1080"), ("us", "10.0.0.8:80")];
        assert_eq!(named, expected.map(|(region, address)| (region.to_owned(), address.to_owned())));
        assert_eq!(list.check_region("us"), Ok(()));
        assert_eq!(list.check_region("asia"), Err("there is no proxy in region \"asia\", only in eu, us".to_owned()));
        assert!(ProxyPool::default().check_region("eu").is_err_and(|why| why.contains("DODO_PROXIES")));
        assert_eq!(" \n# none\n".parse(), Ok(ProxyPool::default()));
    }

    #[test]
    fn what_is_wrong_is_said_without_what_was_given() {
        let many: String = (0..=POOL_MAX).map(|n| format!("eu=http://h{n},")).collect();
        for (text, expected) in [
            ("http://u:secret@h:1", PoolError::Form(1)),
            ("eu=http://h:1,=http://u:secret@h:2", PoolError::Form(2)),
            ("e/u=http://u:secret@h:2", PoolError::Form(1)),
            ("eu=u:secret@h:2", PoolError::Proxy(1, ProxyError::Form)),
            ("eu=http://u:sec,ret@h:2", PoolError::Proxy(1, ProxyError::Form)),
            ("eu=http://u:secret@h:2\nus=socks5://H:2", PoolError::Twice(2)),
            (&many, PoolError::TooMany),
        ] {
            let error = text.parse::<ProxyPool>().expect_err(text);
            assert_eq!(error, expected, "{text}");
            assert!(!error.to_string().contains("secret") && !error.to_string().contains('\n'), "{error}");
        }
    }
}
