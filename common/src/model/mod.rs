//! Nouns without I/O.

pub mod address;
pub mod cause;
pub mod header;
pub mod job;
pub mod manifest;
pub mod media;
pub mod paged;
pub mod pattern;
pub mod proxy;
pub mod proxy_pool;
pub mod record;
pub mod recurrence;
pub mod retry;
pub mod revisit;
pub mod robots;
pub mod scope;
pub mod source;
pub mod spec;
pub mod spelling;
pub mod stream_id;
pub mod surt;
pub mod terms;
pub mod trap;
pub mod url;
pub mod url_rules;
pub mod w3c_date;
