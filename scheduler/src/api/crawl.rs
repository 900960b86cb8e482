//! Submitting work: crawls and no-op jobs.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use dodo_common::clock::Millis;
use dodo_common::db::submit::{self, Submission, Submitted};
use dodo_common::model::header::{check_crawl_headers, texts};
use dodo_common::model::job::TENANT_DEFAULT;
use dodo_common::model::revisit::Revisit;
use dodo_common::model::spec::{CrawlSpec, Nofollow, NoopSpec};
use dodo_common::model::terms::{Terms, start_of};
use dodo_common::model::trap::Traps;
use dodo_common::model::url::{Canonical, ruled};
use dodo_common::model::url_rules::{UrlRule, UrlRules};
use serde::{Deserialize, Serialize};
use url::Url;
use uuid::Uuid;

use crate::api::extract::Body;
use crate::api::timer::{self, Answer, Recurring};
use crate::api::{Api, ApiResult, bad_request};
use crate::context::Context;

/// No-op jobs of one request.
const NOOPS_MAX: usize = 100_000;

/// A crawl to run.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CrawlRequest {
    /// Where it starts: http or https URLs.
    pub urls: Vec<String>,
    /// Links followed from a start page to the last; 100 when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<i16>,
    /// Pages fetched before the rest is skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_pages: Option<i64>,
    /// Pages of one host before the rest of it is skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_pages_per_host: Option<i64>,
    /// By so many pages those of a host that say nothing new may outnumber those that do, before the rest of it is skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_allowance: Option<i64>,
    /// Whether pages with nearly the same words as another of their host are told and counted; false when not given, but
    /// true with a `host_allowance`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub near_duplicates: bool,
    /// `host`, `domain`, `prefix` or `any`; `host` when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// Milliseconds between two requests to one host; 1000 when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<i64>,
    /// Requests to one host at a time; 1 when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_concurrency: Option<i32>,
    /// Whether the sitemaps that robots.txt of a start page's host names are fetched; true when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sitemaps: Option<bool>,
    /// What becomes of links that ask not to be followed: `honour` or `ignore`; `honour` when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nofollow: Option<Nofollow>,
    /// Whether pages that ask not to be indexed (`noindex`, by a meta element or `X-Robots-Tag`) are left out of the archive:
    /// they are fetched and their links followed, but not kept. False when not given.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub noindex: bool,
    /// Whether the URL that a page says is its own is followed where only a `Link` header names it, too, and noted where it
    /// is another one in scope. False when not given.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub follow_canonical: bool,
    /// Whether what pages are shown with counts as their links: images, media, scripts, style sheets; false when not
    /// given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assets: Option<bool>,
    /// By which rules two spellings are one URL, beside its canonical form.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub url_rules: Vec<UrlRule>,
    /// Query parameters dropped from every URL: at most 100 names; a `*` at the end stands for any rest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drop_params: Vec<String>,
    /// Regular expressions, at most 100: a URL in the scope, unless it is a start, must match one somewhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<String>,
    /// Regular expressions, at most 100: what matches one is not crawled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// Segments of a URL's path, beyond which it is a trap and not crawled; 20 when not given, 2048 is no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_path_segments: Option<u16>,
    /// How often one segment may stand in a path, and one parameter with its value in a query; 3 when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_repeats: Option<u16>,
    /// Parameters of a query; 32 when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_query_params: Option<u16>,
    /// Media types that are kept, as `text/html` or `image/`, at most 100; all when not given. Of anything else the body
    /// is not read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub content_types: Vec<String>,
    /// Send again the cookies that were set, within this crawl; each worker keeps its own. False when not given.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cookies: bool,
    /// What it calls itself, as `examplebot/1.0`; robots.txt is read for that product. The contact is appended. Dodo when
    /// not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<String>,
    /// Headers of its requests, at most 100. `Accept-Language` and its like (`Accept`, `Accept-Charset`, `Cache-Control`,
    /// `DNT`, `Pragma`, `Referer`, `Sec-GPC`, `Upgrade-Insecure-Requests`, `Sec-CH-*`, `Sec-Fetch-*`) go to every host, all
    /// others to those of the start pages only, since they may be credentials. No answer shows them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "texts")]
    pub headers: BTreeMap<String, String>,
    /// Its requests leave by a proxy of this region, as `DODO_PROXIES` names it; by any of them when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Visit each page again and again, at intervals that follow how often it changes, until the crawl is cancelled or a
    /// budget of bytes or seconds is spent. Pages are fetched once when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revisit: Option<Revisit>,
    /// A second request with the same key returns the first one's dispatch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Body bytes received before the rest is skipped; what is in flight then comes on top.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<i64>,
    /// Seconds after its submission, or its start, after which the rest is skipped; a pause does not stop the clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_seconds: Option<i64>,
    /// How often a page is tried again after a failure; 4 when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<i16>,
    /// Between -100 and 100; at one host the higher goes first. 0 when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i16>,
    /// Not before this time, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_at: Option<String>,
    /// Not before so many milliseconds from now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_in_ms: Option<i64>,
    /// Submit it again and again: a cron pattern of five fields, or six with seconds first. The answer is a timer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cron: Option<String>,
    /// The time zone of the pattern's clock, an IANA name; UTC when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
}

