//! Signs that a site has blocked whoever asked: what is counted against a proxy, and worth another try by another one.

use reqwest::header::HeaderMap;

use crate::fetch::decode;
use crate::fetch::fetched::Fetched;

/// Headers that say so, whatever the status is: of Cloudflare ("Detect a Challenge Page response" in its documentation), AWS
/// WAF ("CAPTCHA and Challenge action behavior" in its developer guide) and Vercel ("Attack Challenge Mode").
const HEADERS: [(&str, &str); 4] = [
    ("cf-mitigated", "challenge"),
    ("x-amzn-waf-action", "challenge"),
    ("x-amzn-waf-action", "captcha"),
    ("x-vercel-mitigated", "challenge"),
];
/// A challenge page is thin; a larger one that names a captcha has a form with one, bytes.
const BODY_BYTES_MAX: usize = 8 << 10;
const WORD: &[u8] = b"captcha";

/// The sign that an answer bears, if any. The statuses are those by which Crawlee retires a session ("blockedStatusCodes"
/// of its `SessionPool`).
pub fn sign(fetched: &Fetched) -> Option<&'static str> {
    if let Some(sign) = header(&fetched.headers) {
        return Some(sign);
    }
    match fetched.status {
        401 => Some("401"),
        403 => Some("403"),
        429 => Some("429"),
        // An older challenge of Cloudflare, for a site "under attack".
        503 if fetched.headers.get("server").is_some_and(|server| server == "cloudflare") => Some("cloudflare, 503"),
        200..=299 | 503 if names_captcha(fetched) => Some("a thin page with a captcha"),
        _ => None,
    }
}

fn header(headers: &HeaderMap) -> Option<&'static str> {
    let says = |name: &str, word: &str| headers.get(name).is_some_and(|value| value == word);
    HEADERS.into_iter().find(|(name, word)| says(name, word)).map(|(name, _)| name)
}

fn names_captcha(fetched: &Fetched) -> bool {
    if fetched.body.len() > BODY_BYTES_MAX || !fetched.content_type().is_some_and(|kind| kind.contains("html")) {
        return false;
    }
    let encoding = fetched.content_encoding();
    let body = decode::decode(encoding.as_deref(), &fetched.body, fetched.cut.is_none(), BODY_BYTES_MAX);
    body.is_ok_and(|body| body.windows(WORD.len()).any(|part| part.eq_ignore_ascii_case(WORD)))
}

#[cfg(test)]
mod tests {
    use reqwest::header::{HeaderName, HeaderValue};

    use super::*;

    fn answer(status: u16, headers: &[(&'static str, &'static str)], body: &str) -> Fetched {
        let headers = headers.iter();
        let headers = headers.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        Fetched {
            status,
            head: Vec::new(),
            headers: headers.collect(),
            body: body.as_bytes().to_vec(),
            cut: None,
            block: None,
            address: None,
            head_ms: 0,
            fetch_ms: 0,
        }
    }

    #[test]
    fn blocks_are_told_from_other_answers() {
        let html = ("content-type", "text/html; charset=utf-8");
        let page = "<title>Prove it</title><div class=g-reCAPTCHA></div>";
        let large = format!("{page}{}", "x".repeat(BODY_BYTES_MAX));
        for (fetched, expected) in [
            (answer(401, &[], ""), Some("401")),
            (answer(403, &[], ""), Some("403")),
            (answer(429, &[], ""), Some("429")),
            (answer(200, &[("cf-mitigated", "challenge")], ""), Some("cf-mitigated")),
            (answer(202, &[("x-amzn-waf-action", "challenge")], ""), Some("x-amzn-waf-action")),
            (answer(405, &[("x-amzn-waf-action", "captcha")], ""), Some("x-amzn-waf-action")),
            (answer(429, &[("x-vercel-mitigated", "challenge")], ""), Some("x-vercel-mitigated")),
            (answer(503, &[("server", "cloudflare")], ""), Some("cloudflare, 503")),
            (answer(200, &[html], page), Some("a thin page with a captcha")),
            (answer(503, &[html], page), Some("a thin page with a captcha")),
            (answer(200, &[html], &large), None),
            (answer(200, &[("content-type", "text/css")], page), None),
            (answer(200, &[html], "<p>welcome"), None),
            (answer(200, &[("cf-mitigated", "no"), ("server", "cloudflare")], ""), None),
            (answer(404, &[html], page), None),
            (answer(503, &[], ""), None),
        ] {
            assert_eq!(sign(&fetched), expected, "{fetched:?}");
        }
    }
}
