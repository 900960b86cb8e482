//! From bytes to text: the encoding of a body, and the words of a page.

use std::borrow::Cow;

use chardetng::EncodingDetector;
use encoding_rs::{Encoding, UTF_8, UTF_16BE, UTF_16LE};
use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, percent_encode};

/// How far a `<meta charset>` or an XML declaration is looked for, bytes (WHATWG HTML, "prescan a byte stream").
const PRESCAN_BYTES_MAX: usize = 1024;
/// What a guess is made from, bytes, starting at the first that is not ASCII.
const GUESS_BYTES_MAX: usize = 16 * 1024;
/// WHATWG URL, "special-query percent-encode set".
const QUERY: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'<').add(b'>').add(b'\'');

/// Elements whose content is not read as part of a page.
const RAW: [(&str, &str); 4] =
    [("<script", "</script"), ("<style", "</style"), ("<title", "</title"), ("<noscript", "</noscript")];

/// The text of `body` and its encoding, in order of trust: a byte order mark, the charset of the header, that of a
/// `<meta>`, that of an XML declaration, valid UTF-8, a guess. Broken bytes become U+FFFD; sound UTF-8
/// is not copied.
pub fn decode<'b>(body: &'b [u8], content_type: Option<&str>) -> (Cow<'b, str>, &'static Encoding) {
    if let Some((encoding, mark_bytes)) = Encoding::for_bom(body) {
        return (encoding.decode_without_bom_handling(&body[mark_bytes..]).0, encoding);
    }
    let encoding = content_type
        .and_then(|value| named(value.as_bytes(), b"charset"))
        .or_else(|| {
            let head = &body[..body.len().min(PRESCAN_BYTES_MAX)];
            wide_xml(head).or_else(|| prescan(head)).or_else(|| xml_declared(head))
        })
        .unwrap_or_else(|| guess(body));
    (encoding.decode_without_bom_handling(body).0, encoding)
}

/// A reference on a page of another encoding than UTF-8, with its query as a browser would send it: what is not ASCII, in the
/// page's encoding, escaped (WHATWG URL, "query state" and "percent-encode after encoding"). None: it stays as it is.
pub fn encode_query(reference: &str, encoding: &'static Encoding) -> Option<String> {
    let (start, rest) = reference.split_at(reference.find(['?', '#']).filter(|at| reference[*at..].starts_with('?'))?);
    let (query, fragment) = rest.split_at(rest.find('#').unwrap_or(rest.len()));
    if query.is_ascii() {
        return None;
    }
    let mut encoded = start.to_owned();
    // What is ASCII is left to the parser of URLs.
    for part in query.split_inclusive(|c: char| !c.is_ascii()) {
        let (ascii, other) = part.split_at(part.find(|c: char| !c.is_ascii()).unwrap_or(part.len()));
        encoded.push_str(ascii);
        let (bytes, _, is_missing) = encoding.encode(other);
        if is_missing {
            // Such a character stands as a reference of HTML, of which nothing is left as it is.
            encoded.extend(percent_encode(&bytes, NON_ALPHANUMERIC));
        } else {
            encoded.extend(percent_encode(&bytes, QUERY));
        }
    }
    encoded.push_str(fragment);
    Some(encoded)
}

/// Words of an HTML text outside of tags, scripts and styles, about `bytes_max` bytes of them:
/// enough to tell its language, and much cheaper than to parse it.
pub fn sample(html: &str, bytes_max: usize) -> String {
    let mut words = String::with_capacity(bytes_max);
    for word in visible(html).flat_map(str::split_ascii_whitespace) {
        if words.len() >= bytes_max {
            break;
        }
        words.extend(word.chars().take(bytes_max - words.len()));
        words.push(' ');
    }
    words
}

/// The same as it is written, piece by piece.
pub fn visible(html: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(html);
    std::iter::from_fn(move || {
        let (text, tag) = rest.map(|rest| rest.split_at(rest.find('<').unwrap_or(rest.len())))?;
        rest = behind(tag);
        Some(text)
    })
}

/// What follows a tag, a comment, or an element that is not read.
fn behind(tag: &str) -> Option<&str> {
    let raw = RAW.iter().find(|(open, _)| starts_with_ignore_case(tag, open));
    let end = match raw {
        Some((_, close)) => close,
        None if tag.starts_with("<!--") => "-->",
        None => ">",
    };
    let rest = &tag[find_ignore_case(tag, end)? + end.len()..];
    Some(if raw.is_some() { rest.split_once('>').map_or("", |(_, rest)| rest) } else { rest })
}

