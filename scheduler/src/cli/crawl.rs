//! `dodo crawl`: submit, and wait if asked to.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Args;
use dodo_common::db::dispatch::{Dispatch, Progress};
use dodo_common::model::header::check_crawl_headers;
use dodo_common::model::media::MediaTypes;
use dodo_common::model::pattern::Patterns;
use dodo_common::model::revisit::Revisit;
use dodo_common::model::spec::Nofollow;
use dodo_common::model::url_rules::{UrlRule, UrlRules};
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::header::HeaderName;
use uuid::Uuid;

use crate::api::crawl::CrawlRequest;
use crate::api::timer::Answer;
use crate::cli::client::Client;
use crate::cli::timers::{self, CronFlags};
use crate::cli::{Remote, bytes, say};
use crate::sentinel::rule::Span;

const POLL: Duration = Duration::from_millis(300);

/// What to crawl and how, for `dodo crawl` and `dodo up`.
#[derive(Args, Clone, Debug, Default)]
pub struct CrawlFlags {
    /// Links to follow from a start page [default: 100]
    #[arg(long)]
    pub depth: Option<i16>,
    /// Pages to fetch before the rest is skipped [default: no limit]
    #[arg(long)]
    pub max_pages: Option<i64>,
    /// How far links are followed: host, domain, prefix or any [default: host]
    #[arg(long)]
    pub scope: Option<String>,
    /// Milliseconds between two requests to one host [default: 1000]
    #[arg(long)]
    pub delay: Option<i64>,
    /// Requests to one host at a time [default: 1]
    #[arg(long)]
    pub host_concurrency: Option<i32>,
    /// Leave out the sitemaps that robots.txt names
    #[arg(long)]
    pub no_sitemaps: bool,
    /// Links that ask not to be followed: honour or ignore that [default: honour]
    #[arg(long)]
    pub nofollow: Option<Nofollow>,
    /// Do not keep pages that ask not to be indexed; their links are followed
    #[arg(long)]
    pub noindex: bool,
    /// Follow what a page says that its own URL is, by a Link header too, and note that
    #[arg(long)]
    pub follow_canonical: bool,
    /// Fetch what pages are shown with as well: images, media, scripts, style sheets
    #[arg(long)]
    pub assets: bool,
    #[command(flatten)]
    pub rules: RuleFlags,
    /// A regular expression; what is fetched beside the start pages must match one; may be given more than once
    #[arg(long, value_name = "RE", value_parser = pattern)]
    pub include: Vec<String>,
    /// A regular expression; what matches it is not fetched; may be given more than once
    #[arg(long, value_name = "RE", value_parser = pattern)]
    pub exclude: Vec<String>,
    #[command(flatten)]
    pub bounds: BoundFlags,
    /// Send again the cookies that were set, within this crawl; each worker keeps its own
    #[arg(long)]
    pub cookies: bool,
    /// What it calls itself, as examplebot/1.0; robots.txt is read for that product, the contact is appended [default: dodo]
    #[arg(long)]
    pub user_agent: Option<String>,
    /// A header of its requests; what may be a credential goes to the hosts of the start pages only, and is better given by
    /// @FILE, which holds one a line, as other users see a command line; may be given more than once
    // Plain text here: clap would repeat a wrong one, and with it a credential.
    #[arg(long, value_name = "NAME: VALUE|@FILE")]
    pub header: Vec<String>,
    /// Region of the proxies that its requests leave by, as DODO_PROXIES names it [default: any]
    #[arg(long)]
    pub region: Option<String>,
    /// Visit each page again and again, no sooner than this after the last time, as in 10m; with --revisit-max
    #[arg(long, value_name = "SPAN", requires = "revisit_max")]
    pub revisit_min: Option<Span>,
    /// And no later than this, as in 7d; with --revisit-min
    #[arg(long, value_name = "SPAN", requires = "revisit_min")]
    pub revisit_max: Option<Span>,
    /// A name for this crawl: asking again with the same one starts nothing new
    #[arg(long)]
    pub key: Option<String>,
    /// Body bytes to receive before the rest is skipped; what is in flight then comes on top [default: no limit]
    #[arg(long)]
    pub max_bytes: Option<i64>,
    /// Seconds after which the rest is skipped, a pause included [default: no limit]
    #[arg(long)]
    pub max_seconds: Option<i64>,
    /// How often a page is tried again after a failure [default: 4]
    #[arg(long)]
    pub retries: Option<i16>,
    /// -100 to 100; at one host the higher goes first [default: 0]
    #[arg(long, allow_negative_numbers = true)]
    pub priority: Option<i16>,
    /// Begin at this time, RFC 3339
    #[arg(long)]
    pub start_at: Option<String>,
    /// Begin so many milliseconds from now
    #[arg(long)]
    pub start_in_ms: Option<i64>,
}

