//! The start tags of a page in their order, as a browser without scripts meets them (WHATWG HTML 13.2.5).
//!
//! No tree is built. What the tree tells the tokenizer is followed as far as tags show it: elements that hold text only, and
//! where SVG or MathML begins and ends (13.2.6.5). What it says beyond that, as of a `<textarea>` within a `<select>`, is not.

use std::ops::Range;

use memchr::{memchr, memchr_iter, memchr2, memmem};

/// SVG and MathML that is nested deeper is taken for what is around it.
const DEPTH_MAX: usize = 64;
/// Longer than any name that is looked for, bytes.
const NAME_BYTES_MAX: usize = 16;

/// The tags of a text; a tag without an end is none.
pub struct Tags<'t> {
    text: &'t str,
    at: usize,
    /// The SVG and MathML that is open, and the HTML within it, the innermost last.
    open: Vec<Open>,
    is_xml: bool,
}

pub struct Tag<'t> {
    name: Name,
    attributes: &'t str,
    /// What it holds, of an element that holds text only; references are not decoded.
    pub text: Option<&'t str>,
}

/// In lower case; of a longer name its start.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Name {
    bytes: [u8; NAME_BYTES_MAX],
    len: usize,
}

struct Open {
    name: Name,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// HTML at a place where SVG or MathML lets it in.
    Html,
    Svg,
    Math,
}

impl<'t> Tags<'t> {
    /// Of XML, an element of any name may close itself (XML 1.0 3.1); all else is read as of HTML.
    pub fn new(text: &'t str, is_xml: bool) -> Self {
        Self { text, at: 0, open: Vec::new(), is_xml }
    }

    /// What is still to be read.
    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    /// Goes behind `end`.
    fn skip(&mut self, end: &str) -> Option<()> {
        self.at += memmem::find(self.rest().as_bytes(), end.as_bytes())? + end.len();
        Some(())
    }

    /// Behind `<!`.
    fn skip_declaration(&mut self) -> Option<()> {
        let rest = self.rest();
        if let Some(comment) = rest.strip_prefix("--") {
            self.at += 2 + comment_bytes(comment)?;
            return Some(());
        }
        let in_foreign = self.open.last().is_some_and(|open| open.kind != Kind::Html);
        self.skip(if in_foreign && rest.starts_with("[CDATA[") { "]]>" } else { ">" })
    }

    /// Reads the tag whose name begins here: its name and its attributes as they are written, and whether it closes itself.
    fn tag(&mut self) -> Option<(&'t str, &'t str, bool)> {
        let behind = end(self.text.as_bytes(), self.at, ENDS_NAME);
        let mut attributes = Attributes { text: self.text, at: behind, closes_itself: false };
        while attributes.step().is_some() {}
        let (name, before) = (&self.text[self.at..behind], &self.text[behind..attributes.at]);
        // Without that, the text ends within it.
        self.text.as_bytes().get(attributes.at)?;
        self.at = attributes.at + 1;
        Some((name, before, attributes.closes_itself))
    }

    fn start_tag(&mut self) -> Option<Tag<'t>> {
        let (name, attributes, closes_itself) = self.tag()?;
        let name = Name::of(name);
        let mut tag = Tag { name, attributes, text: None };
        let kind = self.open.last().map_or(Kind::Html, |open| open.kind);
        if kind != Kind::Html && breaks_out(&tag) {
            self.leave_foreign();
        } else if let Some(kind) = within(kind, &tag) {
            if !closes_itself && self.open.len() < DEPTH_MAX {
                self.open.push(Open { name, kind });
            }
        } else if kind == Kind::Html && holds_text(tag.name()) && !(self.is_xml && closes_itself) {
            let rest = self.rest();
            let bytes = text_bytes(rest, tag.name());
            self.at += bytes;
            tag.text = Some(&rest[..bytes]);
        }
        Some(tag)
    }

    fn end_tag(&mut self) -> Option<()> {
        let (name, ..) = self.tag()?;
        let Some(innermost) = self.open.last() else { return Some(()) };
        let name = Name::of(name);
        match innermost.kind {
            Kind::Html if innermost.name == name => drop(self.open.pop()),
            Kind::Html => {}
            Kind::Svg | Kind::Math if matches!(name.as_bytes(), b"p" | b"br") => self.leave_foreign(),
            Kind::Svg | Kind::Math => {
                let foreign = self.open.iter().rposition(|open| open.kind == Kind::Html).map_or(0, |html| html + 1);
                if let Some(place) = self.open[foreign..].iter().rposition(|open| open.name == name) {
                    self.open.truncate(foreign + place);
                }
            }
        }
        Some(())
    }

    /// To the HTML around it.
    fn leave_foreign(&mut self) {
        while self.open.pop_if(|open| open.kind != Kind::Html).is_some() {}
    }
}

