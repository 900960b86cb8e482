//! Timers: what is submitted again and again, each time once, by the leader.

use std::sync::Arc;
use std::time::Duration;

use dodo_common::db::pool::{DbError, DbResult};
use dodo_common::db::source;
use dodo_common::db::timer::{self, Due, Work};
use dodo_common::model::recurrence::Recurrence;
use dodo_common::model::terms::Terms;

use crate::api::crawl::{self, NoopRequest};
use crate::api::source::{RunRequest, planned};
use crate::context::{Context, Term};

const EVERY: Duration = Duration::from_millis(500);
/// Timers that go off in one tick.
const DUE_MAX: i64 = 100;

/// Runs for one term of leadership.
pub async fn run(ctx: Arc<Context>, term: Term) {
    let mut failing = false;
    loop {
        match tick(&ctx, &term).await {
            Ok(_) => failing = false,
            Err(DbError::LeaderRefused(_)) => return,
            Err(error) => {
                if !failing {
                    tracing::warn!(%error, "timers wait");
                }
                failing = true;
            }
        }
        tokio::select! { () = term.over.cancelled() => return, () = tokio::time::sleep(EVERY) => {} }
    }
}

/// Submits what due timers say; returns how many dispatches that are. Times that were missed are one.
pub async fn tick(ctx: &Context, term: &Term) -> DbResult<usize> {
    let mut started = 0;
    for due in timer::due(&ctx.db, DUE_MAX).await? {
        let (id, tenant) = (due.timer.id, &due.tenant);
        let work = match work(ctx, &due).await {
            Err(error) if error.is_data() => Err(error.to_string()),
            work => work?,
        };
        let next = match (&due.timer.cron, due.timer.every_s) {
            (Some(cron), _) => {
                Recurrence::parse(cron, due.timer.timezone.as_deref()).ok().and_then(|cron| cron.after(due.now))
            }
            (None, every_s) => due.after_seconds(every_s.unwrap_or(3600)),
        };
        if let Err(why) = &work {
            tracing::warn!(timer = %id, tenant, "a timer can start nothing: {why}");
        }
        let submitted = match timer::fire(&ctx.db, term.epoch, &due, &work, next).await {
            Ok(Some(submitted)) => submitted,
            Ok(None) => continue,
            // One that is at fault holds up no other, and comes again at its next time.
            Err(error) if error.is_data() => {
                tracing::warn!(timer = %id, tenant, %error, "a timer cannot go off");
                timer::fire(&ctx.db, term.epoch, &due, &Err(error.to_string()), next).await?;
                continue;
            }
            Err(error) => return Err(error),
        };
        tracing::info!(timer = %id, tenant, at = %due.at, dispatch = %submitted.id, "a timer has gone off");
        started += 1;
        let hosts = match work {
            Ok((Work::Crawl { seeds, .. }, _)) => seeds.into_iter().map(|seed| seed.host).collect(),
            _ => vec![String::new()],
        };
        let gained = hosts.into_iter().map(|host| (tenant.clone(), host)).collect();
        ctx.hint(gained).await;
    }
    Ok(started)
}

/// What a timer submits, checked as if it were asked for now; or one line that says why it cannot be.
async fn work(ctx: &Context, due: &Due) -> DbResult<Result<(Work, Terms), String>> {
    let request = due.timer.request.clone();
    let bad = |error: serde_json::Error| format!("its request is none of this version: {error}");
    Ok(match due.timer.kind.as_str() {
        "crawl" => serde_json::from_value(request).map_err(bad).and_then(|request| {
            let crawl = crawl::checked(request, &ctx.duties.contact, ctx.clock.now_ms()).map_err(|error| error.1)?;
            Ok((Work::Crawl { spec: Box::new(crawl.spec), seeds: crawl.seeds }, crawl.terms))
        }),
        "noop" => serde_json::from_value::<NoopRequest>(request).map_err(bad).and_then(|request| {
            let (spec, payloads, terms) = crawl::noops(&request, ctx.clock.now_ms()).map_err(|error| error.1)?;
            Ok((Work::Noop { spec, payloads }, terms))
        }),
        _ => {
            let name = request["source"].as_str().unwrap_or_default().to_owned();
            let run: Result<RunRequest, _> = match request.get("run") {
                Some(run) => serde_json::from_value(run.clone()),
                None => Ok(RunRequest::default()),
            };
            let found = source::get(&ctx.db, &due.tenant, &name).await?;
            run.map_err(bad).and_then(|run| {
                let found = found.ok_or_else(|| format!("there is no source {name} any more"))?;
                let (spec, terms) = planned(run, found, ctx).map_err(|error| error.1)?;
                Ok((Work::Paged { spec: Box::new(spec) }, terms))
            })
        }
    })
}
