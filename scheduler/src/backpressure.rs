//! Backpressure: while the archive cannot take what the raw streams hold, nothing more is issued.

use dodo_common::stream::names::RAW_STREAMS;
use dodo_common::stream::raw;

use crate::context::{Bounds, Context};
use crate::window::WindowError;

/// What the raw streams hold together.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    entries: u64,
    /// Memory they take, as the server estimates it.
    bytes: u64,
}

/// Shut above a bound, and open again below three quarters of both: it does not flutter at the bound.
#[derive(Debug, Default)]
struct Valve {
    shut: bool,
}

impl Valve {
    /// True when it has just been shut or opened.
    fn turn(&mut self, held: Held, bounds: &Bounds) -> bool {
        let above = |share: u64| {
            held.entries > bounds.stream_entries_max / 4 * share || held.bytes > bounds.stream_bytes_max / 4 * share
        };
        let shut = above(if self.shut { 3 } else { 4 });
        std::mem::replace(&mut self.shut, shut) != shut
    }
}

/// What the dispatcher keeps between two looks.
#[derive(Debug, Default)]
pub struct Backpressure {
    valve: Valve,
}

impl Backpressure {
    /// Looks at the streams; true while nothing may be issued. Says a change once, and shows the state.
    pub async fn tick(&mut self, ctx: &Context) -> Result<bool, WindowError> {
        let mut held = Held::default();
        for stream in RAW_STREAMS {
            let extent = raw::extent(&ctx.redis, stream).await?;
            held.entries += extent.entries as u64;
            held.bytes += extent.bytes as u64;
        }
        metrics::gauge!("dodo_raw_stream_bytes").set(held.bytes as f64);
        let turned = self.valve.turn(held, &ctx.bounds);
        metrics::gauge!("dodo_backpressure").set(if self.valve.shut { 1.0 } else { 0.0 });
        let text = self.valve.shut.then(|| sentence(held, &ctx.bounds));
        match &text {
            Some(text) if turned => tracing::warn!("{text}"),
            None if turned => tracing::info!(entries = held.entries, bytes = held.bytes, "jobs are issued again"),
            _ => {}
        }
        *ctx.backpressure.lock().expect("no panic under this lock") = text;
        Ok(self.valve.shut)
    }
}

fn sentence(held: Held, bounds: &Bounds) -> String {
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    format!(
        "no job is issued: {} entries, {} MiB wait for the archive; the bounds are {} and {} MiB",
        held.entries,
        mib(held.bytes),
        bounds.stream_entries_max,
        mib(bounds.stream_bytes_max)
    )
}

#[cfg(test)]
mod tests {
    use dodo_common::config::Proxies;

    use super::*;
    use crate::context::ProxyBounds;

    #[test]
    fn it_shuts_above_a_bound_and_opens_below_three_quarters_of_both() {
        let proxies =
            ProxyBounds { pool: Proxies::default(), proxy_concurrency: 1, proxy_delay_ms: 0, proxy_quarantine_ms: 1 };
        let bounds = Bounds { stream_bytes_max: 1000, stream_entries_max: 100, stall_ms_max: 1000, proxies };
        let mut valve = Valve::default();
        let mut turn = |entries, bytes| {
            let turned = valve.turn(Held { entries, bytes }, &bounds);
            (turned, valve.shut)
        };
        assert_eq!(turn(100, 1000), (false, false));
        assert_eq!(turn(10, 1001), (true, true), "bytes alone are enough");
        assert_eq!(turn(10, 800), (false, true));
        assert_eq!(turn(101, 10), (false, true));
        assert_eq!(turn(75, 750), (true, false));
        assert_eq!(turn(101, 10), (true, true), "so are entries");
    }
}
