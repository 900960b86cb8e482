//! What the parts of one incarnation share.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dodo_common::clock::{Clock, Millis};
use dodo_common::db::pool::{Db, DbError, DbResult};
use dodo_common::db::worker::{self, Incarnation};
use dodo_common::db::{dispatch, host, source};
use dodo_common::model::header::{is_harmless, trusted_hosts};
use dodo_common::model::media::MediaTypes;
use dodo_common::model::paged::PagedSpec;
use dodo_common::model::record::Mapper;
use dodo_common::model::robots::Robots;
use dodo_common::model::scope::Scope;
use dodo_common::model::spec::CrawlSpec;
use dodo_common::model::stream_id::StreamId;
use dodo_common::model::url::canonical;
use dodo_common::model::url_rules::UrlRules;
use dodo_common::stream::connection::Redis;
use reqwest::header::{COOKIE, HeaderMap, HeaderValue, USER_AGENT};
use tokio_util::sync::CancellationToken;
use url::Url;
use uuid::Uuid;

use crate::content::Contents;
use crate::fetch::cookies::Jar;
use crate::fetch::{AGENT, Fetcher, secret_headers};
use crate::heart::Pulse;
use crate::pressure::Pressure;
use crate::robots::KeptRobots;
use crate::seen::Seen;
use crate::settings::Settings;

/// Dispatches of each kind whose spec is kept at hand.
const DISPATCHES_MAX: usize = 1000;
/// Postgres, which does not answer, is asked again after this long.
const UNCONFIRMED_PAUSE: Duration = Duration::from_millis(100);
/// A page dispatch is read again after this long, milliseconds.
const PAGING_MS: Millis = 30_000;

/// A crawl as its jobs need it: parsed once.
#[derive(Debug)]
pub struct Crawl {
    pub spec: CrawlSpec,
    pub scope: Scope,
    pub rules: UrlRules,
    pub media: MediaTypes,
    /// What is harmless of them goes to every host, the rest to `seed_hosts`.
    pub headers: HeaderMap,
    /// Those of the seeds, and of the same names on https.
    pub seed_hosts: HashSet<String>,
    /// What it calls itself, where not by our name.
    pub user_agent: Option<HeaderValue>,
    /// Where its cookies are kept, if they are.
    pub jar: Option<Jar>,
}

impl Crawl {
    /// Begins with the product token that robots.txt groups are matched against.
    pub fn agent(&self) -> &str {
        self.spec.user_agent.as_deref().unwrap_or(AGENT)
    }

    /// Its product token alone (RFC 9309 2.2.1), as pages name it that speak to one crawler.
    pub fn product(&self) -> &str {
        let agent = self.agent();
        let end = agent.find(|c: char| !c.is_ascii_alphabetic() && !matches!(c, '-' | '_'));
        &agent[..end.unwrap_or(agent.len())]
    }

    /// The headers of a request to a page, beside those of every request.
    pub fn headers_for(&self, host: &str, url: &Url) -> HeaderMap {
        let is_trusted = self.seed_hosts.contains(host);
        let given = self.headers.iter().filter(|(name, _)| is_trusted || is_harmless(name.as_str()));
        let mut headers: HeaderMap = given.map(|(name, value)| (name.clone(), value.clone())).collect();
        if let Some(agent) = &self.user_agent {
            headers.entry(USER_AGENT).or_insert_with(|| agent.clone());
        }
        if let Some(jar) = &self.jar {
            // One header, whatever it is made of (RFC 6265 5.4).
            let given = headers.get(COOKIE).and_then(|given| given.to_str().ok());
            let cookies = jar.header(url, given).and_then(|text| HeaderValue::from_bytes(text.as_bytes()).ok());
            if let Some(mut cookies) = cookies {
                cookies.set_sensitive(true);
                headers.insert(COOKIE, cookies);
            }
        }
        headers
    }
}

/// A page dispatch as its jobs need it.
#[derive(Debug)]
pub struct Paging {
    pub spec: PagedSpec,
    pub mapper: Mapper,
    /// Those of the document, of the dispatch and of its credential.
    pub headers: HeaderMap,
    /// A credential that goes into the query.
    pub query: Option<(String, String)>,
    /// The name of a credential that is not there: nothing can be asked without it.
    pub missing: Option<String>,
    read_ms: Millis,
}

