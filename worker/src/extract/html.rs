//! What an HTML page says about itself, and its links.

use std::borrow::Cow;
use std::collections::HashMap;

use dodo_common::model::media::essence;
use dodo_common::model::spelling::{Spelt, spell};
use dodo_common::model::url::{URL_BYTES_MAX, UrlHash, canonical};
use dodo_common::model::url_rules::UrlRules;
use encoding_rs::{Encoding, UTF_8};
use foldhash::fast::RandomState;
use url::Url;
use whichlang::Lang;

use crate::extract::simhash::simhash;
use crate::extract::tags::{Tag, Tags};
use crate::extract::{srcset, text};

/// The media type of HTML that is written as XML.
pub const XHTML: &str = "application/xhtml+xml";
/// Distinct links kept of one page.
pub const LINKS_MAX: usize = 10_000;
/// And what they take together, spelt out, bytes: a long base makes much of a small page.
pub const LINK_BYTES_MAX: usize = 4 << 20;
/// Characters kept of a title.
pub const TITLE_CHARS_MAX: usize = 512;
/// References resolved of one page; that many may repeat before distinct links are lost.
const REFERENCES_MAX: usize = 4 * LINKS_MAX;
/// What is read of a title before its entities are decoded, characters.
const TITLE_RAW_CHARS_MAX: usize = 16 * TITLE_CHARS_MAX;
/// What a language is told from, bytes.
const LANGUAGE_BYTES_MAX: usize = 1024;
/// Below this a guess is wrong more often than it helps, bytes.
const LANGUAGE_BYTES_MIN: usize = 64;
/// `link rel` values that lead to a page. A stylesheet, even an alternate one, does not.
const PAGE_RELATIONS: [&str; 4] = ["alternate", "canonical", "next", "prev"];
/// Those that lead to what a page is shown with.
const ASSET_RELATIONS: [&str; 2] = ["stylesheet", "icon"];
/// Canonical URLs looked at of one page: the first that is one counts.
const CANONICALS_MAX: usize = 8;
/// Elements that may stand before a page's body: any other ends its head (WHATWG HTML 13.2.6.4.4, 'The "in head" insertion
/// mode'), and behind that a page holds what others have written. Images are those that a `noscript` of the head holds.
const HEAD: [&[u8]; 14] = [
    b"html",
    b"head",
    b"base",
    b"basefont",
    b"bgsound",
    b"link",
    b"meta",
    b"title",
    b"noscript",
    b"noframes",
    b"style",
    b"script",
    b"template",
    b"img",
];

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Entities decoded, white space collapsed, without control characters.
    pub title: Option<String>,
    /// The shortest ISO 639 code: what `<html lang>` says, else what the words look like, `und`
    /// where they are too few. None: there are no words.
    pub language: Option<String>,
    /// `<meta name=robots>`, or one for this agent by name: of all of them the sum (Google, "Robots meta tag, data-nosnippet,
    /// and X-Robots-Tag specifications"). The header `X-Robots-Tag` is not looked at here.
    pub noindex: bool,
    /// Of the same elements. The links are listed all the same.
    pub nofollow: bool,
    /// Distinct, in document order.
    pub links: Vec<Link>,
    /// References met, before those that repeat or are no http URL were dropped.
    pub link_count_seen: usize,
    /// There were more distinct links, or so many references that there may have been.
    pub links_truncated: bool,
    /// What it says that its own URL is (RFC 6596), where it was asked for.
    pub canonical: Option<Spelt>,
    /// Of its words, where it was asked for and there are enough of them.
    pub fingerprint: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub to: Spelt,
    /// `rel=nofollow` wherever the page has it (WHATWG HTML, "Link type nofollow").
    pub nofollow: bool,
}

/// What of a page counts as its links, and how they are spelt.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'r> {
    /// What the page is shown with is among them: images, media, scripts and style sheets.
    pub assets: bool,
    pub rules: &'r UrlRules,
    /// The product token by which a page may speak to us alone.
    pub agent: &'r str,
    /// Its canonical URL is wanted.
    pub canonical: bool,
    /// Its fingerprint is wanted.
    pub fingerprint: bool,
}

/// Reads `body`, which came from `page`. Never fails: of a broken page it tells what it could read.
pub fn html(body: &[u8], content_type: Option<&str>, page: &Url, reading: Reading) -> Page {
    let Reading { assets, rules, agent, canonical: wants_canonical, fingerprint } = reading;
    let (text, encoding) = text::decode(body, content_type);
    let is_xml = content_type.is_some_and(|kind| essence(kind).eq_ignore_ascii_case(XHTML));
    let mut found = Found { agent, assets, wants_canonical, ..Found::default() };
    Tags::new(&text, is_xml).for_each(|tag| found.read(&tag));
    if encoding != UTF_8 {
        found.encode_queries(encoding);
    }

    // The first <base> holds for all links, even for those before it (WHATWG HTML 4.2.3).
    let base = found.base.as_deref().and_then(|href| canonical(href, Some(page)).ok());
    let base = base.as_ref().map_or(page, |base| &base.url);
    let (links, more) = resolve(&found.references, base, rules);
    Page {
        title: found.title.and_then(title),
        language: found.language.or_else(|| language(&text)),
        noindex: found.noindex,
        nofollow: found.nofollow,
        links,
        link_count_seen: found.reference_count,
        links_truncated: more || found.references.len() == REFERENCES_MAX && found.reference_count > REFERENCES_MAX,
        canonical: found.canonicals.iter().find_map(|href| spell(href, base, rules).ok()),
        fingerprint: fingerprint.then(|| simhash(&text)).flatten(),
    }
}

