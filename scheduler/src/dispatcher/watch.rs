//! The watch over the window: workers that are lost, entries that nobody settles, room for more, and what is to outlive this
//! leader.

use std::collections::HashSet;
use std::time::Duration;

use dodo_common::db::{host, proxy, wait};
use dodo_common::model::cause::Cause;
use dodo_common::model::stream_id::StreamId;
use dodo_common::stream::connection::StreamError;
use dodo_common::stream::names::{GROUP, JOBS};
use dodo_common::stream::{queue, status};

use crate::dispatcher::Dispatcher;
use crate::frontier::issued::SettledJob;
use crate::reaper;
use crate::window::{self, WindowError};

/// Entries in the window at least, and at most; between them twice what live workers hold at once.
const WINDOW_MIN: usize = 64;
const WINDOW_MAX: usize = 4096;
/// A whole scan over the hosts with work; slices of it run at every watch.
const SCAN: Duration = Duration::from_secs(60);
/// One live worker of so many may have a suspect: the others go on with everything else.
const SUSPECTS_SHARE: usize = 2;
/// Hosts whose pace is written down in one tick.
const PACES_MAX: usize = 1000;
/// Entries older than this are compared with what Redis holds.
const AUDIT_MS: i64 = 15_000;

impl Dispatcher<'_> {
    /// The check of the window, the reaper, and what the raw streams still have room for.
    pub(super) async fn watch(&mut self) -> Result<(), WindowError> {
        if let Some(why) = window::fault(self.ctx, self.term, &self.generation).await? {
            return Err(StreamError::Generation(why).into());
        }
        let summary = reaper::tick(self.ctx, self.term, &mut self.watch).await?;
        let now = self.ctx.clock.steady_ms();
        for entry in summary.returned {
            self.frontier.settled(now, entry, &SettledJob::lost());
        }
        self.frontier.set_suspects_max((summary.live / SUSPECTS_SHARE).max(1));
        let newest = self.frontier.newest_issued();
        self.unread = status::last_delivered(&self.ctx.redis, JOBS, GROUP).await?.next()..=newest;
        let full = self.backpressure.tick(self.ctx).await?;
        self.room = if full { 0 } else { (summary.permits * 2).clamp(WINDOW_MIN, WINDOW_MAX) };
        if self.scan.is_none() && self.scanned.elapsed() >= SCAN {
            self.scan = Some(None);
        }
        self.scan_slice().await
    }

    /// What keeps the window full, if it is.
    pub(super) fn fullness(&self) -> Cause {
        match self.room {
            0 => Cause::Backpressure,
            room if room <= self.frontier.in_flight() => Cause::Workers,
            _ => Cause::Turn,
        }
    }

    /// Issued entries that Redis does not hold any more, and that no report settled, are settled here.
    pub(super) async fn audit(&mut self) -> Result<(), WindowError> {
        let now = self.ctx.clock.steady_ms();
        let old = self.frontier.issued_before(now - AUDIT_MS);
        if old.is_empty() {
            return Ok(());
        }
        let outstanding: HashSet<StreamId> =
            queue::outstanding(&self.ctx.redis).await?.into_iter().map(|(entry, _)| entry.entry).collect();
        for entry in old.into_iter().filter(|entry| !outstanding.contains(entry)) {
            tracing::debug!(%entry, "an issued entry was settled without a report");
            self.frontier.settled(now, entry, &SettledJob::lost());
        }
        Ok(())
    }

    /// What is to outlive this leader: how fast hosts answer, how proxies fare, and what dispatches wait for.
    pub(super) async fn write_down(&mut self) -> Result<(), WindowError> {
        let paces = self.frontier.take_paces(PACES_MAX);
        if !paces.is_empty() {
            host::save_paces(&self.ctx.db, self.term.epoch, &paces).await?;
        }
        let proxies = self.frontier.take_exits(self.ctx.clock.steady_ms());
        if !proxies.is_empty() {
            proxy::save(&self.ctx.db, self.term.epoch, &proxies).await?;
        }
        let waited = self.census.take();
        if !waited.is_empty() {
            wait::add(&self.ctx.db, self.term.epoch, &waited).await?;
        }
        Ok(())
    }
}
