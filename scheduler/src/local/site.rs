//! The bundled sample web site: generated pages on loopback, the same on every machine, so that a
//! first crawl needs no network and a test knows what it must find.
//!
//! 118 HTML pages are linked from `/`: the index, 6 sections, 108 articles in four languages,
//! `/about`, `/archive` (some 400 KB) and `/cafe` (ISO-8859-1). Beside them: redirects under
//! `/old/`, a plain text file, a sitemap of the articles, a dead link, and `/private/ledger`, which
//! robots.txt disallows.

use std::collections::HashMap;
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdTcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Changing it changes every text and most links.
const SEED: u64 = 0x00D0_D0D0;

const ARTICLES_PER_SECTION: usize = 18;

/// The index, the sections, their articles, `/about`, `/archive` and `/cafe`.
pub const HTML_PAGES: usize = 1 + SECTIONS.len() * (1 + ARTICLES_PER_SECTION) + 3;

/// Makes `/archive` some 400 KB: longer than one read, far from any limit on a body.
const ARCHIVE_PARAGRAPHS: usize = 1400;

/// What requests in flight are given at the end.
const DRAIN_WAIT: Duration = Duration::from_secs(5);

/// What was asked for, in order: unix time in nanoseconds, path with query.
pub type RequestLog = Arc<Mutex<Vec<(u64, String)>>>;

/// The running site; dropping it ends it.
#[derive(Debug)]
pub struct SampleSite {
    addr: SocketAddr,
    stop: CancellationToken,
    server: Option<JoinHandle<()>>,
}

impl SampleSite {
    /// Serves the site on a free port, noting requests in `log`, which grows without bound: for
    /// tests. To be called inside a tokio runtime.
    pub fn start(log: Option<RequestLog>) -> Result<Self> {
        Self::start_on(log, 0)
    }

    /// The same on a given port, or on a free one for 0: a crawl that resumes finds the site where it was.
    pub fn start_on(log: Option<RequestLog>, port: u16) -> Result<Self> {
        Self::serve(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), None, Duration::ZERO, log)
    }

    /// The same for others, who know it as `origin` (its own address if there is none), each answer `latency` late.
    pub fn serve(listen: SocketAddr, origin: Option<&str>, latency: Duration, log: Option<RequestLog>) -> Result<Self> {
        let listener = StdTcpListener::bind(listen)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .and_then(TcpListener::from_std)
            .with_context(|| format!("the sample site cannot listen on {listen}"))?;
        let addr = listener.local_addr().context("cannot read a port")?;
        let origin = origin.map_or_else(|| format!("http://{addr}"), |origin| origin.trim_end_matches('/').to_owned());
        let desk = Desk { pages: Site::generate(&origin).pages, latency, log };
        let app = Router::new().fallback(serve).with_state(Arc::new(desk));
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let server = tokio::spawn(async move {
            // axum::serve handles the errors of connections and never ends by itself.
            let _ = axum::serve(listener, app).with_graceful_shutdown(stopped).await;
        });
        Ok(Self { addr, stop, server: Some(server) })
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Url of the index, where a crawl begins.
    pub fn url(&self) -> String {
        format!("http://{}/", self.addr)
    }

    /// Ends the site, requests in flight within a bound. Idempotent.
    pub async fn stop(&mut self) {
        self.stop.cancel();
        if let Some(mut server) = self.server.take()
            && tokio::time::timeout(DRAIN_WAIT, &mut server).await.is_err()
        {
            server.abort();
        }
    }
}