/// One incarnation: its identity, its connections, its caches and its end.
pub struct Context {
    pub settings: Settings,
    pub clock: Clock,
    pub incarnation: Incarnation,
    pub db: Db,
    /// For short commands; readers and the archiver have connections of their own.
    pub redis: Redis,
    pub fetcher: Fetcher,
    pub seen: Seen,
    pub contents: Contents,
    /// Cancelled when this incarnation may not write any more.
    pub refused: CancellationToken,
    /// Cancelled when it takes no new work.
    pub soft: CancellationToken,
    pub draining: AtomicBool,
    /// Entries this incarnation holds: read, and not settled yet.
    held: Mutex<HashSet<StreamId>>,
    pub pulse: Arc<Pulse>,
    pub settled: AtomicU64,
    pub pressure: Pressure,
    crawls: Mutex<HashMap<Uuid, Arc<Crawl>>>,
    pagings: Mutex<HashMap<Uuid, Arc<Paging>>>,
    robots: KeptRobots,
}

impl Context {
    pub fn new(
        settings: Settings,
        incarnation: Incarnation,
        db: Db,
        redis: Redis,
        (fetcher, pulse): (Fetcher, Arc<Pulse>),
        soft: CancellationToken,
    ) -> Self {
        Self {
            settings,
            clock: Clock::System,
            incarnation,
            db,
            redis,
            fetcher,
            seen: Seen::default(),
            contents: Contents::default(),
            refused: CancellationToken::new(),
            soft,
            draining: AtomicBool::new(false),
            held: Mutex::default(),
            pulse,
            settled: AtomicU64::new(0),
            pressure: Pressure::default(),
            crawls: Mutex::default(),
            pagings: Mutex::default(),
            robots: KeptRobots::default(),
        }
    }

    /// The end of this incarnation: nothing it holds is written any more.
    pub fn refuse(&self, why: &str) {
        if !self.refused.is_cancelled() {
            tracing::warn!(worker = %self.incarnation.id, generation = self.incarnation.generation, "this incarnation ends: {why}");
            self.refused.cancel();
        }
    }

    /// Before a request leaves: returns at once while this worker has been heard of, and otherwise when Postgres says that
    /// it is not lost. One that was frozen holds jobs that are another's by now, whose hosts it must not ask. It does not
    /// return for a lost one, whose jobs are dropped.
    pub async fn confirm(&self) {
        while !self.pulse.is_felt() {
            let at = Instant::now();
            if self.check_current().await {
                if self.refused.is_cancelled() {
                    return std::future::pending().await;
                }
                self.pulse.confirmed(at);
            } else {
                tokio::time::sleep(UNCONFIRMED_PAUSE).await;
            }
        }
    }

    /// Asks Postgres after an error of the streams; an answer of "no" ends the incarnation. False: no answer.
    pub async fn check_current(&self) -> bool {
        match worker::is_current(&self.db, &self.incarnation).await {
            Ok(true) => true,
            Ok(false) => {
                self.refuse("it was declared lost, or its generation is over");
                true
            }
            Err(error) => {
                tracing::debug!(%error, "cannot tell whether this incarnation is current");
                false
            }
        }
    }

    /// The crawl of a job, from Postgres at first.
    pub async fn crawl(&self, tenant: &str, id: Uuid) -> DbResult<Arc<Crawl>> {
        if let Some(crawl) = self.crawls.lock().expect("no panic under this lock").get(&id) {
            return Ok(Arc::clone(crawl));
        }
        let spec = dispatch::spec::<CrawlSpec>(&self.db, tenant, id).await?;
        let wrong = |why| DbError::Input(format!("dispatch {id} is no crawl of this version: {why}"));
        let (scope, rules) = (spec.judge().map_err(wrong)?, spec.rules().map_err(wrong)?);
        let media = MediaTypes::new(&spec.content_types).map_err(wrong)?;
        let headers = dispatch::headers(&self.db, tenant, id).await?;
        let headers = secret_headers(&headers).map_err(DbError::Input)?;
        let seed_hosts = trusted_hosts(spec.seeds.iter().filter_map(|seed| canonical(seed, None).ok()));
        let user_agent = spec.user_agent.as_deref().map(|product| self.fetcher.user_agent(product)).transpose();
        let user_agent = user_agent.map_err(DbError::Input)?;
        let jar = spec.cookies.then(Jar::default);
        let crawl = Arc::new(Crawl { spec, scope, rules, media, headers, seed_hosts, user_agent, jar });
        let mut crawls = self.crawls.lock().expect("no panic under this lock");
        if crawls.len() >= DISPATCHES_MAX {
            crawls.clear();
        }
        // Another job may have been faster: there is one jar of cookies.
        Ok(Arc::clone(crawls.entry(id).or_insert(crawl)))
    }

