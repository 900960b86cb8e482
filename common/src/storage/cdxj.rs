//! The index of a WARC file: one line a record, `surt timestamp {json}`, in the format of cdxj-indexer and pywb.

use serde::{Deserialize, Serialize};

use crate::storage::warc::{uri_text, utc};

/// What the index says of a page and its archived member does not: it comes along from the worker that fetched it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CdxFields {
    /// The sort-friendly form of the URL, as in `com,example)/a`.
    pub surt: String,
    pub url: String,
    /// When the fetch began, in milliseconds since the Unix epoch; the same as in the record.
    pub date_ms: i64,
    /// The Content-Type header; its parameters are dropped here. Left out if the page had none.
    pub mime: Option<String>,
    /// The HTTP status.
    pub status: u16,
    /// The record's payload digest, `sha1:` and base32.
    pub digest: String,
}

/// Where a record lies.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Of the gzip member, in bytes from the start of the file.
    pub offset: u64,
    /// Of the gzip member, in bytes.
    pub length: u64,
    /// The object's whole key, since names without their path repeat between streams.
    pub filename: &'a str,
}

/// The JSON part of a line. Numbers are strings in it: that is how cdxj-indexer writes them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Entry {
    pub url: String,
    pub mime: Option<String>,
    pub status: String,
    pub digest: String,
    pub length: String,
    pub offset: String,
    pub filename: String,
}

/// The index of one file: its lines in byte order, each ended by a newline.
pub fn index<'a>(records: impl IntoIterator<Item = (&'a CdxFields, Place<'a>)>) -> String {
    let mut lines: Vec<String> = records.into_iter().map(|(fields, place)| line(fields, place)).collect();
    lines.sort_unstable();
    lines.concat()
}

/// Reads the lines of an index; `None` stands for one that is not of its format.
pub fn parse(text: &str) -> impl Iterator<Item = Option<Entry>> + '_ {
    text.lines().map(|line| serde_json::from_str(line.splitn(3, ' ').nth(2)?).ok())
}

fn line(fields: &CdxFields, place: Place<'_>) -> String {
    let mime = fields.mime.as_deref().and_then(|mime| mime.trim().split([';', ' ', '\t']).next());
    let entry = Entry {
        url: uri_text(&fields.url).into_owned(),
        mime: mime.filter(|mime| !mime.is_empty()).map(str::to_owned),
        status: fields.status.to_string(),
        digest: fields.digest.clone(),
        length: place.length.to_string(),
        offset: place.offset.to_string(),
        filename: place.filename.to_owned(),
    };
    format!("{} {} {}\n", uri_text(&fields.surt), utc(fields.date_ms).format("%Y%m%d%H%M%S"), spaced(&entry))
}

/// JSON with a space behind each colon and comma: byte for byte what cdxj-indexer writes, so that the two can be
/// compared with `diff`.
fn spaced(entry: &Entry) -> String {
    let quoted = |text: &str| serde_json::to_string(text).expect("a string always becomes JSON");
    let Entry { url, mime, status, digest, length, offset, filename } = entry;
    let mime = mime.as_deref().map(|mime| format!("\"mime\": {}, ", quoted(mime))).unwrap_or_default();
    let (url, digest, filename) = (quoted(url), quoted(digest), quoted(filename));
    format!(
        "{{\"url\": {url}, {mime}\"status\": \"{status}\", \"digest\": {digest}, \"length\": \"{length}\", \
         \"offset\": \"{offset}\", \"filename\": {filename}}}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(surt: &str, mime: Option<&str>) -> CdxFields {
        CdxFields {
            surt: surt.to_owned(),
            url: "http://example.com/a".to_owned(),
            date_ms: 1_700_000_000_999,
            mime: mime.map(str::to_owned),
            status: 200,
            digest: "sha1:X".to_owned(),
        }
    }

    #[test]
    fn lines_are_those_of_cdxj_indexer_and_sorted() {
        let place = Place { offset: 10, length: 20, filename: "a/b.warc.gz" };
        let (late, early) =
            (fields("com,example)/b", None), fields("com,example)/a", Some("text/html; charset=utf-8")));
        let text = index([(&late, place), (&early, place)]);
        assert_eq!(
            text,
            "com,example)/a 20231114221320 {\"url\": \"http://example.com/a\", \"mime\": \"text/html\", \"status\": \"200\", \
             \"digest\": \"sha1:X\", \"length\": \"20\", \"offset\": \"10\", \"filename\": \"a/b.warc.gz\"}\n\
             com,example)/b 20231114221320 {\"url\": \"http://example.com/a\", \"status\": \"200\", \
             \"digest\": \"sha1:X\", \"length\": \"20\", \"offset\": \"10\", \"filename\": \"a/b.warc.gz\"}\n"
        );
        let entries: Vec<_> = parse(&text).collect();
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].as_ref().map(|entry| entry.offset.as_str()), Some("10"));
    }

    #[test]
    fn a_surt_stays_one_word_and_a_broken_line_is_seen() {
        let place = Place { offset: 0, length: 1, filename: "f" };
        let text = index([(&fields("com,example)/a b\nc", None), place)]);
        assert!(text.starts_with("com,example)/a%20b%0Ac 2023"), "{text}");
        assert_eq!(parse("com,example)/ 2023 {nonsense\n").collect::<Vec<_>>(), [None]);
    }
}