#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NoopRequest {
    /// How many jobs, at most 100,000.
    pub count: usize,
    /// Becomes an entry of `items` for each job, with its number as `n`.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub payload: Option<serde_json::Map<String, serde_json::Value>>,
    #[serde(default)]
    pub key: Option<String>,
    /// Each holds a permit of its worker for so long, milliseconds, at most 120,000.
    #[serde(default)]
    pub sleep_ms: u64,
    /// Each try fails with this text, so that each job ends dead.
    #[serde(default)]
    pub fail: Option<String>,
    /// Each aborts the worker process that runs it. A worker that was not started for such tests ends the job failed.
    #[serde(default)]
    pub abort: bool,
    /// Between -100 and 100; the higher goes first. 0 when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i16>,
    /// Not before this time, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_at: Option<String>,
    /// Not before so many milliseconds from now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_in_ms: Option<i64>,
    /// Submit it again and again: a cron pattern of five fields, or six with seconds first. The answer is a timer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cron: Option<String>,
    /// The time zone of the pattern's clock, an IANA name; UTC when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
}

#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Accepted {
    pub dispatch: Uuid,
    /// False: the key was known; nothing was scheduled.
    pub created: bool,
    pub scheduled: i64,
}

impl From<Submitted> for Accepted {
    fn from(submitted: Submitted) -> Self {
        Self { dispatch: submitted.id, created: submitted.created, scheduled: submitted.scheduled }
    }
}

/// Submit a crawl
#[utoipa::path(post, path = "/v1/crawls", request_body = CrawlRequest,
    responses((status = 202, body = Answer), (status = 400, description = "One line says what is wrong")))]
pub async fn submit(
    State(api): State<Api>,
    Body(mut request): Body<CrawlRequest>,
) -> ApiResult<(StatusCode, Json<Answer>)> {
    let ctx = &api.ctx;
    let (cron, timezone) = (request.cron.take(), request.timezone.take());
    let recurring = Recurring {
        key: request.key.as_deref(),
        cron: cron.as_deref(),
        timezone: timezone.as_deref(),
        starts: request.start_at.is_some() || request.start_in_ms.is_some(),
    };
    let crawl = checked(request.clone(), &ctx.duties.contact, ctx.clock.now_ms())?;
    // A timer shows its request to whoever asks.
    request.headers.clear();
    let value = serde_json::to_value(&request).map_err(|error| bad_request(error.to_string()))?;
    if let Some(region) = &crawl.spec.region {
        ctx.pool.check_region(region).map_err(bad_request)?;
    }
    if recurring.cron.is_some() && crawl.spec.revisit.is_some() {
        return Err(bad_request("a crawl with revisit goes on by itself: leave out cron"));
    }
    if let Some(answer) = timer::store(ctx, "crawl", value, recurring, &crawl.headers).await? {
        return Ok(answer);
    }
    Ok((StatusCode::ACCEPTED, Json(Answer::Dispatch(submit_crawl(ctx, &crawl).await?))))
}

/// Submit no-op jobs: the measure of the pipeline itself
#[utoipa::path(post, path = "/v1/noops", request_body = NoopRequest, responses((status = 202, body = Answer)))]
pub async fn submit_noops(
    State(api): State<Api>,
    Body(mut request): Body<NoopRequest>,
) -> ApiResult<(StatusCode, Json<Answer>)> {
    let (cron, timezone) = (request.cron.take(), request.timezone.take());
    let recurring = Recurring {
        key: request.key.as_deref(),
        cron: cron.as_deref(),
        timezone: timezone.as_deref(),
        starts: request.start_at.is_some() || request.start_in_ms.is_some(),
    };
    let (spec, payloads, terms) = noops(&request, api.ctx.clock.now_ms())?;
    let value = serde_json::to_value(&request).map_err(|error| bad_request(error.to_string()))?;
    if let Some(answer) = timer::store(&api.ctx, "noop", value, recurring, &BTreeMap::new()).await? {
        return Ok(answer);
    }
    let submission = Submission { key: request.key.as_deref(), terms, ..Submission::default() };
    let submitted = submit::noops(&api.ctx.db, TENANT_DEFAULT, &spec, &payloads, &submission).await?;
    api.ctx.hint(vec![(TENANT_DEFAULT.to_owned(), String::new())]).await;
    Ok((StatusCode::ACCEPTED, Json(Answer::Dispatch(submitted.into()))))
}

