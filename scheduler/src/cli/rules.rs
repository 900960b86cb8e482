//! `dodo robots` and `dodo url`: the rules themselves, without a cluster.

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;
use dodo_common::model::robots::{ROBOTS_BYTES_MAX, Robots as Rules};
use dodo_common::model::url::{canonical, ruled, steps};
use dodo_common::model::url_rules::UrlRules;

use crate::cli::crawl::RuleFlags;
use crate::cli::say;

#[derive(Args, Debug)]
pub struct Robots {
    /// A robots.txt: a file, or its URL
    source: String,
    /// The crawler's product token
    #[arg(long, default_value = "dodo")]
    agent: String,
    /// URLs or paths to judge
    #[arg(required = true)]
    urls: Vec<String>,
    /// Print JSON for scripts
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
pub struct CanonicalUrl {
    url: String,
    /// The page it stands on
    #[arg(long)]
    base: Option<String>,
    #[command(flatten)]
    rules: RuleFlags,
    /// Print JSON for scripts
    #[arg(long)]
    json: bool,
}

/// Exits with 1 when one of the URLs is forbidden.
pub async fn robots(args: Robots) -> anyhow::Result<ExitCode> {
    let rules = Rules::parse(&read(&args.source).await?);
    let mut all = true;
    for given in &args.urls {
        let path = match canonical(given, None) {
            Ok(url) => url.url.query().map_or(url.url.path().to_owned(), |query| format!("{}?{query}", url.url.path())),
            Err(_) if given.starts_with('/') => given.clone(),
            Err(error) => bail!("{given} is neither a URL nor a path: {error}"),
        };
        let verdict = rules.decide(&args.agent, &path);
        all &= verdict.allowed;
        let word = if verdict.allowed { "allowed" } else { "forbidden" };
        let rule = verdict.rule.as_ref();
        say(if args.json {
            serde_json::json!({ "url": given, "allowed": verdict.allowed, "line": rule.map(|r| r.line), "rule": rule.map(|r| &r.text) })
                .to_string()
        } else {
            let by = rule.map_or("no rule matches".to_owned(), |rule| format!("line {}: {}", rule.line, rule.text));
            format!("{word:<9}  {given}  ({by})")
        })?;
    }
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn read(source: &str) -> anyhow::Result<Vec<u8>> {
    if !source.starts_with("http://") && !source.starts_with("https://") {
        return std::fs::read(source).with_context(|| format!("cannot read {source}"));
    }
    let client = reqwest::Client::builder()
        .timeout(std::time::Duration::from_secs(20))
        .user_agent(concat!("dodo/", env!("CARGO_PKG_VERSION")))
        .build()?;
    let mut answer = client.get(source).send().await.with_context(|| format!("cannot fetch {source}"))?;
    match answer.status().as_u16() {
        200..=299 => {}
        // Unavailable: nothing is forbidden (RFC 9309 2.3.1.3).
        400..=499 => return Ok(Vec::new()),
        status => bail!("{source} answered {status}: until it can be read everything is forbidden"),
    }
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.with_context(|| format!("{source} broke off"))? {
        body.extend_from_slice(&chunk);
        if body.len() >= ROBOTS_BYTES_MAX {
            break;
        }
    }
    Ok(body)
}

pub fn url(args: &CanonicalUrl) -> anyhow::Result<ExitCode> {
    let base = match &args.base {
        Some(base) => Some(url::Url::parse(base).with_context(|| format!("{base} is no URL"))?),
        None => None,
    };
    let rules = UrlRules::new(&args.rules.url_rules, &args.rules.drop_param).map_err(anyhow::Error::msg)?;
    let result = ruled(&args.url, base.as_ref(), &rules);
    let steps = steps(&args.url, base.as_ref(), &rules);
    if args.json {
        let value = serde_json::json!({
            "canonical": result.as_ref().ok().map(|found| found.url.as_str()),
            "host": result.as_ref().ok().map(|found| &found.host),
            "hash": result.as_ref().ok().map(|found| format!("{:032x}", found.hash.0)),
            "error": result.as_ref().err().map(ToString::to_string),
            "steps": steps,
        });
        say(value.to_string())?;
    } else {
        for (step, value) in steps {
            say(format!("{step:<24} {value}"))?;
        }
    }
    Ok(if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
