//! Answers that are a number of bytes and an end.

use std::io::Write as _;
use std::sync::LazyLock;

use crate::hostile::After;

/// A head with nothing wrong, up to the headers of its body.
pub const OK: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n";
/// A gigabyte of zeros.
pub static BOMB: LazyLock<Vec<u8>> = LazyLock::new(|| gzip(&vec![0; 1 << 20]).repeat(1024));
/// The same of brotli: every 14 bytes are 16 MiB, and the last byte is the end. Made by Node's zlib (quality 9, a window of
/// 16 MiB), which was told to flush after each 16 MiB.
static BROTLI_BOMB: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let first = b"\xcf\xff\xff\x7f\x00\x24\x00\xe2\xb1\x40\x72\xef\xff\x0d".as_slice();
    let others = b"\xfc\xff\xff\x07\x40\x02\x20\x0e\x0b\x40\xf7\xfe\xdf\x00".repeat(63);
    [first, &others, b"\x03"].concat()
});
/// The same of zstd: blocks of 128 KiB that are a byte and how often it comes (RFC 8878 3.1.1.2.2), and an empty last one.
static ZSTD_BOMB: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let blocks = b"\x02\x00\x10\x00".repeat(8192);
    [b"\x28\xb5\x2f\xfd\x00\x38".as_slice(), &blocks, b"\x01\x00\x00"].concat()
});

