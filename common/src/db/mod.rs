//! Postgres: the truth. Every SQL statement of the project lives below here, a file a noun.

pub mod commit;
pub mod control;
pub mod dead;
pub mod dispatch;
pub mod explain;
pub mod generation;
pub mod host;
pub mod incident;
pub mod leader;
pub mod manifest;
pub mod migrate;
pub mod page;
pub mod pool;
pub mod proxy;
pub mod raw;
pub mod record;
pub mod revisit;
pub mod schedule;
pub mod segment;
pub mod source;
pub mod suspect;
pub mod tally;
pub mod timer;
pub mod vital;
pub mod wait;
pub mod worker;
