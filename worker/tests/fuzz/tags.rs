//! Tags: those that a whole HTML parser meets, where no rule of the tree says otherwise.

use std::cell::RefCell;

use dodo_worker::extract::tags::Tags;
use html5ever::interface::TokenizerResult;
use html5ever::tendril::StrTendril;
use html5ever::tokenizer::{BufferQueue, Tag, TagKind, Token, TokenSink, TokenSinkResult, Tokenizer, TokenizerOpts};
use html5ever::tree_builder::{TreeBuilder, TreeBuilderOpts};
use markup5ever_rcdom::{Handle, RcDom};

use crate::run::{Draw, Target, run};

/// Text, comments, scripts within scripts, drawings and formulas.
const SEEDS: &[&[u8]] = &[
    b"<!DOCTYPE html><html lang=en><head><title>a <b> c</title><base href=/b/></head><body class='x'><a href=1>1</a>
<A HREF='2' b>2</A><a/href=3/>3</a><!-- <a href=4> --><a href=\"5\"title=\"<a>\">5</a ></body></html>",
    b"<p><script>'<a href=1>'<!--<script> </script> --></script><style><a href=2></style><a href=3><xmp><a></xmp>
<iframe><a></iframe><noembed><a></noembed><a href=4><noscript><a href=5></noscript>",
    b"<p><svg width=1><title><a href=1></title><style><b></style><g/><![CDATA[<a>]]></svg><a href=2><math><mi>x</mi><a href=3>
</math><style><a></style><div><svg><p><style><a></style></div><!-- -- > --!><a href=4>",
];
#[rustfmt::skip]
const WORDS: &[&str] = &[
    "<a href=", "<a href=x>", "<A\nHREF = '", "</a>", "<title>", "</title>", "<svg>", "<svg/>", "</svg>", "<math>", "</math>",
    "<style>", "</style>", "</style >", "<script>", "</script>", "</script", "<!--", "-->", "--!>", "--", "->", "<![CDATA[",
    "]]>", "<!", "<?", "</", "<", ">", "/>", "/", "\"", "'", "=", " ", "<textarea>", "</textarea>", "<xmp>", "</xmp>",
    "<noscript>", "<plaintext>", "<font color>", "<p>", "</p>", "<div>", "<br/>", "<mi>", "</mi>", "<b",
];

/// No name that matters is longer.
const NAME_BYTES: usize = 14;

#[test]
fn tags_are_those_of_a_parser() {
    run(Target { name: "tags_are_those_of_a_parser", seeds: SEEDS, words: WORDS, cases: 600, check });
}

fn check(input: &[u8], _: Draw) {
    // What the parser decodes or replaces is not compared.
    let text = String::from_utf8_lossy(input).replace(['&', '\0', '\r'], " ");
    let has_any = |words: &[&str]| words.iter().any(|word| text.to_ascii_lowercase().contains(word));
    if has_any(&["<svg", "<math"]) && has_any(&["<title", "<mi"]) {
        // Whether the HTML within a drawing or a formula has ended only the tree knows.
        return;
    }
    let found = Tags::new(&text, false).map(|tag| (spelt(tag.name()), tag.attribute("href").map(str::to_owned)));
    assert_eq!(found.collect::<Vec<_>>(), parsed(&text), "{text:?}");
}

/// As far as a name is kept.
fn spelt(name: &[u8]) -> String {
    String::from_utf8_lossy(&name[..name.len().min(NAME_BYTES)]).into_owned()
}

fn parsed(text: &str) -> Vec<(String, Option<String>)> {
    let options = TreeBuilderOpts { scripting_enabled: false, ..TreeBuilderOpts::default() };
    let tags = Recorder { tree: TreeBuilder::new(RcDom::default(), options), tags: RefCell::default() };
    let tokenizer = Tokenizer::new(tags, TokenizerOpts { discard_bom: false, ..TokenizerOpts::default() });
    let input = BufferQueue::default();
    input.push_back(StrTendril::from(text));
    while !matches!(tokenizer.feed(&input), TokenizerResult::Done) {}
    tokenizer.end();
    tokenizer.sink.tags.take()
}

/// Notes the start tags that the tree is told of.
struct Recorder {
    tree: TreeBuilder<Handle, RcDom>,
    tags: RefCell<Vec<(String, Option<String>)>>,
}

impl TokenSink for Recorder {
    type Handle = Handle;

    fn process_token(&self, token: Token, line: u64) -> TokenSinkResult<Handle> {
        if let Token::TagToken(Tag { kind: TagKind::StartTag, name, attrs, .. }) = &token {
            let href = attrs.iter().find(|attribute| &*attribute.name.local == "href");
            self.tags.borrow_mut().push((spelt(name.as_bytes()), href.map(|href| href.value.to_string())));
        }
        self.tree.process_token(token, line)
    }

    fn end(&self) {
        self.tree.end();
    }

    fn adjusted_current_node_present_but_not_in_html_namespace(&self) -> bool {
        self.tree.adjusted_current_node_present_but_not_in_html_namespace()
    }
}