impl<'t> Iterator for Tags<'t> {
    type Item = Tag<'t>;

    fn next(&mut self) -> Option<Tag<'t>> {
        loop {
            self.at += memchr(b'<', self.rest().as_bytes())? + 1;
            let rest = self.rest().as_bytes();
            match rest {
                [b'/', letter, ..] if letter.is_ascii_alphabetic() => {
                    self.at += 1;
                    self.end_tag()?;
                }
                [letter, ..] if letter.is_ascii_alphabetic() => return self.start_tag(),
                [b'!', ..] => {
                    self.at += 1;
                    self.skip_declaration()?;
                }
                // Not a tag: a comment by mistake.
                [b'/' | b'?', ..] => self.skip(">")?,
                _ => {}
            }
        }
    }
}

impl<'t> Tag<'t> {
    /// In lower case. A name that is longer than any of HTML is cut.
    pub fn name(&self) -> &[u8] {
        self.name.as_bytes()
    }

    /// As it is written; an attribute without a value has an empty one, and of several the first counts.
    pub fn attribute(&self, name: &str) -> Option<&'t str> {
        let mut attributes = Attributes { text: self.attributes, at: 0, closes_itself: false };
        attributes.find(|(given, _)| given.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

impl Name {
    fn of(text: &str) -> Self {
        let mut bytes = [0; NAME_BYTES_MAX];
        for (lower, byte) in bytes.iter_mut().zip(text.bytes()) {
            *lower = byte.to_ascii_lowercase();
        }
        Self { bytes, len: text.len().min(NAME_BYTES_MAX) }
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Attributes with their values; ends before the `>`, or with the text.
struct Attributes<'t> {
    text: &'t str,
    at: usize,
    /// There was a `/` before the end.
    closes_itself: bool,
}

impl Attributes<'_> {
    /// Where the next one has its name and its value.
    fn step(&mut self) -> Option<(Range<usize>, Range<usize>)> {
        let bytes = self.text.as_bytes();
        let start = end(bytes, self.at, !(SPACE | SLASH));
        self.closes_itself = bytes[self.at..start].last() == Some(&b'/');
        self.at = start;
        bytes.get(start).filter(|first| **first != b'>')?;
        // A `=` in front belongs to the name.
        let name = start..end(bytes, start + 1, ENDS_NAME | EQUALS);
        let behind = end(bytes, name.end, !SPACE);
        if bytes.get(behind) != Some(&b'=') {
            self.at = behind;
            return Some((name, behind..behind));
        }
        let start = end(bytes, behind + 1, !SPACE);
        let value = match bytes.get(start) {
            Some(quote @ (b'"' | b'\'')) => {
                let start = start + 1;
                let end = memchr(*quote, &bytes[start..]).map_or(bytes.len(), |length| start + length);
                self.at = bytes.len().min(end + 1);
                start..end
            }
            _ => {
                self.at = end(bytes, start, SPACE | MORE);
                start..self.at
            }
        };
        Some((name, value))
    }
}

impl<'t> Iterator for Attributes<'t> {
    type Item = (&'t str, &'t str);

    fn next(&mut self) -> Option<(&'t str, &'t str)> {
        // Each begins and ends beside an ASCII character.
        self.step().map(|(name, value)| (&self.text[name], &self.text[value]))
    }
}

/// What a byte may be within a tag, a bit each; any other is [`OTHER`].
const SPACE: u8 = 1;
const SLASH: u8 = 2;
const MORE: u8 = 4;
const EQUALS: u8 = 8;
const OTHER: u8 = 16;
/// What ends the name of a tag.
const ENDS_NAME: u8 = SPACE | SLASH | MORE;

const CLASSES: [u8; 256] = {
    let mut classes = [OTHER; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        classes[byte as usize] = match byte {
            b'/' => SLASH,
            b'>' => MORE,
            b'=' => EQUALS,
            _ if byte.is_ascii_whitespace() => SPACE,
            _ => OTHER,
        };
        byte += 1;
    }
    classes
};

/// Where the first byte from `at` on is that is of one of these classes.
fn end(text: &[u8], mut at: usize, classes: u8) -> usize {
    while text.get(at).is_some_and(|byte| CLASSES[usize::from(*byte)] & classes == 0) {
        at += 1;
    }
    at
}

fn ends_name(byte: u8) -> bool {
    CLASSES[usize::from(byte)] & ENDS_NAME != 0
}

/// From behind `<!--` to behind its end; none if it has no end.
fn comment_bytes(comment: &str) -> Option<usize> {
    for at_once in [">", "->"] {
        if comment.starts_with(at_once) {
            return Some(at_once.len());
        }
    }
    let ends = |end: &usize| [&b"--"[..], b"--!"].iter().any(|dashes| comment.as_bytes()[..*end].ends_with(dashes));
    memchr_iter(b'>', comment.as_bytes()).find(ends).map(|end| end + 1)
}

/// Elements in which there are no tags. Not `noscript`: there are no scripts here.
fn holds_text(name: &[u8]) -> bool {
    matches!(
        name,
        b"title" | b"textarea" | b"script" | b"style" | b"xmp" | b"iframe" | b"noembed" | b"noframes" | b"plaintext"
    )
}

/// The bytes of the text before the end tag of the element that holds it.
fn text_bytes(text: &str, name: &[u8]) -> usize {
    match name {
        b"plaintext" => text.len(),
        b"script" => script_bytes(text.as_bytes()),
        _ => {
            let mut ends = memmem::find_iter(text.as_bytes(), "</");
            ends.find(|at| is_named(&text.as_bytes()[at + 2..], name)).unwrap_or(text.len())
        }
    }
}

/// An end tag ends no script that is within another one, in a comment (13.2.5.18 to 13.2.5.31).
fn script_bytes(text: &[u8]) -> usize {
    let (mut at, mut in_comment, mut is_inner) = (0, false, false);
    while let Some(bytes) = memchr2(b'<', b'-', &text[at..]) {
        at += bytes;
        match &text[at..] {
            [b'-', b'-', b'>', ..] => {
                (in_comment, is_inner) = (false, false);
                at += 3;
            }
            // Its dashes may be those of its end.
            [b'<', b'!', b'-', b'-', ..] if !in_comment => {
                in_comment = true;
                at += 2;
            }
            [b'<', b'/', rest @ ..] if is_named(rest, b"script") => {
                if !is_inner {
                    return at;
                }
                is_inner = false;
                at += 2;
            }
            [b'<', rest @ ..] if in_comment && is_named(rest, b"script") => {
                is_inner = true;
                at += 1;
            }
            _ => at += 1,
        }
    }
    text.len()
}

/// It begins with this name, and that ends there.
fn is_named(rest: &[u8], name: &[u8]) -> bool {
    rest.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name))
        && rest.get(name.len()).copied().is_some_and(ends_name)
}