impl Drop for SampleSite {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[derive(Debug, Clone)]
enum Page {
    Body(&'static str, Bytes),
    Redirect(StatusCode, String),
}

type Pages = HashMap<String, Page>;

/// What each request is answered from.
struct Desk {
    pages: Pages,
    latency: Duration,
    log: Option<RequestLog>,
}

/// Looks the path up; a query does not change the page.
async fn serve(State(desk): State<Arc<Desk>>, uri: Uri) -> Response {
    if let Some(log) = &desk.log {
        #[expect(clippy::disallowed_methods, reason = "the log of a test site is not Dodo's time")]
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now_ns = now.map_or(0, |since| since.as_nanos().try_into().unwrap_or(u64::MAX));
        log.lock().unwrap_or_else(PoisonError::into_inner).push((now_ns, uri.to_string()));
    }
    if !desk.latency.is_zero() {
        tokio::time::sleep(desk.latency).await;
    }
    match desk.pages.get(uri.path()).cloned() {
        Some(Page::Body(kind, body)) => ([(header::CONTENT_TYPE, kind)], body).into_response(),
        Some(Page::Redirect(status, to)) => (status, [(header::LOCATION, to)]).into_response(),
        None => (StatusCode::NOT_FOUND, "no such page\n").into_response(),
    }
}

const HTML: &str = "text/html; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

/// A section and the phrases of its texts: any subject, action and place make a sentence.
struct Section {
    path: &'static str,
    lang: &'static str,
    title: &'static str,
    subjects: [&'static str; 6],
    actions: [&'static str; 6],
    places: [&'static str; 6],
}

#[rustfmt::skip]
const SECTIONS: [Section; 6] = [
    Section {
        path: "/rivers/", lang: "en", title: "Rivers and Locks",
        subjects: ["The lock keeper", "A retired surveyor", "The spring flood", "The last ferry", "An old barge", "The river council"],
        actions: ["measures the water twice a day", "has changed the course of the stream", "keeps a record going back ninety years", "waits until the gates have opened", "was almost forgotten after the war", "draws more visitors than the town expected"],
        places: ["above the weir", "near the mill bridge", "at the northern bend", "between two villages", "below the castle", "along the towpath"],
    },
    Section {
        path: "/kitchens/", lang: "en", title: "Kitchens at Work",
        subjects: ["The head baker", "A copper pan", "The village oven", "My grandmother", "The night shift", "A sourdough starter"],
        actions: ["needs longer than any recipe admits", "was handed down with great care", "feeds forty people before sunrise", "turns plain flour into something worth a journey", "has never been written down", "is washed only with warm water"],
        places: ["behind the market hall", "in a small mountain kitchen", "on the third floor", "at the end of winter", "beside the school", "over an open fire"],
    },
    Section {
        path: "/railways/", lang: "en", title: "Branch Line Railways",
        subjects: ["The signal box", "A narrow gauge engine", "The station master", "The evening train", "A volunteer crew", "The timetable of 1931"],
        actions: ["still works without electricity", "carried milk long before it carried tourists", "stops only when somebody waves", "was restored over eleven summers", "tells us how people used to travel", "runs late whenever leaves are falling"],
        places: ["on the coastal branch", "under the long viaduct", "at the junction", "past the brick works", "beyond the tunnel", "in the valley"],
    },
    Section {
        path: "/werkstatt/", lang: "de", title: "Aus der Werkstatt",
        subjects: ["Der alte Schlosser", "Die neue Drehbank", "Unser Lehrling", "Eine vergessene Uhr", "Der Geigenbauer", "Die kleine Schmiede"],
        actions: ["wird jeden Morgen sorgfältig geprüft", "hat schon viele Kunden überrascht", "arbeitet langsamer, aber genauer als früher", "braucht vor allem Geduld und gutes Licht", "erzählt gern von der Zeit nach dem Krieg", "lässt sich nicht durch eine Maschine ersetzen"],
        places: ["hinter dem Bahnhof", "in der Altstadt", "neben der Brücke", "am Rand des Waldes", "im Hof der Fabrik", "unter dem Dach"],
    },
    Section {
        path: "/jardins/", lang: "fr", title: "Carnets de jardins",
        subjects: ["Le vieux pommier", "La jardinière", "Une haie de charmes", "Le potager communal", "La serre du château", "Un rosier sauvage"],
        actions: ["donne des fruits presque chaque année", "a résisté à trois hivers très froids", "demande peu d'eau mais beaucoup d'attention", "attire des oiseaux que l'on ne voyait plus", "reste ouvert à tous les habitants", "change de couleur à la fin de l'été"],
        places: ["au bord du canal", "derrière l'église", "dans la cour de l'école", "près du vieux moulin", "sur la colline", "à l'entrée du village"],
    },
    Section {
        path: "/mercados/", lang: "es", title: "Historias de mercados",
        subjects: ["La vendedora de flores", "El puesto de pescado", "Un antiguo reloj", "El panadero del barrio", "La feria de otoño", "Una familia de artesanos"],
        actions: ["abre mucho antes de que salga el sol", "conserva las costumbres de otra época", "recibe cada semana a los mismos clientes", "ha cambiado de lugar varias veces", "vende todo lo que llega de la costa", "sigue siendo el corazón de la ciudad"],
        places: ["junto a la fuente", "en la plaza mayor", "cerca del puerto", "detrás de la catedral", "al final de la calle", "bajo los arcos"],
    },
];

/// SplitMix64 (Steele, Lea, Flood 2014): ours, because a library's stream may change.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((z ^ (z >> 31)) % bound as u64).unwrap_or(0)
    }

    fn paragraph(&mut self, section: &Section, sentences: usize) -> String {
        let mut text = String::from("<p>");
        for _ in 0..sentences {
            let subject = section.subjects[self.below(6)];
            let action = section.actions[self.below(6)];
            let place = section.places[self.below(6)];
            let _ = write!(text, "{subject} {action} {place}. ");
        }
        text + "</p>\n"
    }
}

struct Article {
    section: usize,
    title: String,
    path: String,
}

/// The site while it is made.
struct Site {
    pages: Pages,
    articles: Vec<Article>,
    dice: Dice,
}

impl Site {
    fn generate(origin: &str) -> Self {
        let mut articles = Vec::new();
        for (index, section) in SECTIONS.iter().enumerate() {
            for n in 0..ARTICLES_PER_SECTION {
                // Each pair of subject and place once: a title names one article.
                let (subject, place) = (section.subjects[n % 6], section.places[(n + n / 6) % 6]);
                let title = format!("{subject} {place}");
                let path = format!("{}{}", section.path, slug(&title));
                articles.push(Article { section: index, title, path });
            }
        }
        let (pages, dice) = (HashMap::new(), Dice(SEED));
        let mut site = Self { pages, articles, dice };
        site.write_index();
        for section in 0..SECTIONS.len() {
            site.write_section(section);
        }
        for article in 0..site.articles.len() {
            site.write_article(article);
        }
        site.write_archive();
        site.write_extras();
        site.write_crawler_files(origin);
        site
    }