fn prescan(head: &[u8]) -> Option<&'static Encoding> {
    let mut rest = head;
    while let Some(at) = rest.iter().position(|&byte| byte == b'<') {
        rest = &rest[at + 1..];
        if let Some(comment) = rest.strip_prefix(b"!--") {
            rest = &comment[comment.windows(3).position(|end| end == b"-->")?..];
        } else if rest.len() > 4 && rest[..4].eq_ignore_ascii_case(b"meta") && !rest[4].is_ascii_alphanumeric() {
            let end = rest.iter().position(|&byte| byte == b'>').unwrap_or(rest.len());
            if let Some(encoding) = named(&rest[4..end], b"charset") {
                return Some(not_wide(encoding));
            }
        }
    }
    None
}

/// UTF-16 without a byte order mark shows in how an XML declaration begins (WHATWG HTML, the same; XML 1.0, appendix F).
fn wide_xml(head: &[u8]) -> Option<&'static Encoding> {
    match head {
        [b'<', 0, b'?', 0, b'x', 0, ..] => Some(UTF_16LE),
        [0, b'<', 0, b'?', 0, b'x', ..] => Some(UTF_16BE),
        _ => None,
    }
}

/// WHATWG HTML, "get an XML encoding".
fn xml_declared(head: &[u8]) -> Option<&'static Encoding> {
    let declaration = head.strip_prefix(b"<?xml")?;
    let end = declaration.iter().position(|&byte| byte == b'>')?;
    named(&declaration[..end], b"encoding").map(not_wide)
}

/// A text in which this could be read is not UTF-16, whatever it says.
fn not_wide(encoding: &'static Encoding) -> &'static Encoding {
    if encoding == UTF_16LE || encoding == UTF_16BE { UTF_8 } else { encoding }
}

/// The encoding behind `name` and `=`, quoted or not, in a header's value or a tag.
fn named(text: &[u8], name: &[u8]) -> Option<&'static Encoding> {
    let mut rest = text;
    loop {
        let at = rest.windows(name.len()).position(|window| window.eq_ignore_ascii_case(name))?;
        rest = rest[at + name.len()..].trim_ascii_start();
        let Some(value) = rest.strip_prefix(b"=") else { continue };
        let value = value.trim_ascii_start();
        let value = value.strip_prefix(b"\"").or_else(|| value.strip_prefix(b"'")).unwrap_or(value);
        let end = value.iter().position(|byte| b"\"'; \t\r\n\x0c/>".contains(byte)).unwrap_or(value.len());
        return Encoding::for_label_no_replacement(&value[..end]);
    }
}

fn guess(body: &[u8]) -> &'static Encoding {
    match std::str::from_utf8(body) {
        Ok(_) => UTF_8,
        // A body cut within a character is UTF-8 as well.
        Err(error) if error.error_len().is_none() => UTF_8,
        Err(_) => {
            let from = Encoding::ascii_valid_up_to(body);
            let mut detector = EncodingDetector::new();
            detector.feed(&body[from..body.len().min(from + GUESS_BYTES_MAX)], true);
            detector.guess(None, true)
        }
    }
}

fn starts_with_ignore_case(text: &str, start: &str) -> bool {
    text.as_bytes().get(..start.len()).is_some_and(|head| head.eq_ignore_ascii_case(start.as_bytes()))
}

