//! The supply of the frontier: what it asks Postgres for.

use dodo_common::db::{host, schedule, tally};
use tokio::time::Instant;

use crate::dispatcher::Dispatcher;
use crate::frontier::refill::Wanted;
use crate::window::WindowError;

/// Flows refilled, and hosts looked up, in one statement.
const REFILL_FLOWS: usize = 200;
const VIEW_HOSTS: usize = 500;
/// Hosts of one slice of a scan.
const SCAN_SLICE: i64 = 500;

impl Dispatcher<'_> {
    /// The next hosts with work. It rests where it is while the frontier is full.
    pub(super) async fn scan_slice(&mut self) -> Result<(), WindowError> {
        let Some(after) = &self.scan else { return Ok(()) };
        if !self.frontier.has_room() {
            return Ok(());
        }
        let flows = schedule::scan_hosts(&self.ctx.db, after.as_ref(), SCAN_SLICE).await?;
        let held = flows.iter().take_while(|(tenant, host)| self.frontier.found(tenant, host)).count();
        let full = held < flows.len();
        self.scan = if full || flows.len() as i64 >= SCAN_SLICE {
            // It goes on behind the last one that was held.
            Some(flows[..held].last().or(after.as_ref()).cloned())
        } else {
            self.frontier.scanned().then_some(None)
        };
        self.scanned = Instant::now();
        self.hurried &= self.scan.is_some() && !full;
        Ok(())
    }

    pub(super) async fn look_up_hosts(&mut self) -> Result<(), WindowError> {
        loop {
            let hosts = self.frontier.wants_view(VIEW_HOSTS);
            if hosts.is_empty() {
                return Ok(());
            }
            let views = host::view(&self.ctx.db, &hosts).await?;
            self.frontier.viewed(self.ctx.clock.steady_ms(), &hosts, views);
        }
    }

    pub(super) async fn refill(&mut self) -> Result<(), WindowError> {
        let wanted = self.frontier.wants_refill(self.ctx.clock.steady_ms(), REFILL_FLOWS);
        for Wanted { looks, past } in wanted {
            let refills = schedule::refill(&self.ctx.db, &looks, &past).await?;
            let now = self.ctx.clock.steady_ms();
            for (refill, look) in refills.into_iter().zip(looks) {
                self.frontier.refilled(now, refill, look.limit);
            }
        }
        self.look_up_dispatches().await?;
        self.read_tallies().await?;
        self.look_up_hosts().await
    }

    /// What hosts have given crawls that bound them.
    pub(super) async fn read_tallies(&mut self) -> Result<(), WindowError> {
        loop {
            let keys = self.frontier.take_unread(VIEW_HOSTS);
            if keys.is_empty() {
                return Ok(());
            }
            for (key, given) in keys.iter().zip(tally::given(&self.ctx.db, &keys).await?) {
                self.frontier.set_given(key, given);
            }
        }
    }

    /// When more becomes due where all that is has been read; after the issue, which does not wait for it.
    pub(super) async fn look_ahead(&mut self) -> Result<(), WindowError> {
        let short = self.frontier.take_short();
        for flows in short.chunks(REFILL_FLOWS) {
            let next = schedule::next_due(&self.ctx.db, flows).await?;
            let now = self.ctx.clock.steady_ms();
            for (flow, in_ms) in next {
                self.frontier.due_in(now, &flow, in_ms);
            }
        }
        Ok(())
    }
}
