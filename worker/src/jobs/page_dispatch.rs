//! Emits a job for each page of an API; asks for the count first where it is missing.

use dodo_common::db::load::Loaded;
use dodo_common::db::page::{NEXT_MAX, NextJob, Paged};
use dodo_common::model::job::{Job, Outcome};
use dodo_common::model::paged::{Metadata, PagedSpec};
use dodo_common::model::source::Paging as Style;
use dodo_common::model::stream_id::StreamId;

use crate::context::Context;
use crate::done::Done;
use crate::jobs::{end, paging};

pub async fn run(ctx: &Context, entry: StreamId, row: Loaded) -> Done {
    let job = &row.job;
    let paging = match paging::load(ctx, entry, job).await {
        Ok(paging) => paging,
        Err(done) => return *done,
    };
    match plan(&paging.spec, job, row.paging.metadata) {
        Ok((outcome, reason, paged)) => paging::finish(entry, job, paging::ended(job, outcome, &reason), paged),
        Err(why) => end::finish(entry, job, Outcome::Failed, &why),
    }
}

/// How it ends, why, and what follows.
fn plan(spec: &PagedSpec, job: &Job, known: Option<(Metadata, i32)>) -> Result<(Outcome, String, Paged), String> {
    let number = |name: &str| job.payload.as_ref().and_then(|payload| payload[name].as_i64()).map(|n| n as i32);
    let (asked, from) = (number("round").unwrap_or(0), number("from").unwrap_or(1));
    let next = |next: Vec<NextJob>| Paged { next, ..Paged::default() };
    if let Style::Cursor { .. } = &spec.document.paging {
        let first = paging::cursor_job(spec, job.dispatch, 1, None, Vec::new())?;
        return Ok((Outcome::Ok, String::new(), next(vec![first])));
    }
    if let Some((metadata, round)) = known {
        if asked != 0 && asked != round {
            let reason = format!("the count has changed since: round {asked} is superseded by round {round}");
            return Ok((Outcome::Duplicate, reason, Paged::default()));
        }
        return Ok((Outcome::Ok, String::new(), next(pages(spec, job, round, from, metadata)?)));
    }
    let reason = match spec.metadata.as_ref().map(|given| spec.metadata(given)) {
        Some(Ok(metadata)) => {
            let next = pages(spec, job, 1, from, metadata)?;
            return Ok((
                Outcome::Ok,
                String::new(),
                Paged { metadata: Some((None, metadata)), next, ..Paged::default() },
            ));
        }
        Some(Err(why)) => format!("its metadata is malformed: {why}"),
        None => "its metadata is missing".to_owned(),
    };
    Ok((Outcome::Ok, reason, next(vec![paging::metadata_job(spec, job.dispatch)?])))
}

/// The jobs of pages from `from` on, and one for the rest where they are many. A count of 0 is not believed
/// before the first page has shown it.
fn pages(spec: &PagedSpec, job: &Job, round: i32, from: i32, metadata: Metadata) -> Result<Vec<NextJob>, String> {
    let last = metadata.total_pages.max(1);
    let until = last.min(from.saturating_add(NEXT_MAX as i32 - 2));
    let mut next = (from..=until)
        .map(|page| paging::page_job(spec, job.dispatch, round, page, metadata.total_pages, None))
        .collect::<Result<Vec<_>, _>>()?;
    if until < last {
        next.push(paging::pages_job(job.dispatch, round, until + 1));
    }
    Ok(next)
}
