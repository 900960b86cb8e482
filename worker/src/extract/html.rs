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
        let content = || tag.attribute("content").unwrap_or_default();
        if is(tag, "name", "robots") || is(tag, "name", self.agent) {
            for directive in content().to_ascii_lowercase().split(',').map(str::trim) {
                self.noindex |= matches!(directive, "noindex" | "none");
                self.nofollow |= matches!(directive, "nofollow" | "none");
            }
        } else if is(tag, "http-equiv", "refresh") {
            self.refer(refresh(content()), false);
        }
    }
}

/// The distinct links, and whether there were more.
fn resolve(references: &[(Cow<str>, bool)], base: &Url, rules: &UrlRules) -> (Vec<Link>, bool) {
    let room = references.len().min(LINKS_MAX);
    let mut places: HashMap<UrlHash, usize, RandomState> =
        HashMap::with_capacity_and_hasher(room, RandomState::default());
    let mut links: Vec<Link> = Vec::with_capacity(room);
    let mut more = false;
    for (reference, nofollow) in references {
        let Ok(to) = spell(reference, base, rules) else { continue };
        match places.get(&to.hash) {
            // To follow it anywhere is to follow it.
            Some(&place) => links[place].nofollow &= nofollow,
            None if links.len() == LINKS_MAX => more = true,
            None => {
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
mod tests {
    use dodo_common::model::url_rules::UrlRule;

    use super::*;

    fn page(body: &str) -> Page {
        read(body, false)
    }

    fn read(body: &str, assets: bool) -> Page {
        read_as("text/html; charset=utf-8", body.as_bytes(), assets)
    }

    fn read_as(content_type: &str, body: &[u8], assets: bool) -> Page {
        let page = Url::parse("https://a.example/dir/page").unwrap();
        let reading = Reading { assets, rules: UrlRules::none(), agent: "dodo", canonical: true, fingerprint: false };
        html(body, Some(content_type), &page, reading)
    }

    fn links(body: &str) -> Vec<String> {
        page(body).links.iter().map(|link| link.to.text.clone()).collect()
    }

    #[test]
    fn links_of_every_kind_in_order() {
        let body = "<html><head><link rel=stylesheet href=/s.css><link rel='alternate stylesheet' href=/t.css>
            <link rel='Next' href=/next><link rel=icon href=/i.png><meta http-equiv=Refresh content='5; URL=\"/moved\"'></head>
            <a href='one'>1</a><A HREF=/two>2</A><a href='one#x'>1</a><area href=//b.example/three>
            <iframe src=/four></iframe><a>no</a><a href='#top'>no</a><a href=mailto:x@y.z>no</a><a href='javascript:x()'>no</a>
            <!-- <a href=/comment> --><script>'<a href=/script>'</script>
            <a rel=nofollow href='/five?a=1&amp;b=2&copy=3'>5</a>";
        assert_eq!(
            links(body),
            [
                "https://a.example/next",
                "https://a.example/moved",
                "https://a.example/dir/one",
                "https://a.example/two",
                "https://b.example/three",
                "https://a.example/four",
                "https://a.example/five?a=1&b=2&copy=3",
            ]
        );
        assert_eq!(page(body).link_count_seen, 10);
        assert_eq!(links("<frameset><frame src=f></frameset>"), ["https://a.example/dir/f"]);
    }

    #[test]
    fn queries_of_links_are_in_the_encoding_of_the_page() {
        let body = b"<link rel=canonical href='/\xf2?\xe5'><a href='/find?q=\xf2\xe5\xf1\xf2'>1</a>
            <meta http-equiv=refresh content='0; url=?\xf2'><a href='/p?q=&#x442;'>2</a>";
        let page = read_as("text/html; charset=windows-1251", body, false);
        let links: Vec<&str> = page.links.iter().map(|link| link.to.text.as_str()).collect();
        let expected = ["/%D1%82?%E5", "/find?q=%F2%E5%F1%F2", "/dir/page?%F2", "/p?q=%F2"];
        assert_eq!(links, expected.map(|path| format!("https://a.example{path}")));
        assert_eq!(page.canonical.map(|canonical| canonical.text).as_deref(), Some("https://a.example/%D1%82?%E5"));
    }

    #[test]
    fn a_script_that_closes_itself_hides_no_link_of_xhtml() {
        let body =
            b"<html xmlns='http://www.w3.org/1999/xhtml'><head><script src='a.js'/></head><body><a href='/next'>n</a>";
        assert_eq!(read_as("Application/XHTML+XML; charset=utf-8", body, false).links.len(), 1);
        assert_eq!(read_as("text/html", body, false).links.len(), 0, "as a browser reads it");
    }

    #[test]
    fn nofollow_is_what_every_link_to_a_page_says() {
        let body = "<a rel='external NoFollow' href=/1></a><area rel=nofollow href=/2><a rel=noopener href=/3></a>
            <a rel=nofollow href=/4></a><a href='/4#x'></a><a href=/5></a><a rel=nofollow href=/5></a>
            <link rel='next nofollow' href=/6>";
        let nofollow: Vec<bool> = page(body).links.iter().map(|link| link.nofollow).collect();
        assert_eq!(nofollow, [true, true, false, false, false, false]);
    }

    #[test]
    fn assets_are_links_where_they_are_asked_for() {
        let body = "<link rel=stylesheet href=/1.css><link rel='shortcut icon' href=/2.ico><link rel=preload href=/no>
            <link rel=preload as=image imagesrcset='/15.png 400w, /d&amp;e.png 800w'>
            <script src=/3.js></script><script>'<img src=/no>'</script><img src=4.png srcset='/5.png 1x, /a,b&amp;c.png 2x'>
            <picture><source srcset='/6.png, /7.png 2x'><img src='data:image/png;base64,AAAA'></picture>
            <video src=/8.mp4 poster=/16.jpg><source src=/9.webm><track src=/10.vtt></video>
            <audio src=/11.ogg></audio><embed src=/12.swf>
            <object data=/13.pdf></object><input type=Image src=/14.gif><input src=/no><a href=/page></a>";
        let found: Vec<String> = read(body, true).links.iter().map(|link| link.to.text.clone()).collect();
        let expected = [
            "1.css",
            "2.ico",
            "15.png",
            "d&e.png",
            "3.js",
            "dir/4.png",
            "5.png",
            "a,b&c.png",
            "6.png",
            "7.png",
            "8.mp4",
            "16.jpg",
            "9.webm",
            "10.vtt",
            "11.ogg",
            "12.swf",
            "13.pdf",
            "14.gif",
            "page",
        ]
        .map(|path| format!("https://a.example/{path}"));
        assert_eq!(found, expected);
        assert_eq!(links(body), ["https://a.example/page"]);
    }

    #[test]
    fn the_first_base_holds_for_all() {
        assert_eq!(
            links("<a href=x></a><base href='/b/?'><base href=/c/><a href=y></a>"),
            ["https://a.example/b/x", "https://a.example/b/y"]
        );
        assert_eq!(links("<base href='data:x'><a href=x></a>"), ["https://a.example/dir/x"]);
    }

    #[test]
    fn a_link_is_that_of_its_base_and_rules() {
        let ruled = |page: &str, href: &str, rules: &UrlRules| {
            let body = format!("<a href='{href}'>");
            let reading = Reading { assets: false, rules, agent: "dodo", canonical: false, fingerprint: false };
            html(body.as_bytes(), None, &Url::parse(page).unwrap(), reading).links[0].to.text.clone()
        };
        let link = |page: &str, href: &str| ruled(page, href, UrlRules::none());
        let [sorting, dropping] = [(&[UrlRule::Sort][..], &[][..]), (&[], &["b".to_owned()])]
            .map(|(rules, drop)| UrlRules::new(rules, drop).unwrap());
        assert_eq!(link("https://a.example/", "/x"), "https://a.example/x");
        assert_eq!(link("http://b.example/y/", "/x"), "http://b.example/x");
        assert_eq!(link("http://b.example/", "//c.example/x"), "http://c.example/x");
        assert_eq!(link("https://b.example/", "http://b.example//c.example/x"), "http://b.example//c.example/x");
        assert_eq!(link("https://b.example/1/", "x"), "https://b.example/1/x");
        for href in ["/?b=1&a=2", "https://b.example/?b=1&a=2"] {
            assert_eq!(link("https://b.example/", href), "https://b.example/?b=1&a=2");
            assert_eq!(ruled("https://b.example/", href, &sorting), "https://b.example/?a=2&b=1");
            assert_eq!(ruled("https://b.example/", href, &dropping), "https://b.example/?a=2");
        }
    }

    #[test]
    fn refresh_in_all_spellings() {
        for (content, expected) in [
            ("0;url=/x", Some("/x")),
            ("0.5 , URL = '/x' y", Some("/x")),
            ("0; /x", Some("/x")),
            (";url=\"/x", Some("/x")),
            ("5", None),
            ("5; url=", None),
            ("", None),
        ] {
            assert_eq!(refresh(content), expected, "{content}");
        }
    }

    #[test]
    fn titles() {
        assert_eq!(page("<title>\n A &amp;\0 B\t</title>").title.as_deref(), Some("A & B"));
        assert_eq!(
            page("<svg><title>no</title></svg><title>yes</title><title>no</title>").title.as_deref(),
            Some("yes")
        );
        assert_eq!(page("<title> </title>").title, None);
        assert_eq!(page("<title>\0\x07</title>").title, None);
        assert_eq!(
            page(&format!("<title>{}", "é".repeat(100_000))).title.map(|title| title.chars().count()),
            Some(TITLE_CHARS_MAX)
        );
        let cut = format!("<title>{} b", "a".repeat(TITLE_CHARS_MAX - 1));
        assert_eq!(page(&cut).title, Some("a".repeat(TITLE_CHARS_MAX - 1)), "no space at the end");
    }

    #[test]
    fn languages() {
        let german = "<p>Die Katze sitzt auf dem Dach und schaut den Vögeln zu, die über die Felder fliegen.";
        assert_eq!(page("<html lang='en-US'><p>x").language.as_deref(), Some("en"));
        assert_eq!(page("<html xml:lang=gsw_CH>").language.as_deref(), Some("gsw"));
        assert_eq!(page(&format!("<html lang=german>{german}")).language.as_deref(), Some("de"));
        assert_eq!(page("<p>The cat").language.as_deref(), Some("und"));
        assert_eq!(page("<p><img>").language, None);
    }

    #[test]
    fn robots_directives() {
        let flags = |body: &str| (page(body).noindex, page(body).nofollow);
        assert_eq!(flags("<META NAME=Robots CONTENT='NoIndex , nofollow'>"), (true, true));
        assert_eq!(flags("<meta name=robots content=none>"), (true, true));
        assert_eq!(
            flags("<meta name=robots content='index,follow'><meta name=robots content=nofollow>"),
            (false, true)
        );
        assert_eq!(flags("<meta name=other content=noindex>"), (false, false));
        // To one crawler by name, and to all: what is said adds up.
        assert_eq!(flags("<meta name=DODO content=noindex><meta name=robots content='all'>"), (true, false));
        assert_eq!(flags("<meta name=robots content=nofollow><meta name=dodo content=index,noindex>"), (true, true));
        assert_eq!(flags("<meta name=dodobot content=none><meta name='' content=none>"), (false, false));
    }

    #[test]
    fn the_first_canonical_url_of_the_head_counts() {
        let canonical = |body: &str| page(body).canonical.map(|url| url.text);
        for (body, expected) in [
            ("<head><link rel='Next Canonical' href='../x?a=1&amp;b=2#c'></head>", Some("https://a.example/x?a=1&b=2")),
            ("<link rel=canonical href=/x><base href=http://b.example/>", Some("http://b.example/x")),
            (
                "<link rel=canonical href><link rel=canonical href='mailto:x@y.z'><link rel=canonical href=/2>
              <link rel=canonical href=/3>",
                Some("https://a.example/2"),
            ),
            (
                "<title>a</title><noscript><img src=x></noscript><script>'<p>'</script><style></style></head>
              <link rel=canonical href=/x>",
                Some("https://a.example/x"),
            ),
            ("<body><link rel=canonical href=/x>", None),
            ("<title>a</title><p>written by somebody <link rel=canonical href=/x>", None),
            ("<link rel=alternate href=/x><a rel=canonical href=/y>", None),
        ] {
            assert_eq!(canonical(body).as_deref(), expected, "{body}");
        }
        let many = "<link rel=canonical href='data:,'>".repeat(CANONICALS_MAX) + "<link rel=canonical href=/x>";
        assert_eq!(canonical(&many), None);
    }

    #[test]
    fn too_many_links_are_said_to_be() {
        let many = |count: usize| (0..count).map(|number| format!("<a href=/{number}>")).collect::<String>();
        let all = page(&many(LINKS_MAX));
        assert_eq!((all.links.len(), all.links_truncated), (LINKS_MAX, false));
        let more = page(&many(LINKS_MAX + 1));
        assert_eq!((more.links.len(), more.links_truncated, more.link_count_seen), (LINKS_MAX, true, LINKS_MAX + 1));
        let same = page(&"<a href=/>".repeat(REFERENCES_MAX + 1));
        assert_eq!((same.links.len(), same.links_truncated), (1, true));
    }

    #[test]
    fn broken_pages_are_read_as_far_as_they_go() {
        assert_eq!(links("<a href=/x><a href='/y"), ["https://a.example/x"]);
        let bytes: Vec<u8> = (0..=255).cycle().take(5000).collect();
        let url = Url::parse("http://a.example/").unwrap();
        let reading =
            Reading { assets: true, rules: UrlRules::none(), agent: "dodo", canonical: true, fingerprint: true };
        html(&bytes, None, &url, reading);
        html(b"", None, &url, reading);
    }
}
