//! The issue of jobs: picked by the frontier, pushed to the workers.

use dodo_common::fail;
use dodo_common::stream::queue::{self, Authority, Order};

use crate::dispatcher::Dispatcher;
use crate::frontier::pick::Pick;
use crate::window::WindowError;

impl Dispatcher<'_> {
    /// Picks what the window has room for and pushes it.
    pub(super) async fn issue(&mut self) -> Result<(), WindowError> {
        let room = self.room.saturating_sub(self.frontier.in_flight());
        let picks = self.frontier.pick(self.ctx.clock.steady_ms(), room);
        let authority = Authority { epoch: self.term.epoch, generation: self.generation.number };
        for batch in picks.chunks(queue::BATCH_MAX) {
            let order = |pick: &Pick| Order { key: pick.key.clone(), alone: pick.alone, proxy: pick.proxy.clone() };
            let orders: Vec<Order> = batch.iter().map(order).collect();
            fail::point_async("jobs-picked").await;
            let entries = queue::push(&self.ctx.redis, authority, &orders).await?;
            fail::point_async("jobs-pushed").await;
            let now = self.ctx.clock.steady_ms();
            for (entry, pick) in entries.into_iter().zip(batch) {
                self.frontier.issued(now, entry, Pick::clone(pick));
            }
            metrics::counter!("dodo_jobs_issued_total").increment(batch.len() as u64);
        }
        metrics::gauge!("dodo_window_entries").set(self.frontier.in_flight() as f64);
        self.skip().await
    }
}
