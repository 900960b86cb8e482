//! Garbage of the archive: objects that no planned or verified segment names.
//!
//! An archiver plans before it puts, so an object without a plan is one whose plan was given up. Its range may be
//! planned again, under the same key, while we look at it; so each segment is looked up once more, and its objects
//! are deleted, under a lock that keeps every plan and every record out.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use dodo_common::clock::Millis;
use dodo_common::db::pool::{Db, DbResult};
use dodo_common::db::segment::{self, PlanKey};
use dodo_common::storage::key::{self, SegmentKey};
use dodo_common::storage::object::Store;

/// One delete. A request that is cut off here ends the run, well before the server would end the idle transaction
/// whose lock protects it.
const DELETE_WAIT: Duration = Duration::from_secs(5);

/// The objects of one segment that Postgres does not know.
#[derive(Debug)]
pub struct Orphan {
    segment: SegmentKey,
    /// Key and bytes, in the order in which they go: what makes it a segment, its sidecar, first.
    pub objects: Vec<(String, u64)>,
    /// When the last of them was written.
    pub modified_ms: Millis,
}

/// What is under `archive/`.
#[derive(Debug, Default)]
pub struct Survey {
    pub orphans: Vec<Orphan>,
    pub segments: usize,
    /// Segments that Postgres knows.
    pub known: usize,
    /// Unknown, but younger than the bound: perhaps somebody is about to look at them.
    pub young: usize,
    /// Objects that do not bear the name of a segment, and are nobody's to delete.
    pub foreign: usize,
}

/// Lists the archive of every tenant and asks Postgres about it. What was written after `before_ms` is left alone.
pub async fn survey(store: &Store, db: &Db, before_ms: Millis) -> anyhow::Result<Survey> {
    let mut found = Survey::default();
    let mut segments: BTreeMap<String, Orphan> = BTreeMap::new();
    // The listing comes first: what it shows was planned before it was put, hence before we ask.
    for (key, bytes, modified_ms) in store.list_dated(key::ROOT).await? {
        let Some((segment, _)) = SegmentKey::parse(&key) else {
            found.foreign += 1;
            continue;
        };
        let orphan =
            segments.entry(segment.data()).or_insert(Orphan { segment, objects: Vec::new(), modified_ms: Millis::MIN });
        orphan.objects.push((key, bytes));
        orphan.modified_ms = orphan.modified_ms.max(modified_ms);
    }
    found.segments = segments.len();
    let mut all: Vec<Orphan> = segments.into_values().collect();
    for orphan in &mut all {
        let sidecar = orphan.segment.sidecar();
        orphan.objects.sort_by_key(|(key, _)| *key != sidecar);
    }
    while !all.is_empty() {
        let batch: Vec<Orphan> = all.drain(..all.len().min(segment::KNOWN_MAX)).collect();
        let known = segment::known(db, &batch.iter().map(plan_key).collect::<Vec<_>>()).await?;
        for orphan in batch {
            if known.contains(&orphan.segment.data()) {
                found.known += 1;
            } else if orphan.modified_ms > before_ms {
                found.young += 1;
            } else {
                found.orphans.push(orphan);
            }
        }
    }
    Ok(found)
}

/// Deletes the objects of one orphan, unless it has got a plan since. Killed in between, the rest is an orphan still.
pub async fn remove(store: &Store, db: &Db, orphan: &Orphan) -> anyhow::Result<bool> {
    let mut client = db.client().await?;
    let tx = Db::begin(&mut client, None).await?;
    if !segment::lock_unplanned(&tx, &plan_key(orphan)).await? {
        return Ok(false);
    }
    for (key, _) in &orphan.objects {
        tokio::time::timeout(DELETE_WAIT, store.delete(key))
            .await
            .with_context(|| format!("S3 did not delete {key} within {} s", DELETE_WAIT.as_secs()))??;
    }
    // Nothing was written: this only gives the lock back.
    let end: DbResult<()> = tx.commit().await.map_err(Into::into);
    end?;
    Ok(true)
}

fn plan_key(orphan: &Orphan) -> PlanKey {
    let SegmentKey { tenant, stream, generation, first, .. } = &orphan.segment;
    PlanKey {
        tenant: tenant.clone(),
        stream: stream.clone(),
        generation: *generation as i64,
        first: *first,
        key: orphan.segment.data(),
    }
}