/// How URLs are spelt, for `dodo crawl`, `dodo up` and `dodo url`.
#[derive(Args, Clone, Debug, Default)]
pub struct RuleFlags {
    /// Rules by which two spellings are one URL, separated by commas
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub url_rules: Vec<UrlRule>,
    /// A query parameter to drop from every URL, NAME or BEGINNING*; may be given more than once
    #[arg(long, value_name = "NAME", value_parser = param)]
    pub drop_param: Vec<String>,
}

/// What bounds a crawl against what a site makes without end.
#[derive(Args, Clone, Debug, Default)]
pub struct BoundFlags {
    /// Pages of one host to fetch before the rest of it is skipped [default: no limit]
    #[arg(long, value_name = "N")]
    pub max_pages_per_host: Option<i64>,
    /// Skip the rest of a host when its pages that say nothing new outnumber those that do by so many [default: never]
    #[arg(long, value_name = "N")]
    pub host_allowance: Option<i64>,
    /// Tell and count pages with nearly the same words as another of their host; comes with --host-allowance
    #[arg(long)]
    pub near_duplicates: bool,
    /// A URL whose path has more segments is a trap and not fetched [default: 20]
    #[arg(long, value_name = "N")]
    pub max_path_segments: Option<u16>,
    /// Nor is one where a segment of the path, or a parameter with its value, stands more often [default: 3]
    #[arg(long, value_name = "N")]
    pub max_repeats: Option<u16>,
    /// Nor one whose query has more parameters [default: 32]
    #[arg(long, value_name = "N")]
    pub max_query_params: Option<u16>,
    /// Media types to keep, separated by commas: text/html, or image/ for all of them [default: all]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = media_type)]
    pub content_types: Vec<String>,
}

fn param(name: &str) -> Result<String, String> {
    UrlRules::new(&[], &[name.to_owned()]).map(|_| name.to_owned())
}

fn media_type(text: &str) -> Result<String, String> {
    MediaTypes::new(&[text.to_owned()]).map(|_| text.to_owned())
}

fn pattern(text: &str) -> Result<String, String> {
    Patterns::new("pattern", &[text.to_owned()]).map(|_| text.to_owned())
}

/// Headers by their names; one line about the first that is wrong, without its value.
fn headers(given: &[String]) -> anyhow::Result<BTreeMap<String, String>> {
    let mut lines = Vec::new();
    for text in given {
        match text.strip_prefix('@') {
            None => lines.push(text.clone()),
            Some(file) => {
                let text = std::fs::read_to_string(file).with_context(|| format!("--header: cannot read {file}"))?;
                lines.extend(text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned));
            }
        }
    }
    let mut headers = BTreeMap::new();
    for text in lines {
        // What is no name may be a part of the value.
        let (name, value) = text
            .split_once(':')
            .map(|(name, value)| (name.trim(), value))
            .filter(|(name, _)| HeaderName::from_bytes(name.as_bytes()).is_ok())
            .context("--header: a name and a colon are missing; say --header 'Accept-Language: de'")?;
        let before = headers.insert(name.to_owned(), value.trim().to_owned());
        ensure!(before.is_none(), "--header: {name:?} is given twice; leave one out");
    }
    check_crawl_headers(&headers).map_err(|why| anyhow::anyhow!("--header: {why}"))?;
    Ok(headers)
}

impl CrawlFlags {
    /// # Errors
    /// One line about a header that is wrong.
    pub fn request(&self, urls: Vec<String>) -> anyhow::Result<CrawlRequest> {
        Ok(CrawlRequest {
            urls,
            depth: self.depth,
            max_pages: self.max_pages,
            scope: self.scope.clone(),
            delay_ms: self.delay,
            host_concurrency: self.host_concurrency,
            sitemaps: self.no_sitemaps.then_some(false),
            nofollow: self.nofollow,
            noindex: self.noindex,
            follow_canonical: self.follow_canonical,
            assets: self.assets.then_some(true),
            url_rules: self.rules.url_rules.clone(),
            drop_params: self.rules.drop_param.clone(),
            include: self.include.clone(),
            exclude: self.exclude.clone(),
            max_pages_per_host: self.bounds.max_pages_per_host,
            host_allowance: self.bounds.host_allowance,
            near_duplicates: self.bounds.near_duplicates,
            max_path_segments: self.bounds.max_path_segments,
            max_repeats: self.bounds.max_repeats,
            max_query_params: self.bounds.max_query_params,
            content_types: self.bounds.content_types.clone(),
            cookies: self.cookies,
            user_agent: self.user_agent.clone(),
            headers: headers(&self.header)?,
            region: self.region.clone(),
            revisit: self
                .revisit_min
                .zip(self.revisit_max)
                .map(|(min, max)| Revisit { min_s: min.0 / 1000, max_s: max.0 / 1000 }),
            key: self.key.clone(),
            max_bytes: self.max_bytes,
            max_seconds: self.max_seconds,
            retries: self.retries,
            priority: self.priority,
            start_at: self.start_at.clone(),
            start_in_ms: self.start_in_ms,
            cron: None,
            timezone: None,
        })
    }
}

