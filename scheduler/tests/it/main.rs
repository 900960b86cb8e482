//! Integration tests on real servers and real processes, each test with servers and directories of its own.

mod api;
mod archive;
mod backpressure;
mod bad_input;
mod cluster;
mod commit;
mod feed;
mod judge;
mod large;
mod local;
mod lost;
mod manifest;
mod manual;
mod noop;
mod paged;
mod parts;
mod politeness;
mod proxies;
mod proxy;
mod security;
mod sentinel;
mod sink;
mod survive;
mod unknown;
mod up;
mod web;
