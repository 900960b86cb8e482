//! What a commit writes, column by column, as its statements take it.

use uuid::Uuid;

use crate::db::commit::{Finished, Retry, TRIES_KEPT};
use crate::db::worker::Incarnation;

/// The finished jobs column by column.
#[derive(Default)]
pub struct Columns<'a> {
    tenant: Vec<&'a str>,
    id: Vec<Uuid>,
    attempt: Vec<i16>,
    outcome: Vec<&'static str>,
    reason: Vec<Option<&'a str>>,
    status: Vec<Option<i16>>,
    content_type: Vec<Option<&'a str>>,
    body_bytes: Vec<i64>,
    truncated: Vec<Option<&'a str>>,
    digest: Vec<Option<&'a str>>,
    title: Vec<Option<&'a str>>,
    language: Vec<Option<&'a str>>,
    location: Vec<Option<&'a str>>,
    address: Vec<Option<&'a str>>,
    started_ms: Vec<Option<i64>>,
    fetch_ms: Vec<Option<i32>>,
    raw_stream: Vec<Option<&'a str>>,
    raw_ms: Vec<Option<i64>>,
    raw_seq: Vec<Option<i64>>,
    links: Vec<Option<&'a str>>,
    link_count: Vec<Option<i32>>,
    known_count: Vec<i32>,
    items: Vec<i32>,
    found_parent: Vec<Uuid>,
    found_id: Vec<Uuid>,
    found_hash: Vec<Uuid>,
    found_url: Vec<&'a str>,
    found_host: Vec<&'a str>,
    found_depth: Vec<i16>,
    found_hops: Vec<i16>,
}

impl<'a> Columns<'a> {
    pub fn of(finished: &[&'a Finished]) -> Self {
        let mut c = Self::default();
        for job in finished {
            c.tenant.push(&job.key.tenant);
            c.id.push(job.key.id);
            c.attempt.push(job.key.attempt);
            c.outcome.push(job.outcome.as_str());
            c.reason.push(job.reason.as_deref());
            c.status.push(job.status);
            c.content_type.push(job.content_type.as_deref());
            c.body_bytes.push(job.body_bytes);
            c.truncated.push(job.truncated.as_deref());
            c.digest.push(job.digest.as_deref());
            c.title.push(job.title.as_deref());
            c.language.push(job.language.as_deref());
            c.location.push(job.location.as_deref());
            c.address.push(job.address.as_deref());
            c.started_ms.push(job.started_ms);
            c.fetch_ms.push(job.fetch_ms);
            c.raw_stream.push(job.raw.map(|(stream, _)| stream));
            c.raw_ms.push(job.raw.map(|(_, id)| id.ms as i64));
            c.raw_seq.push(job.raw.map(|(_, id)| id.seq as i64));
            c.links.push(job.links.as_deref());
            c.link_count.push(job.links.as_ref().map(|_| job.link_count));
            c.known_count.push(job.known_count);
            c.items.push(job.paged.as_ref().map_or(0, |paged| paged.items));
            for found in &job.found {
                c.found_parent.push(job.key.id);
                c.found_id.push(found.id);
                c.found_hash.push(found.hash);
                c.found_url.push(&found.url);
                c.found_host.push(&found.host);
                c.found_depth.push(found.depth);
                c.found_hops.push(found.hops);
            }
        }
        c
    }

    pub fn parameters<'p>(&'p self, worker: &'p Incarnation) -> [&'p (dyn tokio_postgres::types::ToSql + Sync); 32] {
        [
            &self.tenant,
            &self.id,
            &self.attempt,
            &self.outcome,
            &self.reason,
            &self.status,
            &self.content_type,
            &self.body_bytes,
            &self.truncated,
            &self.digest,
            &self.title,
            &self.language,
            &self.location,
            &self.address,
            &self.started_ms,
            &self.fetch_ms,
            &self.raw_stream,
            &self.raw_ms,
            &self.raw_seq,
            &self.links,
            &self.link_count,
            &self.known_count,
            &self.found_parent,
            &self.found_id,
            &self.found_hash,
            &self.found_url,
            &self.found_host,
            &self.found_depth,
            &self.found_hops,
            &worker.id,
            &worker.generation,
            &self.items,
        ]
    }
}

/// The tries that failed, column by column.
#[derive(Default)]
pub struct Retries<'a> {
    tenant: Vec<&'a str>,
    id: Vec<Uuid>,
    attempt: Vec<i16>,
    delay_ms: Vec<i64>,
    error: Vec<&'a str>,
    refusals: Vec<Option<i16>>,
    status: Vec<Option<i16>>,
    took_ms: Vec<Option<i32>>,
}

impl<'a> Retries<'a> {
    pub fn of(retried: &[&'a Retry]) -> Self {
        let mut c = Self::default();
        for job in retried {
            c.tenant.push(&job.key.tenant);
            c.id.push(job.key.id);
            c.attempt.push(job.key.attempt);
            c.delay_ms.push(job.delay_ms);
            c.error.push(&job.error);
            c.refusals.push(job.refusals);
            c.status.push(job.status);
            c.took_ms.push(job.took_ms);
        }
        c
    }

    pub fn parameters<'p>(&'p self, worker: &'p Incarnation) -> [&'p (dyn tokio_postgres::types::ToSql + Sync); 10] {
        [
            &self.tenant,
            &self.id,
            &self.attempt,
            &self.delay_ms,
            &self.error,
            &self.refusals,
            &self.status,
            &self.took_ms,
            &worker.id,
            &TRIES_KEPT,
        ]
    }
}