#[derive(Args, Debug)]
pub struct Crawl {
    /// Where to start: http or https URLs
    #[arg(required = true)]
    urls: Vec<String>,
    #[command(flatten)]
    flags: CrawlFlags,
    #[command(flatten)]
    cron: CronFlags,
    /// Wait until every page is fetched and archived
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    remote: Remote,
}

pub async fn run(crawl: Crawl) -> anyhow::Result<ExitCode> {
    let client = Client::new(&crawl.remote)?;
    let CronFlags { cron, timezone } = crawl.cron;
    let request = CrawlRequest { cron, timezone, ..crawl.flags.request(crawl.urls)? };
    let accepted = match client.post("/v1/crawls", &request).await? {
        Answer::Dispatch(accepted) => accepted,
        Answer::Timer(timer) => {
            timers::show(&timer, crawl.remote.json)?;
            return Ok(ExitCode::SUCCESS);
        }
    };
    if !crawl.wait {
        say(if crawl.remote.json { serde_json::to_string(&accepted)? } else { accepted.dispatch.to_string() })?;
        return Ok(ExitCode::SUCCESS);
    }
    wait(&client, accepted.dispatch, crawl.remote.json).await
}

/// Waits until a dispatch is done, with a progress bar, and says what came of it.
pub async fn wait(client: &Client, id: Uuid, json: bool) -> anyhow::Result<ExitCode> {
    let bar = bar(json);
    loop {
        let dispatch: Dispatch = client.get(&format!("/v1/dispatches/{id}"), &[]).await?;
        show(&bar, std::slice::from_ref(&dispatch));
        if dispatch.state == "done" {
            bar.finish_and_clear();
            say(if json { serde_json::to_string(&dispatch)? } else { done_line(&dispatch) })?;
            return Ok(ExitCode::SUCCESS);
        }
        tokio::time::sleep(POLL).await;
    }
}

fn done_line(dispatch: &Dispatch) -> String {
    let (id, p) = (dispatch.id, &dispatch.progress);
    match dispatch.kind.as_str() {
        "paged" => format!(
            "{id} done: {} pages, {} items, {} records, {} unfit, {} failed",
            p.pages, p.items, p.records, p.unfit, p.failed
        ),
        "manifest" => format!(
            "{id} done: {} started, {} failed, {} cancelled",
            p.finished - p.failed - p.skipped,
            p.failed,
            p.skipped
        ),
        _ => format!(
            "{id} done: {} pages{}, {} links, {} duplicates skipped, {} failed, {} not allowed",
            p.pages,
            again(p),
            p.links,
            p.duplicates,
            p.failed,
            p.skipped
        ),
    }
}

/// What of the pages were visits of known ones, and what that saved; nothing where there were none.
pub fn again(p: &Progress) -> String {
    if p.revisits == 0 {
        return String::new();
    }
    let saved = bytes(p.bytes_saved.max(0) as u64);
    format!(" ({} of them again, {} not modified, {saved} saved)", p.revisits, p.not_modified)
}

/// A progress bar on standard error; hidden where nobody looks.
pub fn bar(hidden: bool) -> ProgressBar {
    let bar = if hidden { ProgressBar::hidden() } else { ProgressBar::new(0) };
    let style = ProgressStyle::with_template("{elapsed_precise} [{bar:30}] {pos}/{len} jobs, {per_sec} {msg}");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "))
}

pub fn show(bar: &ProgressBar, dispatches: &[Dispatch]) {
    let sum = |of: fn(&Dispatch) -> i64| dispatches.iter().map(of).sum::<i64>().max(0) as u64;
    bar.set_length(sum(|d| d.progress.scheduled));
    bar.set_position(sum(|d| d.progress.finished));
    let raw = sum(|d| d.progress.raw);
    bar.set_message(format!("pages {}, to archive {raw}", sum(|d| d.progress.pages)));
}
