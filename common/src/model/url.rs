//! Canonical URLs, the hash that names them, the scope of a crawl and the sort key of its index.

use std::collections::{HashMap, HashSet};
use std::str::FromStr;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use url::{Host, Position, Url};
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_128;

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

/// How far from its seeds a crawl may go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ScopeKind {
    /// The host name and port of a seed; http and https count as one when both ports are default.
    #[default]
    Host,
    /// The registrable domain of a seed (Public Suffix List), any port.
    Domain,
    /// The origin of a seed, and a path that starts with the seed's up to its last `/`.
    Prefix,
    /// Everything.
    Any,
}

/// The scope of one crawl, ready to judge many URLs: a call is a look-up or two.
#[derive(Clone, Debug)]
pub struct Scope {
    pub kind: ScopeKind,
    pub seeds: Vec<Url>,
    /// `host[:port]` of the seeds for Host, registrable domains for Domain.
    hosts: HashSet<String>,
    /// Origin to its path prefixes, sorted, none a prefix of another.
    prefixes: HashMap<String, Vec<String>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScopeDecision {
    pub allowed: bool,
    pub reason: &'static str,
}

/// The canonical form of `raw`, resolved against `base`. Idempotent.
///
/// WHATWG parsing does case, default ports, dot segments and IDNA; on top come no fragment, no
/// userinfo, no root dot of the host, no empty query, and the percent-encoding of RFC 3986 6.2.2.
pub fn canonical(raw: &str, base: Option<&Url>) -> Result<Canonical, UrlError> {
    let url = walk(raw, base, |_, _| {})?;
    let host = url[..Position::BeforePath].to_owned();
    let hash = UrlHash(xxh3_128(url.as_str().as_bytes()));
    Ok(Canonical { url, host, hash })
}

/// Each step of [`canonical`] that changed something, with its outcome, for `dodo url`.
/// The first is what was given; where it fails, the last is the error.
pub fn steps(raw: &str, base: Option<&Url>) -> Vec<(String, String)> {
    let mut steps = vec![("given".to_owned(), raw.to_owned())];
    let outcome = walk(raw, base, |step, value| {
        if steps.last().is_none_or(|(_, before)| before != value) {
            steps.push((step.to_owned(), value.to_owned()));
        }
    });
    if let Err(error) = outcome {
        steps.push(("error".to_owned(), error.to_string()));
    }
    steps
}

/// The key of a CDXJ line, as the Python packages `surt` and `cdxj-indexer` make it, whose index
/// ours must merge with: `http://www.example.com/a?b=1` is `com,example)/a?b=1`.
///
/// Like theirs it reverses IPv4 addresses too, lower-cases path and query, sorts parameters and
/// drops session ids.
pub fn surt(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']', '.']).to_ascii_lowercase();
    let labels: Vec<&str> = without_www(&host).rsplit('.').filter(|label| !label.is_empty()).collect();
    let mut key = labels.join(",");
    if let Some(port) = url.port() {
        key.push_str(&format!(":{port}"));
    }
    key.push(')');
    key.push_str(&surt_path(url.path()));
    if let Some(query) = url.query().map(surt_query).filter(|query| !query.is_empty()) {
        key.push('?');
        key.push_str(&query);
    }
    key
}

impl UrlHash {
    pub fn to_uuid(self) -> Uuid {
        Uuid::from_u128(self.0)
    }

    pub fn from_uuid(uuid: Uuid) -> UrlHash {
        UrlHash(uuid.as_u128())
    }
}

impl ScopeKind {
    pub fn as_str(self) -> &'static str {
        match self {
            ScopeKind::Host => "host",
            ScopeKind::Domain => "domain",
            ScopeKind::Prefix => "prefix",
            ScopeKind::Any => "any",
        }
    }
}

impl FromStr for ScopeKind {
    type Err = String;

    fn from_str(text: &str) -> Result<ScopeKind, String> {
        [ScopeKind::Host, ScopeKind::Domain, ScopeKind::Prefix, ScopeKind::Any]
            .into_iter()
            .find(|kind| kind.as_str().eq_ignore_ascii_case(text))
            .ok_or_else(|| format!("the scope is host, domain, prefix or any, not {text:?}"))
    }
}

