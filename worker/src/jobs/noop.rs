//! Does nothing, durably: the measure of the pipeline itself. A payload becomes an entry of `items`.

use dodo_common::db::commit::Finished;
use dodo_common::db::schedule::Loaded;
use dodo_common::model::job::Outcome;
use dodo_common::model::stream_id::StreamId;
use dodo_common::stream::names::ITEMS;
use dodo_common::stream::raw::RawEntry;

use crate::committer::{Done, Effect};
use crate::context::Context;

pub fn run(ctx: &Context, entry: StreamId, row: Loaded) -> Done {
    let job = row.job;
    let raw = job.payload.map(|payload| {
        let entry = RawEntry {
            tenant: job.key.tenant.clone(),
            generation: ctx.incarnation.generation,
            job: job.key.id,
            attempt: job.key.attempt,
            writer: ctx.incarnation.id,
            about: payload.to_string().into_bytes(),
            body: Vec::new(),
        };
        (ITEMS, entry)
    });
    let finished = Finished::new(job.key, Outcome::Ok, None);
    Done::new(entry, Effect::Finished { job: Box::new(finished), raw, dispatch: job.dispatch })
}
