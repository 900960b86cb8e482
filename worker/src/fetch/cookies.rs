//! The cookies of one crawl, as this worker has seen them (RFC 6265).

use std::collections::HashSet;
use std::fmt;
use std::sync::Mutex;

use cookie_store::{Cookie, CookieDomain, CookieStore};
use reqwest::header::{HeaderMap, SET_COOKIE};
use url::Url;

/// What a cookie may take with its attributes, bytes; RFC 6265 6.1 asks for as much.
const COOKIE_BYTES_MAX: usize = 4096;
/// What a cookie takes beside its text, bytes.
const COOKIE_BYTES_MIN: usize = 512;
/// What is kept for one crawl, bytes.
const JAR_BYTES_MAX: usize = 256 << 10;
/// The longest `Cookie` header that is sent, bytes: common servers take 8 KiB of a whole head.
const HEADER_BYTES_MAX: usize = 6 << 10;

/// Bounded: a full jar keeps the half that was set last.
#[derive(Default)]
pub struct Jar(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    cookies: CookieStore,
    /// Domain, path and name of each, in the order in which they were set; one that replaces another comes again.
    order: Vec<(String, String, String)>,
    /// At least what they take: one that replaces another is counted beside it until the jar is full.
    bytes: usize,
}

impl Jar {
    /// Keeps what an answer of `url` sets; returns whether that is anything.
    pub fn keep(&self, url: &Url, headers: &HeaderMap) -> bool {
        let mut has_set = false;
        for value in headers.get_all(SET_COOKIE) {
            let Some(text) = std::str::from_utf8(value.as_bytes()).ok().filter(|text| text.len() <= COOKIE_BYTES_MAX)
            else {
                continue;
            };
            let Some(cookie) = read(text, url) else { continue };
            let mut kept = self.0.lock().expect("no panic under this lock");
            kept.bytes += COOKIE_BYTES_MIN + text.len();
            kept.order.push((String::from(&cookie.domain), String::from(&cookie.path), cookie.name().to_owned()));
            // What it refuses, RFC 6265 5.3 tells to ignore.
            has_set |= kept.cookies.insert(cookie, url).is_ok();
            if kept.bytes > JAR_BYTES_MAX {
                kept.make_room();
            }
        }
        has_set
    }

    /// The `Cookie` header for a request, without its name; `given` is there already, and goes first.
    pub fn header(&self, url: &Url, given: Option<&str>) -> Option<String> {
        let mut text = given.unwrap_or_default().to_owned();
        for (name, value) in self.0.lock().expect("no panic under this lock").cookies.get_request_values(url) {
            if text.len() + name.len() + value.len() + 3 > HEADER_BYTES_MAX {
                continue;
            }
            if !text.is_empty() {
                text.push_str("; ");
            }
            text.push_str(name);
            text.push('=');
            text.push_str(value);
        }
        (!text.is_empty()).then_some(text)
    }
}

impl Kept {
    fn make_room(&mut self) {
        let (mut seen, mut kept, mut bytes) = (HashSet::new(), Vec::new(), 0);
        for key in std::mem::take(&mut self.order).into_iter().rev() {
            let (domain, path, name) = &key;
            let good = self.cookies.get(domain, path, name).cloned().filter(|_| !seen.contains(&key));
            let Some(cookie) = good else { continue };
            bytes += COOKIE_BYTES_MIN + cookie.to_string().len();
            // Half must be free, or there would be no end of counting.
            if bytes > JAR_BYTES_MAX / 2 {
                break;
            }
            kept.push(cookie.into_owned());
            self.order.push(key.clone());
            seen.insert(key);
        }
        self.order.reverse();
        self.bytes = bytes.min(JAR_BYTES_MAX / 2);
        let cookies: Result<CookieStore, std::convert::Infallible> =
            CookieStore::from_cookies(kept.into_iter().map(Ok), false);
        self.cookies = cookies.unwrap_or_default();
    }
}

/// A cookie for a whole public suffix, as `co.uk`, would go to sites that have nothing to do with each other. It is
/// ignored; one of the host of that very name stays with that host (RFC 6265 5.3, step 5).
fn read(text: &str, url: &Url) -> Option<Cookie<'static>> {
    let mut cookie = Cookie::parse(text, url).ok()?.into_owned();
    if let CookieDomain::Suffix(domain) = &cookie.domain
        && psl::domain_str(domain).is_none()
    {
        if url.host_str() != Some(domain) {
            return None;
        }
        cookie.domain = CookieDomain::host_only(url).ok()?;
    }
    Some(cookie)
}

