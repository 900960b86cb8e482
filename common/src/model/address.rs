//! Which addresses a crawler may reach, so that no page makes it knock inside its own network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Exceptions by exact host and port, for tests and crawls of one's own machines:
/// `127.0.0.1:8080,localhost:9000`. The default opens nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Openings(Vec<(String, u16)>);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpeningError {
    #[error("an opening is host:port, not {0:?}")]
    Form(String),
    #[error("an opening names one exact host, and {0:?} is none")]
    Host(String),
    #[error("the port of an opening is 1 to 65535, not {0:?}")]
    Port(String),
}

/// Whether `ip` is a global unicast address, by the IANA special-purpose registries (RFC 6890).
///
/// An IPv6 address that carries an IPv4 one is as public as that: else a name that resolves to
/// `::ffff:127.0.0.1` would be a way in.
pub fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

impl Openings {
    /// `host` may hold the brackets of an IPv6 literal or not.
    pub fn opens(&self, host: &str, port: u16) -> bool {
        !self.0.is_empty() && {
            let host = normal(host);
            self.0.iter().any(|(open, at)| *at == port && *open == host)
        }
    }
}

impl FromStr for Openings {
    type Err = OpeningError;

    /// An empty text opens nothing.
    fn from_str(text: &str) -> Result<Openings, OpeningError> {
        if text.trim().is_empty() {
            return Ok(Openings::default());
        }
        text.split(',').map(|entry| opening(entry.trim())).collect::<Result<_, _>>().map(Openings)
    }
}

fn opening(entry: &str) -> Result<(String, u16), OpeningError> {
    let (host, port) = entry.rsplit_once(':').ok_or_else(|| OpeningError::Form(entry.to_owned()))?;
    let literal = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let sound = match literal {
        Some(literal) => literal.parse::<Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '.' | '_')),
    };
    if !sound {
        return Err(OpeningError::Host(host.to_owned()));
    }
    match port.parse() {
        Ok(port) if port > 0 => Ok((normal(host), port)),
        _ => Err(OpeningError::Port(port.to_owned())),
    }
}

/// One spelling: lower-case, IPv6 without brackets and as short as it gets.
fn normal(host: &str) -> String {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    bare.parse::<Ipv6Addr>().map_or_else(|_| bare.to_ascii_lowercase(), |ip| ip.to_string())
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    !matches!(
        (a, b, c),
        // This network, private, loopback.
        (0 | 10 | 127, ..)
            // Carrier-grade NAT, RFC 6598.
            | (100, 64..=127, _)
            // Link-local, where clouds serve their credentials.
            | (169, 254, _)
            | (172, 16..=31, _)
            // IETF protocols, documentation, the retired 6to4 relay.
            | (192, 0, 0 | 2)
            | (192, 88, 99)
            | (192, 168, _)
            // Benchmarks, RFC 2544.
            | (198, 18 | 19, _)
            | (198, 51, 100)
            | (203, 0, 113)
            // Multicast, reserved, broadcast.
            | (224..=255, ..)
    )
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let inner = |high: u16, low: u16| is_public_v4(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)));
    match ip.segments() {
        // Mapped (::ffff:0:0/96) and NAT64 (RFC 6052).
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => inner(high, low),
        // 6to4, RFC 3056.
        [0x2002, high, low, ..] => inner(high, low),
        // Teredo, RFC 4380: the server, and the client with its bits flipped.
        [0x2001, 0, high, low, _, _, client_high, client_low] => inner(high, low) && inner(!client_high, !client_low),
        // IETF protocols (2001::/23) and documentation.
        [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => false,
        // All other global unicast is in 2000::/3; outside lie ::, ::1, ULA, link-local, multicast.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn public(text: &str) -> bool {
        is_public(text.parse().unwrap())
    }

    #[test]
    fn only_global_unicast_is_public() {
        for ip in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.0.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "64:ff9b:1::808:808",
            "100::1",
            "2001::1",
            "2001:2::1",
            "2001:10::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2002:a00:1::1",
            "3fff::1",
            "5f00::1",
            "2001:0:808:808::80ff:fffe",
            "2001:0:a00:1::f7f7:f7f7",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!public(ip), "{ip}");
        }
        for ip in [
            "1.1.1.1",
            "9.255.255.255",
            "100.63.255.255",
            "100.128.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "192.167.1.1",
            "198.17.0.1",
            "198.20.0.1",
            "223.255.255.255",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
            "2002:808:808::1",
            "2001:0:808:808::f7f7:f7f7",
            "2001:4860:4860::8888",
            "2606:4700::1111",
            "2a00:1450::1",
        ] {
            assert!(public(ip), "{ip}");
        }
    }

    #[test]
    fn openings_are_exact() {
        let openings: Openings = "127.0.0.1:8080, Localhost:9000,[0:0::1]:80".parse().unwrap();
        assert!(openings.opens("127.0.0.1", 8080));
        assert!(openings.opens("localhost", 9000));
        assert!(openings.opens("[::1]", 80) && openings.opens("::1", 80));
        assert!(!openings.opens("127.0.0.1", 8081));
        assert!(!openings.opens("127.0.0.2", 8080));
        assert!(!openings.opens("a.localhost", 9000));
        assert!(!"".parse::<Openings>().unwrap().opens("127.0.0.1", 80));
    }

    #[test]
    fn errors_say_what_is_wrong() {
        for (text, expected) in [
            ("*", "an opening is host:port, not \"*\""),
            ("*:80", "an opening names one exact host, and \"*\" is none"),
            ("a:80,", "an opening is host:port, not \"\""),
            ("a:0", "the port of an opening is 1 to 65535, not \"0\""),
            ("a:http", "the port of an opening is 1 to 65535, not \"http\""),
            ("::1:80", "an opening names one exact host, and \"::1\" is none"),
            ("http://a:80", "an opening names one exact host, and \"http://a\" is none"),
        ] {
            assert_eq!(text.parse::<Openings>().unwrap_err().to_string(), expected);
        }
    }
}