    /// The page dispatch of a job; read again now and then, since its secret may be renewed.
    pub async fn paging(&self, tenant: &str, id: Uuid) -> DbResult<Arc<Paging>> {
        let now = self.clock.steady_ms();
        if let Some(paging) = self.pagings.lock().expect("no panic under this lock").get(&id)
            && paging.missing.is_none()
            && now - paging.read_ms < PAGING_MS
        {
            return Ok(Arc::clone(paging));
        }
        let paging = Arc::new(self.read_paging(tenant, id, now).await?);
        let mut pagings = self.pagings.lock().expect("no panic under this lock");
        if pagings.len() >= DISPATCHES_MAX {
            pagings.clear();
        }
        pagings.insert(id, Arc::clone(&paging));
        Ok(paging)
    }

    async fn read_paging(&self, tenant: &str, id: Uuid, read_ms: Millis) -> DbResult<Paging> {
        let spec: PagedSpec = dispatch::spec(&self.db, tenant, id).await?;
        let document = &spec.document;
        let mut headers = secret_headers(&document.headers).map_err(DbError::Input)?;
        headers.extend(secret_headers(&dispatch::headers(&self.db, tenant, id).await?).map_err(DbError::Input)?);
        let (mut query, mut missing) = (None, None);
        if let Some(auth) = &document.auth {
            match (source::secret(&self.db, tenant, &auth.secret).await?, &auth.header, &auth.query) {
                (None, _, _) => missing = Some(auth.secret.clone()),
                (Some(value), Some(name), _) => {
                    let value = format!("{}{value}", auth.prefix);
                    headers.extend(secret_headers([(name, &value)]).map_err(DbError::Input)?);
                }
                (Some(value), None, Some(name)) => query = Some((name.clone(), value)),
                (Some(_), None, None) => {}
            }
        }
        let mapper =
            Mapper::new(&spec.source, &spec.instance, &document.id, &document.fields).map_err(DbError::Input)?;
        Ok(Paging { spec, mapper, headers, query, missing, read_ms })
    }

    /// A host's robots.txt, parsed; `version` is its row's. Nothing if the row has changed meanwhile.
    pub async fn robots(&self, name: &str, version: i64) -> DbResult<Option<Arc<Robots>>> {
        if let Some(robots) = self.robots.get(name, version) {
            return Ok(Some(robots));
        }
        let Some(body) = host::robots(&self.db, name, version).await? else { return Ok(None) };
        let robots = Arc::new(Robots::parse(&body.unwrap_or_default()));
        self.robots.keep(name, version, &robots);
        Ok(Some(robots))
    }

    /// Takes hold of an entry; false if it is held already: the pending list shows those too.
    pub fn hold(&self, entry: StreamId) -> bool {
        self.held.lock().expect("no panic under this lock").insert(entry)
    }

    /// Settled entries are not held any more.
    pub fn let_go(&self, entries: &[StreamId]) {
        let mut held = self.held.lock().expect("no panic under this lock");
        for entry in entries {
            held.remove(entry);
        }
        self.settled.fetch_add(entries.len() as u64, Ordering::Relaxed);
    }

    /// The entries that are held at this moment.
    pub fn held(&self) -> HashSet<StreamId> {
        self.held.lock().expect("no panic under this lock").clone()
    }

    pub fn held_count(&self) -> u64 {
        self.held.lock().expect("no panic under this lock").len() as u64
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use reqwest::header::SET_COOKIE;
    use serde_json::json;

    use super::*;

    #[test]
    fn credentials_stay_with_the_seeds_and_cookies_are_one_header() {
        let spec: CrawlSpec = serde_json::from_value(json!({ "seeds": ["http://a.test/"] })).unwrap();
        let (scope, rules) = (spec.judge().unwrap(), spec.rules().unwrap());
        let given = [("Accept-Language", "de"), ("Cookie", "given=1"), ("X-Token", "hush")];
        let given = BTreeMap::from(given.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let crawl = Crawl {
            spec,
            scope,
            rules,
            media: MediaTypes::default(),
            headers: secret_headers(&given).unwrap(),
            seed_hosts: HashSet::from(["http://a.test".to_owned()]),
            user_agent: Some(HeaderValue::from_static("bot/1")),
            jar: Some(Jar::default()),
        };
        let sent = |host: &str| {
            let url = Url::parse(host).unwrap();
            let set = HeaderMap::from_iter([(SET_COOKIE, HeaderValue::from_static("own=2"))]);
            crawl.jar.as_ref().unwrap().keep(&url, &set);
            let headers = crawl.headers_for(host, &url);
            let lines = headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()));
            lines.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ")
        };
        let seed = "accept-language: de, cookie: given=1; own=2, user-agent: bot/1, x-token: hush";
        assert_eq!(sent("http://a.test"), seed);
        assert_eq!(sent("http://b.test"), "accept-language: de, cookie: own=2, user-agent: bot/1");
    }
}
