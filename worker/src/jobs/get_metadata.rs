//! Asks an API how much it has; then the page dispatch goes on.

use dodo_common::db::load::Loaded;
use dodo_common::db::page::Paged;
use dodo_common::model::job::Outcome;
use dodo_common::model::stream_id::StreamId;
use url::Url;

use crate::context::Context;
use crate::done::Done;
use crate::jobs::{end, paging};

pub async fn run(ctx: &Context, entry: StreamId, row: Loaded) -> Done {
    let job = &row.job;
    if let Some((_, round)) = row.paging.metadata {
        // Another has asked meanwhile: no request.
        let paged = Paged { next: vec![paging::pages_job(job.dispatch, round, 1)], ..Paged::default() };
        return paging::finish(entry, job, paging::ended(job, Outcome::Duplicate, "the count is known already"), paged);
    }
    let Some(url) = job.url.as_deref().and_then(|url| Url::parse(url).ok()) else {
        return end::finish(entry, job, Outcome::Failed, "the job has no URL");
    };
    let paging = match paging::load(ctx, entry, job).await {
        Ok(paging) => paging,
        Err(done) => return *done,
    };
    let host = match end::ready(ctx, entry, job, row.host).await {
        Ok(host) => host,
        Err(done) => return *done,
    };
    let sent_ms = ctx.clock.now_ms();
    let answer = match paging::ask(ctx, &paging, &url, &host).await {
        Ok(answer) => answer,
        Err(why) => return paging::again(ctx, entry, job, sent_ms, why).await,
    };
    let mut done = match paging.spec.metadata(&answer.value) {
        Ok(metadata) => {
            let reason = format!("{} items on {} pages", metadata.total_items, metadata.total_pages);
            let mut finished = paging::ended(job, Outcome::Ok, &reason);
            paging::figures(&mut finished, &answer.fetched, Some(answer.started_ms));
            let next = vec![paging::pages_job(job.dispatch, 1, 1)];
            paging::finish(entry, job, finished, Paged { metadata: Some((None, metadata)), next, ..Paged::default() })
        }
        Err(why) => end::retry(ctx, entry, job, &format!("the metadata is malformed: {why}")),
    };
    done.requested = true;
    done
}