/// What a start tag opens that matters here.
fn within(kind: Kind, tag: &Tag) -> Option<Kind> {
    let holds_html = match (kind, tag.name()) {
        (Kind::Html, b"svg") => return Some(Kind::Svg),
        (Kind::Html, b"math") => return Some(Kind::Math),
        // Only the name says so there: it is of the kind that is around it.
        (Kind::Svg | Kind::Math, b"svg" | b"math") => return Some(kind),
        (Kind::Svg, b"desc" | b"title" | b"foreignobject") => true,
        (Kind::Math, b"mi" | b"mo" | b"mn" | b"ms" | b"mtext") => true,
        (Kind::Math, b"annotation-xml") => tag.attribute("encoding").is_some_and(|encoding| {
            ["text/html", "application/xhtml+xml"].iter().any(|html| encoding.eq_ignore_ascii_case(html))
        }),
        _ => false,
    };
    holds_html.then_some(Kind::Html)
}

/// Tags that end SVG and MathML, since nobody means them there.
#[rustfmt::skip]
fn breaks_out(tag: &Tag) -> bool {
    match tag.name() {
        b"b" | b"big" | b"blockquote" | b"body" | b"br" | b"center" | b"code" | b"dd" | b"div" | b"dl" | b"dt" | b"em"
        | b"embed" | b"h1" | b"h2" | b"h3" | b"h4" | b"h5" | b"h6" | b"head" | b"hr" | b"i" | b"img" | b"li" | b"listing"
        | b"menu" | b"meta" | b"nobr" | b"ol" | b"p" | b"pre" | b"ruby" | b"s" | b"small" | b"span" | b"strong" | b"strike"
        | b"sub" | b"sup" | b"table" | b"tt" | b"u" | b"ul" | b"var" => true,
        b"font" => ["color", "face", "size"].iter().any(|name| tag.attribute(name).is_some()),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
