//! Listings: sitemaps and feeds, whose content is the URLs that they name.
//!
//! What a file is shows in how it begins, not in its name or in what named it: the root element of sitemaps.org's
//! sitemaps and indexes, RSS 2.0, RSS 1.0 (RDF) and Atom (RFC 4287) in any namespace prefix, or nothing but URLs, one a
//! line. What is served as HTML is a page.

use std::borrow::Cow;
use std::collections::HashMap;

use dodo_common::clock::Millis;
use dodo_common::model::media::essence;
use dodo_common::model::revisit::ChangeFrequency;
use dodo_common::model::spelling::{Spelt, spell};
use dodo_common::model::url::{UrlHash, canonical};
use dodo_common::model::url_rules::UrlRules;
use dodo_common::model::w3c_date::date_ms;
use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};
use url::Url;

use crate::extract::text;
use crate::fetch::decode::{DecodeError, HEAD_BYTES, decode, head};

/// Distinct URLs taken of one file, its alternates not counted, and how large it may be unpacked, bytes (sitemaps.org:
/// no more than 50,000 URLs and 52,428,800 bytes).
pub const ENTRIES_MAX: usize = 50_000;
pub const LISTING_BYTES_MAX: usize = 50 << 20;
/// What the URLs take together, spelt out, bytes: a long base makes much of a small file.
pub const ENTRY_BYTES_MAX: usize = 16 << 20;
/// Distinct alternates taken of one sitemap. Each language of a page is to have an entry of its own (Google, "Tell
/// Google about localized versions of your page"), so that a sound file has no more of them than URLs.
pub const ALTERNATES_MAX: usize = ENTRIES_MAX;
/// Elements within one another. The markup that a feed quotes has fewer.
const DEPTH_MAX: usize = 256;
/// How a gzip member begins (RFC 1952 2.3.1).
const GZIP: [u8; 2] = [0x1f, 0x8b];

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    pub kind: Kind,
    /// Distinct, in document order; with the pages that are named as the same in other languages.
    pub entries: Vec<Spelt>,
    /// What a sitemap says of each of them; shorter than `entries` where nothing is said of the last ones.
    pub said: Vec<Said>,
    /// There were more, or more alternates.
    pub truncated: bool,
}

/// What a sitemap says of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// How often it changes.
    pub change: Option<ChangeFrequency>,
    /// When it was modified (`lastmod`), milliseconds since the epoch.
    pub modified_ms: Option<Millis>,
}

/// What the entries are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Sitemaps: the file is an index.
    Sitemaps,
    Pages,
}

/// A file as it was served.
#[derive(Clone, Copy, Debug)]
pub struct File<'f> {
    pub body: &'f [u8],
    pub is_whole: bool,
    pub encoding: Option<&'f str>,
    pub content_type: Option<&'f str>,
    pub url: &'f Url,
}

/// Reads a file, if it is a listing; a broken one as far as it goes. Its entries are spelt by `rules`.
///
/// # Errors
/// It begins as a listing, and cannot be unpacked within its bound.
pub fn listing(file: File, rules: &UrlRules) -> Result<Option<Listing>, DecodeError> {
    let File { body, is_whole, encoding, content_type, url } = file;
    if !may_list(content_type) {
        return Ok(None);
    }
    // From the beginning alone: most of what is served as a mere file is none, and not worth unpacking.
    let mut start = head(encoding, body);
    let packed = start.starts_with(&GZIP);
    if packed {
        start = Cow::Owned(head(Some("gzip"), &start).into_owned());
    }
    let Some(format) = Format::of(&text::decode(&start, content_type).0, start.len() == HEAD_BYTES) else {
        return Ok(None);
    };
    let mut whole = decode(encoding, body, is_whole, LISTING_BYTES_MAX)?;
    if packed {
        whole = Cow::Owned(decode(Some("gzip"), &whole, is_whole, LISTING_BYTES_MAX)?.into_owned());
    }
    let (text, _) = text::decode(&whole, content_type);
    let mut list = List {
        rules,
        entries: Vec::new(),
        bytes: 0,
        alternate_count: 0,
        said: Vec::new(),
        seen: HashMap::new(),
        own: None,
        truncated: false,
    };
    match format {
        Format::Lines => lines(&text).filter(|line| is_url(line)).take_while(|line| list.add(line, url)).for_each(drop),
        format => read_xml(&text, format, url, &mut list),
    }
    let kind = if format == Format::Index { Kind::Sitemaps } else { Kind::Pages };
    Ok(Some(Listing { kind, entries: list.entries, said: list.said, truncated: list.truncated }))
}

