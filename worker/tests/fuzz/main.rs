//! Fuzzing: what strangers send us, mangled, and what must hold of it whatever it is.
//!
//! Random, not guided by coverage, as that needs a nightly compiler; so each target begins with what its standard gives as
//! examples, and brings along the words that its parser looks for. The cases of a plain `cargo test` are always the same.
//! `scripts/test --fuzz MINUTES` looks at new ones.

mod body;
mod html;
mod mangle;
mod manifest;
mod robots;
mod run;
mod sitemap;
mod tags;
mod url;