/// The answer of a path, and what becomes of the connection then.
pub fn plain(path: &str, place: &str) -> Option<(Vec<u8>, After)> {
    use After::{Close, Keep, Reset, Silence};
    let title = format!("<title>{path}</title>");
    let packed = |encoding: &str, body: &[u8]| of(&format!("{OK}content-encoding: {encoding}\r\n"), body);
    Some(match path {
        _ if path.starts_with("/good/") || path.starts_with("/stale/") || path.starts_with("/caf") => {
            (page(&title), Keep)
        }

        // An API, whose pages have one item each.
        _ if path.starts_with("/stale-api/") => {
            let body = format!("{{\"total\": 6, \"items\": [{{\"id\": \"{path}\"}}]}}");
            (of("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n", body.as_bytes()), Keep)
        }

        // The length of the body.
        "/length/large" => {
            (format!("{OK}content-length: 1000\r\n\r\n{title}<a href=/good/0>x</a>").into_bytes(), Close)
        }
        "/length/small" => (format!("{OK}content-length: {}\r\n\r\n{title}<p>more", title.len()).into_bytes(), Keep),
        "/length/two" => (format!("{OK}content-length: 5\r\ncontent-length: 50\r\n\r\n{title}").into_bytes(), Close),
        "/length/same" => {
            let length = title.len();
            (format!("{OK}content-length: {length}\r\ncontent-length: {length}\r\n\r\n{title}").into_bytes(), Keep)
        }
        "/length/negative" => (format!("{OK}content-length: -5\r\n\r\n{title}").into_bytes(), Close),
        "/length/words" => (format!("{OK}content-length: ten\r\n\r\n{title}").into_bytes(), Close),
        "/length/beyond" => (format!("{OK}content-length: {}0\r\n\r\n{title}", u64::MAX).into_bytes(), Close),
        "/length/petabytes" => (format!("{OK}content-length: {}\r\n\r\n{title}", u64::MAX / 4).into_bytes(), Close),
        "/length/none" => (format!("HTTP/1.0 200 OK\r\ncontent-type: text/html\r\n\r\n{title}").into_bytes(), Close),

        // Chunks.
        "/chunk/good" => (chunked("0\r\n\r\n"), Keep),
        "/chunk/trailers" => (chunked("0\r\nx-checksum: 1\r\nx-more: 2\r\n\r\n"), Keep),
        "/chunk/and-length" => {
            let chunks =
                String::from_utf8_lossy(&chunked("0\r\n\r\n")).replacen("\r\n\r\n", "\r\ncontent-length: 3\r\n\r\n", 1);
            (chunks.into_bytes(), Close)
        }
        "/chunk/bad-size" => (chunked("zz\r\nhello\r\n0\r\n\r\n"), Close),
        "/chunk/large-size" => (chunked("fffffffffffffffff\r\nhello\r\n0\r\n\r\n"), Close),
        "/chunk/cut" => (chunked("100\r\nhello"), Close),
        "/chunk/no-end" => (chunked(""), Close),
        "/chunk/reset" => (chunked("100\r\nhello"), Reset),

        // The head.
        "/head/long" => {
            (format!("{OK}x-long: {}\r\ncontent-length: 0\r\n\r\n", "x".repeat(1 << 20)).into_bytes(), Close)
        }
        "/head/10000" => (format!("{OK}{}content-length: 0\r\n\r\n", "x: y\r\n".repeat(10_000)).into_bytes(), Close),
        "/head/200" => (of(&format!("{OK}{}", "x: y\r\n".repeat(200)), title.as_bytes()), Keep),
        "/head/continued" => {
            let before = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>; rel=preload\r\n\r\n";
            (of(&format!("{}{OK}", before.repeat(3)), title.as_bytes()), Keep)
        }
        "/head/folded" => (of(&format!("{OK}x-folded: one\r\n two\r\n"), title.as_bytes()), Keep),
        "/head/spaced" => (of(&format!("{OK}x-spaced : one\r\n"), title.as_bytes()), Keep),
        "/head/wrong-line" => (of(&format!("{OK}this is no header\r\n"), title.as_bytes()), Keep),
        "/head/lf-only" => (of(&OK.replace("\r\n", "\n"), title.as_bytes()), Keep),
        "/head/silent" => (Vec::new(), Silence),
        "/head/closed" => (Vec::new(), Close),
        "/head/reset" => (Vec::new(), Reset),
        "/head/cut" => (OK.as_bytes()[..20].to_vec(), Close),
        "/head/cut-reset" => (OK.as_bytes()[..20].to_vec(), Reset),

        // Other protocols.
        "/speaks/http-0.9" => (title.into_bytes(), Close),
        "/speaks/http-3" => (of("HTTP/3.0 200 OK\r\n", title.as_bytes()), Close),
        "/speaks/ssh" => (b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n".to_vec(), Silence),
        "/speaks/tls" => (vec![0x15, 0x03, 0x01, 0x00, 0x02, 0x02, 0x46], Close),
        "/speaks/noise" => ((0..=255).cycle().take(1000).collect(), Close),

        // Numbers of the status.
        "/status/999" => (of("HTTP/1.1 999 No\r\n", b""), Keep),
        "/status/099" => (of("HTTP/1.1 099 No\r\n", b""), Close),
        "/status/words" => (of("HTTP/1.1 OK 200\r\n", b""), Close),
        "/status/101" => {
            (b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n".to_vec(), Close)
        }
        "/status/204" => (of("HTTP/1.1 204 No Content\r\n", title.as_bytes()), Keep),
        "/status/304" => (of("HTTP/1.1 304 Not Modified\r\n", title.as_bytes()), Keep),
        "/status/404-cut" => (b"HTTP/1.1 404 Not Found\r\ncontent-length: 100\r\n\r\ngone".to_vec(), Close),
        "/status/500" => (of("HTTP/1.1 500 Oh\r\n", b""), Keep),

        // Redirects.
        "/to/self" => (to(b"/to/self"), Keep),
        "/to/one" => (to(b"/to/two"), Keep),
        "/to/two" => (to(b"/to/one"), Keep),
        _ if path.starts_with("/to/more") => (to(format!("{path}/more").as_bytes()), Keep),
        "/to/file" => (to(b"file:///etc/passwd"), Keep),
        "/to/script" => (to(b"javascript:alert(1)"), Keep),
        "/to/gopher" => (to(format!("gopher://{place}/").as_bytes()), Keep),
        "/to/private" => (to(b"http://10.0.0.1/secret"), Keep),
        "/to/closed" => (to(b"http://127.0.0.3/closed"), Keep),
        "/to/metadata" => (to(b"http://169.254.169.254/latest/meta-data/"), Keep),
        "/to/fragment" => (to(b"/good/fragment#part"), Keep),
        "/to/utf-8" => (to("/caf\u{e9}-8".as_bytes()), Keep),
        "/to/latin-1" => (to(b"/caf\xe9-1"), Keep),
        "/to/broken" => (to(b"http://[broken"), Keep),
        "/to/long" => (to(format!("/{}", "x".repeat(100_000)).as_bytes()), Keep),
        "/to/user" => (to(format!("http://user:word@{place}/good/user").as_bytes()), Keep),
        "/to/nowhere" => (of("HTTP/1.1 302 Found\r\ncontent-type: text/html\r\n", title.as_bytes()), Keep),
        "/to/cut" => {
            (b"HTTP/1.1 302 Found\r\ncontent-length: 100\r\nlocation: /good/0\r\n\r\nover there".to_vec(), Close)
        }

        // Charsets.
        "/charset/lies" => {
            (of("HTTP/1.1 200 OK\r\ncontent-type: text/html; charset=utf-8\r\n", b"<title>caf\xe9</title>"), Keep)
        }
        "/charset/meta-lies" => (of(OK, b"<meta charset=utf-8><title>caf\xe9</title>"), Keep),
        "/charset/utf-16" => {
            let text: Vec<u8> = "\u{feff}<title>caf\u{e9}</title>".encode_utf16().flat_map(u16::to_le_bytes).collect();
            (of("HTTP/1.1 200 OK\r\ncontent-type: text/html; charset=iso-8859-1\r\n", &text), Keep)
        }
        "/charset/unknown" => (
            of(
                "HTTP/1.1 200 OK\r\ncontent-type: text/html; charset=klingon\r\n",
                "<title>caf\u{e9}</title>".as_bytes(),
            ),
            Keep,
        ),
        "/charset/raw" => {
            let head = [
                b"HTTP/1.1 200 OK\r\ncontent-type: text/html; charset=\xff\xfe\r\ncontent-length: ".as_slice(),
                format!("{}\r\n\r\n{title}", title.len()).as_bytes(),
            ]
            .concat();
            (head, Keep)
        }

        // Encodings of the content.
        "/packed/good" => (packed("gzip", &gzip(title.as_bytes())), Keep),
        "/packed/bomb" => (packed("gzip", &BOMB), Keep),
        "/packed/bomb-br" => (packed("br", &BROTLI_BOMB), Keep),
        "/packed/bomb-zstd" => (packed("zstd", &ZSTD_BOMB), Keep),
        "/packed/cut" => {
            let body = gzip(title.repeat(100).as_bytes());
            (packed("gzip", &body[..body.len() / 2]), Keep)
        }
        "/packed/twice" => (packed("gzip, gzip", &gzip(&gzip(title.as_bytes()))), Keep),
        "/packed/twice-said-once" => (packed("gzip", &gzip(&gzip(title.as_bytes()))), Keep),
        "/packed/often" => (packed("gzip,gzip,gzip,gzip,gzip", &gzip(title.as_bytes())), Keep),
        "/packed/strange" => (packed("klingon", &gzip(title.as_bytes())), Keep),
        "/packed/only-said" => (packed("utf-8", title.as_bytes()), Keep),
        "/packed/not" => (packed("gzip", title.as_bytes()), Keep),
        "/packed/broken-off" => {
            // More than a decoder reads ahead of what it gives out.
            let rest: String = (0_u64..5000).map(|n| format!("<p>{}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect();
            let body = packed("gzip", &gzip(format!("{title}{rest}").as_bytes()));
            (body[..body.len() / 2].to_vec(), Close)
        }

        // What follows an answer.
        "/after/garbage" => ([page(&title), b"garbage\0\xff".to_vec()].concat(), Keep),
        "/after/answer" => ([page(&title), page("<title>of nobody</title>")].concat(), Keep),
        _ => return None,
    })
}

pub fn page(body: &str) -> Vec<u8> {
    of(OK, body.as_bytes())
}

/// A head as it is given, the length, and the body.
fn of(head: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{head}content-length: {}\r\n\r\n", body.len()).into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

fn to(location: &[u8]) -> Vec<u8> {
    [b"HTTP/1.1 302 Found\r\ncontent-length: 0\r\nlocation: ", location, b"\r\n\r\n"].concat()
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(body).expect("memory takes it");
    encoder.finish().expect("memory takes it")
}

pub fn chunked(rest: &str) -> Vec<u8> {
    format!("{OK}transfer-encoding: chunked\r\n\r\n17\r\n<title>chunked</title>\n\r\n{rest}").into_bytes()
}
