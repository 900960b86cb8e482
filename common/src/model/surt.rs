//! The sort-friendly key of a URL in an archive's index.

use url::Url;

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
    use crate::model::url::canonical;

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
