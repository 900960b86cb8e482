//! Redis: a bounded window of the truth, which may be lost at any time.

pub mod connection;
pub mod control;
pub mod heartbeat;
pub mod items;
pub mod names;
pub mod question;
pub mod queue;
pub mod raw;
pub mod report;
pub mod status;
