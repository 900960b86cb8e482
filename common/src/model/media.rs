//! Media types that a crawl keeps.

/// Types of one crawl.
pub const TYPES_MAX: usize = 100;
/// The longest of them, bytes (RFC 6838 4.2: 127 for each half).
pub const TYPE_BYTES_MAX: usize = 255;
/// What an answer without a `Content-Type` is (RFC 9110 8.3).
const UNNAMED: &str = "application/octet-stream";

/// Sitemaps, packed ones too, and feeds, as servers name them.
const LISTINGS: [&str; 10] = [
    "application/xml",
    "text/xml",
    "text/plain",
    "application/gzip",
    "application/x-gzip",
    "application/rss+xml",
    "application/atom+xml",
    "application/rdf+xml",
    "binary/octet-stream",
    UNNAMED,
];

/// Which media types are kept: all of them, if none is named.
#[derive(Clone, Debug, Default)]
pub struct MediaTypes(Vec<String>);

impl MediaTypes {
    /// Types such as `text/html`, and beginnings such as `image/`. One clear line about the first that is wrong.
    pub fn new(types: &[String]) -> Result<MediaTypes, String> {
        if types.len() > TYPES_MAX {
            return Err(format!("content_types takes at most {TYPES_MAX} types, not {}", types.len()));
        }
        match types.iter().find(|kind| !is_type(kind)) {
            Some(kind) => {
                let kind: String = kind.chars().take(TYPE_BYTES_MAX).collect();
                Err(format!("content_types takes types such as text/html and image/, not {kind:?}"))
            }
            None => Ok(MediaTypes(types.iter().map(|kind| kind.to_ascii_lowercase()).collect())),
        }
    }

    /// The same, and what sitemaps and feeds come as.
    pub fn and_listings(&self) -> MediaTypes {
        let more = LISTINGS.iter().filter(|_| !self.0.is_empty());
        MediaTypes(self.0.iter().cloned().chain(more.map(|&kind| kind.to_owned())).collect())
    }

    /// `content_type` is that of the header, parameters and all.
    pub fn keeps(&self, content_type: Option<&str>) -> bool {
        let given = content_type.map_or("", essence);
        let given = if given.is_empty() { UNNAMED } else { given };
        let begins = |kind: &str| given.get(..kind.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(kind));
        self.0.is_empty()
            || self.0.iter().any(|kind| begins(kind) && (kind.ends_with('/') || kind.len() == given.len()))
    }
}

/// A media type without its parameters (WHATWG MIME Sniffing, "essence"), in whatever case it was given.
pub fn essence(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

/// The grammar of RFC 9110 8.3.1; the half behind the slash may be left out.
fn is_type(kind: &str) -> bool {
    let is_token = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || "!#$%&'+-.^_`|~".contains(c));
    let halves = kind.split_once('/');
    kind.len() <= TYPE_BYTES_MAX
        && halves.is_some_and(|(first, second)| !first.is_empty() && is_token(first) && is_token(second))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn types(list: &[&str]) -> Result<MediaTypes, String> {
        MediaTypes::new(&list.iter().map(|&kind| kind.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn a_type_or_its_first_half() {
        let kept = types(&["Text/HTML", "image/", "application/octet-stream"]).unwrap();
        for (given, is_kept) in [
            (Some("text/html"), true),
            (Some(" TEXT/html ; charset=utf-8"), true),
            (Some("text/html5"), false),
            (Some("text/plain;x=text/html"), false),
            (Some("image/png"), true),
            (Some("IMAGE/svg+xml"), true),
            (Some("imagex/png"), false),
            (Some("text\u{e9}/html"), false),
            (Some(""), true),
            (Some(";charset=x"), true),
            (None, true),
        ] {
            assert_eq!(kept.keeps(given), is_kept, "{given:?}");
        }
        assert!(!types(&["text/html"]).unwrap().keeps(None));
        assert!(types(&[]).unwrap().keeps(Some("anything")));
        let listings = types(&["text/html"]).unwrap().and_listings();
        let kept = |kind| listings.keeps(Some(kind));
        assert!(kept("text/html") && kept("application/xml; charset=utf-8") && !kept("image/png"));
        assert!(types(&[]).unwrap().and_listings().keeps(Some("anything")));
    }

    #[test]
    fn what_is_no_type_is_refused_in_one_line() {
        let long = format!("text/{}", "a".repeat(TYPE_BYTES_MAX));
        for wrong in ["html", "", "/", "/html", "text/html; charset=utf-8", "*/*", "text/*", "text/a b", "a/b/c", &long]
        {
            let why = types(&[wrong]).map(drop).unwrap_err();
            assert!(why.contains("content_types") && why.lines().count() == 1, "{why}");
        }
        assert!(types(&["a/b"; TYPES_MAX + 1]).is_err());
        assert!(types(&["application/vnd.oasis+xml", "font/"]).is_ok());
    }
}
