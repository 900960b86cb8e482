//! The control plane: a few periodic ticks and an HTTP router.

pub mod api;
pub mod backpressure;
pub mod census;
pub mod cli;
pub mod context;
pub mod dispatcher;
pub mod ending;
pub mod frontier;
pub mod gc;
pub mod housekeeping;
pub mod leader;
pub mod local;
pub mod manifests;
pub mod politeness;
pub mod reaper;
pub mod report;
pub mod sentinel;
pub mod timers;
pub mod window;