    fn put(&mut self, path: &str, kind: &'static str, body: impl Into<Bytes>) {
        self.pages.insert(path.to_owned(), Page::Body(kind, body.into()));
    }

    fn write_index(&mut self) {
        let mut body = self.dice.paragraph(&SECTIONS[0], 3) + "<ul>\n";
        for section in &SECTIONS {
            body += &item(section.path, section.title);
        }
        for (path, label) in [
            ("/about", "About this site"),
            ("/archive", "The whole archive"),
            ("/cafe", "Le café du port"),
            ("/notes.txt", "Notes"),
            ("/old/1", "A page that moved twice"),
            ("/missing", "A dead link"),
            ("/private/ledger", "The ledger"),
        ] {
            body += &item(path, label);
        }
        self.put("/", HTML, html("en", "The Dodo Gazette", &(body + "</ul>\n")));
    }

    fn write_section(&mut self, index: usize) {
        let section = &SECTIONS[index];
        let mut body = self.dice.paragraph(section, 4) + "<ul>\n" + &item("/", "The Dodo Gazette");
        for article in self.articles.iter().filter(|article| article.section == index) {
            body += &item(&article.path, &article.title);
        }
        let page = html(section.lang, section.title, &(body + "</ul>\n"));
        self.put(section.path, HTML, page);
    }

    /// Three links of navigation and 5 to 17 others: absolute paths, relative ones, fragments and
    /// now and then an old address.
    fn write_article(&mut self, index: usize) {
        let section = &SECTIONS[self.articles[index].section];
        let paragraphs = 4 + self.dice.below(7);
        let links = 5 + self.dice.below(13);
        let mut body = String::new();
        for _ in 0..paragraphs {
            let sentences = 3 + self.dice.below(4);
            body += &self.dice.paragraph(section, sentences);
        }
        body += "<ul>\n";
        body += &item("/", "The Dodo Gazette");
        body += &item(section.path, section.title);
        body += &item("../about#contact", "About");
        for n in 0..links {
            // The first one leads on, so that every article is found from every other.
            let to = if n == 0 { (index + 1) % self.articles.len() } else { self.dice.below(self.articles.len()) };
            let Article { path, title, .. } = &self.articles[to];
            let href = match self.dice.below(6) {
                0 => format!("..{path}"),
                1 => format!("{path}#notes"),
                2 if n > 0 => format!("/old/{}", 1 + to % 4),
                _ => path.clone(),
            };
            body += &item(&href, title);
        }
        let Article { path, title, .. } = &self.articles[index];
        let (path, page) = (path.clone(), html(section.lang, title, &(body + "</ul>\n")));
        self.put(&path, HTML, page);
    }

