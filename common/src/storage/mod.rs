//! Objects in S3: the store itself, the key scheme, and the two formats a trimmed range of a stream is archived in.
//!
//! `object` speaks S3; `key`, `warc`, `cdxj` and `packing` do no I/O; `segment` writes what `reader` reads back.

pub mod cdxj;
pub mod key;
pub mod object;
pub mod packing;
pub mod reader;
pub mod segment;
pub mod warc;
