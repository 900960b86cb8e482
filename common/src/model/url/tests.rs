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
        ("http://example.com/%7euser/%e3%83%84/%2f?q=%41%20%26", "http://example.com/~user/%E3%83%84/%2F?q=A%20%26"),
        ("http://example.com/%2541", "http://example.com/%2541"),
        ("http://example.com/%%341%", "http://example.com/%%341%"),
        ("http://example.com/%4%31", "http://example.com/%4%31"),
        ("http://example.com/%/%41?%&%41", "http://example.com/%/A?%&A"),
        ("http://例え.jp/ツ", "http://xn--r8jz45g.jp/%E3%83%84"),
        ("http://0x7f.1./", "http://127.0.0.1/"),
        ("http://1.2.3.0x4../", "http://1.2.3.4/"),
        ("http://[0:0::1]:80/", "http://[::1]/"),
        ("http://example.com/a b", "http://example.com/a%20b"),
        ("http://example.com/a \x1c#b", "http://example.com/a%20%1C"),
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

/// Sections 5.4.1 and 5.4.2, as WHATWG resolves them: a host has a path, and `http:` before a reference says nothing.
#[test]
fn the_examples_of_rfc_3986() {
    let base = Url::parse("http://a/b/c/d;p?q").unwrap();
    for (expected, references) in [
        ("http://a/b/c/g", &["g", "./g", "g#s", "g#s/./x", "g#s/../x", "http:g"][..]),
        ("http://a/b/c/g/", &["g/", "./g/."]),
        ("http://a/b/c/g/h", &["g/./h"]),
        ("http://a/b/c/h", &["g/../h"]),
        ("http://a/b/c/g?y", &["g?y", "g?y#s"]),
        ("http://a/b/c/g?y/./x", &["g?y/./x"]),
        ("http://a/b/c/g?y/../x", &["g?y/../x"]),
        ("http://a/b/c/;x", &[";x"]),
        ("http://a/b/c/g;x", &["g;x"]),
        ("http://a/b/c/g;x?y", &["g;x?y#s"]),
        ("http://a/b/c/g;x=1/y", &["g;x=1/./y"]),
        ("http://a/b/c/y", &["g;x=1/../y"]),
        ("http://a/b/c/g.", &["g."]),
        ("http://a/b/c/.g", &[".g"]),
        ("http://a/b/c/g..", &["g.."]),
        ("http://a/b/c/..g", &["..g"]),
        ("http://a/b/c/d;p?q", &["", "#s"]),
        ("http://a/b/c/d;p?y", &["?y"]),
        ("http://a/b/c/", &[".", "./"]),
        ("http://a/b/", &["..", "../"]),
        ("http://a/b/g", &["../g", "./../g"]),
        ("http://a/", &["../..", "../../"]),
        ("http://a/g", &["/g", "/./g", "/../g", "../../g", "../../../g", "../../../../g"]),
        ("http://g/", &["//g"]),
    ] {
        for raw in references {
            assert_eq!(canonical(raw, Some(&base)).unwrap().url.as_str(), expected, "{raw}");
        }
    }
    assert_eq!(canonical("g:h", Some(&base)), Err(UrlError::Scheme("g".into())));
}

