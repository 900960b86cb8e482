//! Why: everything that was decided about a URL or a job, in sentences.

mod job;
mod record;

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::State;
use chrono::{DateTime, Utc};
use dodo_common::clock::Millis;
use dodo_common::db::dispatch;
use dodo_common::db::explain::{self, HostReport, JobReport};
use dodo_common::db::host::HostState;
use dodo_common::db::worker::{self, consumer_name};
use dodo_common::model::cause::Cause;
use dodo_common::model::job::{Outcome, TENANT_DEFAULT};
use dodo_common::model::robots::Robots;
use dodo_common::model::source::api_origin;
use dodo_common::model::spec::CrawlSpec;
use dodo_common::model::url::{Canonical, canonical, ruled};
use dodo_common::stream::question::{self, Standing, Waiting};
use dodo_common::stream::queue;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::api::extract::Params;
use crate::api::why::job::{is_suspect, job_lines};
use crate::api::why::record::{Archived, Sidecars, record_line};
use crate::api::{Api, ApiResult, bad_request, not_found};
use crate::context::Context;

/// The product token robots.txt groups are matched against; the worker's.
const AGENT: &str = "dodo";
/// Crawls, the latest ones and those of its jobs, whose own spelling of a URL is looked for, and whose scope is judged.
const CRAWLS_MAX: i64 = 5;
/// Records whose place in their object is looked up: those of the latest jobs.
const RECORDS_MAX: usize = 10;

#[derive(Debug, Deserialize, utoipa::IntoParams)]
pub struct WhyQuery {
    /// A URL, or the id of a job.
    pub of: String,
}

#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Why {
    pub url: Option<String>,
    /// The decisions, oldest first, each a sentence.
    pub lines: Vec<String>,
    #[serde(skip_deserializing)]
    pub jobs: Vec<JobReport>,
    #[serde(skip_deserializing)]
    pub host: Option<HostReport>,
    /// Of the newest job that is due: the worker that holds it, or what it waits for.
    pub holder: Option<Holder>,
    pub standing: Option<Standing>,
    /// Where the records of the finished jobs lie.
    #[serde(default)]
    pub archived: Vec<Archived>,
}

/// Who has an issued job.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Holder {
    /// Its entry in the jobs stream, `ms-seq`, and when that was made.
    pub entry: String,
    pub issued_at: DateTime<Utc>,
    /// None: no worker has taken it yet.
    pub worker: Option<Uuid>,
    /// Its place in the fleet.
    pub slot: Option<i32>,
}

/// What is to be said of a URL that no crawl has seen: which of it, the rows do not tell.
const UNSEEN: &str = "No crawl has it in its seen-set: no fetched page in scope links to it, or only by links that are not followed, \
                      at the last depth or marked nofollow. It was looked for as it is, and as the latest crawls spell it.";

