//! The heart: a thread of its own, so that a saturated runtime does not look like a dead worker.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use dodo_common::stream::connection::StreamResult;
use dodo_common::stream::heartbeat::{Beat, Heart, INTERVAL_MS};

use crate::context::Context;

/// Starts beating; the thread ends when `ctx.refused` is cancelled or `ctx` is otherwise dropped.
pub fn start(ctx: &Arc<Context>) -> StreamResult<()> {
    let mut heart = Heart::new(&ctx.settings.servers.redis_url)?;
    let weak = Arc::downgrade(ctx);
    std::thread::Builder::new()
        .name("heart".to_owned())
        .spawn(move || {
            let mut failing = false;
            while let Some(ctx) = weak.upgrade() {
                if ctx.refused.is_cancelled() {
                    return;
                }
                let beat = Beat {
                    generation: ctx.incarnation.generation,
                    draining: ctx.draining.load(Ordering::Relaxed),
                    in_flight: ctx.held_count(),
                    settled: ctx.settled.load(Ordering::Relaxed),
                    held_bytes: ctx.pressure.held_bytes(),
                    slow: ctx.pressure.says(ctx.settings.held_bytes_max, ctx.clock.steady_ms()),
                };
                let at = Instant::now();
                match heart.beat(ctx.incarnation.id, &beat) {
                    // A lower number is an older Redis, of which the leader makes a new generation.
                    Ok(Some(shown)) if shown > ctx.incarnation.generation => {
                        ctx.refuse(&format!("generation {shown} has started"));
                    }
                    Ok(_) => {
                        failing = false;
                        ctx.beaten(at);
                    }
                    Err(error) if !failing => {
                        failing = true;
                        tracing::warn!(%error, "a heartbeat did not get through");
                    }
                    Err(_) => {}
                }
                drop(ctx);
                std::thread::sleep(Duration::from_millis(INTERVAL_MS));
            }
        })
        .expect("a thread can be started");
    Ok(())
}