    fn write_archive(&mut self) {
        let mut body = String::new();
        for n in 0..ARCHIVE_PARAGRAPHS {
            body += &self.dice.paragraph(&SECTIONS[n % 3], 4);
        }
        body += "<ul>\n";
        for article in &self.articles {
            body += &item(&article.path, &article.title);
        }
        self.put("/archive", HTML, html("en", "The Whole Archive", &(body + "</ul>\n")));
    }

    fn write_extras(&mut self) {
        let about = "<p id=\"contact\">These pages are generated for a first crawl; nothing in them \
                     is true.</p>\n<a href=\"/\">Home</a>\n";
        self.put("/about", HTML, html("en", "About This Site", about));
        let cafe = html(
            "fr",
            "Le café du port",
            "<p>Thé, crêpes, gâteaux à la crème : où déjeuner \
                        l'été, près des bateaux, même très tôt.</p>\n<a href=\"/\">Accueil</a>\n",
        );
        let latin_1: Vec<u8> = cafe.chars().map(|c| u8::try_from(c).unwrap_or(b'?')).collect();
        self.put("/cafe", "text/html; charset=iso-8859-1", latin_1);
        self.put("/notes.txt", TEXT, "Plain text: no markup, no links.\n");
        self.put("/private/ledger", HTML, html("en", "Ledger", "<p>Not for crawlers.</p>\n"));
        let target = |n: usize| self.articles[n * 25].path.clone();
        let moves = [
            ("/old/1", StatusCode::MOVED_PERMANENTLY, "/old/2".to_owned()),
            ("/old/2", StatusCode::FOUND, target(1)),
            ("/old/3", StatusCode::PERMANENT_REDIRECT, target(2)),
            ("/old/4", StatusCode::TEMPORARY_REDIRECT, target(3)),
        ];
        for (path, status, to) in moves {
            self.pages.insert(path.to_owned(), Page::Redirect(status, to));
        }
    }

    fn write_crawler_files(&mut self, origin: &str) {
        let mut sitemap = String::from(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
             <urlset xmlns=\"http://www.sitemaps.org/schemas/sitemap/0.9\">\n",
        );
        for article in &self.articles {
            let _ = writeln!(sitemap, "<url><loc>{origin}{}</loc></url>", article.path);
        }
        self.put("/sitemap.xml", "application/xml", sitemap + "</urlset>\n");
        let robots = format!("User-agent: *\nDisallow: /private/\n\nSitemap: {origin}/sitemap.xml\n");
        self.put("/robots.txt", TEXT, robots);
    }
}

fn item(href: &str, label: &str) -> String {
    format!("<li><a href=\"{href}\">{label}</a></li>\n")
}

/// A whole page. It names no charset: the header does, as for most of the web.
fn html(lang: &str, title: &str, body: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"{lang}\">\n<head><title>{title}</title></head>\n\
         <body>\n<h1>{title}</h1>\n{body}</body>\n</html>\n"
    )
}

/// Lower-case ASCII letters and digits, everything else one hyphen.
fn slug(title: &str) -> String {
    let lower = title.to_lowercase();
    let words = lower.split(|c: char| !c.is_ascii_alphanumeric());
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    words.join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site() -> Site {
        Site::generate("http://127.0.0.1:80")
    }

    #[test]
    fn pages_are_as_announced_and_the_same_each_time() {
        let (site, again) = (site(), site());
        let is_html = |page: &&Page| matches!(page, Page::Body(kind, _) if kind.contains("html"));
        // One more: the private one, which no crawl may see.
        assert_eq!(site.pages.values().filter(is_html).count(), HTML_PAGES + 1);
        for (path, page) in &site.pages {
            assert_eq!(format!("{page:?}"), format!("{:?}", again.pages[path]));
        }
        let Page::Body(_, archive) = &site.pages["/archive"] else { panic!("no archive") };
        assert!((300_000..600_000).contains(&archive.len()), "{}", archive.len());
    }

    #[test]
    fn articles_have_8_to_20_links_that_lead_somewhere() {
        let site = site();
        for article in &site.articles {
            let Page::Body(_, body) = &site.pages[&article.path] else { panic!("no body") };
            let text = std::str::from_utf8(body).expect("utf-8");
            let links: Vec<&str> =
                text.split("href=\"").skip(1).filter_map(|rest| rest.split(['"', '#']).next()).collect();
            assert!((8..=20).contains(&links.len()), "{} links", links.len());
            for link in links {
                assert!(site.pages.contains_key(link.trim_start_matches("..")), "{link}");
            }
        }
    }
}