impl std::fmt::Display for ScopeKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Scope {
    /// `seeds` are canonical URLs.
    pub fn new(kind: ScopeKind, seeds: Vec<Url>) -> Scope {
        let mut hosts = HashSet::new();
        let mut prefixes: HashMap<String, Vec<String>> = HashMap::new();
        for seed in &seeds {
            match kind {
                ScopeKind::Host => drop(hosts.insert(authority(seed).to_owned())),
                ScopeKind::Domain => drop(hosts.insert(registrable(seed).to_owned())),
                ScopeKind::Prefix => {
                    prefixes.entry(origin(seed).to_owned()).or_default().push(directory(seed).to_owned())
                }
                ScopeKind::Any => {}
            }
        }
        for paths in prefixes.values_mut() {
            // After sorting, what a prefix covers follows it directly.
            paths.sort_unstable();
            paths.dedup_by(|path, kept| path.starts_with(kept.as_str()));
        }
        Scope { kind, seeds, hosts, prefixes }
    }

    /// `url` is canonical.
    pub fn allows(&self, url: &Url) -> ScopeDecision {
        let (allowed, yes, no) = match self.kind {
            ScopeKind::Host => (self.hosts.contains(authority(url)), "the host of a seed", "not the host of a seed"),
            ScopeKind::Domain => {
                (self.hosts.contains(registrable(url)), "the domain of a seed", "not the domain of a seed")
            }
            ScopeKind::Prefix => (self.under_prefix(url), "under the path of a seed", "not under the path of a seed"),
            ScopeKind::Any => (true, "everything is in scope", ""),
        };
        ScopeDecision { allowed, reason: if allowed { yes } else { no } }
    }

    fn under_prefix(&self, url: &Url) -> bool {
        let Some(paths) = self.prefixes.get(origin(url)) else { return false };
        // No path is a prefix of another, so only the last one not above this path can cover it.
        let after = paths.partition_point(|path| path.as_str() <= url.path());
        after > 0 && url.path().starts_with(&paths[after - 1])
    }
}

fn origin(url: &Url) -> &str {
    &url[..Position::BeforePath]
}

fn authority(url: &Url) -> &str {
    &url[Position::BeforeHost..Position::BeforePath]
}

/// The registrable domain, or the whole host where there is none: an IP literal, `localhost`, a
/// public suffix itself.
fn registrable(url: &Url) -> &str {
    match url.host() {
        Some(Host::Domain(name)) => psl::domain_str(name).unwrap_or(name),
        _ => url.host_str().unwrap_or_default(),
    }
}

fn directory(url: &Url) -> &str {
    let path = url.path();
    path.rfind('/').map_or(path, |slash| &path[..=slash])
}

/// The one code path of [`canonical`] and [`steps`]; `step` hears the outcome of each.
fn walk(raw: &str, base: Option<&Url>, mut step: impl FnMut(&'static str, &str)) -> Result<Url, UrlError> {
    if raw.contains('\0') {
        return Err(UrlError::Nul);
    }
    // What the WHATWG parser trims: C0 controls and space.
    let trimmed = raw.trim_matches(|c| c <= ' ');
    step("trimmed", trimmed);
    // In every state of that parser of a base that is no opaque path, the first '#' starts the fragment.
    let reference = trimmed.split_once('#').map_or(trimmed, |(reference, _)| reference);
    step("fragment dropped", reference);
    bounded(reference)?;

    let mut url = Url::options().base_url(base).parse(reference)?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(UrlError::Scheme(url.scheme().to_owned()));
    }
    url.set_fragment(None);
    step("parsed", url.as_str());

    if !url.username().is_empty() || url.password().is_some() {
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
    bounded(url.as_str())?;
    Ok(url)
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
        let makes_escape = byte.is_ascii_hexdigit() && bare.is_some_and(|bare| out.len() - bare <= 2);
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

/// `www\d*\.` at the start is not part of a key.
fn without_www(host: &str) -> &str {
    let rest = host.strip_prefix("www").map(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit()));
    rest.and_then(|rest| rest.strip_prefix('.')).unwrap_or(host)
}

fn surt_path(path: &str) -> String {
    let path = unescaped(path);
    let mut kept: Vec<&[u8]> = Vec::new();
    for segment in path.split(|&byte| byte == b'/').skip(1) {
        match segment {
            b"." => {}
            b".." if !kept.is_empty() => drop(kept.pop()),
            segment => kept.push(segment),
        }
    }
    // Of the empty segments only a last one says something: that the path ends in a slash.
    let last = kept.pop().unwrap_or_default();
    kept.retain(|segment| !segment.is_empty());
    kept.push(last);
    let mut path = format!("/{}", escaped(&kept.join(&b'/'))).to_ascii_lowercase();
    for is_session in [is_aspx_session_nested as fn(&str) -> bool, is_aspx_session] {
        path = without_path_session(&path, is_session).unwrap_or(path);
    }
    if path.len() > 1 && path.ends_with('/') {
        path.pop();
    }
    path
}

fn surt_query(query: &str) -> String {
    let mut query = escaped(&unescaped(query));
    for session in [session_java, session_php, session_sid, session_asp, session_coldfusion] {
        query = without_query_session(&query, session).unwrap_or(query);
    }
    let query = query.to_ascii_lowercase();
    let mut parameters: Vec<&str> = query.split('&').collect();
    parameters.sort_by_key(|parameter| {
        parameter.split_once('=').map_or((*parameter, None), |(name, value)| (name, Some(value)))
    });
    parameters.join("&")
}

/// Decodes until nothing is left to decode, as the key of an archive does.
fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    loop {
        let decoded: Vec<u8> = percent_encoding::percent_decode(&bytes).collect();
        if decoded.len() == bytes.len() {
            return decoded;
        }
        bytes = decoded;
    }
}

