//! The reaper: finds lost workers, commits that they are lost, and takes back what they held.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use dodo_common::db::worker::{self, WorkerRow, consumer_name};
use dodo_common::model::stream_id::StreamId;
use dodo_common::stream::heartbeat::{self, ABSENT_MS, Beat, LEASE_MS};
use dodo_common::stream::{control, queue};
use tokio::time::Instant;
use uuid::Uuid;

use crate::context::{Context, Term};
use crate::window::WindowError;

/// What the reaper keeps between two ticks: when it began to watch each incarnation.
#[derive(Debug, Default)]
pub struct Watch {
    /// Workers without a heartbeat in Redis have this long from here.
    since: HashMap<Uuid, Instant>,
}

/// What one tick did.
#[derive(Debug, Default)]
pub struct Summary {
    pub lost: Vec<Uuid>,
    /// Entries taken back; their jobs return to the dispatcher.
    pub returned: Vec<StreamId>,
    /// Permits of live workers.
    pub permits: usize,
    pub live: usize,
}

/// One look at every incarnation (DESIGN 4): lost is an absent connection and no fresh heartbeat, or a
/// heartbeat older than the lease.
pub async fn tick(ctx: &Context, term: &Term, watch: &mut Watch) -> Result<Summary, WindowError> {
    let mut summary = Summary::default();
    let rows = worker::unreleased(&ctx.db).await?;
    let beats: HashMap<Uuid, (i64, Beat)> =
        heartbeat::all(&ctx.redis).await?.into_iter().map(|(id, age, beat)| (id, (age, beat))).collect();
    let clients = control::clients(&ctx.redis).await?;
    let mut released = Vec::new();
    for row in &rows {
        if row.ended_at.is_none() && row.lost_at.is_none() {
            let Some(reason) = verdict(row, beats.get(&row.id), &clients, watch) else {
                summary.live += 1;
                if row.draining_at.is_none() {
                    summary.permits += row.permits.max(0) as usize;
                }
                continue;
            };
            worker::mark_lost(&ctx.db, term.epoch, row.id, &reason).await?;
            tracing::warn!(worker = %row.id, slot = row.slot, pid = row.pid, "worker lost: {reason}");
            metrics::counter!("dodo_workers_lost_total").increment(1);
            summary.lost.push(row.id);
        }
        // Ended or lost: its connections must not take another entry, then what it held comes back.
        control::kill_connections(&ctx.redis, &row.id.to_string()).await?;
        summary.returned.extend(take_back(ctx, term, &consumer_name(row.slot)).await?);
        released.push(row.id);
    }
    if !released.is_empty() {
        worker::release(&ctx.db, term.epoch, &released).await?;
    }
    let known: HashSet<Uuid> = rows.iter().map(|row| row.id).collect();
    let stale: Vec<Uuid> = beats.keys().filter(|id| !known.contains(id)).copied().chain(released).collect();
    heartbeat::forget(&ctx.redis, &stale).await?;
    watch.since.retain(|id, _| known.contains(id));
    summary.returned.extend(stragglers(ctx, term, &rows).await?);
    metrics::gauge!("dodo_workers_live").set(summary.live as f64);
    Ok(summary)
}

/// Why a worker is lost, or nothing.
fn verdict(
    row: &WorkerRow,
    beat: Option<&(i64, Beat)>,
    clients: &[(String, String)],
    watch: &mut Watch,
) -> Option<String> {
    let name = row.id.to_string();
    let connected = clients.iter().any(|(_, client)| client.starts_with(&name));
    let watched = watch.since.entry(row.id).or_insert_with(Instant::now).elapsed();
    match beat {
        Some((age, _)) if connected && *age > LEASE_MS => Some(format!("no heartbeat for {age} ms")),
        Some((age, _)) if !connected && *age > ABSENT_MS && watched > Duration::from_millis(ABSENT_MS as u64) => {
            Some(format!("its connection is closed and its last heartbeat is {age} ms old"))
        }
        Some(_) => None,
        // It has just registered, or Redis has just lost its heartbeats: it has a lease from when we looked.
        None if watched > Duration::from_millis(LEASE_MS as u64) => {
            Some(format!("no heartbeat for {} ms", watched.as_millis()))
        }
        None => None,
    }
}

/// Takes back every pending entry of a consumer.
async fn take_back(ctx: &Context, term: &Term, consumer: &str) -> Result<Vec<StreamId>, WindowError> {
    let entries: Vec<StreamId> =
        queue::pending(&ctx.redis, Some(consumer)).await?.into_iter().map(|(entry, _)| entry).collect();
    if !entries.is_empty() {
        queue::take_back(&ctx.redis, term.epoch, &entries).await?;
        tracing::info!(consumer, entries = entries.len(), "entries taken back");
    }
    Ok(entries)
}

/// Entries in the pending list of a consumer whose slot nobody holds: delivered to a dying connection.
async fn stragglers(ctx: &Context, term: &Term, rows: &[WorkerRow]) -> Result<Vec<StreamId>, WindowError> {
    let held: HashSet<String> = rows
        .iter()
        .filter(|row| row.ended_at.is_none() && row.lost_at.is_none())
        .map(|row| consumer_name(row.slot))
        .collect();
    let entries: Vec<StreamId> = queue::pending(&ctx.redis, None)
        .await?
        .into_iter()
        .filter(|(_, consumer)| !held.contains(consumer))
        .map(|(entry, _)| entry)
        .collect();
    if !entries.is_empty() {
        queue::take_back(&ctx.redis, term.epoch, &entries).await?;
    }
    Ok(entries)
}
