//! Does nothing, durably: the measure of the pipeline itself. A payload becomes an entry of `items`. Its dispatch may
//! ask it to behave as badly as a job can: to hold its permit, to fail, to take its worker along.

use std::time::Duration;

use dodo_common::db::commit::Finished;
use dodo_common::db::load::Loaded;
use dodo_common::db::pool::DbError;
use dodo_common::model::job::{Job, Outcome};
use dodo_common::model::spec::NoopSpec;
use dodo_common::model::stream_id::StreamId;
use dodo_common::stream::names::ITEMS;

use crate::context::Context;
use crate::done::{Done, Effect};
use crate::jobs::end;

pub async fn run(ctx: &Context, entry: StreamId, row: Loaded) -> Done {
    let job = row.job;
    let started_ms = ctx.clock.now_ms();
    let spec = match serde_json::from_value::<NoopSpec>(row.noop.unwrap_or_default()) {
        Ok(spec) => spec,
        Err(error) => {
            let error = DbError::Input(format!("its spec is not one of this version: {error}"));
            return end::unread(ctx, entry, &job, "its dispatch", &error).await;
        }
    };
    if spec.sleep_ms > 0 {
        tokio::time::sleep(Duration::from_millis(spec.sleep_ms)).await;
    }
    if spec.abort {
        if ctx.settings.allow_abort {
            tracing::error!("a job aborts this process, as it was asked to");
            std::process::abort();
        }
        let reason = "it was asked to abort its worker, which does not let it: DODO_ALLOW_ABORT is not set";
        return end::finish(entry, &job, Outcome::Failed, reason);
    }
    match &spec.fail {
        Some(why) => end::retry(ctx, entry, &job, why),
        None => finish(ctx, entry, job, started_ms),
    }
}

fn finish(ctx: &Context, entry: StreamId, job: Job, started_ms: i64) -> Done {
    let raw = job
        .payload
        .as_ref()
        .map(|payload| (ITEMS, end::raw_entry(ctx, &job, payload.to_string().into_bytes(), Vec::new())));
    let mut finished = Finished::new(job.key, Outcome::Ok, None);
    finished.started_ms = Some(started_ms);
    Done::new(entry, Effect::Finished { job: Box::new(finished), raw, dispatch: job.dispatch })
}