fn escaped(bytes: &[u8]) -> String {
    const ESCAPED: &percent_encoding::AsciiSet = &percent_encoding::CONTROLS.add(b' ').add(b'#').add(b'%');
    percent_encoding::percent_encode(bytes, ESCAPED).to_string()
}

/// `/(session)/page.aspx` without the session; none where there is none.
fn without_path_session(path: &str, is_session: fn(&str) -> bool) -> Option<String> {
    let page = |rest: &str| {
        let rest = rest.split('?').next().unwrap_or_default();
        rest.get(1..).is_some_and(|rest| rest.contains(".aspx"))
    };
    let slashes = path.match_indices('/').map(|(at, _)| at).collect::<Vec<_>>();
    slashes.windows(2).rev().find_map(|pair| {
        let (segment, rest) = (&path[pair[0] + 1..pair[1]], &path[pair[1] + 1..]);
        (is_session(segment) && page(rest)).then(|| format!("{}{rest}", &path[..=pair[0]]))
    })
}

/// `(24 characters)`.
fn is_aspx_session(segment: &str) -> bool {
    segment.len() == 26
        && segment.starts_with('(')
        && segment.ends_with(')')
        && segment[1..25].bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// `(a(24 characters)s(24 characters))`.
fn is_aspx_session_nested(segment: &str) -> bool {
    let Some(inner) = segment.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')) else { return false };
    // Each part is a letter and a plain session, 27 bytes.
    !inner.is_empty()
        && inner.is_ascii()
        && inner
            .as_bytes()
            .chunks(27)
            .all(|part| part[0].is_ascii_alphabetic() && std::str::from_utf8(&part[1..]).is_ok_and(is_aspx_session))
}

/// The query without the last run that `session` measures and that ends a parameter.
fn without_query_session(query: &str, session: fn(&str) -> Option<usize>) -> Option<String> {
    (0..query.len()).rev().find_map(|at| {
        let end = at + session(&query[at..])?;
        let rest = &query[end..];
        match rest.strip_prefix('&') {
            Some(rest) => Some(format!("{}{rest}", &query[..at])),
            None => rest.is_empty().then(|| query[..at].to_owned()),
        }
    })
}

fn session_java(query: &str) -> Option<usize> {
    run(query, "jsessionid=", 32, u8::is_ascii_alphanumeric)
}

fn session_php(query: &str) -> Option<usize> {
    run(query, "phpsessid=", 32, u8::is_ascii_alphanumeric)
}

fn session_sid(query: &str) -> Option<usize> {
    run(query, "sid=", 32, u8::is_ascii_alphanumeric)
}

fn session_asp(query: &str) -> Option<usize> {
    let name = run(query, "aspsessionid", 8, u8::is_ascii_alphabetic)?;
    Some(name + run(&query[name..], "=", 24, u8::is_ascii_alphabetic)?)
}

fn session_coldfusion(query: &str) -> Option<usize> {
    let mut end = 0;
    for name in ["cfid=", "&cftoken="] {
        end += run(&query[end..], name, 0, u8::is_ascii)?;
        let value = query[end..].find('&').unwrap_or(query.len() - end);
        end += Some(value).filter(|&value| value > 0)?;
    }
    Some(end)
}

/// The length of `name`, in any case, and `count` bytes of `class` behind it.
fn run(text: &str, name: &str, count: usize, class: fn(&u8) -> bool) -> Option<usize> {
    let end = name.len() + count;
    let bytes = text.as_bytes().get(..end)?;
    (bytes[..name.len()].eq_ignore_ascii_case(name.as_bytes()) && bytes[name.len()..].iter().all(class)).then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> String {
        canonical(text, None).unwrap().url.to_string()
    }

    #[test]
    fn one_spelling() {
        for (raw, expected) in [
            (" HTTP://Example.COM:80/a/./b/../c#frag\n", "http://example.com/a/c"),
            ("https://user:pw@example.com:443", "https://example.com/"),
            ("http://example.com./?", "http://example.com/"),
            ("http://example.com../x", "http://example.com/x"),
            ("http://example.com:8080/", "http://example.com:8080/"),
            (
                "http://example.com/%7euser/%e3%83%84/%2f?q=%41%20%26",
                "http://example.com/~user/%E3%83%84/%2F?q=A%20%26",
            ),
            ("http://example.com/%2541", "http://example.com/%2541"),
            ("http://example.com/%%341%", "http://example.com/%%341%"),
            ("http://example.com/%4%31", "http://example.com/%4%31"),
            ("http://例え.jp/ツ", "http://xn--r8jz45g.jp/%E3%83%84"),
            ("http://0x7f.1./", "http://127.0.0.1/"),
            ("http://1.2.3.0x4../", "http://1.2.3.4/"),
            ("http://[0:0::1]:80/", "http://[::1]/"),
            ("http://example.com/a b", "http://example.com/a%20b"),
        ] {
            assert_eq!(url(raw), expected, "{raw}");
        }
    }

    #[test]
    fn relative_to_a_base() {
        let base = Url::parse("https://example.com/dir/page?x=1#y").unwrap();
        for (raw, expected) in [
            ("other", "https://example.com/dir/other"),
            ("?y=2", "https://example.com/dir/page?y=2"),
            ("", "https://example.com/dir/page?x=1"),
            ("#z", "https://example.com/dir/page?x=1"),
            ("//b.example/", "https://b.example/"),
            ("../../up", "https://example.com/up"),
        ] {
            assert_eq!(canonical(raw, Some(&base)).unwrap().url.as_str(), expected, "{raw}");
        }
    }

    #[test]
    fn the_host_is_the_origin() {
        assert_eq!(canonical("https://u@Example.com:443/a?b", None).unwrap().host, "https://example.com");
        assert_eq!(canonical("http://example.com:81/", None).unwrap().host, "http://example.com:81");
    }

    #[test]
    fn what_is_no_url() {
        assert_eq!(canonical("http://a/\0", None), Err(UrlError::Nul));
        assert_eq!(canonical("mailto:a@b.c", None), Err(UrlError::Scheme("mailto".into())));
        assert!(matches!(canonical("/x", None), Err(UrlError::Parse(_))));
        assert!(matches!(canonical("http://./", None), Err(UrlError::Parse(_))));
        let long = format!("http://a/{}", "x".repeat(URL_BYTES_MAX));
        assert_eq!(canonical(&long, None).unwrap_err().to_string(), "the URL has 2057 bytes, more than 2048");
        let grows = format!("http://a/{}", "ツ".repeat(600));
        assert!(matches!(canonical(&grows, None), Err(UrlError::TooLong { .. })));
        assert!(canonical(&format!("http://a/#{}", "x".repeat(9000)), None).is_ok());
    }

    #[test]
    fn idempotent_on_pseudo_random_strings() {
        const PIECES: [&str; 34] = [
            "%", "4", "1", "%34", "%2e", "%2E", "%2f", "%25", "%7E", "%zz", ".", "..", "/", "//", "?", "&", "=", "a",
            "B", "~", "@", ":", "ツ", " ", "'", "\"", "\\", "[", "|", "^", "%c3", "é", "\t", ";",
        ];
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % below as u64) as usize
        };
        let mut good = 0;
        for _ in 0..50_000 {
            let mut raw =
                ["http://a.example/", "https://B.example./?", "http://", "http://c.example"][next(4)].to_owned();
            for _ in 0..next(12) {
                raw.push_str(PIECES[next(PIECES.len())]);
            }
            let Ok(once) = canonical(&raw, None) else { continue };
            let twice = canonical(once.url.as_str(), None).expect(&raw);
            assert_eq!(once, twice, "{raw:?}");
            assert_eq!(Url::parse(once.url.as_str()).unwrap(), once.url, "{raw:?}");
            good += 1;
        }
        assert!(good > 20_000, "{good}");
    }

    #[test]
    fn hash_is_a_uuid() {
        let hash = canonical("http://example.com/", None).unwrap().hash;
        assert_eq!(UrlHash::from_uuid(hash.to_uuid()), hash);
        assert_eq!(hash.to_uuid().as_bytes(), &hash.0.to_be_bytes());
    }

    #[test]
    fn steps_name_what_changed() {
        let steps = steps(" http://u@Example.com./%7e?#x", None);
        let names: Vec<&str> = steps.iter().map(|(step, _)| step.as_str()).collect();
        assert_eq!(
            names,
            [
                "given",
                "trimmed",
                "fragment dropped",
                "parsed",
                "userinfo dropped",
                "root dot of the host dropped",
                "empty query dropped",
                "percent-encoding normalised"
            ]
        );
        assert_eq!(steps.last().unwrap().1, "http://example.com/~");
        assert_eq!(super::steps("http://a/", None).len(), 1);
        assert_eq!(super::steps("ftp://a/", None).last().unwrap().0, "error");
    }

    fn allows(kind: ScopeKind, seeds: &[&str], text: &str) -> bool {
        let seeds = seeds.iter().map(|seed| canonical(seed, None).unwrap().url).collect();
        Scope::new(kind, seeds).allows(&canonical(text, None).unwrap().url).allowed
    }

    #[test]
    fn scopes() {
        use ScopeKind::{Any, Domain, Host, Prefix};
        for (kind, seeds, text, expected) in [
            (Host, &["http://example.com/"][..], "https://example.com/x", true),
            (Host, &["http://example.com/"], "http://www.example.com/", false),
            (Host, &["http://example.com/"], "http://example.com:81/", false),
            (Domain, &["http://www.example.co.uk/"], "https://a.b.example.co.uk:99/", true),
            (Domain, &["http://www.example.co.uk/"], "http://other.co.uk/", false),
            (Domain, &["http://me.github.io/"], "http://you.github.io/", false),
            (Domain, &["http://127.0.0.1:1/"], "http://127.0.0.1:2/", true),
            (Domain, &["http://127.0.0.1/"], "http://126.0.0.1/", false),
            (Domain, &["http://localhost/"], "http://localhost:1/", true),
            (Prefix, &["http://a.example/docs/index.html"], "http://a.example/docs/x/y?z", true),
            (Prefix, &["http://a.example/docs/index.html"], "http://a.example/docs", false),
            (Prefix, &["http://a.example/docs/"], "https://a.example/docs/", false),
            (
                Prefix,
                &["http://a.example/a/", "http://a.example/a/b/", "http://a.example/c/"],
                "http://a.example/a/z",
                true,
            ),
            (Prefix, &["http://a.example/a/", "http://a.example/c/"], "http://a.example/b/", false),
            (Prefix, &["http://a.example/a/", "http://a.example/c/"], "http://a.example/", false),
            (Any, &[], "http://b.example/", true),
        ] {
            assert_eq!(allows(kind, seeds, text), expected, "{kind} {seeds:?} {text}");
        }
    }

    #[test]
    fn scope_kind_is_spelt_one_way() {
        assert_eq!("Domain".parse::<ScopeKind>(), Ok(ScopeKind::Domain));
        assert!("x".parse::<ScopeKind>().is_err());
        assert_eq!(serde_json::to_string(&ScopeKind::Prefix).unwrap(), "\"prefix\"");
    }

    /// The right side is what `surt` 0.3.1, which `cdxj-indexer` 1.5.0 calls, answers.
    #[test]
    fn surt_as_the_python_package() {
        for (raw, expected) in [
            ("http://www.example.com/a?b=1", "com,example)/a?b=1"),
            ("http://192.168.1.1/", "1,1,168,192)/"),
            ("http://[::1]:8080/a", "::1:8080)/a"),
            ("http://www2.example.com:8080/A/", "com,example:8080)/a"),
            ("https://example.com/a//b/../C?z=1&a=2&a&a=", "com,example)/a/c?a&a=&a=2&z=1"),
            ("http://example.com/%2541%20b?q=%26x&Y=%E3%83%84", "com,example)/a%20b?q=&x&y=%e3%83%84"),
            ("http://example.com/x?sid=0123456789abcdef0123456789abcdef&b=1", "com,example)/x?b=1"),
            ("http://example.com/x?CFID=1&CFTOKEN=2", "com,example)/x"),
            ("http://e.com/(a(4hqa0555fwsecu455xqckv45)s(4hqa0555fwsecu455xqckv45))/m.aspx?X=1", "com,e)/m.aspx?x=1"),
            ("http://127.0.0.1:8080/Page?id=3&a=1", "1,0,0,127:8080)/page?a=1&id=3"),
            ("http://localhost/", "localhost)/"),
            ("http://www.com/", "com)/"),
        ] {
            assert_eq!(surt(&canonical(raw, None).unwrap().url), expected, "{raw}");
        }
    }
}