/// Those that are http or https, of validation errors (1.1), hosts (3) and URLs (4), and a few like them.
#[test]
fn the_examples_of_the_url_standard() {
    for (raw, expected) in [
        ("https:example.org", "https://example.org/"),
        ("https://////example.com///", "https://example.com///"),
        ("https://example.com/././foo", "https://example.com/foo"),
        ("https://user:password@example.org/", "https://example.org/"),
        ("https://user@example.org", "https://example.org/"),
        ("https://example.org/foo bar", "https://example.org/foo%20bar"),
        ("https://EXAMPLE.com/../x", "https://example.com/x"),
        ("https://example.org//", "https://example.org//"),
        ("https://example.com/[]?[]#[]", "https://example.com/[]?[]"),
        ("https://example/%?%#%", "https://example/%?%"),
        ("https://example/%25?%25#%25", "https://example/%25?%25"),
        ("https://example.org/>", "https://example.org/%3E"),
        ("https://example.org/%s", "https://example.org/%s"),
        (" https://example.org ", "https://example.org/"),
        ("ht\ntps://example.org", "https://example.org/"),
        ("https://example.org\\path\\to\\file", "https://example.org/path/to/file"),
    ] {
        assert_eq!(url(raw), expected, "{raw}");
    }
    for (raw, base, expected) in [
        ("https:example.org", "https://example.com/", "https://example.com/example.org"),
        ("\\example\\..\\demo/.\\", "https://example.com/", "https://example.com/demo/"),
        ("example", "https://example.com/demo", "https://example.com/example"),
    ] {
        let base = Url::parse(base).unwrap();
        assert_eq!(canonical(raw, Some(&base)).unwrap().url.as_str(), expected, "{raw}");
    }
    for (host, expected) in [
        ("EXAMPLE.COM", "example.com"),
        ("example%2Ecom", "example.com"),
        ("faß.example", "xn--fa-hia.example"),
        ("☕.example", "xn--53h.example"),
        ("0", "0.0.0.0"),
        ("%30", "0.0.0.0"),
        ("0x", "0.0.0.0"),
        ("0xffffffff", "255.255.255.255"),
        ("0xbadf00d", "11.173.240.13"),
        ("127.0.0.1.", "127.0.0.1"),
        ("127.0.0x0.1", "127.0.0.1"),
        ("1.2.3", "1.2.0.3"),
        ("①.②.③.④", "1.2.3.4"),
        ("[0:0::1]", "[::1]"),
        ("[ffff::127.0.0.1]", "[ffff::7f00:1]"),
    ] {
        assert_eq!(url(&format!("http://{host}/")), format!("http://{expected}/"));
    }
}

#[test]
fn what_the_url_standard_takes_for_no_url() {
    for raw in [
        "example",
        "💩",
        "https://ex ample.org/",
        "https://exa%23mple.org",
        "https://example^example",
        "https://xn--8i7caa",
        "https://example.com:demo",
        "https://example.org:7z",
        "https://example.org:70000",
        "https://#fragment",
        "https://:443",
        "https://user:pass@",
        "https://09",
        "https://1.2.3.4.5/",
        "https://test.42",
        "https://example.255",
        "https://255.255.4000.1",
        "http://[www.example.com]/",
        "https://[::1",
        "https://[:1]",
        "https://[0:0::1%5D",
        "https://[0:0::%31]",
        "https://[1:2:3]",
        "https://[1:2:3:]",
        "https://[1:2:3!:4]",
        "https://[1::1::1]",
        "https://[1:2:3:4:5:6:7:8:9]",
        "https://[1:1:1:1:1:1:1:127.0.0.1]",
        "https://[ffff::.0.0.1]",
        "https://[ffff::127.0.0]",
        "https://[ffff::127.00.0.1]",
        "https://[ffff::127.0.xyz.1]",
        "https://[ffff::127.0.0.4000]",
        "https://[ffff::127.0.0.1.2]",
    ] {
        assert!(matches!(canonical(raw, None), Err(UrlError::Parse(_))), "{raw}");
    }
    let base = Url::parse("https://example.com/").unwrap();
    assert_eq!(canonical("hello:world", Some(&base)), Err(UrlError::Scheme("hello".into())));
    assert_eq!(canonical("file:///C|/demo", None), Err(UrlError::Scheme("file".into())));
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
        "%", "4", "1", "%34", "%2e", "%2E", "%2f", "%25", "%7E", "%zz", ".", "..", "/", "//", "?", "&", "=", "a", "B",
        "~", "@", ":", "ツ", " ", "'", "\"", "\\", "[", "|", "^", "%c3", "é", "\t", ";",
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
        let mut raw = ["http://a.example/", "https://B.example./?", "http://", "http://c.example"][next(4)].to_owned();
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
    let steps = steps(" http://u@Example.com./%7e?#x", None, UrlRules::none());
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
    assert_eq!(super::steps("http://a/", None, UrlRules::none()).len(), 1);
    assert_eq!(super::steps("ftp://a/", None, UrlRules::none()).last().unwrap().0, "error");
}
