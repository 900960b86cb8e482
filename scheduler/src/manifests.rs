//! Manifests: the prefix compared with what is known of it, and the entries expanded, one future occurrence each.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use dodo_common::db::dispatch;
use dodo_common::db::manifest::{self, Manifest, Read};
use dodo_common::db::pool::{DbError, DbResult};
use dodo_common::db::source;
use dodo_common::fail;
use dodo_common::model::job::TENANT_DEFAULT;
use dodo_common::model::manifest::{BYTES_MAX, Checked, Reason, parse};
use dodo_common::storage::object::StoreError;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use url::Url;

use crate::api::crawl::may_ask;
use crate::context::{Context, Term};

/// Entries are expanded this often, so many at once; and only while so many dispatches are open.
const EXPAND: Duration = Duration::from_millis(250);
const EXPAND_MAX: i64 = 2000;
const OPEN_MAX: i64 = 2000;
/// Manifests under the prefix.
const FILES_MAX: i64 = 10_000;

/// What one refresh did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub files: usize,
    pub accepted: usize,
    pub malformed: usize,
    pub deleted: usize,
    /// Files that could not be read or recorded; the next refresh tries them again.
    pub unreadable: usize,
}

#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error(transparent)]
    Db(#[from] DbError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ManifestError {
    fn is_of_one_file(&self) -> bool {
        match self {
            ManifestError::Db(error) => error.is_data(),
            ManifestError::Store(_) => true,
        }
    }
}

/// Runs for one term of leadership.
pub async fn run(ctx: Arc<Context>, term: Term) {
    let every = Duration::from_millis(ctx.duties.manifest_refresh_ms);
    let mut refreshed: Option<Instant> = None;
    let mut failing = false;
    while !term.over.is_cancelled() {
        if refreshed.is_none_or(|at| at.elapsed() >= every) {
            refreshed = Some(Instant::now());
            match refresh(&ctx, &term).await {
                Ok(summary) if summary != Summary { files: summary.files, ..Summary::default() } => {
                    tracing::info!(?summary, "manifests refreshed");
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "manifests cannot be refreshed"),
            }
        }
        match expand(&ctx, &term).await {
            Ok(_) => failing = false,
            Err(DbError::LeaderRefused(_)) => return,
            Err(error) => {
                if !failing {
                    tracing::warn!(%error, "manifests cannot be expanded");
                }
                failing = true;
            }
        }
        tokio::select! { () = term.over.cancelled() => {}, () = tokio::time::sleep(EXPAND.min(every)) => {} }
    }
}

/// Compares the prefix with what is in force, and notes the attempt and its result.
pub async fn refresh(ctx: &Context, term: &Term) -> Result<Summary, ManifestError> {
    let outcome = tick(ctx, term).await;
    let (files, accepted, error) = match &outcome {
        Ok(summary) => (summary.files as i32, summary.accepted as i32, None),
        Err(error) => (0, 0, Some(error.to_string())),
    };
    metrics::counter!("dodo_manifest_refreshes_total", "ok" => if error.is_none() { "true" } else { "false" })
        .increment(1);
    manifest::refreshed(&ctx.db, term.epoch, files, accepted, error.as_deref()).await?;
    outcome
}

async fn tick(ctx: &Context, term: &Term) -> Result<Summary, ManifestError> {
    let mut summary = Summary::default();
    let listing = ctx.store.list_stamped(&ctx.duties.manifest_prefix, ctx.clock.now_ms()).await?;
    let current: HashMap<String, Manifest> = manifest::list(&ctx.db, TENANT_DEFAULT, true, FILES_MAX)
        .await?
        .into_iter()
        .map(|manifest| (manifest.name.clone(), manifest))
        .collect();
    let mut names = HashSet::new();
    let files: Vec<_> = listing.into_iter().filter(|(name, ..)| name.ends_with(".json")).collect();
    // What lies beyond the bound is neither read nor taken for deleted.
    let cut = files.len() > FILES_MAX as usize;
    if cut {
        tracing::warn!(files = files.len(), "only {FILES_MAX} manifests are read, and none is taken for deleted");
    }
    for (name, bytes, stamp) in files.into_iter().take(FILES_MAX as usize) {
        summary.files += 1;
        let known = current.get(&name);
        if stamp.is_empty() || known.is_none_or(|known| known.stamp != stamp) {
            // Deleted between the listing and the reading: the next refresh sees that.
            let recorded = match read(ctx, term, &name, bytes, &stamp, known).await {
                Ok(Some(recorded)) => recorded,
                Ok(None) => continue,
                // One file that is at fault holds up no other.
                Err(error) if error.is_of_one_file() => {
                    tracing::warn!(manifest = name, %error, "a manifest cannot be read or recorded");
                    summary.unreadable += 1;
                    names.insert(name);
                    continue;
                }
                Err(error) => return Err(error),
            };
            match recorded.state.as_str() {
                _ if known.is_some_and(|known| known.hash == recorded.hash) => {}
                "accepted" => summary.accepted += 1,
                _ => summary.malformed += 1,
            }
        }
        names.insert(name);
    }
    for name in current.keys().filter(|name| !cut && !names.contains(*name)) {
        manifest::delete(&ctx.db, term.epoch, TENANT_DEFAULT, name).await?;
        tracing::info!(manifest = name, "a manifest was deleted; what has not started is cancelled");
        summary.deleted += 1;
    }
    Ok(summary)
}

