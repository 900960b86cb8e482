//! Where the result of a job is: in its stream, on its way, or in an object of the archive.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Context as _;
use dodo_common::db::explain::JobReport;
use dodo_common::db::segment::{self, Place};
use dodo_common::model::job::TENANT_DEFAULT;
use dodo_common::model::stream_id::StreamId;
use dodo_common::storage::key::SegmentKey;
use dodo_common::storage::packing::Sidecar;
use dodo_common::storage::segment::read_sidecar;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use uuid::Uuid;

use crate::api::ApiResult;
use crate::context::Context;

/// How long the store may take for all that is looked up for one answer.
const TIME: Duration = Duration::from_secs(3);

/// A record of the archive: a gzip member, which one range request reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Archived {
    pub job: Uuid,
    /// Of its object in the bucket.
    pub key: String,
    pub offset: u64,
    pub bytes: u64,
}

/// Where the result of a job is, and the record itself, if it is sought and the store tells.
pub async fn record_line(
    ctx: &Context,
    job: &JobReport,
    sought: Option<&mut Sidecars>,
) -> ApiResult<Option<(String, Option<Archived>)>> {
    let (Some(stream), Some(generation), Some(id)) = (&job.raw_stream, job.raw_generation, &job.raw_id) else {
        return Ok(None);
    };
    let Ok(entry) = id.parse() else { return Ok(None) };
    let line = match segment::place_of(&ctx.db, TENANT_DEFAULT, stream, generation, entry).await? {
        Some(Place::Verified(key, at)) => {
            let mut line = format!("Its result {id} is archived in {key}, verified {at}");
            let record = match sought {
                Some(sidecars) => sidecars.record(ctx, job.id, &key, entry).await,
                None => Ok(None),
            };
            match &record {
                Ok(Some(record)) => {
                    line.push_str(&format!(": {} bytes from byte {} on are its record.", record.bytes, record.offset));
                }
                Ok(None) => line.push('.'),
                Err(error) => line.push_str(&format!("; where in it cannot be told: {error:#}.")),
            }
            return Ok(Some((line, record.ok().flatten())));
        }
        Some(Place::Planned(key)) => format!("Its result {id} is on its way to {key}."),
        Some(Place::Lost(job)) => {
            format!("Redis lost its result {id} before it was archived: job {job} makes it again.")
        }
        None => format!("Its result is entry {id} of {stream}, not archived yet."),
    };
    Ok(Some((line, None)))
}

/// What the store has told of segments, as long as it does.
pub struct Sidecars {
    until: Instant,
    read: HashMap<String, Sidecar>,
}

impl Default for Sidecars {
    fn default() -> Self {
        Self { until: Instant::now() + TIME, read: HashMap::new() }
    }
}

impl Sidecars {
    /// The place of an entry in its object; none where that has no members, as those of items.
    async fn record(
        &mut self,
        ctx: &Context,
        job: Uuid,
        key: &str,
        entry: StreamId,
    ) -> anyhow::Result<Option<Archived>> {
        if !self.read.contains_key(key) {
            let (segment, _) = SegmentKey::parse(key).context("its key is not one of ours")?;
            let reading = read_sidecar(&ctx.store, &segment);
            let sidecar = tokio::time::timeout_at(self.until, reading).await.context("the store is slow")??;
            self.read.insert(key.to_owned(), sidecar);
        }
        let entries = &self.read[key].entries;
        let found = entries.binary_search_by_key(&entry, |(id, ..)| *id).ok();
        Ok(found.map(|index| {
            let (_, offset, bytes) = entries[index];
            Archived { job, key: key.to_owned(), offset, bytes }
        }))
    }
}