/// Every decision about a URL or a job
#[utoipa::path(get, path = "/v1/why", params(WhyQuery), responses((status = 200, body = Why), (status = 404)))]
pub async fn why(State(api): State<Api>, Params(query): Params<WhyQuery>) -> ApiResult<Json<Why>> {
    let ctx = &api.ctx;
    let mut views = Vec::new();
    let (mut jobs, url) = match Uuid::parse_str(&query.of) {
        Ok(id) => {
            let job = explain::job(&ctx.db, TENANT_DEFAULT, id).await?.ok_or_else(|| not_found("such job"))?;
            let url = job.url.as_deref().and_then(|url| canonical(url, None).ok());
            (vec![job], url)
        }
        Err(_) => {
            let url = canonical(&query.of, None).map_err(|error| bad_request(format!("{:?}: {error}", query.of)))?;
            views = views_of(ctx, &query.of).await?;
            (explain::url(&ctx.db, TENANT_DEFAULT, url.hash).await?, Some(url))
        }
    };
    for view in views.iter().filter(|view| Some(view.url.hash) != url.as_ref().map(|url| url.hash)) {
        let same = explain::url(&ctx.db, TENANT_DEFAULT, view.url.hash).await?;
        jobs.extend(same.into_iter().filter(|job| job.dispatch == view.crawl));
    }
    jobs.sort_by_key(|job| std::cmp::Reverse(job.created_at));
    views.extend(views_of_jobs(ctx, &jobs, &views).await?);
    // A page of an API has a host of its own kind, which its job names.
    let api = jobs.first().map(|job| job.host.as_str()).filter(|host| api_origin(host).is_some());
    let host = match api.or(url.as_ref().map(|url| url.host.as_str())) {
        Some(name) => explain::host(&ctx.db, name).await?,
        None => None,
    };
    let mut lines = Vec::new();
    if let Some(url) = &url {
        lines.push(format!("Its canonical form is {}.", url.url));
        let agents = agents(ctx, &jobs).await?;
        lines.extend(host_lines(url, host.as_ref(), &agents, ctx.clock.now_ms()));
        for View { crawl, url: other, spec } in views.iter().filter(|view| view.url != *url) {
            lines.push(format!("By the URL rules of crawl {crawl} it is {}.", other.url));
            lines.extend(host.as_ref().map(|host| robots_line(other, host, spec.user_agent.as_deref())));
        }
    }
    if jobs.is_empty() {
        lines.push(UNSEEN.to_owned());
    }
    lines.extend(views.iter().filter_map(|view| view.scope_line(&jobs)));
    let mut archived = Vec::new();
    let mut sidecars = Sidecars::default();
    for (age, job) in jobs.iter().enumerate().rev() {
        lines.extend(job_lines(ctx, job).await?);
        let sought = (age < RECORDS_MAX).then_some(&mut sidecars);
        let Some((line, record)) = record_line(ctx, job, sought).await? else { continue };
        lines.push(line);
        archived.extend(record);
    }
    let now = ctx.clock.now_ms();
    let due = |job: &&JobReport| job.state == "pending" && job.run_at.is_some_and(|at| at.timestamp_millis() <= now);
    let (mut holder, mut standing) = (None, None);
    if let Some(job) = jobs.iter().find(due) {
        // Postgres has said much already: without Redis only this is missing.
        match present(ctx, job).await {
            Ok(Present::Held(by)) => {
                lines.push(by.line());
                if is_suspect(job) && by.worker.is_some() {
                    lines.push(
                        "As a suspect it begins there when all else that this worker holds is settled.".to_owned(),
                    );
                }
                holder = Some(by);
            }
            Ok(Present::Waits(how)) => {
                lines.push(standing_line(how.as_ref()));
                standing = how;
            }
            Ok(Present::Paused) => {}
            Err(error) => lines.push(format!("What it waits for cannot be told: {error:#}.")),
        }
    }
    Ok(Json(Why { url: url.map(|url| url.url.to_string()), lines, jobs, host, holder, standing, archived }))
}

/// What becomes of a due job right now.
enum Present {
    Held(Holder),
    /// Nothing: no leader says it.
    Waits(Option<Standing>),
    /// Its dispatch is paused, or ends.
    Paused,
}

