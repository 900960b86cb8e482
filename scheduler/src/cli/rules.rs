//! `dodo robots` and `dodo url`: the rules themselves, without a cluster.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use dodo_common::model::robots::{ROBOTS_BYTES_MAX, ROBOTS_HOPS_MAX, Robots as Rules};
use dodo_common::model::url::{canonical, ruled, steps};
use dodo_common::model::url_rules::UrlRules;
use percent_encoding::{AsciiSet, percent_encode};
use reqwest::header::LOCATION;
use reqwest::redirect::Policy;
use url::Url;

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
    fetch(&client().build()?, source).await
}

/// Follows no redirect by itself: the crawler's rules are others.
fn client() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .timeout(Duration::from_secs(20))
        .redirect(Policy::none())
        .user_agent(concat!("dodo/", env!("CARGO_PKG_VERSION")))
}

/// What the crawler takes for the robots.txt at this URL.
///
/// # Errors
/// It cannot be reached, and the crawler would hold the host.
async fn fetch(http: &reqwest::Client, source: &str) -> anyhow::Result<Vec<u8>> {
    let mut url = Url::parse(source).with_context(|| format!("{source} is no URL"))?;
    for _ in 0..=ROBOTS_HOPS_MAX {
        let answer = http.get(url.clone()).send().await.with_context(|| format!("cannot fetch {url}"))?;
        match answer.status().as_u16() {
            200..=299 => return body(answer, &url).await,
            300..=399 => match redirect(&answer, &url) {
                Some(to) => url = to,
                None => break,
            },
            status @ (429 | 500..=599) => {
                bail!("{url} answered {status}: the host is held, and until it can be read everything is forbidden")
            }
            _ => break,
        }
    }
    // Unavailable, or too many redirects, or one to no page: nothing is forbidden (RFC 9309 2.3.1.2 and 2.3.1.3).
    Ok(Vec::new())
}

/// Where an answer redirects to, if that is a page. Bytes beyond ASCII are escaped as they are, as the crawler does it.
fn redirect(answer: &reqwest::Response, from: &Url) -> Option<Url> {
    let location = percent_encode(answer.headers().get(LOCATION)?.as_bytes(), &AsciiSet::EMPTY).to_string();
    Some(canonical(&location, Some(from)).ok()?.url)
}

/// As far as it is read, and a little more, by which the parser knows that it is cut.
async fn body(mut answer: reqwest::Response, url: &Url) -> anyhow::Result<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.with_context(|| format!("{url} broke off"))? {
        body.extend_from_slice(&chunk);
        if body.len() > ROBOTS_BYTES_MAX {
            break;
        }
    }
    Ok(body)
}

pub fn url(args: &CanonicalUrl) -> anyhow::Result<ExitCode> {
    let base = match &args.base {
        Some(base) => Some(Url::parse(base).with_context(|| format!("{base} is no URL"))?),
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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use axum::Router;
    use axum::extract::Path;
    use axum::http::StatusCode;
    use axum::response::Redirect;
    use axum::routing::get;
    use tokio::net::TcpListener;

    use super::*;

    const RULES: &str = "User-agent: *\nDisallow: /\n";

    /// `/hops/N` leads to the rules by N redirects, `/status/N` answers with that status alone.
    async fn site() -> String {
        let app = Router::new()
            .route("/hops/0", get(|| async { RULES }))
            .route("/hops/{left}", get(|Path(left): Path<u32>| async move { Redirect::to(&(left - 1).to_string()) }))
            .route("/mail", get(|| async { Redirect::to("mailto:a@b.example") }))
            .route("/status/{status}", get(|Path(it): Path<u16>| async move { StatusCode::from_u16(it).unwrap() }));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let site = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        site
    }

    #[tokio::test]
    async fn a_robots_txt_is_what_the_crawler_takes_for_it() {
        dodo_common::install_tls_provider();
        let (site, http) = (site().await, client().no_proxy().build().unwrap());
        let at = async |path: &str| fetch(&http, &format!("{site}/{path}")).await;
        for path in ["hops/0", "hops/1", "hops/5"] {
            assert_eq!(at(path).await.unwrap(), RULES.as_bytes(), "{path}");
        }
        for path in ["hops/6", "hops/20", "mail", "status/302", "status/403", "status/404", "status/428"] {
            assert_eq!(at(path).await.unwrap(), b"", "{path}");
        }
        for status in [429, 500, 503] {
            let error = at(&format!("status/{status}")).await.unwrap_err().to_string();
            assert!(error.contains(&format!("answered {status}: the host is held")), "{error}");
        }
    }
}
