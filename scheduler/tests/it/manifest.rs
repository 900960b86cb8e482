//! Manifests: dropped, edited, deleted, malformed, huge.
