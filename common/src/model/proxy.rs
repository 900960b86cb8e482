//! A proxy as it is configured: where it is, and who we are there.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use url::Url;

/// How the proxy is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyKind {
    /// HTTP/1.1: absolute form for http targets, CONNECT for https ones (RFC 9110 7.1, 9.3.6).
    Http,
    /// SOCKS version 5 (RFC 1928), with user and password (RFC 1929) where they are given.
    Socks5,
}

/// `http://[user:password@]host[:port]` or `socks5://..`. Shown as host:port: its credentials never are.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    pub kind: ProxyKind,
    /// A name, an IPv4 address, or an IPv6 address without brackets.
    pub host: String,
    pub port: u16,
    /// User and password, percent-encoded.
    credentials: Option<(String, String)>,
}

/// What a request says of the proxy that it left by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProxyWord {
    /// It brought an answer.
    Good,
    /// The answer looks as if the site had blocked it.
    Blocked,
    /// There was no answer, through no visible fault of its own.
    Failed,
    /// It does not answer itself, or refuses our credentials: nothing was sent to the site.
    Down,
}

/// Says what is wrong and never what was given: that may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    #[error(
        "a proxy is http://host:port or socks5://host:port, with user:password@ before the host where it asks for \
         them; / ? # @ and : in those are percent-encoded"
    )]
    Form,
    #[error("a proxy is spoken to by http:// or socks5://; https:// is not supported")]
    Https,
    #[error("socks5h:// lets the proxy resolve names, which would undo the check of their addresses; use socks5://")]
    Socks5h,
    #[error("a user name and a password of a SOCKS5 proxy have 1 to 255 bytes (RFC 1929)")]
    Credentials,
}

impl Proxy {
    /// The same proxy under another name.
    pub fn url_at(&self, name: &str) -> String {
        let scheme = match self.kind {
            ProxyKind::Http => "http",
            ProxyKind::Socks5 => "socks5",
        };
        let who = self.credentials.as_ref().map_or(String::new(), |(user, password)| format!("{user}:{password}@"));
        format!("{scheme}://{who}{name}:{}", self.port)
    }
}

impl FromStr for Proxy {
    type Err = ProxyError;

    fn from_str(text: &str) -> Result<Proxy, ProxyError> {
        let url = Url::parse(text.trim()).map_err(|_| ProxyError::Form)?;
        let (kind, port) = match url.scheme() {
            "http" => (ProxyKind::Http, 80),
            "socks5" => (ProxyKind::Socks5, 1080),
            "https" => return Err(ProxyError::Https),
            "socks5h" => return Err(ProxyError::Socks5h),
            _ => return Err(ProxyError::Form),
        };
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_ascii_lowercase();
        let named = !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:".contains(&b));
        let bare = matches!(url.path(), "" | "/") && url.query().is_none() && url.fragment().is_none();
        let port = url.port().unwrap_or(port);
        if !named || !bare || port == 0 {
            return Err(ProxyError::Form);
        }
        let (user, password) = (url.username(), url.password().unwrap_or_default());
        // What RFC 3986 lets stand there: another parser must not read it differently, or leave the proxy out.
        let plain = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%".contains(&b));
        if !plain(user) || !plain(password) {
            return Err(ProxyError::Form);
        }
        let credentials = (!user.is_empty() || !password.is_empty()).then(|| (user.to_owned(), password.to_owned()));
        let bytes = |text: &str| percent_encoding::percent_decode_str(text).count();
        let fits = |text: &str| (1..=255).contains(&bytes(text));
        if kind == ProxyKind::Socks5 && !credentials.as_ref().is_none_or(|(user, pass)| fits(user) && fits(pass)) {
            return Err(ProxyError::Credentials);
        }
        Ok(Proxy { kind, host, port, credentials })
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} proxy {self}", self.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_shown_without_its_credentials() {
        let proxy: Proxy = "socks5://us%40er:p%23ss@Proxy.Example".parse().unwrap();
        assert_eq!((proxy.kind, proxy.port), (ProxyKind::Socks5, 1080));
        assert_eq!(proxy.to_string(), "proxy.example:1080");
        assert_eq!(format!("{proxy:?}"), "Socks5 proxy proxy.example:1080");
        assert_eq!(proxy.url_at("x.invalid"), "socks5://us%40er:p%23ss@x.invalid:1080");
        let proxy: Proxy = "http://10.0.0.7:3128/".parse().unwrap();
        assert_eq!((proxy.to_string(), proxy.url_at("x")), ("10.0.0.7:3128".into(), "http://x:3128".into()));
        let proxy: Proxy = " http://[::1] ".parse().unwrap();
        assert_eq!((proxy.host.as_str(), proxy.to_string().as_str()), ("::1", "[::1]:80"));
    }

    #[test]
    fn what_is_wrong_is_said_without_what_was_given() {
        let long = format!("socks5://u:{}@h", "x".repeat(256));
        for (text, expected) in [
            ("secret", ProxyError::Form),
            ("10.0.0.1:1080", ProxyError::Form),
            ("secret:word@h:1", ProxyError::Form),
            ("ftp://secret@h:1", ProxyError::Form),
            ("http://", ProxyError::Form),
            ("http://u:sec/ret@h:1", ProxyError::Form),
            ("socks5://u:sec#ret@h:1", ProxyError::Form),
            ("http://h:0", ProxyError::Form),
            ("http://h:99999", ProxyError::Form),
            ("http://h/path", ProxyError::Form),
            ("socks5://h%2f:1", ProxyError::Form),
            ("https://secret@h:1", ProxyError::Https),
            ("socks5h://secret@h:1", ProxyError::Socks5h),
            ("socks5://secret@h:1", ProxyError::Credentials),
            (&long, ProxyError::Credentials),
        ] {
            let error = text.parse::<Proxy>().expect_err(text);
            assert_eq!(error, expected, "{text}");
            assert!(!error.to_string().contains("secret") && !error.to_string().contains('\n'));
        }
    }
}