async fn present(ctx: &Context, job: &JobReport) -> anyhow::Result<Present> {
    let outstanding = queue::outstanding(&ctx.redis).await?;
    if let Some((issued, consumer)) = outstanding.into_iter().find(|(issued, _)| issued.key.id == job.id) {
        let workers = worker::unreleased(&ctx.db).await?;
        let worker = workers.into_iter().find(|worker| consumer.as_deref() == Some(&consumer_name(worker.slot)));
        return Ok(Present::Held(Holder {
            entry: issued.entry.to_string(),
            issued_at: moment(issued.entry.ms as i64),
            worker: worker.as_ref().map(|worker| worker.id),
            slot: worker.map(|worker| worker.slot),
        }));
    }
    let dispatch = dispatch::get(&ctx.db, TENANT_DEFAULT, job.dispatch).await?;
    let ends = |ending: &str| ending != Outcome::Budget.as_str() || job.remake_of.is_none();
    if dispatch.is_some_and(|dispatch| dispatch.paused_at.is_some() || dispatch.ending.as_deref().is_some_and(ends)) {
        return Ok(Present::Paused);
    }
    let exempt = job.remake_of.is_some() || job.visit.as_ref().is_some_and(|visit| visit.last.is_some());
    let of = Waiting { host: job.host.clone(), dispatch: job.dispatch, exempt, alone: is_suspect(job) };
    Ok(Present::Waits(question::ask(&ctx.redis, of).await?))
}

impl Holder {
    fn line(&self) -> String {
        let Holder { entry, issued_at, worker, slot } = self;
        match (worker, slot) {
            (Some(worker), Some(slot)) => {
                format!("It was issued {issued_at} as entry {entry}: worker {worker} in slot {slot} holds it.")
            }
            _ => format!("It was issued {issued_at} as entry {entry}: no worker has taken it yet."),
        }
    }
}

fn standing_line(standing: Option<&Standing>) -> String {
    let Some(Standing { cause, until_ms, in_flight, last_completion_ms }) = standing else {
        return "No leader says what it waits for: is one running (dodo status)?".to_owned();
    };
    let mut line = format!("It waits: {}", cause.meaning());
    if let Some(until) = until_ms {
        let what = match cause {
            Cause::Quarantine => "the first of its proxies is tried at",
            Cause::Proxy => "its proxy is free again at",
            _ => "its host is free again at",
        };
        line.push_str(&format!("; {what} {}", moment(*until)));
    }
    let requests = if *in_flight == 1 { "1 request is".to_owned() } else { format!("{in_flight} requests are") };
    line.push_str(&format!(". {requests} under way there"));
    match last_completion_ms {
        Some(at) => line.push_str(&format!(", and the last one ended at {}.", moment(*at))),
        None => line.push('.'),
    }
    line
}

fn moment(ms: Millis) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(ms).unwrap_or_default()
}

/// What the crawls of these jobs call themselves, where not by our name.
async fn agents(ctx: &Context, jobs: &[JobReport]) -> ApiResult<BTreeSet<Option<String>>> {
    let mut agents = BTreeSet::new();
    for id in jobs.iter().map(|job| job.dispatch).collect::<BTreeSet<Uuid>>() {
        agents.insert(spec_of(ctx, id).await?.and_then(|crawl| crawl.user_agent));
    }
    if agents.is_empty() {
        agents.insert(None);
    }
    Ok(agents)
}

/// What a dispatch asks for, if it is a crawl.
async fn spec_of(ctx: &Context, dispatch: Uuid) -> ApiResult<Option<CrawlSpec>> {
    let spec = dispatch::get(&ctx.db, TENANT_DEFAULT, dispatch).await?.map(|dispatch| dispatch.spec);
    Ok(spec.and_then(|spec| serde_json::from_value(spec).ok()))
}

fn host_lines(
    url: &Canonical,
    host: Option<&HostReport>,
    agents: &BTreeSet<Option<String>>,
    now: Millis,
) -> Vec<String> {
    let Some(host) = host else {
        return vec![format!(
            "Its host {} has never been prepared: no address resolved, no robots.txt read.",
            url.host
        )];
    };
    let mut lines = vec![format!("Its host {} is {} at {}.", host.host, host.state, host.addresses.join(", "))];
    if let Some(error) = &host.last_error {
        lines.push(format!("The host's last trouble: {error}."));
    }
    if let Some(until) = host.hold_until.filter(|until| until.timestamp_millis() > now) {
        lines.push(format!("Nothing is sent to the host before {until}."));
    }
    if let Some(delay) = host.crawl_delay_ms {
        lines.push(format!("Its robots.txt asks for {delay} ms between requests."));
    }
    if api_origin(&host.host).is_some() {
        lines.push("It is an API, asked by agreement: it has no robots.txt to obey.".to_owned());
        return lines;
    }
    lines.extend(agents.iter().map(|agent| robots_line(url, host, agent.as_deref())));
    lines
}

