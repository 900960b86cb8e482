//! The demo: the bundled web site and the bundled paged API, started by a manifest dropped into the S3 prefix.

use std::path::Path;

use anyhow::{Context as _, bail};
use chrono::DateTime;
use dodo_common::db::{manifest, source};
use dodo_common::model::job::TENANT_DEFAULT;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::cli::crawl::CrawlFlags;
use crate::context::Context;
use crate::local::reviews::{SOURCE, SampleApi};
use crate::local::site::SampleSite;

/// The delay at which the bundled site is crawled, milliseconds: it is our own.
const DELAY_MS: i64 = 20;
const MANIFEST: &str = "sample.json";
/// Manifests that are looked through for ours.
const LATEST: i64 = 100;

pub struct Sample {
    site: SampleSite,
    api: SampleApi,
    name: String,
    content: Value,
}

impl Sample {
    /// Serves both where the last start on this directory served them: what is unfinished finds them again.
    pub fn start(data: &Path, flags: &CrawlFlags, prefix: &str, now_ms: i64) -> anyhow::Result<Self> {
        let kept = data.join("sample-ports");
        let text = std::fs::read_to_string(&kept).unwrap_or_default();
        let mut ports = text.split_whitespace().map(|port| port.parse().unwrap_or(0));
        let mut port = || ports.next().unwrap_or(0);
        let site = SampleSite::start_on(None, port()).or_else(|_| SampleSite::start(None))?;
        let api = SampleApi::start_on(port()).or_else(|_| SampleApi::start_on(0))?;
        std::fs::write(&kept, format!("{} {}", site.addr().port(), api.addr().port()))
            .with_context(|| format!("cannot write {}", kept.display()))?;
        let options = json!({
            "depth": flags.depth, "max_pages": flags.max_pages, "scope": flags.scope,
            "delay_ms": flags.delay.unwrap_or(DELAY_MS), "host_concurrency": flags.host_concurrency,
            "sitemaps": flags.no_sitemaps.then_some(false), "nofollow": flags.nofollow, "noindex": flags.noindex, "follow_canonical": flags.follow_canonical,
            "assets": flags.assets.then_some(true),
            "url_rules": flags.rules.url_rules, "drop_params": flags.rules.drop_param,
            "include": flags.include, "exclude": flags.exclude,
            "max_pages_per_host": flags.bounds.max_pages_per_host, "host_allowance": flags.bounds.host_allowance,
            "near_duplicates": flags.bounds.near_duplicates,
            "max_path_segments": flags.bounds.max_path_segments, "max_repeats": flags.bounds.max_repeats,
            "max_query_params": flags.bounds.max_query_params, "content_types": flags.bounds.content_types,
            "max_bytes": flags.max_bytes, "max_seconds": flags.max_seconds, "retries": flags.retries, "priority": flags.priority,
        });
        let mut content = json!([
            { "service": "crawl", "url": site.url(), "version": 1, "options": options },
            { "service": SOURCE, "url": api.base(), "version": 1 },
        ]);
        // The same content starts nothing new: that is what a key asks for, and no key does not.
        let name = match &flags.key {
            Some(key) => format!("{prefix}/{key}-{MANIFEST}"),
            None => {
                let now = DateTime::from_timestamp_millis(now_ms).unwrap_or_default().to_rfc3339();
                for entry in content.as_array_mut().into_iter().flatten() {
                    entry["start"] = json!(now);
                }
                format!("{prefix}/{MANIFEST}")
            }
        };
        Ok(Self { site, api, name, content })
    }

    /// host:port of both.
    pub fn places(&self) -> [String; 2] {
        [self.site.addr().to_string(), self.api.addr().to_string()]
    }

    /// Stores the API's document and drops the manifest.
    pub async fn submit(&self, ctx: &Context) -> anyhow::Result<()> {
        let document = serde_json::from_value(SampleApi::document()).context("the sample's document is damaged")?;
        source::put(&ctx.db, TENANT_DEFAULT, SOURCE, &document).await?;
        ctx.store.put(&self.name, self.text().into()).await?;
        Ok(())
    }

    /// The dispatch of the manifest, once a refresh has found it.
    pub async fn dispatch(&self, ctx: &Context) -> anyhow::Result<Option<Uuid>> {
        let hash = crate::manifests::hash_of(self.text().as_bytes());
        // A database that restarts is waited for.
        let manifests = manifest::list(&ctx.db, TENANT_DEFAULT, false, LATEST).await.unwrap_or_default();
        let Some(ours) = manifests.into_iter().find(|m| m.name == self.name && m.hash == hash) else { return Ok(None) };
        match ours.reasons.first() {
            Some(reason) => bail!("the sample cannot be crawled so: {}", reason.reason),
            None => Ok(ours.dispatch),
        }
    }

    fn text(&self) -> String {
        self.content.to_string()
    }

    pub async fn stop(&mut self) {
        self.site.stop().await;
    }
}