/// What no-op jobs do, their payloads, and their terms.
pub fn noops(request: &NoopRequest, now: Millis) -> ApiResult<(NoopSpec, Vec<Option<serde_json::Value>>, Terms)> {
    if !(1..=NOOPS_MAX).contains(&request.count) {
        return Err(bad_request(format!("count must be between 1 and {NOOPS_MAX}")));
    }
    let NoopRequest { count, sleep_ms, abort, .. } = *request;
    let spec = NoopSpec { jobs: count, sleep_ms, fail: request.fail.clone(), abort };
    spec.check().map_err(bad_request)?;
    let start_at = start_of(request.start_at.as_deref(), request.start_in_ms, now).map_err(bad_request)?;
    let terms = Terms { priority: request.priority.unwrap_or_default(), start_at, ..Terms::default() };
    terms.check().map_err(bad_request)?;
    let payloads = (0..request.count)
        .map(|n| {
            let mut payload = request.payload.clone()?;
            payload.insert("n".to_owned(), n.into());
            Some(payload.into())
        })
        .collect();
    Ok((spec, payloads, terms))
}

/// Stores a crawl and hints its hosts to the dispatcher.
pub async fn submit_crawl(ctx: &Context, crawl: &CheckedCrawl) -> ApiResult<Accepted> {
    let (terms, headers) = (crawl.terms.clone(), crawl.headers.clone());
    let submission = Submission { key: crawl.key.as_deref(), terms, headers, ..Submission::default() };
    let submitted = submit::crawl(&ctx.db, TENANT_DEFAULT, &crawl.spec, &crawl.seeds, &submission).await?;
    let hosts = crawl.seeds.iter().map(|seed| (TENANT_DEFAULT.to_owned(), seed.host.clone())).collect();
    ctx.hint(hosts).await;
    Ok(submitted.into())
}

/// A crawl that can be submitted.
pub struct CheckedCrawl {
    pub spec: CrawlSpec,
    pub key: Option<String>,
    pub seeds: Vec<Canonical>,
    pub terms: Terms,
    /// No part of the spec, which answers show.
    pub headers: BTreeMap<String, String>,
}

/// Checks a request; its seeds come out in canonical form.
pub fn checked(request: CrawlRequest, contact: &str, now: Millis) -> ApiResult<CheckedCrawl> {
    let rules = UrlRules::new(&request.url_rules, &request.drop_params).map_err(bad_request)?;
    let mut seeds = Vec::with_capacity(request.urls.len());
    for raw in &request.urls {
        let seed =
            ruled(raw, None, &rules).map_err(|error| bad_request(format!("{raw:?} cannot be crawled: {error}")))?;
        may_ask(&seed.url, contact).map_err(bad_request)?;
        seeds.push(seed);
    }
    let scope = request.scope.as_deref().unwrap_or("host").parse().map_err(|error: String| bad_request(error))?;
    let mut spec: CrawlSpec = serde_json::from_value(serde_json::json!({
        "seeds": seeds.iter().map(|seed| seed.url.as_str()).collect::<Vec<_>>(),
    }))
    .map_err(|error| bad_request(error.to_string()))?;
    spec.scope = scope;
    spec.max_pages = request.max_pages;
    (spec.max_pages_per_host, spec.host_allowance) = (request.max_pages_per_host, request.host_allowance);
    spec.near_duplicates = request.near_duplicates;
    spec.depth = request.depth.unwrap_or(spec.depth);
    spec.delay_ms = request.delay_ms.unwrap_or(spec.delay_ms);
    spec.host_concurrency = request.host_concurrency.unwrap_or(spec.host_concurrency);
    spec.sitemaps = request.sitemaps.unwrap_or(spec.sitemaps);
    spec.nofollow = request.nofollow.unwrap_or(spec.nofollow);
    (spec.noindex, spec.follow_canonical) = (request.noindex, request.follow_canonical);
    spec.assets = request.assets.unwrap_or(spec.assets);
    spec.url_rules = request.url_rules;
    spec.drop_params = request.drop_params;
    spec.include = request.include;
    spec.exclude = request.exclude;
    spec.traps = Traps::of(request.max_path_segments, request.max_repeats, request.max_query_params);
    spec.content_types = request.content_types;
    (spec.cookies, spec.user_agent) = (request.cookies, request.user_agent);
    spec.region = request.region;
    spec.revisit = request.revisit;
    spec.check().map_err(bad_request)?;
    let start_at = start_of(request.start_at.as_deref(), request.start_in_ms, now);
    let terms = Terms {
        max_bytes: request.max_bytes,
        max_seconds: request.max_seconds,
        retries: request.retries,
        priority: request.priority.unwrap_or_default(),
        start_at: start_at.map_err(bad_request)?,
    };
    terms.check().map_err(bad_request)?;
    check_crawl_headers(&request.headers).map_err(bad_request)?;
    Ok(CheckedCrawl { spec, key: request.key, seeds, terms, headers: request.headers })
}

/// Without a contact only loopback may be asked. A name may lead anywhere, so only the worker, which resolves it,
/// knows; here only what the URL says.
pub fn may_ask(url: &Url, contact: &str) -> Result<(), &'static str> {
    let local = match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost") || name.ends_with(".test"),
        None => false,
    };
    if local || !contact.is_empty() {
        return Ok(());
    }
    Err(
        "no contact is configured: set DODO_CONTACT to your address or a page about your crawler before anything but loopback is asked",
    )
}
