//! What a run of `dodo up` waits for, and what it says at its end.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dodo_common::config::Logging;
use dodo_common::db::dispatch::{self, Dispatch, Progress};
use dodo_common::db::segment;
use dodo_common::lifecycle::Lifecycle;
use dodo_common::model::job::TENANT_DEFAULT;
use uuid::Uuid;

use crate::cli::crawl as bar;
use crate::cli::{bytes, records, say};
use crate::context::Context;
use crate::local::sample::Sample;
use crate::report;

const POLL: Duration = Duration::from_millis(200);
/// Dispatches looked at for those that others have started.
const LATEST: i64 = 1000;
/// The report of a run, in its data directory.
const REPORT: &str = "special_file.json";

/// The dispatches of this run: those it found open, those it was told to start, and those they start.
pub struct Watched {
    pub ids: HashSet<Uuid>,
}

impl Watched {
    /// Waits until every dispatch is done, or for Ctrl-C; returns how far they are, and whether all are done.
    pub async fn wait(
        &mut self,
        ctx: &Context,
        lifecycle: &Lifecycle,
        sample: Option<&Sample>,
        quiet: bool,
    ) -> anyhow::Result<(Vec<Dispatch>, bool)> {
        let bar = bar::bar(quiet);
        let mut pending = sample;
        loop {
            if let Some(sample) = pending
                && let Some(id) = sample.dispatch(ctx).await?
            {
                self.ids.insert(id);
                pending = None;
            }
            let seen = self.look(ctx).await;
            let dispatches = seen.as_deref().unwrap_or_default();
            bar::show(&bar, dispatches);
            let done =
                pending.is_none() && seen.is_some() && dispatches.iter().all(|dispatch| dispatch.state == "done");
            if done || lifecycle.soft.is_cancelled() {
                bar.finish_and_clear();
                return Ok((seen.unwrap_or_default(), done));
            }
            tokio::select! { () = lifecycle.soft.cancelled() => {}, () = tokio::time::sleep(POLL) => {} }
        }
    }

    /// The watched dispatches; nothing while the database does not answer: one that restarts is waited for.
    async fn look(&mut self, ctx: &Context) -> Option<Vec<Dispatch>> {
        let latest = dispatch::list(&ctx.db, TENANT_DEFAULT, None, LATEST).await.ok()?;
        // Newest first: a child comes before its parent.
        for dispatch in latest.iter().rev() {
            if dispatch.state != "done" || dispatch.parent.is_some_and(|parent| self.ids.contains(&parent)) {
                self.ids.insert(dispatch.id);
            }
        }
        let mut dispatches: Vec<Dispatch> = latest.into_iter().filter(|d| self.ids.contains(&d.id)).collect();
        let missing: Vec<Uuid> =
            self.ids.iter().filter(|id| dispatches.iter().all(|d| d.id != **id)).copied().collect();
        for id in missing {
            dispatches.push(dispatch::get(&ctx.db, TENANT_DEFAULT, id).await.ok()??);
        }
        Some(dispatches)
    }
}

/// What a run has done.
pub struct Summary {
    /// Of the crawls.
    web: Progress,
    /// Of the page dispatches.
    paged: Progress,
    done: bool,
    seconds: f64,
    objects: i64,
    archived: i64,
    report: PathBuf,
}

impl Summary {
    /// Adds up, and writes the report beside.
    pub async fn of(
        ctx: &Context,
        data: &Path,
        dispatches: &[Dispatch],
        done: bool,
        started: Instant,
    ) -> anyhow::Result<Self> {
        let (mut web, mut paged) = (Progress::default(), Progress::default());
        for dispatch in dispatches {
            let to = if dispatch.kind == "paged" { &mut paged } else { &mut web };
            to.add(&dispatch.progress);
        }
        let seconds = started.elapsed().as_secs_f64();
        let (objects, archived) = segment::totals(&ctx.db).await.unwrap_or_default();
        let file = data.join(REPORT);
        match report::compute(ctx, TENANT_DEFAULT).await {
            Ok(totals) => records::write(&file, &totals)?,
            Err(error) => tracing::warn!(%error, "the report cannot be made"),
        }
        Ok(Self { web, paged, done, seconds, objects, archived, report: file })
    }

    pub fn print(&self, json: bool, api: &str, logging: &Logging) -> anyhow::Result<()> {
        let (p, a) = (&self.web, &self.paged);
        if json {
            return say(serde_json::json!({
                "done": self.done, "pages": p.pages, "links": p.links, "duplicates": p.duplicates,
                "failed": p.failed + a.failed, "skipped": p.skipped + a.skipped, "bytes": p.bytes + a.bytes,
                "api_pages": a.pages, "items": a.items, "records": a.records, "unfit": a.unfit,
                "archive_objects": self.objects, "archive_bytes": self.archived, "seconds": self.seconds,
                "report": self.report, "api": format!("http://{api}"), "logs": logging.log_dir,
            })
            .to_string());
        }
        let items = format!("\n  api pages   {} fetched, {} items, {} records", a.pages, a.items, a.records);
        say(format!(
            "{}\n  pages       {} fetched{}, {} received\n  links       {} stored, {} duplicates skipped{}\n  \
             not fetched {} failed, {} not allowed\n  archive     {} objects, {}\n  time        {:.1} s\n  \
             report      {}\n  API         http://{api}\n  logs        {}",
            if self.done { "done" } else { "stopped; start again on the same data to go on" },
            p.pages,
            bar::again(p),
            bytes((p.bytes + a.bytes).max(0) as u64),
            p.links,
            p.duplicates,
            if a.pages > 0 { items.as_str() } else { "" },
            p.failed + a.failed,
            p.skipped + a.skipped,
            self.objects,
            bytes(self.archived.max(0) as u64),
            self.seconds,
            self.report.display(),
            logging.log_dir.display(),
        ))
    }
}