/// `needle` starts with an ASCII character that has no case.
fn find_ignore_case(text: &str, needle: &str) -> Option<usize> {
    let first = needle.chars().next()?;
    text.match_indices(first).map(|(at, _)| at).find(|&at| starts_with_ignore_case(&text[at..], needle))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_of_trust() {
        for (body, content_type, expected) in [
            (&b"\xef\xbb\xbfa\xc3\xa9"[..], Some("text/html; charset=latin1"), "a\u{e9}"),
            (b"\xff\xfea\x00", None, "a"),
            (b"\xe9", Some("text/html; charset=ISO-8859-1"), "\u{e9}"),
            (b"\xe9", Some("text/html;CHARSET = \"windows-1252\";x=y"), "\u{e9}"),
            (b"<meta charset=windows-1251>\xcf", Some("text/html"), "<meta charset=windows-1251>\u{41f}"),
            (
                b"<!--<meta charset=utf-8>--><META http-equiv=x content='text/html; charset=koi8-r'>\xf0",
                None,
                "<!--<meta charset=utf-8>--><META http-equiv=x content='text/html; charset=koi8-r'>\u{41f}",
            ),
            (b"<meta charset=utf-16>\xc3\xa9", None, "<meta charset=utf-16>\u{e9}"),
            (
                b"<?xml version='1.0' encoding = 'windows-1251'?>\xcf",
                None,
                "<?xml version='1.0' encoding = 'windows-1251'?>\u{41f}",
            ),
            (b"<?xml version='1.0' encoding='UTF-16'?>\xc3\xa9", None, "<?xml version='1.0' encoding='UTF-16'?>\u{e9}"),
            (b"<?xml?><meta charset=koi8-r>\xf0", None, "<?xml?><meta charset=koi8-r>\u{41f}"),
            (b"<\0?\0x\0\xe9\0", None, "<?x\u{e9}"),
            (b"\0<\0?\0x\0\xe9", Some("text/xml"), "<?x\u{e9}"),
            (b"\xc3\xa9", Some("text/html; charset=nonsense"), "\u{e9}"),
            (b"a\xc3\xa9\xe2\x82", None, "a\u{e9}\u{fffd}"),
            (b"\xff", Some("text/html; charset=utf-8"), "\u{fffd}"),
            (b"", None, ""),
        ] {
            assert_eq!(decode(body, content_type).0, expected);
        }
    }

    #[test]
    fn a_guess() {
        let (bytes, ..) = encoding_rs::SHIFT_JIS.encode("これは日本語の文章です。文字コードを判定します。");
        assert_eq!(decode(&bytes, None).0, "これは日本語の文章です。文字コードを判定します。");
    }

    #[test]
    fn sound_utf8_is_borrowed() {
        for content_type in [None, Some("text/html; charset=utf-8")] {
            assert!(matches!(decode("a é".as_bytes(), content_type).0, Cow::Borrowed(_)));
        }
    }

    #[test]
    fn a_query_is_in_the_encoding_of_its_page() {
        use encoding_rs::{GBK, ISO_2022_JP, SHIFT_JIS, UTF_16LE, WINDOWS_1251, WINDOWS_1252};

        for (encoding, reference, expected) in [
            (WINDOWS_1251, "/find?q=тест", Some("/find?q=%F2%E5%F1%F2")),
            (WINDOWS_1251, "/тест?a=%20&b=т+x#т?т", Some("/тест?a=%20&b=%F2+x#т?т")),
            (GBK, "?q=中文", Some("?q=%D6%D0%CE%C4")),
            // The second byte of the last one is a letter.
            (SHIFT_JIS, "/s?q=日本", Some("/s?q=%93%FA%96{")),
            (ISO_2022_JP, "?q=日", Some("?q=%1B$BF|%1B(B")),
            // No byte of this encoding stands for it.
            (WINDOWS_1252, "/?q=é中", Some("/?q=%E9%26%2320013%3B")),
            (UTF_16LE, "/?q=é", Some("/?q=%C3%A9")),
            (WINDOWS_1251, "/тест", None),
            (WINDOWS_1251, "/a?b=c#т", None),
            (WINDOWS_1251, "/a#?т", None),
        ] {
            assert_eq!(encode_query(reference, encoding).as_deref(), expected, "{} {reference}", encoding.name());
        }
    }

    #[test]
    fn never_panics() {
        let mut state = 1_u32;
        for length in 0..2000 {
            let body: Vec<u8> = (0..length % 97)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    const BYTES: &[u8] = b"<!-meta charset='\xff\xfe\x00\xc3\xa9>scriptSCRIPT/";
                    BYTES[(state >> 16) as usize % BYTES.len()]
                })
                .collect();
            sample(&decode(&body, None).0, 20);
        }
    }

    #[test]
    fn sample_is_what_is_read() {
        let html = "<html><TITLE>t</title><script>if (a<b) {}</SCRIPT ><!-- <p>no --><p>One <b>two</b>&amp; three</p><style>x</style>four<";
        assert_eq!(sample(html, 100), "One two &amp; three four ");
        assert_eq!(sample("aaaa bbbb cccc", 6).trim(), "aaaa b");
    }
}
