//! The heart: a thread of its own, so that a saturated runtime does not look like a dead worker.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dodo_common::stream::connection::StreamResult;
use dodo_common::stream::heartbeat::{Beat, Heart, INTERVAL_MS, LEASE_MS};

use crate::context::Context;

/// A worker that is heard of this often cannot have been declared lost for its silence: half of the lease.
const CERTAIN_MAX: Duration = Duration::from_millis(LEASE_MS as u64 / 2);

/// When it was last certain that nobody can have declared this worker lost.
#[derive(Debug)]
pub struct Pulse {
    certain: Mutex<Instant>,
}

impl Default for Pulse {
    fn default() -> Self {
        Self { certain: Mutex::new(Instant::now()) }
    }
}

impl Pulse {
    /// False: it was not heard of for a while, and may have been frozen.
    pub fn is_felt(&self) -> bool {
        self.certain.lock().expect("no panic under this lock").elapsed() < CERTAIN_MAX
    }

    /// A heartbeat that was begun at `at` got through. After a silence it proves nothing: a lost worker beats too.
    pub fn beaten(&self, at: Instant) {
        let mut certain = self.certain.lock().expect("no panic under this lock");
        if at.saturating_duration_since(*certain) < CERTAIN_MAX {
            *certain = at;
        }
    }

    /// Postgres said, asked at `at`, that it is not lost.
    pub fn confirmed(&self, at: Instant) {
        *self.certain.lock().expect("no panic under this lock") = at;
    }
}

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
                        ctx.pulse.beaten(at);
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
