//! The ground that the scheduler and the worker stand on. It knows neither of them.

pub mod clock;
pub mod config;
pub mod db;
pub mod fail;
pub mod lifecycle;
pub mod model;
pub mod place;
pub mod storage;
pub mod stream;
pub mod telemetry;

/// Installs ring as the process's TLS provider; the first call of every main.
pub fn install_tls_provider() {
    // A second call (tests) finds it installed, which is what was wanted.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
