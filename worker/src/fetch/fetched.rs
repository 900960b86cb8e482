//! What a server answered.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::UNIX_EPOCH;

use dodo_common::clock::Millis;
use percent_encoding::{AsciiSet, percent_encode};
use reqwest::StatusCode;
use reqwest::header::{
    CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, LOCATION, RETRY_AFTER, TRANSFER_ENCODING,
};

use crate::fetch::body::Cut;

/// A Retry-After beyond this is cut down, milliseconds.
const RETRY_AFTER_MS_MAX: i64 = 24 * 3_600_000;

#[derive(Debug)]
pub struct Fetched {
    pub status: u16,
    /// The status line and the headers as the archive keeps them.
    pub head: Vec<u8>,
    pub headers: HeaderMap,
    /// As transferred: still encoded, without chunks.
    pub body: Vec<u8>,
    /// Why the body is not whole.
    pub cut: Option<Cut>,
    /// Why it looks as if the site had blocked the proxy of the pool that it came by.
    pub block: Option<&'static str>,
    pub address: Option<IpAddr>,
    /// From the request to the head of the answer, and to the end of its body, milliseconds.
    pub head_ms: i32,
    pub fetch_ms: i32,
}

impl Fetched {
    /// A header's value; what is no UTF-8 in it is replaced.
    pub fn text(&self, name: HeaderName) -> Option<Cow<'_, str>> {
        Some(String::from_utf8_lossy(self.headers.get(name)?.as_bytes()))
    }

    pub fn content_type(&self) -> Option<Cow<'_, str>> {
        self.text(CONTENT_TYPE)
    }

    /// Of several headers as of one list (RFC 9110 5.2).
    pub fn content_encoding(&self) -> Option<String> {
        let values: Vec<_> = self
            .headers
            .get_all(CONTENT_ENCODING)
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()))
            .collect();
        (!values.is_empty()).then(|| values.join(","))
    }

    /// Where it redirects to. Servers write names in whatever charset they have them in, and want the same bytes back:
    /// as in browsers, bytes beyond ASCII are escaped as they are.
    pub fn location(&self) -> Option<String> {
        Some(percent_encode(self.headers.get(LOCATION)?.as_bytes(), &AsciiSet::EMPTY).to_string())
    }

    /// How long the server asks us to wait (RFC 9110 10.2.3: seconds, or a date in one of the three forms of 5.6.7),
    /// milliseconds.
    pub fn retry_after_ms(&self, now: Millis) -> Option<i64> {
        let text = self.text(RETRY_AFTER)?;
        let text = text.trim();
        let ms = match text.parse::<i64>() {
            Ok(seconds) => seconds.saturating_mul(1000),
            Err(_) => {
                let since = httpdate::parse_http_date(text).ok()?.duration_since(UNIX_EPOCH).ok()?;
                i64::try_from(since.as_millis()).ok()?.saturating_sub(now)
            }
        };
        Some(ms.clamp(0, RETRY_AFTER_MS_MAX))
    }
}

/// The head as the archive keeps it: HTTP/1.1 whatever the version was, and no transfer coding, since the
/// body is kept without its chunks.
pub fn head(status: StatusCode, headers: &HeaderMap) -> Vec<u8> {
    let reason = status.canonical_reason().unwrap_or("");
    let mut head = format!("HTTP/1.1 {} {reason}\r\n", status.as_u16()).into_bytes();
    for (name, value) in headers {
        if name == TRANSFER_ENCODING {
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

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    fn answer(name: HeaderName, value: &[u8]) -> Fetched {
        Fetched {
            status: 200,
            head: Vec::new(),
            headers: HeaderMap::from_iter([(name, HeaderValue::from_bytes(value).unwrap())]),
            body: Vec::new(),
            cut: None,
            block: None,
            address: None,
            head_ms: 0,
            fetch_ms: 0,
        }
    }

    #[test]
    fn a_date_to_wait_for_has_three_forms() {
        // The example of RFC 9110 5.6.7, seven seconds before.
        let now = 784_111_770_000;
        for (value, ms) in [
            ("120", Some(120_000)),
            (" 0 ", Some(0)),
            ("99999999999999999999", None),
            ("9223372036854775807", Some(RETRY_AFTER_MS_MAX)),
            ("-5", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(7000)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", Some(7000)),
            ("Sun Nov  6 08:49:37 1994", Some(7000)),
            ("Sun, 06 Nov 1994 08:49:00 GMT", Some(0)),
            ("Fri, 31 Dec 9999 23:59:59 GMT", Some(RETRY_AFTER_MS_MAX)),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(answer(RETRY_AFTER, value.as_bytes()).retry_after_ms(now), ms, "{value}");
        }
        assert_eq!(answer(RETRY_AFTER, b"\xff").retry_after_ms(now), None);
    }

    #[test]
    fn a_location_in_raw_bytes_gives_them_back() {
        for (value, location) in [
            (&b"/caf\xc3\xa9?q=a b&c=%41#x"[..], "/caf%C3%A9?q=a b&c=%41#x"),
            (b"/caf\xe9", "/caf%E9"),
            (b"http://m\xc3\xbcnchen.test/", "http://m%C3%BCnchen.test/"),
        ] {
            assert_eq!(answer(LOCATION, value).location().as_deref(), Some(location));
        }
    }

    #[test]
    fn a_header_beyond_ascii_is_read_all_the_same() {
        let found = answer(CONTENT_TYPE, b"text/html; charset=\xe9");
        assert_eq!(found.content_type().as_deref(), Some("text/html; charset=\u{fffd}"));
    }
}
