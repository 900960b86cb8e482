//! HTML: links that can be fetched, bounded, each once.

use std::collections::HashSet;
use std::sync::LazyLock;

use ::url::Url;
use dodo_common::model::spelling::Spelt;
use dodo_common::model::url::ruled;
use dodo_common::model::url_rules::{UrlRule, UrlRules};
use dodo_worker::extract::html::{LINKS_MAX, Link, Page, Reading, TITLE_CHARS_MAX, html};

use crate::mangle::pick;
use crate::run::{Draw, Target, run};

/// The examples of WHATWG HTML for `link`, `base`, `meta`, `srcset` and nofollow, and the tag soup of the web.
const SEEDS: &[&[u8]] = &[
    b"<!DOCTYPE html><html lang=en><head><meta charset=utf-8><title>An  example &amp; a test</title><base href=\"/b/\">
<link rel=\"alternate\" hreflang=fr href=\"fr.html\"><link rel=stylesheet href=s.css><link rel='icon next' href=/i.png>
<meta name=robots content=\"noindex, NoFollow\"><meta http-equiv=Refresh content=\"0; url='next.html'\"></head>
<body><a href=one>1</a> <a rel=\"external nofollow\" HREF='two?a=1&amp;b=2&copy=3#x'>2</a><area href=//b.example/three></body></html>",
    b"<img src=a.png srcset=\"a.png 1x, b.png 2x,c.png (1x, 2x) 3x\"><source srcset='/w_300,h_200/a 300w'><video src=v></video>
<object data=o></object><input type=Image src=i><script src=s></script><iframe src=\"/four\"></iframe><embed src=e>",
    b"<frameset><frame src=f><noframes><a href=n></noframes></frameset><svg><title>t</title><a href=s xlink:href=x /></svg>
<math><mi><a href=m></a></mi></math><template><a href=t></template><noscript><a href=no></noscript>",
    b"<!-- <a href=/comment> --><script>'<a href=/script>'<!--<script></script></script><style><a href=y></style><textarea><a href=t>
</textarea><plaintext><a href=p><a href='javascript:x()'><a href='mailto:a@b.c'><a href=#top><a href=''><a href=' /x y '>",
    b"<?xml version='1.0' encoding='windows-1251'?><html xml:lang=ru_RU><a href='\xcf\xee\xe8\xf1\xea?q=\xe9'>\xcf</a>",
    b"\xff\xfe<\0a\0 \0h\0r\0e\0f\0=\0x\0>\0",
    "<html><title>日本語</title><p>これは日本語の文章です。文字コードを判定します。<a href='/パス?クエリ'>リンク</a>".as_bytes(),
];
#[rustfmt::skip]
const WORDS: &[&str] = &[
    "<a href=", "<a href=x>", "<A\nHREF = '", "</a>", "<base href='http://c.test/d/'>", "<base href=..>", "<title>",
    "</title>", "<svg>", "</svg>", "<math>", "<select>", "<table>", "<script>", "</script>", "<!--", "-->", "--!>",
    "<![CDATA[", "<!", "<?", "</", "<", ">", "/>", "\"", "'", "=", " rel=nofollow", " rel=next", "<link ",
    " srcset='a 1x,, b'", "<img src=i>", "<meta name=robots content=none>",
    "<meta http-equiv=refresh content=';URL=r'>", "<meta charset=utf-16>", "<meta charset=shift_jis>", "&amp;", "&#",
    "&#x110000;", "&notit;", "http://", "https:", "//", "\\\\", "?", "#", "%", "../", "javascript:", "data:,",
    "<plaintext>", "<template>", "<html lang=x>", "\u{2028}", "İ",
];

static RULES: LazyLock<UrlRules> = LazyLock::new(|| {
    UrlRules::new(&[UrlRule::Sort, UrlRule::Tracking], &["x".to_owned()]).expect("the rules are sound")
});

#[test]
fn html_links_can_be_fetched() {
    run(Target { name: "html_links_can_be_fetched", seeds: SEEDS, words: WORDS, cases: 400, check });
}

fn check(input: &[u8], mut draw: Draw) {
    let content_type =
        pick(&mut draw, &["text/html", "text/html; charset=utf-8", "text/html;charset=gbk", "application/xhtml+xml"]);
    let page = Url::parse(pick(&mut draw, &["https://a.example/dir/page?x", "http://b.example/"])).expect("a URL");
    let rules = if input.len().is_multiple_of(2) { UrlRules::none() } else { &RULES };
    let read = |assets| {
        html(
            input,
            Some(content_type),
            &page,
            Reading { assets, rules, agent: "dodo", canonical: true, fingerprint: true },
        )
    };
    let [plain, shown] = [false, true].map(read);
    for read in [&plain, &shown] {
        sound(read, rules);
    }
    // What a page is shown with comes on top and hides nothing.
    let wanted: HashSet<_> = shown.links.iter().map(|link| link.to.hash).collect();
    assert!(shown.links_truncated || plain.links.iter().all(|Link { to, .. }| wanted.contains(&to.hash)));
    assert_eq!((&plain.title, &plain.language, plain.noindex), (&shown.title, &shown.language, shown.noindex));
    assert_eq!(plain.fingerprint, shown.fingerprint);
}

fn sound(page: &Page, rules: &UrlRules) {
    assert!(page.links.len() <= LINKS_MAX && page.links.len() <= page.link_count_seen);
    let mut seen = HashSet::new();
    for Link { to, .. } in &page.links {
        assert!(to.text.starts_with("http://") || to.text.starts_with("https://"), "{}", to.text);
        assert_eq!(ruled(&to.text, None, rules).map(Spelt::from).as_ref(), Ok(to), "it is not canonical");
        assert!(seen.insert(to.hash), "{} is listed twice", to.text);
    }
    if let Some(title) = &page.title {
        let is_clean = !title.chars().any(char::is_control) && title.trim() == title && !title.contains("  ");
        assert!(is_clean && !title.is_empty() && title.chars().count() <= TITLE_CHARS_MAX, "{title:?}");
    }
    let is_code = |code: &String| matches!(code.len(), 2..=3) && code.bytes().all(|byte| byte.is_ascii_lowercase());
    assert!(page.language.as_ref().is_none_or(is_code), "{:?}", page.language);
}
