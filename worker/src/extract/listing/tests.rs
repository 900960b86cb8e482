use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::*;

const XML: Option<&str> = Some("application/xml");

fn read(body: impl AsRef<[u8]>, content_type: Option<&str>) -> Result<Option<Listing>, DecodeError> {
    let url = Url::parse("https://a.example/dir/file.xml").unwrap();
    listing(File { body: body.as_ref(), is_whole: true, encoding: None, content_type, url: &url }, UrlRules::none())
}

fn urls(listing: &Listing) -> Vec<&str> {
    listing.entries.iter().map(|entry| entry.text.as_str()).collect()
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn a_sitemap_says_how_often_its_pages_change() {
    use ChangeFrequency::{Daily, Monthly, Weekly};
    let found = read(SITEMAP, XML).unwrap().expect("a listing");
    let changes = |found: &Listing| found.said.iter().map(|said| said.change).collect::<Vec<_>>();
    assert_eq!(changes(&found), [Some(Monthly), Some(Weekly), Some(Weekly), None, None]);
    // Before the URL or behind it, for it and the same page in other languages; another word says nothing.
    let body = "<urlset><url><loc>http://a.example/1</loc></url>
        <url><changefreq> daily </changefreq><loc>http://a.example/2</loc>
          <xhtml:link rel='alternate' href='http://a.example/de/2'/></url>
        <url><changefreq>now and then</changefreq><loc>http://a.example/3</loc></url>
        <url><changefreq>daily</changefreq><loc>http://a.example/1</loc></url>
        <changefreq>daily</changefreq></urlset>";
    let found = read(body, XML).unwrap().expect("a listing");
    assert_eq!((found.entries.len(), changes(&found)), (4, vec![Some(Daily), Some(Daily), Some(Daily)]));
    let feed =
        "<rss><channel><item><changefreq>daily</changefreq><link>http://a.example/1</link></item></channel></rss>";
    assert_eq!(read(feed, XML).unwrap().expect("a listing").said, []);
}

#[test]
fn a_sitemap_says_when_its_pages_were_modified() {
    let dates = |body: &str| {
        let found = read(body, XML).unwrap().expect("a listing");
        found.said.iter().map(|said| said.modified_ms).collect::<Vec<_>>()
    };
    let day = |days: i64| Some(days * 86_400_000);
    let expected = [day(12_784), None, day(12_775), Some(12_775 * 86_400_000 + 64_815_000), day(12_745)];
    assert_eq!(dates(SITEMAP), expected);
    // Of an index, too, in a section of characters, and for the same page in other languages; a bad date says nothing.
    let index = "<sitemapindex><sitemap><lastmod>2005</lastmod><loc>http://a.example/1</loc></sitemap></sitemapindex>";
    assert_eq!(dates(index), [day(12_784)]);
    let body = "<urlset><url><loc>http://a.example/1</loc><lastmod>yesterday</lastmod></url>
        <url><loc>http://a.example/2</loc><lastmod><![CDATA[2005-01-01]]></lastmod>
          <xhtml:link rel='alternate' href='http://a.example/de/2'/></url><lastmod>2005</lastmod></urlset>";
    assert_eq!(dates(body), [None, day(12_784), day(12_784)]);
    // As Google has it: each language has an entry, which names all of them. What each says itself is its own.
    let languages = "<xhtml:link rel='alternate' href='http://a.example/en'/><xhtml:link rel='alternate' href='http://a.example/de'/>";
    let entry = |name: &str, date: &str| {
        format!("<url><loc>http://a.example/{name}</loc>{languages}<lastmod>{date}</lastmod></url>")
    };
    let body =
        format!("<urlset>{}{}{}</urlset>", entry("en", "2004-12-23"), entry("de", "2005-01-01"), entry("fr", ""));
    assert_eq!(dates(&body), [day(12_775), day(12_784)]);
    let body = format!("<urlset>{}<url><loc>http://a.example/de</loc></url></urlset>", entry("en", "2005-01-01"));
    assert_eq!(dates(&body), [day(12_784), day(12_784)], "it says nothing of its own");
}

#[track_caller]
fn assert_pages(body: impl AsRef<[u8]>, expected: &[&str]) {
    let listing = read(body, XML).unwrap().expect("a listing");
    assert_eq!((listing.kind, urls(&listing), listing.truncated), (Kind::Pages, expected.to_vec(), false));
}

/// sitemaps.org, "Sample XML Sitemap".
const SITEMAP: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">
   <url>
      <loc>http://www.example.com/</loc>
      <lastmod>2005-01-01</lastmod>
      <changefreq>monthly</changefreq>
      <priority>0.8</priority>
   </url>
   <url>
      <loc>http://www.example.com/catalog?item=12&amp;desc=vacation_hawaii</loc>
      <changefreq>weekly</changefreq>
   </url>
   <url>
      <loc>http://www.example.com/catalog?item=73&amp;desc=vacation_new_zealand</loc>
      <lastmod>2004-12-23</lastmod>
      <changefreq>weekly</changefreq>
   </url>
   <url>
      <loc>http://www.example.com/catalog?item=74&amp;desc=vacation_newfoundland</loc>
      <lastmod>2004-12-23T18:00:15+00:00</lastmod>
      <priority>0.3</priority>
   </url>
   <url>
      <loc>http://www.example.com/catalog?item=83&amp;desc=vacation_usa</loc>
      <lastmod>2004-11-23</lastmod>
   </url>
</urlset>"#;

const SITEMAP_URLS: [&str; 5] = [
    "http://www.example.com/",
    "http://www.example.com/catalog?item=12&desc=vacation_hawaii",
    "http://www.example.com/catalog?item=73&desc=vacation_new_zealand",
    "http://www.example.com/catalog?item=74&desc=vacation_newfoundland",
    "http://www.example.com/catalog?item=83&desc=vacation_usa",
];

#[test]
fn the_sample_of_the_protocol() {
    assert_pages(SITEMAP, &SITEMAP_URLS);
    let prefixed = SITEMAP
        .replace("xmlns=", "xmlns:sm=")
        .replace("</", "</sm:")
        .replace("<url", "<sm:url")
        .replace("<l", "<sm:l")
        .replace("<c", "<sm:c")
        .replace("<p", "<sm:p");
    assert_pages(prefixed, &SITEMAP_URLS);
}

/// sitemaps.org, "Sample XML Sitemap Index".
#[test]
fn the_index_of_the_protocol() {
    let index = r#"<?xml version="1.0" encoding="UTF-8"?>
<sitemapindex xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">
   <sitemap>
      <loc>http://www.example.com/sitemap1.xml.gz</loc>
      <lastmod>2004-10-01T18:23:17+00:00</lastmod>
   </sitemap>
   <sitemap>
      <loc>http://www.example.com/sitemap2.xml.gz</loc>
      <lastmod>2005-01-01</lastmod>
   </sitemap>
</sitemapindex>"#;
    let listing = read(index, Some("text/xml; charset=utf-8")).unwrap().unwrap();
    assert_eq!(listing.kind, Kind::Sitemaps);
    assert_eq!(urls(&listing), ["http://www.example.com/sitemap1.xml.gz", "http://www.example.com/sitemap2.xml.gz"]);
}

/// developers.google.com, "Tell Google about localized versions of your page", two of its three entries; and of "Image
/// sitemaps" the first.
#[test]
fn alternates_are_entries_and_images_are_not() {
    let sitemap = r#"<?xml version="1.0" encoding="UTF-8"?>
<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9"
  xmlns:xhtml="http://www.w3.org/1999/xhtml"
  xmlns:image="http://www.google.com/schemas/sitemap-image/1.1">
  <url>
    <loc>https://www.example.com/english/page.html</loc>
    <xhtml:link
               rel="alternate"
               hreflang="de"
               href="https://www.example.de/deutsch/page.html"/>
    <xhtml:link
               rel="alternate"
               hreflang="de-ch"
               href="https://www.example.de/schweiz-deutsch/page.html"/>
    <xhtml:link
               rel="alternate"
               hreflang="en"
               href="https://www.example.com/english/page.html"/>
  </url>
  <url>
    <loc>https://www.example.de/deutsch/page.html</loc>
    <xhtml:link rel="stylesheet" href="https://www.example.de/no.css"/>
    <xhtml:link href="https://www.example.de/no"/>
  </url>
  <url>
    <loc>https://example.com/sample1.html</loc>
    <image:image>
      <image:loc>https://example.com/image.jpg</image:loc>
    </image:image>
    <image:image>
      <image:loc>https://example.com/photo.jpg</image:loc>
    </image:image>
  </url>
</urlset>"#;
    let expected = [
        "https://www.example.com/english/page.html",
        "https://www.example.de/deutsch/page.html",
        "https://www.example.de/schweiz-deutsch/page.html",
        "https://example.com/sample1.html",
    ];
    assert_pages(sitemap, &expected);
}

/// The sample of the RSS 2.0 specification, without what names no URL: an item without a link leads nowhere.
#[test]
fn the_sample_of_rss_2() {
    let feed = r#"<?xml version="1.0"?>
<rss version="2.0">
   <channel>
      <title>Liftoff News</title>
      <link>http://liftoff.msfc.nasa.gov/</link>
      <docs>http://blogs.law.harvard.edu/tech/rss</docs>
      <item>
         <title>Star City</title>
         <link>http://liftoff.msfc.nasa.gov/news/2003/news-starcity.asp</link>
         <description>How do Americans get ready to work with Russians aboard the International Space Station? They take a
         crash course in culture, language and protocol at Russia's &lt;a href="http://howe.iki.rssi.ru/GCTC/gctc_e.htm"&gt;Star
         City&lt;/a&gt;.</description>
         <guid>http://liftoff.msfc.nasa.gov/2003/06/03.html#item573</guid>
      </item>
      <item>
         <description>Sky watchers in Europe, Asia, and parts of Alaska and Canada will experience a &lt;a
         href="http://science.nasa.gov/headlines/y2003/30may_solareclipse.htm"&gt;partial eclipse of the Sun&lt;/a&gt;
         on Saturday, May 31st.</description>
         <guid>http://liftoff.msfc.nasa.gov/2003/05/30.html#item572</guid>
      </item>
      <item>
         <title>The Engine That Does More</title>
         <link>http://liftoff.msfc.nasa.gov/news/2003/news-VASIMR.asp</link>
      </item>
      <item>
         <title>Astronauts' Dirty Laundry</title>
         <link>http://liftoff.msfc.nasa.gov/news/2003/news-laundry.asp</link>
      </item>
   </channel>
</rss>"#;
    let news =
        ["starcity", "VASIMR", "laundry"].map(|n| format!("http://liftoff.msfc.nasa.gov/news/2003/news-{n}.asp"));
    let listing = read(feed, Some("application/rss+xml")).unwrap().unwrap();
    assert_eq!(urls(&listing), news);
}

/// The sample of the RSS 1.0 specification, shortened.
#[test]
fn the_sample_of_rss_1() {
    let feed = r#"<?xml version="1.0"?>
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns="http://purl.org/rss/1.0/">
  <channel rdf:about="http://www.xml.com/xml/news.rss">
    <title>XML.com</title>
    <link>http://xml.com/pub</link>
    <items>
      <rdf:Seq>
        <rdf:li resource="http://xml.com/pub/2000/08/09/xslt/xslt.html" />
        <rdf:li resource="http://xml.com/pub/2000/08/09/rdfdb/index.html" />
      </rdf:Seq>
    </items>
    <textinput rdf:resource="http://search.xml.com" />
  </channel>
  <image rdf:about="http://xml.com/universal/images/xml_tiny.gif">
    <link>http://www.xml.com</link>
    <url>http://xml.com/universal/images/xml_tiny.gif</url>
  </image>
  <item rdf:about="http://xml.com/pub/2000/08/09/xslt/xslt.html">
    <title>Processing Inclusions with XSLT</title>
    <link>http://xml.com/pub/2000/08/09/xslt/xslt.html</link>
  </item>
  <item rdf:about="http://xml.com/pub/2000/08/09/rdfdb/index.html">
    <title>Putting RDF to Work</title>
    <link>http://xml.com/pub/2000/08/09/rdfdb/index.html</link>
  </item>
  <textinput rdf:about="http://search.xml.com">
    <link>http://search.xml.com</link>
  </textinput>
</rdf:RDF>"#;
    assert_pages(
        feed,
        &["http://xml.com/pub/2000/08/09/xslt/xslt.html", "http://xml.com/pub/2000/08/09/rdfdb/index.html"],
    );
}

/// RFC 4287 1.1: the first example, and of the second what differs.
#[test]
fn the_samples_of_atom() {
    let brief = r#"<?xml version="1.0" encoding="utf-8"?>
     <feed xmlns="http://www.w3.org/2005/Atom">
       <title>Example Feed</title>
       <link href="http://example.org/"/>
       <updated>2003-12-13T18:30:02Z</updated>
       <author>
         <name>John Doe</name>
       </author>
       <id>urn:uuid:60a76c80-d399-11d9-b93C-0003939e0af6</id>
       <entry>
         <title>Atom-Powered Robots Run Amok</title>
         <link href="http://example.org/2003/12/13/atom03"/>
         <id>urn:uuid:1225c695-cfb8-4ebb-aaaa-80da344efa6a</id>
         <updated>2003-12-13T18:30:02Z</updated>
         <summary>Some text.</summary>
       </entry>
     </feed>"#;
    let listing = read(brief, Some("application/atom+xml; type=feed")).unwrap().unwrap();
    assert_eq!(urls(&listing), ["http://example.org/2003/12/13/atom03"]);
    let long = r#"<feed xmlns="http://www.w3.org/2005/Atom">
       <link rel="alternate" type="text/html" hreflang="en" href="http://example.org/"/>
       <link rel="self" type="application/atom+xml" href="http://example.org/feed.atom"/>
       <entry>
         <link rel="alternate" type="text/html" href="http://example.org/2005/04/02/atom"/>
         <link rel="enclosure" type="audio/mpeg" length="1337" href="http://example.org/audio/ph34r_my_podcast.mp3"/>
         <content type="xhtml" xml:lang="en" xml:base="http://diveintomark.org/">
           <div xmlns="http://www.w3.org/1999/xhtml">
             <p><i>[Update: <a href="/draft">The Atom draft</a> is finished.]</i></p>
           </div>
         </content>
         <source><link href="http://example.org/source"/></source>
       </entry>
     </feed>"#;
    assert_pages(long, &["http://example.org/2005/04/02/atom"]);
}

#[test]
fn relative_references_have_a_base() {
    assert_pages(
        "<feed xml:base='http://b.example/1/'><entry><link href='x'/></entry>
         <entry xml:base='2/'><link href='x'/><link xml:base='/3/' href='x'/></entry><entry><link href='y'/></entry></feed>",
        &["http://b.example/1/x", "http://b.example/1/2/x", "http://b.example/3/x", "http://b.example/1/y"],
    );
    assert_pages(
        "<urlset><url><loc> /x </loc></url><url><loc/></url><url><loc>\n</loc></url></urlset>",
        &["https://a.example/x"],
    );
}

#[test]
fn text_is_put_together_from_its_pieces() {
    let body = "<!DOCTYPE urlset><!-- c --><urlset><url><loc><![CDATA[http://b.example/1?a&amp;b]]></loc></url>
        <url><loc>http://b.example/<!-- c -->2<?p i?>?a=1&amp;b=&#x32;&#51;&amp;</loc></url>
        <url><loc>http://b.example/3?a=1&b=2&copy=3&nbsp</loc></url>
        <url><loc>http://b.example/4<b>no</b>&mine;</loc></url></urlset>";
    assert_pages(
        body,
        &[
            "http://b.example/1?a&amp;b",
            "http://b.example/2?a=1&b=23&",
            "http://b.example/3?a=1&b=2&copy=3&nbsp",
            "http://b.example/4&mine;",
        ],
    );
}

#[test]
fn a_list_of_urls_is_a_sitemap() {
    let text = "\u{feff}http://b.example/1\r\nHTTPS://b.example/2?\u{e9}\n\n  http://b.example/1\rhttp://b.example/3 ";
    let expected = ["http://b.example/1", "https://b.example/2?%C3%A9", "http://b.example/3"];
    let listing = read(text, Some("text/plain; charset=utf-8")).unwrap().unwrap();
    assert_eq!((listing.kind, urls(&listing)), (Kind::Pages, expected.to_vec()));
    let packed = read(gzip(text.as_bytes()), Some("application/x-gzip")).unwrap().unwrap();
    assert_eq!(packed, listing);
    for prose in
        ["", "\n\n", "see http://b.example/1", "http://b.example/1\nand more", "http://b.example/1 x", "ftp://b/"]
    {
        assert_eq!(read(prose, Some("text/plain")).unwrap(), None, "{prose}");
    }
    // What comes far behind is passed over, and a line that the bound of the beginning cuts is no fault.
    let line = "http://b.example/a-line-of-some-length-that-falls-on-no-bound\n";
    let long = read(line.repeat(1000) + "and more\nhttp://b.example/last", Some("text/plain")).unwrap().unwrap();
    assert_eq!(long.entries.len(), 2);
}

#[test]
fn what_is_served_as_something_else_is_none() {
    for content_type in ["text/html", "application/xhtml+xml", "image/png", "application/json", "text/csv", "x"] {
        assert_eq!(read(SITEMAP, Some(content_type)).unwrap(), None, "{content_type}");
    }
    for content_type in [None, Some("text/plain"), Some("Application/Octet-Stream"), Some("application/rdf+xml ;a=b")] {
        assert!(read(SITEMAP, content_type).unwrap().is_some(), "{content_type:?}");
    }
    for body in ["", "<", "<svg/>", "<html><urlset/></html>", "<?xml version='1.0'?>", "{}", "<!-- <urlset> -->"] {
        assert_eq!(read(body, XML).unwrap(), None, "{body}");
    }
    assert_pages("<urlset/>", &[]);
}

#[test]
fn packed_files_and_packed_answers() {
    let page = Url::parse("https://a.example/sitemap.xml.gz").unwrap();
    let (once, twice) = (gzip(SITEMAP.as_bytes()), gzip(&gzip(SITEMAP.as_bytes())));
    for (body, encoding, content_type) in [
        (&once, None, "application/gzip"),
        (&once, None, "application/x-gzip"),
        (&once, None, "binary/octet-stream"),
        (&once, None, "text/xml"),
        (&once, Some("gzip"), "text/xml"),
        (&once, Some("x-gzip"), "application/x-gzip"),
        (&twice, Some("gzip"), "application/octet-stream"),
    ] {
        let listing = listing(
            File { body, is_whole: true, encoding, content_type: Some(content_type), url: &page },
            UrlRules::none(),
        )
        .unwrap()
        .expect(content_type);
        assert_eq!(urls(&listing), SITEMAP_URLS);
    }
    assert_eq!(read(&twice, XML).unwrap(), None, "packed once more than anybody does");
    assert_eq!(read(gzip(b"tar"), Some("application/gzip")).unwrap(), None);
}

#[test]
fn a_bomb_ends_at_the_bound() {
    let blank = gzip(&vec![b' '; 1 << 20]);
    let mut bomb = gzip(b"<urlset><url><loc>http://b.example/</loc></url>");
    (0..1024).for_each(|_| bomb.extend(&blank));
    let error = read(&bomb, Some("application/gzip")).unwrap_err();
    assert!(matches!(error, DecodeError::TooLarge { bytes_max: LISTING_BYTES_MAX }), "{error}");
    assert_eq!(
        read([blank.as_slice(), &bomb].concat(), None).unwrap(),
        None,
        "no listing begins with white space alone"
    );
    assert!(matches!(read(&bomb[..bomb.len() - 9], None), Err(DecodeError::TooLarge { .. })));
    assert!(matches!(read(&gzip(SITEMAP.as_bytes())[..200], None), Err(DecodeError::Corrupt { .. })));
}

#[test]
fn entities_are_never_expanded() {
    let mut laughs = String::from("<?xml version='1.0'?><!DOCTYPE urlset [<!ENTITY l0 'http://b.example/'>");
    for n in 1..10 {
        laughs += &format!("<!ENTITY l{n} '{}'>", format!("&l{};", n - 1).repeat(10));
    }
    laughs += "<!ENTITY file SYSTEM 'file:///etc/passwd'>]><urlset><url><loc>http://c.example/&l9;</loc></url>\
               <url><loc>http://c.example/&file;</loc></url></urlset>";
    assert_pages(laughs, &["http://c.example/&l9;", "http://c.example/&file;"]);
}

#[test]
fn more_than_the_protocol_allows_is_said() {
    let many = |count: usize| {
        let entries: String = (0..count).map(|n| format!("<url><loc>http://b.example/{n}</loc></url>")).collect();
        read(format!("<urlset>{entries}</urlset>"), XML).unwrap().unwrap()
    };
    let all = many(ENTRIES_MAX);
    assert_eq!((all.entries.len(), all.truncated), (ENTRIES_MAX, false));
    let more = many(2 * ENTRIES_MAX);
    assert_eq!((more.entries == all.entries, more.truncated), (true, true));
    let lines: String = (0..=ENTRIES_MAX).map(|n| format!("http://b.example/{n}\n")).collect();
    let lines = read(lines, Some("text/plain")).unwrap().unwrap();
    assert_eq!((lines.entries == all.entries, lines.truncated), (true, true));
    let base = format!("http://b.example/{}/", "x".repeat(1900));
    let entries: String = (0..20_000).map(|n| format!("<url><loc>{n}</loc></url>")).collect();
    let long = read(format!("<urlset xml:base='{base}'>{entries}</urlset>"), XML).unwrap().unwrap();
    let bytes: usize = long.entries.iter().map(|to| to.text.len()).sum();
    assert!(long.truncated && (ENTRY_BYTES_MAX - 2000..=ENTRY_BYTES_MAX).contains(&bytes), "{bytes}");
    let long = format!("http://b.example/{}", "x".repeat(2048));
    assert_pages(
        format!("<urlset><url><loc>{long}</loc></url><url><loc>/y</loc></url></urlset>"),
        &["https://a.example/y"],
    );
}

#[test]
fn alternates_take_no_place_of_a_url() {
    const LANGUAGES: usize = 12;
    let with_alternates = |count: usize| {
        let links = |n| (0..LANGUAGES).map(move |l| format!("<xhtml:link rel='alternate' href='/{l}/{n}'/>"));
        let entries = (0..count).map(|n| format!("<url><loc>/{n}</loc>{}</url>", links(n).collect::<String>()));
        let found = read(format!("<urlset>{}</urlset>", entries.collect::<String>()), XML).unwrap().unwrap();
        let urls = found.entries.iter().filter(|entry| entry.text.matches('/').count() == 3).count();
        (urls, found.entries.len() - urls, found.truncated)
    };
    let count = ALTERNATES_MAX / LANGUAGES;
    assert_eq!(with_alternates(count), (count, count * LANGUAGES, false));
    assert_eq!(with_alternates(count + 1000), (count + 1000, ALTERNATES_MAX, true));
    // The link of an Atom entry is its URL, alternate as it is called.
    let entries = (0..=ENTRIES_MAX).map(|n| format!("<entry><link rel='alternate' href='/{n}'/></entry>"));
    let feed = read(format!("<feed>{}</feed>", entries.collect::<String>()), XML).unwrap().unwrap();
    assert_eq!((feed.entries.len(), feed.truncated), (ENTRIES_MAX, true));
}

#[test]
fn broken_files_are_read_as_far_as_they_go() {
    let whole = "<urlset><url><loc>/1</loc></url><url><loc>/2</loc></url></urlset>";
    for (body, expected) in [
        (whole[..48].to_owned(), &["https://a.example/1"][..]),
        (whole.replace("</url><url>", "</url></x><url>"), &["https://a.example/1"]),
        (whole.replace("</url><url>", "</url><url a='><url>"), &["https://a.example/1"]),
        (whole.replace("</url><url>", "</url><!-- "), &["https://a.example/1"]),
        (whole.replace("</url><url>", "</url><![CDATA["), &["https://a.example/1"]),
        (whole.replace("</loc></url><url>", "<url>"), &[]),
        (whole.replace("/2", "\u{0}"), &["https://a.example/1"]),
        (whole.replace("/2", "mailto:a@b.example"), &["https://a.example/1"]),
        (format!("<urlset>{}</urlset>{whole}", "<a>".repeat(1_000_000)), &[]),
        (whole.replace("<url><loc>/2", &format!("{}<url><loc>/2", "<a>".repeat(DEPTH_MAX))), &["https://a.example/1"]),
        (
            whole.replace("<loc>/2", &format!("<link {} rel=alternate href=/3 /><loc>/2", "a=1 ".repeat(100_000))),
            &["https://a.example/1", "https://a.example/3", "https://a.example/2"],
        ),
    ] {
        assert_pages(body, expected);
    }
}

#[test]
fn other_encodings() {
    let wide = |text: &str, bytes: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(bytes).collect::<Vec<u8>>();
    let text = "<?xml version='1.0' encoding='UTF-16'?><urlset><url><loc>http://b.example/\u{e9}</loc></url></urlset>";
    for body in [
        wide(&format!("\u{feff}{text}"), u16::to_le_bytes),
        wide(&format!("\u{feff}{text}"), u16::to_be_bytes),
        wide(text, u16::to_le_bytes),
        wide(text, u16::to_be_bytes),
    ] {
        assert_pages(body, &["http://b.example/%C3%A9"]);
    }
    let latin =
        b"<?xml version=\"1.0\" encoding=\"ISO-8859-1\"?><urlset><url><loc>http://b.example/\xe9</loc></url></urlset>";
    assert_pages(latin, &["http://b.example/%C3%A9"]);
}

#[test]
fn never_panics() {
    const PIECES: [&str; 28] = [
        "<urlset>",
        "<url>",
        "<loc>",
        "http://b.example/",
        "</loc>",
        "</url>",
        "<",
        ">",
        "&",
        ";",
        "&#x;",
        "<!",
        "<!--",
        "-->",
        "<![CDATA[",
        "]]>",
        "<?",
        "?>",
        "<!DOCTYPE a [",
        "<!ENTITY % a 'b'>",
        "]",
        "'",
        "\"",
        "/",
        "<link rel=alternate href=",
        "<a b='c'/>",
        "\u{e9}",
        " ",
    ];
    let mut state = 1_u32;
    for length in 0..5_000 {
        let mut body = String::from(if length % 3 == 0 { "" } else { "<urlset><url><loc>" });
        for _ in 0..length % 23 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            body.push_str(PIECES[(state >> 16) as usize % PIECES.len()]);
        }
        read(&body, XML).unwrap();
        read(&body.as_bytes()[..body.len() / 2], None).unwrap();
    }
}
