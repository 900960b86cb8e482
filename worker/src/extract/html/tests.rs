//! Pages, and what is read of them.

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
    for content in ["0;url=&#39;/next&#39;", "0;url=&quot;/next&quot; x", "0&#59; url&#61;/next", "0;url=/ne&#120;t"] {
        let found = page(&format!("<meta http-equiv=refresh content='{content}'>"));
        let links: Vec<&str> = found.links.iter().map(|link| link.to.text.as_str()).collect();
        assert_eq!(links, ["https://a.example/next"], "{content}");
    }
    let inside = page("<meta http-equiv=refresh content='5;url=#top'><meta name=robots content='no&#102;ollow'>");
    assert_eq!((inside.links.len(), inside.nofollow), (0, true));
}

#[test]
fn titles() {
    assert_eq!(page("<title>\n A &amp;\0 B\t</title>").title.as_deref(), Some("A & B"));
    assert_eq!(page("<svg><title>no</title></svg><title>yes</title><title>no</title>").title.as_deref(), Some("yes"));
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
    assert_eq!(flags("<meta name=robots content='index,follow'><meta name=robots content=nofollow>"), (false, true));
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
    let long = format!("<base href='/{}/'>{}", "x".repeat(1900), many(LINKS_MAX).replace("href=/", "href="));
    let long = page(&long);
    let bytes: usize = long.links.iter().map(|link| link.to.text.len()).sum();
    assert!(long.links_truncated && (LINK_BYTES_MAX - 2000..=LINK_BYTES_MAX).contains(&bytes), "{bytes}");
    let same = page(&"<a href=/>".repeat(REFERENCES_MAX + 1));
    assert_eq!((same.links.len(), same.links_truncated), (1, true));
}

#[test]
fn broken_pages_are_read_as_far_as_they_go() {
    assert_eq!(links("<a href=/x><a href='/y"), ["https://a.example/x"]);
    let bytes: Vec<u8> = (0..=255).cycle().take(5000).collect();
    let url = Url::parse("http://a.example/").unwrap();
    let reading = Reading { assets: true, rules: UrlRules::none(), agent: "dodo", canonical: true, fingerprint: true };
    html(&bytes, None, &url, reading);
    html(b"", None, &url, reading);
}