/// What one pass over the tags collects, as it is written.
#[derive(Default)]
struct Found<'t> {
    agent: &'t str,
    title: Option<&'t str>,
    language: Option<String>,
    noindex: bool,
    nofollow: bool,
    base: Option<Cow<'t, str>>,
    /// What the page is shown with is wanted, too.
    assets: bool,
    wants_canonical: bool,
    /// The head of the page is over.
    in_body: bool,
    /// As they are written, in the head.
    canonicals: Vec<Cow<'t, str>>,
    /// As they are written, and whether they are not to be followed.
    references: Vec<(Cow<'t, str>, bool)>,
    reference_count: usize,
}

impl<'t> Found<'t> {
    fn read(&mut self, tag: &Tag<'t>) {
        self.in_body = self.in_body || self.wants_canonical && !HEAD.contains(&tag.name());
        match tag.name() {
            b"a" | b"area" => {
                let nofollow = tag.attribute("rel").is_some_and(|relations| has(relations, "nofollow"));
                self.refer(tag.attribute("href"), nofollow);
            }
            b"iframe" | b"frame" => self.refer(tag.attribute("src"), false),
            b"link" => self.link(tag),
            b"meta" => self.meta(tag),
            b"base" => self.base = self.base.take().or_else(|| tag.attribute("href").map(decoded)),
            b"html" => {
                let given = || tag.attribute("lang").or_else(|| tag.attribute("xml:lang"));
                self.language = self.language.take().or_else(|| language_code(given()?));
            }
            // That of a drawing has tags, not text.
            b"title" => self.title = self.title.or(tag.text),
            b"img" | b"source" | b"audio" | b"track" | b"embed" | b"script" if self.assets => self.asset(tag),
            b"video" if self.assets => {
                self.asset(tag);
                self.refer(tag.attribute("poster"), false);
            }
            b"object" if self.assets => self.refer(tag.attribute("data"), false),
            b"input" if self.assets && is(tag, "type", "image") => self.refer(tag.attribute("src"), false),
            _ => {}
        }
    }

    /// The queries of links are in the encoding of their page (WHATWG HTML, "encoding-parsing a URL").
    fn encode_queries(&mut self, encoding: &'static Encoding) {
        for reference in self.references.iter_mut().map(|(reference, _)| reference).chain(&mut self.canonicals) {
            if let Some(encoded) = text::encode_query(reference, encoding) {
                *reference = Cow::Owned(encoded);
            }
        }
    }

    fn refer(&mut self, reference: Option<&'t str>, nofollow: bool) {
        // Inside the page; and with an empty one, the page itself.
        let Some(reference) = reference.filter(|reference| !reference.is_empty() && !reference.starts_with('#')) else {
            return;
        };
        // Far longer than a URL may be: data, or a mistake. Entities may make it shorter.
        let is_kept = reference.len() <= 4 * URL_BYTES_MAX;
        self.keep(is_kept.then(|| decoded(reference)), nofollow);
    }

    fn keep(&mut self, reference: Option<Cow<'t, str>>, nofollow: bool) {
        self.reference_count += 1;
        if self.references.len() < REFERENCES_MAX {
            self.references.extend(reference.map(|reference| (reference, nofollow)));
        }
    }

    fn link(&mut self, tag: &Tag<'t>) {
        let relations = tag.attribute("rel").unwrap_or_default();
        let leads_to_page = PAGE_RELATIONS.iter().any(|name| has(relations, name)) && !has(relations, "stylesheet");
        if leads_to_page || self.assets && ASSET_RELATIONS.iter().any(|name| has(relations, name)) {
            self.refer(tag.attribute("href"), false);
        }
        if self.assets {
            self.refer_candidates(tag.attribute("imagesrcset"));
        }
        let wants_canonical = self.wants_canonical && !self.in_body && self.canonicals.len() < CANONICALS_MAX;
        if wants_canonical && has(relations, "canonical") {
            let href = tag.attribute("href").filter(|href| href.len() <= 4 * URL_BYTES_MAX);
            self.canonicals.extend(href.filter(|href| !href.trim().is_empty()).map(decoded));
        }
    }

    fn asset(&mut self, tag: &Tag<'t>) {
        self.refer(tag.attribute("src"), false);
        self.refer_candidates(tag.attribute("srcset"));
    }

    /// The images of a `srcset`, or of the `imagesrcset` of a link.
    fn refer_candidates(&mut self, candidates: Option<&'t str>) {
        let Some(candidates) = candidates.map(decoded) else { return };
        for url in srcset::urls(&candidates) {
            self.keep((url.len() <= URL_BYTES_MAX).then(|| Cow::Owned(url.to_owned())), false);
        }
    }