/// Reads one file and records it, if its content is another than the known one.
async fn read(
    ctx: &Context,
    term: &Term,
    name: &str,
    bytes: u64,
    stamp: &str,
    known: Option<&Manifest>,
) -> Result<Option<Manifest>, ManifestError> {
    if bytes > BYTES_MAX {
        let hash = format!("too large: {bytes} bytes {stamp}");
        let reasons = [Reason { entry: None, reason: format!("it has {bytes} bytes; at most {BYTES_MAX} are read") }];
        let read = Read { name, hash: &hash, origin: "s3", stamp, bytes: bytes as i64 };
        return Ok(Some(manifest::record(&ctx.db, Some(term.epoch), TENANT_DEFAULT, &read, Err(&reasons)).await?));
    }
    let body = match ctx.store.get(name).await {
        Ok(body) => body,
        Err(StoreError::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    fail::point_async("manifest-read").await;
    if let Some(known) = known
        && known.hash == hash_of(&body)
    {
        if known.stamp != stamp {
            manifest::restamp(&ctx.db, term.epoch, TENANT_DEFAULT, name, stamp).await?;
        }
        return Ok(Some(known.clone()));
    }
    Ok(Some(record(ctx, Some(term.epoch), ("s3", name, stamp), &body).await?))
}

/// Records a manifest's content, accepted or malformed. The one path of S3 and API.
pub async fn record(
    ctx: &Context,
    epoch: Option<i64>,
    (origin, name, stamp): (&str, &str, &str),
    body: &[u8],
) -> DbResult<Manifest> {
    let content = checked(ctx, body).await?;
    let hash = hash_of(body);
    let read = Read { name, hash: &hash, origin, stamp, bytes: body.len() as i64 };
    let recorded =
        manifest::record(&ctx.db, epoch, TENANT_DEFAULT, &read, content.as_deref().map_err(Vec::as_slice)).await?;
    match &content {
        Ok(entries) => tracing::info!(manifest = name, entries = entries.len(), "manifest accepted"),
        Err(reasons) => {
            let first = reasons.first().map(|reason| format!("entry {:?}: {}", reason.entry, reason.reason));
            tracing::warn!(
                manifest = name,
                reasons = reasons.len(),
                "manifest malformed: {}",
                first.unwrap_or_default()
            );
        }
    }
    Ok(recorded)
}

async fn checked(ctx: &Context, body: &[u8]) -> DbResult<Result<Vec<Checked>, Vec<Reason>>> {
    let sources: HashSet<String> = source::list(&ctx.db, TENANT_DEFAULT).await?.into_iter().map(|s| s.name).collect();
    let now = ctx.clock.now_ms();
    // Patterns of many entries may take long to compile: other tasks go on meanwhile.
    let entries = match tokio::task::block_in_place(|| parse(body, now, &|name| sources.contains(name))) {
        Ok(entries) => entries,
        Err(reasons) => return Ok(Err(reasons)),
    };
    let forbidden: Vec<Reason> = entries
        .iter()
        .enumerate()
        .filter_map(|(index, entry)| {
            let url = Url::parse(&entry.url).ok()?;
            let region = entry.options.region.as_deref();
            let reason = match may_ask(&url, &ctx.duties.contact) {
                Err(reason) => reason.to_owned(),
                Ok(()) => region.and_then(|region| ctx.pool.check_region(region).err())?,
            };
            Some(Reason { entry: Some(index), reason })
        })
        .take(dodo_common::model::manifest::REASONS_MAX)
        .collect();
    Ok(if forbidden.is_empty() { Ok(entries) } else { Err(forbidden) })
}

/// Schedules the next occurrences, unless so many dispatches are open that more would only wait.
async fn expand(ctx: &Context, term: &Term) -> DbResult<u64> {
    let room = OPEN_MAX - dispatch::open_count(&ctx.db).await?;
    let (scheduled, over) = manifest::expand(&ctx.db, term.epoch, room.clamp(0, EXPAND_MAX)).await?;
    if scheduled + over > 0 {
        tracing::debug!(scheduled, over, "entries expanded");
        fail::point_async("entries-expanded").await;
        ctx.hint(vec![(TENANT_DEFAULT.to_owned(), String::new())]).await;
    }
    Ok(scheduled)
}

/// What a manifest's content is known by.
pub fn hash_of(body: &[u8]) -> String {
    Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect()
}
