//! Canonical URLs and the hash that names them.

use url::{Position, Url};
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_128;

use crate::model::url_rules::UrlRules;

/// The longest URL taken, before (without its fragment) and after canonicalisation, bytes.
/// Sitemaps allow 2,048 characters, and what is longer on the web is nearly always a trap.
pub const URL_BYTES_MAX: usize = 2048;

/// One URL in the only spelling that the crawl knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Canonical {
    /// http or https, without fragment and userinfo.
    pub url: Url,
    /// The origin, `scheme://authority` with the port only where it is not the default one: the
    /// unit of robots.txt (RFC 9309 2.3) and of politeness.
    pub host: String,
    pub hash: UrlHash,
}

/// xxh3_128 of the canonical string: the identity of a URL in the seen-set and the frontier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UrlHash(pub u128);

/// Why a reference is not a URL that can be crawled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    #[error("a URL cannot hold a NUL byte")]
    Nul,
    #[error("the URL has {bytes} bytes, more than {URL_BYTES_MAX}")]
    TooLong { bytes: usize },
    #[error("not a URL: {0}")]
    Parse(#[from] url::ParseError),
    #[error("only http and https are crawled, not {0}")]
    Scheme(String),
}

/// The canonical form of `raw`, resolved against `base`. Idempotent.
///
/// WHATWG parsing does case, default ports, dot segments and IDNA; on top come no fragment, no
/// userinfo, no root dot of the host, no empty query, and the percent-encoding of RFC 3986 6.2.2.
pub fn canonical(raw: &str, base: Option<&Url>) -> Result<Canonical, UrlError> {
    ruled(raw, base, UrlRules::none())
}

/// The same with the rules of a crawl on top: the only spelling that this crawl knows. Idempotent, too.
pub fn ruled(raw: &str, base: Option<&Url>, rules: &UrlRules) -> Result<Canonical, UrlError> {
    let url = walk(raw, base, rules, |_, _| {})?;
    let host = url[..Position::BeforePath].to_owned();
    let hash = UrlHash::of(url.as_str());
    Ok(Canonical { url, host, hash })
}

/// Each step of [`ruled`] that changed something, with its outcome, for `dodo url`.
/// The first is what was given; where it fails, the last is the error.
pub fn steps(raw: &str, base: Option<&Url>, rules: &UrlRules) -> Vec<(String, String)> {
    let mut steps = vec![("given".to_owned(), raw.to_owned())];
    let outcome = walk(raw, base, rules, |step, value| {
        if steps.last().is_none_or(|(_, before)| before != value) {
            steps.push((step.to_owned(), value.to_owned()));
        }
    });
    if let Err(error) = outcome {
        steps.push(("error".to_owned(), error.to_string()));
    }
    steps
}

impl UrlHash {
    /// Of a canonical URL.
    pub fn of(text: &str) -> UrlHash {
        UrlHash(xxh3_128(text.as_bytes()))
    }

    pub fn to_uuid(self) -> Uuid {
        Uuid::from_u128(self.0)
    }

    pub fn from_uuid(uuid: Uuid) -> UrlHash {
        UrlHash(uuid.as_u128())
    }
}

/// The one code path of [`ruled`] and [`steps`]; `step` hears the outcome of each.
fn walk(
    raw: &str,
    base: Option<&Url>,
    rules: &UrlRules,
    mut step: impl FnMut(&'static str, &str),
) -> Result<Url, UrlError> {
    if raw.contains('\0') {
        return Err(UrlError::Nul);
    }
    // What the WHATWG parser trims: C0 controls and space.
    let trimmed = raw.trim_matches(|c| c <= ' ');
    step("trimmed", trimmed);
    // In every state of that parser of a base that is no opaque path, the first '#' starts the fragment.
    let reference_bytes = trimmed.find('#').unwrap_or(trimmed.len());
    let reference = &trimmed[..reference_bytes];
    step("fragment dropped", reference);
    bounded(reference)?;

    // With its '#': the parser would trim what lies before it, and that is of the path or the query.
    let mut url = Url::options().base_url(base).parse(&trimmed[..trimmed.len().min(reference_bytes + 1)])?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(UrlError::Scheme(url.scheme().to_owned()));
    }
    url.set_fragment(None);
    step("parsed", url.as_str());

    if has_userinfo(&url) {
        // Both only fail without a host, which http and https always have.
        let _ = (url.set_username(""), url.set_password(None));
        step("userinfo dropped", url.as_str());
    }
    if let Some(name) = url.host_str().and_then(|host| host.strip_suffix('.')) {
        let name = name.trim_end_matches('.').to_owned();
        url.set_host(Some(&name))?;
        step("root dot of the host dropped", url.as_str());
    }
    if url.query() == Some("") {
        url.set_query(None);
        step("empty query dropped", url.as_str());
    }
    if url.as_str().contains('%') {
        let path = normal_escapes(url.path());
        let query = url.query().map(normal_escapes);
        if path != url.path() {
            url.set_path(&path);
        }
        if query.as_deref() != url.query() {
            url.set_query(query.as_deref());
        }
        step("percent-encoding normalised", url.as_str());
    }
    rules.apply(&mut url, &mut step);
    bounded(url.as_str())?;
    Ok(url)
}

/// It holds a user name or a password (RFC 3986 3.2.1).
pub fn has_userinfo(url: &Url) -> bool {
    !url.username().is_empty() || url.password().is_some()
}

fn bounded(text: &str) -> Result<(), UrlError> {
    if text.len() > URL_BYTES_MAX { Err(UrlError::TooLong { bytes: text.len() }) } else { Ok(()) }
}

/// RFC 3986 6.2.2.1 and 6.2.2.2: upper-case escapes, and unreserved characters not escaped.
fn normal_escapes(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    // Where a '%' that starts no escape lies in `out`: decoding just behind it could make one up.
    let mut bare = None;
    let mut at = 0;
    while at < bytes.len() {
        let Some(byte) = escape(&bytes[at..]) else {
            if bytes[at] == b'%' {
                bare = Some(out.len());
            }
            out.push(bytes[at]);
            at += 1;
            continue;
        };
        // Nothing but hex digits between: so what lies before an `&`, `;` or `/` has no say in what comes after.
        let makes_escape = byte.is_ascii_hexdigit()
            && bare.is_some_and(|bare| out.len() - bare <= 2 && out[bare + 1..].iter().all(u8::is_ascii_hexdigit));
        if unreserved(byte) && !makes_escape {
            out.push(byte);
        } else {
            out.extend(bytes[at..at + 3].iter().map(u8::to_ascii_uppercase));
        }
        at += 3;
    }
    String::from_utf8(out).unwrap_or_else(|_| text.to_owned())
}

/// The byte that `%HH` at the start of `bytes` stands for.
fn escape(bytes: &[u8]) -> Option<u8> {
    let [b'%', high, low, ..] = bytes else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16);
    Some((digit(*high)? * 16 + digit(*low)?) as u8)
}

fn unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

#[cfg(test)]
mod tests;