impl fmt::Debug for Jar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values are secrets of the sites.
        f.write_str("Jar")
    }
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    fn set(jar: &Jar, url: &str, cookies: &[&str]) {
        let values = cookies.iter().map(|cookie| (SET_COOKIE, HeaderValue::from_str(cookie).unwrap()));
        let mut headers = HeaderMap::new();
        for (name, value) in values {
            headers.append(name, value);
        }
        jar.keep(&Url::parse(url).unwrap(), &headers);
    }

    fn sent(jar: &Jar, url: &str) -> Vec<String> {
        let header = jar.header(&Url::parse(url).unwrap(), None).unwrap_or_default();
        let mut cookies: Vec<String> =
            header.split("; ").filter(|cookie| !cookie.is_empty()).map(str::to_owned).collect();
        cookies.sort();
        cookies
    }

    #[test]
    fn a_cookie_goes_back_where_it_may() {
        let jar = Jar::default();
        set(
            &jar,
            "https://www.shop.test/a/b",
            &["host=1", "site=2; Domain=shop.test; Path=/", "path=3; Path=/a", "safe=4; Secure; Path=/"],
        );
        assert_eq!(sent(&jar, "https://www.shop.test/a/c"), ["host=1", "path=3", "safe=4", "site=2"]);
        assert_eq!(sent(&jar, "http://www.shop.test/a/c"), ["host=1", "path=3", "site=2"], "not in the clear");
        assert_eq!(sent(&jar, "https://www.shop.test/"), ["safe=4", "site=2"]);
        assert_eq!(sent(&jar, "https://m.shop.test/a/"), ["site=2"]);
        assert_eq!(sent(&jar, "https://www.shop.test.evil.test/a/"), [""; 0]);
        assert_eq!(sent(&jar, "https://evilshop.test/a/"), [""; 0]);
    }

    #[test]
    fn a_cookie_ends() {
        let jar = Jar::default();
        set(&jar, "http://a.test/", &["one=1", "two=2; Max-Age=600", "gone=3; Expires=Sun, 06 Nov 1994 08:49:37 GMT"]);
        assert_eq!(sent(&jar, "http://a.test/"), ["one=1", "two=2"]);
        set(&jar, "http://a.test/", &["one=; Max-Age=0", "two=new; Max-Age=600"]);
        assert_eq!(sent(&jar, "http://a.test/"), ["two=new"]);
    }

    #[test]
    fn nobody_sets_a_cookie_for_others() {
        let jar = Jar::default();
        set(&jar, "https://evil.co.uk/", &["a=1; Domain=.CO.UK", "b=2; Domain=uk", "c=3; Domain=bank.co.uk", "d=4"]);
        assert_eq!(sent(&jar, "https://bank.co.uk/"), [""; 0]);
        assert_eq!(sent(&jar, "https://evil.co.uk/"), ["d=4"]);
        set(&jar, "https://github.io/", &["own=1; Domain=github.io"]);
        assert_eq!(sent(&jar, "https://github.io/"), ["own=1"]);
        assert_eq!(sent(&jar, "https://other.github.io/"), [""; 0]);
        set(&jar, "http://127.0.0.1:8000/", &["e=5; Domain=0.0.1", "f=6"]);
        assert_eq!(sent(&jar, "http://127.0.0.1:9000/"), ["f=6"], "ports are not told apart (RFC 6265 8.5)");
    }

    #[test]
    fn a_jar_is_bounded() {
        let jar = Jar::default();
        let long = "x".repeat(COOKIE_BYTES_MAX);
        set(&jar, "http://a.test/", &[&format!("long={long}")]);
        assert_eq!(sent(&jar, "http://a.test/"), [""; 0]);
        for n in 0..3000 {
            set(&jar, "http://a.test/", &["session=1"]);
            set(&jar, "http://a.test/", &[&format!("gone{n}=1; Max-Age=0")]);
        }
        assert_eq!(sent(&jar, "http://a.test/"), ["session=1"], "what is replaced or over fills no jar");
        for n in 0..3000 {
            set(&jar, "http://a.test/", &[&format!("n{n}={}", &long[..1000])]);
            if n % 50 == 0 {
                set(&jar, "http://b.test/", &["session=2"]);
            }
        }
        assert_eq!(sent(&jar, "http://b.test/"), ["session=2"], "what is set again and again stays");
        let kept = jar.0.lock().unwrap();
        assert!(kept.cookies.iter_any().count() <= JAR_BYTES_MAX / 1512 + 1);
        drop(kept);
        assert!(jar.header(&Url::parse("http://a.test/").unwrap(), None).unwrap().len() <= HEADER_BYTES_MAX);
    }

    #[test]
    fn what_is_given_goes_first() {
        let jar = Jar::default();
        let url = Url::parse("http://a.test/").unwrap();
        assert_eq!(jar.header(&url, Some("a=1")).as_deref(), Some("a=1"));
        jar.keep(&url, &HeaderMap::from_iter([(SET_COOKIE, HeaderValue::from_bytes(b"b=\xff").unwrap())]));
        set(&jar, "http://a.test/", &["b=2"]);
        assert_eq!(jar.header(&url, Some("a=1")).as_deref(), Some("a=1; b=2"));
    }
}
