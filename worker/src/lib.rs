//! The data plane: one consumer loop and a few ticks.

pub mod alone;
pub mod archiver;
pub mod committer;
pub mod consumer;
pub mod content;
pub mod context;
pub mod done;
pub mod extract;
pub mod fetch;
pub mod heart;
pub mod jobs;
pub mod pressure;
pub mod processor;
pub mod robots;
pub mod seen;
pub mod settings;
pub mod supervise;