/// Whether a listing is ever served as this: XML (WHATWG MIME Sniffing, "XML MIME type"), plain text, and a file of which
/// nothing is said but perhaps that it is packed.
fn may_list(content_type: Option<&str>) -> bool {
    let Some(content_type) = content_type else { return true };
    match essence(content_type).to_ascii_lowercase().as_str() {
        "" | "text/xml" | "application/xml" | "text/plain" => true,
        "application/gzip" | "application/x-gzip" | "application/octet-stream" | "binary/octet-stream" => true,
        "application/xhtml+xml" => false,
        other => other.ends_with("+xml"),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Sitemap,
    Index,
    Rss,
    Atom,
    Lines,
}

impl Format {
    /// Told from the beginning of a file; `cut`: more follows it.
    fn of(start: &str, cut: bool) -> Option<Format> {
        if !start.trim_start().starts_with('<') {
            // A line that the bound cuts says nothing.
            let whole = if cut { start.rsplit_once(['\n', '\r'])?.0 } else { start };
            return (lines(whole).next().is_some() && lines(whole).all(is_url)).then_some(Format::Lines);
        }
        let mut reader = Reader::from_str(start);
        loop {
            match reader.read_event().ok()? {
                Event::Start(root) | Event::Empty(root) => return Format::rooted(root.local_name().as_ref()),
                Event::Eof => return None,
                _ => {}
            }
        }
    }

    fn rooted(name: &[u8]) -> Option<Format> {
        match name {
            b"urlset" => Some(Format::Sitemap),
            b"sitemapindex" => Some(Format::Index),
            b"rss" | b"RDF" => Some(Format::Rss),
            b"feed" => Some(Format::Atom),
            _ => None,
        }
    }

    /// The element of one entry.
    fn entry(self) -> &'static [u8] {
        match self {
            Format::Sitemap => b"url",
            Format::Index => b"sitemap",
            Format::Rss => b"item",
            Format::Atom => b"entry",
            Format::Lines => b"",
        }
    }

    /// Whether this child of an entry has a URL as its text.
    fn is_text(self, name: &[u8]) -> bool {
        match self {
            Format::Sitemap | Format::Index => name == b"loc",
            Format::Rss => name == b"link",
            Format::Atom | Format::Lines => false,
        }
    }

    /// Which child of an entry this is, of those whose text counts.
    fn child(self, name: &[u8]) -> Option<Child> {
        match (self, name) {
            _ if self.is_text(name) => Some(Child::Url),
            (Format::Sitemap, b"changefreq") => Some(Child::Change),
            (Format::Sitemap | Format::Index, b"lastmod") => Some(Child::Modified),
            _ => None,
        }
    }

    /// Whether a `link` of this relation, a child of an entry, leads to a page: the entry's own (RFC 4287 4.2.7.2: none
    /// means alternate), or the same in another language (Google's `xhtml:link`).
    fn is_link(self, relation: Option<&str>) -> bool {
        let alternate = |relation: &str| relation.split_ascii_whitespace().any(|r| r.eq_ignore_ascii_case("alternate"));
        match self {
            Format::Sitemap => relation.is_some_and(alternate),
            Format::Atom => relation.is_none_or(alternate),
            Format::Index | Format::Rss | Format::Lines => false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Child {
    Url,
    Change,
    Modified,
}

struct List<'r> {
    rules: &'r UrlRules,
    entries: Vec<Spelt>,
    bytes: usize,
    /// Of them those that came as alternates.
    alternate_count: usize,
    said: Vec<Said>,
    /// Each by its place.
    seen: HashMap<UrlHash, usize>,
    /// The place of the URL that the entry itself names.
    own: Option<usize>,
    truncated: bool,
}

impl List<'_> {
    /// False when it is full.
    fn add(&mut self, reference: &str, base: &Url) -> bool {
        let Some(to) = self.spelt(reference, base) else { return true };
        self.own = self.seen.get(&to.hash).copied();
        if self.own.is_some() {
            return true;
        }
        if self.entries.len() - self.alternate_count == ENTRIES_MAX || !self.has_room(&to) {
            self.truncated = true;
            return false;
        }
        self.own = Some(self.entries.len());
        self.push(to);
        true
    }

    /// One too many is left out, and takes no place from the URLs that follow it.
    fn add_alternate(&mut self, reference: &str, base: &Url) {
        let Some(to) = self.spelt(reference, base).filter(|to| !self.seen.contains_key(&to.hash)) else { return };
        if self.alternate_count == ALTERNATES_MAX || !self.has_room(&to) {
            self.truncated = true;
            return;
        }
        self.alternate_count += 1;
        self.push(to);
    }

    /// What is no http URL is passed over.
    fn spelt(&self, reference: &str, base: &Url) -> Option<Spelt> {
        let reference = reference.trim();
        if reference.is_empty() { None } else { spell(reference, base, self.rules).ok() }
    }

    fn has_room(&self, to: &Spelt) -> bool {
        self.bytes + to.text.len() <= ENTRY_BYTES_MAX
    }

    fn push(&mut self, to: Spelt) {
        self.bytes += to.text.len();
        self.seen.insert(to.hash, self.entries.len());
        self.entries.push(to);
    }

    /// What an entry says, of its own URL and of those that came with it: it began when there were so many. What another has
    /// said of its URL as an alternate counts less.
    fn say(&mut self, since: usize, said: Said) {
        let own = self.own.take();
        if said == Said::default() {
            return;
        }
        if since < self.entries.len() {
            self.said.resize(since, Said::default());
            self.said.resize(self.entries.len(), said);
        }
        if let Some(own) = own.filter(|own| *own < since) {
            self.said.resize(self.said.len().max(own + 1), Said::default());
            self.said[own] = said;
        }
    }
}

/// By depth and local names: a `loc` of an image within an entry is not the entry's. Entities that a file defines are
/// never expanded.
fn read_xml(text: &str, format: Format, page: &Url, list: &mut List) {
    let mut reader = Reader::from_str(text);
    reader.config_mut().expand_empty_elements = true;
    // Many write the `&` of a query as it is.
    reader.config_mut().allow_dangling_amp = true;
    let mut depth = 0;
    // How deep the children of the entry lie that is being read, and the text of one of them as far as it was read.
    let (mut child, mut value) = (None, None::<String>);
    // Which one that is; how many URLs there were before the entry, and what is said of it.
    let (mut kind, mut since, mut said) = (Child::Url, 0, Said::default());
    let (mut file_base, mut base) = (page.clone(), page.clone());
    // An error ends the reading; what was found before it stands.
    while let Ok(event) = reader.read_event() {
        match event {
            Event::Start(element) => {
                depth += 1;
                let name = element.local_name();
                if depth > DEPTH_MAX {
                    return;
                } else if depth == 1 {
                    file_base = base_of(&element, page);
                } else if child.is_none() && name.as_ref() == format.entry() {
                    child = Some(depth + 1);
                    base = base_of(&element, &file_base);
                    (since, said, list.own) = (list.entries.len(), Said::default(), None);
                } else if child != Some(depth) {
                    continue;
                } else if let Some(found) = format.child(name.as_ref()) {
                    (value, kind) = (Some(String::new()), found);
                } else if name.as_ref() == b"link"
                    && format.is_link(attribute(&element, b"rel").as_deref())
                    && let Some(href) = attribute(&element, b"href")
                {
                    let base = base_of(&element, &base);
                    if format == Format::Sitemap {
                        list.add_alternate(&href, &base);
                    } else if !list.add(&href, &base) {
                        return;
                    }
                }
            }
            Event::End(_) => {
                if child == Some(depth + 1) {
                    child = None;
                    list.say(since, said);
                } else if child == Some(depth)
                    && let Some(value) = value.take()
                {
                    match kind {
                        Child::Change => said.change = ChangeFrequency::parse(&value),
                        Child::Modified => said.modified_ms = date_ms(&value),
                        Child::Url if !list.add(&value, &base) => return,
                        Child::Url => {}
                    }
                }
                depth -= 1;
            }
            Event::Text(piece) if child == Some(depth) => {
                push(&mut value, || piece.decode().unwrap_or_default());
            }
            Event::CData(piece) if child == Some(depth) => {
                push(&mut value, || piece.decode().unwrap_or_default());
            }
            Event::GeneralRef(name) if child == Some(depth) => push(&mut value, || {
                let reference = format!("&{};", name.decode().unwrap_or_default());
                html_escape::decode_html_entities(&reference).into_owned().into()
            }),
            Event::Eof => return,
            _ => {}
        }
    }
}

fn push<'t>(value: &mut Option<String>, piece: impl FnOnce() -> Cow<'t, str>) {
    if let Some(value) = value {
        value.push_str(&piece());
    }
}

/// What references within this element are relative to (RFC 4287 2: `xml:base`).
fn base_of(element: &BytesStart, outer: &Url) -> Url {
    let own = attribute(element, b"xml:base").and_then(|base| canonical(&base, Some(outer)).ok());
    own.map_or_else(|| outer.clone(), |base| base.url)
}

fn attribute(element: &BytesStart, name: &[u8]) -> Option<String> {
    // Unchecked: to compare each with all before it takes the square of their number.
    let mut attributes = element.html_attributes();
    let found = attributes.with_checks(false).flatten().find(|attribute| attribute.key.as_ref() == name)?;
    let value = String::from_utf8_lossy(&found.value);
    Some(html_escape::decode_html_entities(&value).into_owned())
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.split(['\n', '\r']).map(str::trim).filter(|line| !line.is_empty())
}

fn is_url(line: &str) -> bool {
    let starts = |scheme: &str| line.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    (starts("http://") || starts("https://")) && !line.contains(char::is_whitespace)
}

#[cfg(test)]
mod tests;
