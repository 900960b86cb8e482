//! Starts the dispatch of a manifest's entry.

use dodo_common::db::commit::Finished;
use dodo_common::db::load::Loaded;
use dodo_common::db::manifest;
use dodo_common::db::pool::DbError;
use dodo_common::model::job::Outcome;
use dodo_common::model::stream_id::StreamId;
use dodo_common::stream::queue;

use crate::context::Context;
use crate::done::{Done, Effect};
use crate::jobs::end::{finish, retry};

pub async fn run(ctx: &Context, entry: StreamId, row: Loaded) -> Done {
    let job = row.job;
    let number = |name: &str| job.payload.as_ref().and_then(|payload| payload[name].as_i64());
    let (Some(index), Some(occurrence)) = (number("entry"), number("occurrence")) else {
        return finish(entry, &job, Outcome::Failed, "the job names no entry");
    };
    // Idempotent by its key: killed after this, the next try finds the dispatch.
    match manifest::start(&ctx.db, &ctx.incarnation, &job.key, job.dispatch, index as i32, occurrence).await {
        Ok(Some(started)) => {
            let gained = started.hosts.into_iter().map(|host| (job.key.tenant.clone(), host)).collect();
            if let Err(error) = queue::hint(&ctx.redis, gained).await {
                tracing::debug!(%error, "the hint did not get through; a scan finds the jobs");
            }
            let reason = format!("entry {index}, occurrence {occurrence}: dispatch {}", started.submitted.id);
            let finished = Finished::new(job.key.clone(), Outcome::Ok, Some(reason));
            Done::new(entry, Effect::Finished { job: Box::new(finished), raw: None, dispatch: job.dispatch })
        }
        Ok(None) => finish(entry, &job, Outcome::Cancelled, "its manifest is not in force any more"),
        Err(DbError::WorkerRefused(why)) => {
            ctx.refuse(&why);
            std::future::pending().await
        }
        Err(DbError::Input(why)) => finish(entry, &job, Outcome::Failed, &why),
        Err(error) => retry(ctx, entry, &job, &format!("cannot start it: {error}")),
    }
}