    fn meta(&mut self, tag: &Tag<'t>) {
        let content = || decoded(tag.attribute("content").unwrap_or_default());
        if is(tag, "name", "robots") || is(tag, "name", self.agent) {
            for directive in content().to_ascii_lowercase().split(',').map(str::trim) {
                self.noindex |= matches!(directive, "noindex" | "none");
                self.nofollow |= matches!(directive, "nofollow" | "none");
            }
        } else if is(tag, "http-equiv", "refresh") {
            let content = content();
            let url = refresh(&content).filter(|url| !url.starts_with('#'));
            if let Some(url) = url {
                self.keep((url.len() <= 4 * URL_BYTES_MAX).then(|| Cow::Owned(url.to_owned())), false);
            }
        }
    }
}

/// The distinct links, and whether there were more.
fn resolve(references: &[(Cow<str>, bool)], base: &Url, rules: &UrlRules) -> (Vec<Link>, bool) {
    let room = references.len().min(LINKS_MAX);
    let mut places: HashMap<UrlHash, usize, RandomState> =
        HashMap::with_capacity_and_hasher(room, RandomState::default());
    let mut links: Vec<Link> = Vec::with_capacity(room);
    let (mut more, mut bytes) = (false, 0);
    for (reference, nofollow) in references {
        let Ok(to) = spell(reference, base, rules) else { continue };
        match places.get(&to.hash) {
            // To follow it anywhere is to follow it.
            Some(&place) => links[place].nofollow &= nofollow,
            None if links.len() == LINKS_MAX || bytes + to.text.len() > LINK_BYTES_MAX => more = true,
            None => {
                bytes += to.text.len();
                places.insert(to.hash, links.len());
                links.push(Link { to, nofollow: *nofollow });
            }
        }
    }
    (links, more)
}

/// Whether an attribute has this value.
fn is(tag: &Tag, attribute: &str, value: &str) -> bool {
    tag.attribute(attribute).is_some_and(|given| given.trim().eq_ignore_ascii_case(value))
}

/// Whether a list of relations has this one.
fn has(relations: &str, name: &str) -> bool {
    relations.split_ascii_whitespace().any(|relation| relation.eq_ignore_ascii_case(name))
}

fn decoded(text: &str) -> Cow<'_, str> {
    html_escape::decode_html_entities(text)
}

/// The URL of `5; url='next.html'` (WHATWG HTML, "shared declarative refresh steps").
fn refresh(content: &str) -> Option<&str> {
    let rest = content.trim_start().trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let rest = rest.trim_start_matches(|c: char| c.is_ascii_whitespace() || matches!(c, ';' | ','));
    let named = rest
        .get(..3)
        .filter(|name| name.eq_ignore_ascii_case("url"))
        .and_then(|_| rest[3..].trim_start().strip_prefix('='));
    let url = named.unwrap_or(rest).trim_start();
    let url = match url.chars().next() {
        Some(quote @ ('"' | '\'')) => url[1..].split(quote).next().unwrap_or_default(),
        _ => url,
    };
    (!url.is_empty()).then_some(url)
}

fn title(raw: &str) -> Option<String> {
    // Cut first: it may be all of a page.
    let end = raw.char_indices().nth(TITLE_RAW_CHARS_MAX).map_or(raw.len(), |(at, _)| at);
    let text = html_escape::decode_html_entities(&raw[..end]);
    let mut title = String::new();
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()) {
        if !title.is_empty() {
            title.push(' ');
        }
        title.push_str(word);
    }
    let end = title.char_indices().nth(TITLE_CHARS_MAX).map_or(title.len(), |(at, _)| at);
    title.truncate(title[..end].trim_end().len());
    (!title.is_empty()).then_some(title)
}

/// The language of a BCP 47 tag; some write `_` for `-`.
fn language_code(tag: &str) -> Option<String> {
    let code = tag.trim().split(['-', '_']).next().unwrap_or_default();
    let sound = (2..=3).contains(&code.len()) && code.bytes().all(|byte| byte.is_ascii_alphabetic());
    sound.then(|| code.to_ascii_lowercase())
}

fn language(text: &str) -> Option<String> {
    let sample = text::sample(text, LANGUAGE_BYTES_MAX);
    let words = decoded(&sample);
    let code = match words.len() {
        0 => return None,
        1..LANGUAGE_BYTES_MIN => "und",
        _ => match whichlang::detect_language(&words) {
            Lang::Ara => "ar",
            Lang::Cmn => "zh",
            Lang::Deu => "de",
            Lang::Eng => "en",
            Lang::Fra => "fr",
            Lang::Hin => "hi",
            Lang::Ita => "it",
            Lang::Jpn => "ja",
            Lang::Kor => "ko",
            Lang::Nld => "nl",
            Lang::Por => "pt",
            Lang::Rus => "ru",
            Lang::Spa => "es",
            Lang::Swe => "sv",
            Lang::Tur => "tr",
            Lang::Vie => "vi",
        },
    };
    Some(code.to_owned())
}

#[cfg(test)]
mod tests;