/// What robots.txt says to a crawl that calls itself so, or by our name.
fn robots_line(url: &Canonical, host: &HostReport, agent: Option<&str>) -> String {
    if host.robots.is_none() && host.state != HostState::Ready.as_str() {
        return "Its robots.txt has not been read: until then nothing is fetched.".to_owned();
    }
    let robots = Robots::parse(host.robots.as_deref().unwrap_or_default());
    let path = url.url.query().map_or(url.url.path().to_owned(), |query| format!("{}?{query}", url.url.path()));
    let verdict = robots.decide(agent.unwrap_or(AGENT), &path);
    let word = if verdict.allowed { "allows" } else { "forbids" };
    let whom = agent.map_or(String::new(), |agent| format!(" to {agent}"));
    match verdict.rule {
        Some(rule) => format!("robots.txt {word} it{whom} by line {}: {}.", rule.line, rule.text),
        None => format!("robots.txt {word} it{whom}: no rule matches."),
    }
}

/// A URL as one crawl sees it.
struct View {
    crawl: Uuid,
    spec: CrawlSpec,
    url: Canonical,
}

async fn views_of(ctx: &Context, raw: &str) -> ApiResult<Vec<View>> {
    let latest = dispatch::list(&ctx.db, TENANT_DEFAULT, Some("crawl"), CRAWLS_MAX).await?;
    Ok(latest.into_iter().filter_map(|crawl| View::new(crawl.id, crawl.spec, raw)).collect())
}

/// How the crawls of these jobs see the URL, where that is not known yet.
async fn views_of_jobs(ctx: &Context, jobs: &[JobReport], known: &[View]) -> ApiResult<Vec<View>> {
    let mut views: Vec<View> = Vec::new();
    for job in jobs {
        let is_known = |views: &[View]| views.iter().any(|view| view.crawl == job.dispatch);
        if views.len() >= CRAWLS_MAX as usize || is_known(known) || is_known(&views) {
            continue;
        }
        let crawl = dispatch::get(&ctx.db, TENANT_DEFAULT, job.dispatch).await?;
        let raw = job.url.as_deref().unwrap_or_default();
        views.extend(crawl.and_then(|crawl| View::new(crawl.id, crawl.spec, raw)));
    }
    Ok(views)
}

impl View {
    /// Nothing for what is no crawl.
    fn new(crawl: Uuid, spec: serde_json::Value, raw: &str) -> Option<View> {
        let spec: CrawlSpec = serde_json::from_value(spec).ok()?;
        let url = ruled(raw, None, &spec.rules().ok()?).ok()?;
        Some(View { crawl, spec, url })
    }

    /// What this crawl says of its scope; where it has none of the jobs, and others have some, only if a rule of it decides.
    fn scope_line(&self, jobs: &[JobReport]) -> Option<String> {
        let has_it = jobs.iter().any(|job| job.dispatch == self.crawl);
        let decision = self.spec.judge().ok()?.allows(&self.url.url);
        let (crawl, reason) = (self.crawl, &decision.reason);
        Some(match (decision.allowed, has_it) {
            _ if !has_it && !jobs.is_empty() && !decision.by_rule => return None,
            (true, _) => format!("It is in the scope of crawl {crawl}: {reason}."),
            (false, false) => format!("It is out of the scope of crawl {crawl}: {reason}."),
            // Given as a start, a sitemap, or where one leads.
            (false, true) => format!("As a link it would be out of the scope of crawl {crawl}: {reason}."),
        })
    }
}
