//! Sitemaps and feeds: bounded lists of URLs that can be fetched.

use std::collections::HashSet;
use std::io::Write;

use ::url::Url;
use dodo_common::model::spelling::Spelt;
use dodo_common::model::url::canonical;
use dodo_common::model::url_rules::UrlRules;
use dodo_worker::extract::listing::{ALTERNATES_MAX, ENTRIES_MAX, File, Kind, listing};
use flate2::Compression;
use flate2::write::GzEncoder;
use rand::Rng;

use crate::mangle::pick;
use crate::run::{Draw, Target, run};

/// Of sitemaps.org, developers.google.com, the RSS 2.0 and 1.0 specifications and RFC 4287, shortened.
const SEEDS: &[&[u8]] = &[
    br#"<?xml version="1.0" encoding="UTF-8"?>
<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9" xmlns:xhtml="http://www.w3.org/1999/xhtml">
   <url><loc>http://www.example.com/</loc><lastmod>2005-01-01</lastmod><priority>0.8</priority></url>
   <url><loc>http://www.example.com/catalog?item=12&amp;desc=vacation_hawaii</loc><changefreq>weekly</changefreq>
      <xhtml:link rel="alternate" hreflang="de" href="https://www.example.de/deutsch/page.html"/></url>
</urlset>"#,
    br#"<sitemapindex xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">
   <sitemap><loc>http://www.example.com/sitemap1.xml.gz</loc><lastmod>2004-10-01T18:23:17+00:00</lastmod></sitemap>
   <sitemap><loc><![CDATA[ http://www.example.com/sitemap2.xml.gz ]]></loc></sitemap></sitemapindex>"#,
    br#"<rss version="2.0"><channel><title>Liftoff News</title><link>http://liftoff.msfc.nasa.gov/</link>
      <item><title>Star City</title><link>http://liftoff.msfc.nasa.gov/news/2003/news-starcity.asp</link>
         <description>&lt;a href="http://howe.iki.rssi.ru/GCTC/gctc_e.htm"&gt;Star City&lt;/a&gt;.</description></item>
      <item><description>Sky watchers</description></item></channel></rss>"#,
    br#"<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns="http://purl.org/rss/1.0/">
  <item rdf:about="http://xml.com/pub/2000/08/09/xslt/xslt.html"><link>http://xml.com/pub/2000/08/09/xslt/xslt.html</link></item>
</rdf:RDF>"#,
    br#"<feed xmlns="http://www.w3.org/2005/Atom" xml:base="http://example.org/"><link href="http://example.org/"/>
       <entry xml:base="2003/"><title>Atom-Powered Robots Run Amok</title><link href="/2003/12/13/atom03"/>
       <link rel="enclosure" href="a.mp3"/></entry></feed>"#,
    b"http://www.example.com/catalog?item=1\nhttps://www.example.com/catalog?item=11\r\n\r\nHTTP://a.test/\n",
    b"<\0u\0r\0l\0s\0e\0t\0>\0<\0/\0u\0r\0l\0s\0e\0t\0>\0",
];
#[rustfmt::skip]
const WORDS: &[&str] = &[
    "<url>", "</url>", "<loc>", "</loc>", "<url><loc>http://a.test/x</loc></url>", "http://b.test/", "<urlset>",
    "</urlset>", "<sitemap>", "<item>", "<link>", "<entry>", "<link href='y'/>", " rel=\"alternate\"", " href=",
    " xml:base='../z/'", "<![CDATA[", "]]>", "<!--", "-->", "<?xml encoding='utf-16'?>", "?>",
    "<!DOCTYPE a [<!ENTITY b 'http://c.test/'>]>", "&b;", "&amp;", "&#x2f;", "&#0;", "&#1114112;", "&", "<", "</", "/>",
    ">", "<a:loc>", "<a>", "=\"", "\n", "ftp://d.test/", "//e.test", "?a=%", "<x:urlset xmlns:x=''>",
];

#[test]
fn sitemap_is_a_bounded_list() {
    run(Target { name: "sitemap_is_a_bounded_list", seeds: SEEDS, words: WORDS, cases: 1500, check });
}

fn check(input: &[u8], mut draw: Draw) {
    let url = Url::parse("https://a.example/dir/file.xml").expect("a URL");
    let types =
        ["application/xml", "text/xml; charset=iso-8859-1", "text/plain", "application/rss+xml", "application/gzip"];
    let content_type = Some(pick(&mut draw, &types)).filter(|_| draw.random_ratio(9, 10));
    // As it is, packed, sent packed, packed and broken.
    let mut body = input.to_vec();
    let way = draw.random_range(0..8);
    if way < 3 {
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(input).expect("a buffer takes all");
        body = packed.finish().expect("a buffer takes all");
    }
    let encoding = Some("gzip").filter(|_| way == 1);
    if way == 2 {
        let at = draw.random_range(0..body.len());
        body[at] ^= 1 << draw.random_range(0..8);
    }
    let is_whole = draw.random();
    let read = listing(File { body: &body, is_whole, encoding, content_type, url: &url }, UrlRules::none());
    // What was not packed cannot fail to be unpacked.
    assert!(read.is_ok() || way < 3 || input.starts_with(&[0x1f, 0x8b]), "{read:?}");
    let Ok(Some(read)) = read else { return };
    assert!(
        read.entries.len() <= ENTRIES_MAX + ALTERNATES_MAX && (!read.truncated || read.entries.len() >= ENTRIES_MAX)
    );
    let mut seen = HashSet::new();
    for entry in &read.entries {
        assert_eq!(canonical(&entry.text, None).map(Spelt::from).as_ref(), Ok(entry), "it is not canonical");
        assert!(seen.insert(entry.hash), "{} is listed twice", entry.text);
    }
    // No entry comes out of nothing: each needs a few bytes, but for a broken packing, which may hide anything.
    assert!(way == 2 || read.entries.len() <= input.len(), "{} entries of {} bytes", read.entries.len(), input.len());
    assert!(
        read.kind == Kind::Pages
            || String::from_utf8_lossy(input).contains("sitemapindex")
            || way == 2
            || input.contains(&0)
    );
}
