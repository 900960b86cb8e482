//! Metrics: one recorder a process, rendered in the Prometheus text format.

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

/// Upper bounds of the buckets of every `_seconds` histogram.
const SECONDS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Installs the recorder; the handle renders what it holds.
///
/// # Errors
/// One line, when a recorder is installed already.
pub fn install() -> Result<PrometheusHandle, String> {
    PrometheusBuilder::new()
        .set_buckets(SECONDS)
        .map_err(|error| error.to_string())?
        .install_recorder()
        .map_err(|error| format!("metrics were started twice: {error}"))
}
