//! The headers that a dispatch is given for its requests: which are allowed, and which of its hosts get which.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::model::url::Canonical;

/// Headers of one dispatch.
pub const HEADERS_MAX: usize = 100;
/// Bytes of all of them; common servers take 8 KiB.
pub const HEADERS_BYTES_MAX: usize = 64 << 10;
/// The client sets these itself.
const OWN: [&str; 5] = ["host", "content-length", "transfer-encoding", "connection", "accept-encoding"];
/// Wishes that say nothing about who asks.
const HARMLESS: [&str; 9] = [
    "accept",
    "accept-charset",
    "accept-language",
    "cache-control",
    "dnt",
    "pragma",
    "referer",
    "sec-gpc",
    "upgrade-insecure-requests",
];
/// And those that begin so: client hints (RFC 8942) and fetch metadata.
const HARMLESS_BEGINNINGS: [&str; 2] = ["sec-ch-", "sec-fetch-"];

/// Whether any host may have a header, however its name is written. All others may be credentials: no list names every
/// one of those, so this is the list of what is none.
pub fn is_harmless(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    HARMLESS.contains(&name.as_str()) || HARMLESS_BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
}

/// The hosts of a crawl that have its credentials: those of its seeds. Many a site sends its visitors on from http to
/// https: there the same name has them too, both at their default ports. Never the other way round.
pub fn trusted_hosts(seeds: impl IntoIterator<Item = Canonical>) -> HashSet<String> {
    let mut hosts = HashSet::new();
    for Canonical { url, host, .. } in seeds {
        if url.port().is_none()
            && let Some(name) = host.strip_prefix("http://")
        {
            hosts.insert(format!("https://{name}"));
        }
        hosts.insert(host);
    }
    hosts
}

/// Names and values that HTTP allows (RFC 9110 5.5), each name once, and none of those that the client itself sets.
pub fn check_headers<'a>(headers: impl IntoIterator<Item = (&'a String, &'a String)>) -> Result<(), String> {
    let (mut names, mut bytes) = (BTreeSet::new(), 0);
    for (name, value) in headers {
        reqwest::header::HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| format!("{name:?} is no header name such as Accept-Language"))?;
        reqwest::header::HeaderValue::from_str(value)
            .map_err(|_| format!("the value of header {name} is not allowed: it has a control character"))?;
        let lower = name.to_ascii_lowercase();
        if OWN.contains(&lower.as_str()) {
            return Err(format!("header {name} is the client's own: leave it out"));
        }
        bytes += name.len() + value.len();
        if !names.insert(lower) {
            return Err(format!("header {name} is given twice"));
        }
        if names.len() > HEADERS_MAX || bytes > HEADERS_BYTES_MAX {
            return Err(format!("at most {HEADERS_MAX} headers of {HEADERS_BYTES_MAX} bytes in all are allowed"));
        }
    }
    Ok(())
}

/// The same for a crawl, whose name is no header: robots.txt is obeyed as it speaks to that name, and a contact goes with it.
pub fn check_crawl_headers<'a>(
    headers: impl IntoIterator<Item = (&'a String, &'a String)> + Clone,
) -> Result<(), String> {
    match headers.clone().into_iter().find(|(name, _)| name.eq_ignore_ascii_case("user-agent")) {
        Some((name, _)) => Err(format!("header {name} is the crawl's name: say user_agent instead")),
        None => check_headers(headers),
    }
}

/// An object of texts. These are secrets, and the usual complaint quotes what it found.
pub fn texts<'de, D: Deserializer<'de>>(input: D) -> Result<BTreeMap<String, String>, D::Error> {
    let Value::Object(map) = Value::deserialize(input)? else {
        return Err(D::Error::custom("headers and cookies are objects of names and texts"));
    };
    map.into_iter()
        .map(|(name, value)| match value {
            Value::String(text) => Ok((name, text)),
            _ => Err(D::Error::custom(format!("the value of header or cookie {name:?} is no text"))),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::url::canonical;

    #[test]
    fn what_is_not_known_as_harmless_may_be_a_credential() {
        for name in ["accept", "Accept-Language", "DNT", "Referer", "Sec-CH-UA-Platform", "sec-fetch-site"] {
            assert!(is_harmless(name), "{name}");
        }
        for name in [
            "Authorization",
            "cookie",
            "Proxy-Authorization",
            "X-Api-Key",
            "x-csrf-token",
            "x-session",
            "user-agent",
            "x-forwarded-for",
            "accept-x",
            "sec-ch",
            "sec-websocket-key",
            "x-sec-ch-ua",
            "",
        ] {
            assert!(!is_harmless(name), "{name}");
        }
    }

    #[test]
    fn credentials_follow_a_seed_to_https_of_the_same_name_only() {
        let seeds = ["http://A.test:80/x", "http://b.test:8080/", "https://c.test/", "http://[::1]/"];
        let hosts = trusted_hosts(seeds.map(|seed| canonical(seed, None).unwrap()));
        let mut hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
        hosts.sort_unstable();
        assert_eq!(
            hosts,
            [
                "http://[::1]",
                "http://a.test",
                "http://b.test:8080",
                "https://[::1]",
                "https://a.test",
                "https://c.test"
            ]
        );
    }

    #[test]
    fn a_wrong_header_is_one_line_without_its_value() {
        let check = |headers: &[(&str, &str)]| {
            let owned: Vec<(String, String)> =
                headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
            check_headers(owned.iter().map(|pair| (&pair.0, &pair.1)))
        };
        assert_eq!(check(&[("Accept-Language", "de"), ("authorization", "Bearer hush")]), Ok(()));
        let long = "hush".repeat(HEADERS_BYTES_MAX / 4);
        for (headers, word) in [
            (&[("a b", "hush")][..], "header name"),
            (&[("", "hush")], "header name"),
            (&[("x\n", "hush")], "header name"),
            (&[("x", "hush\r\ny: z")], "value of header x"),
            (&[("Host", "hush")], "own"),
            (&[("Cookie", "hush"), ("cookie", "hush")], "twice"),
            (&[("x", long.as_str())], "bytes"),
        ] {
            let why = check(headers).unwrap_err();
            assert!(why.contains(word) && !why.contains("hush") && why.lines().count() == 1, "{why}");
        }
        let many: Vec<String> = (0..=HEADERS_MAX).map(|n| format!("x-{n}")).collect();
        assert!(check_headers(many.iter().map(|name| (name, name))).unwrap_err().contains("at most"));
    }
}
