//! Logs: to the console, and to a file in a directory of this process's own.
//!
//! The directory is the process's own because the rotation prunes by prefix: `worker-1` would prune
//! the files of `worker-10`.

use std::path::PathBuf;
use std::time::Duration;

use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_appender::rolling::{RollingFileAppender, Rotation};
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::Logging;

/// Daily files kept for each process.
const FILES_MAX: usize = 14;
/// Lines that wait for the disk before further ones are dropped, and counted.
const LINES_MAX: usize = 64_000;

/// Flushes the log when it is dropped.
pub struct LogGuard {
    _file: WorkerGuard,
    dropped: ErrorCounter,
    pub dir: PathBuf,
}

impl LogGuard {
    /// Reports dropped lines every ten seconds, as a metric and, when there are new ones, a line. Never ends.
    pub fn report_dropped(&self) -> impl Future<Output = ()> + Send + 'static {
        let dropped = self.dropped.clone();
        async move {
            let mut before = 0;
            loop {
                tokio::time::sleep(Duration::from_secs(10)).await;
                let now = dropped.dropped_lines();
                metrics::counter!("dodo_log_lines_dropped_total").absolute(now as u64);
                if now > before {
                    tracing::warn!(
                        dropped = now - before,
                        "log lines were dropped: the log directory is too slow or full"
                    );
                    before = now;
                }
            }
        }
    }
}

/// Starts logging as `name`, for example `worker-eu-10.0.0.7-3`: the directory and the file are called so.
///
/// # Errors
/// One line: the directory cannot be made or the filter is not one.
pub fn start(settings: &Logging, name: &str, console: bool) -> Result<LogGuard, String> {
    let dir = settings.log_dir.join(name);
    std::fs::create_dir_all(&dir)
        .map_err(|error| format!("cannot make the log directory {}: {error}; set DODO_LOG_DIR", dir.display()))?;
    let appender = RollingFileAppender::builder()
        .rotation(Rotation::DAILY)
        .filename_prefix(name)
        .filename_suffix("log")
        .max_log_files(FILES_MAX)
        .build(&dir)
        .map_err(|error| format!("cannot write logs to {}: {error}; set DODO_LOG_DIR", dir.display()))?;
    let (writer, guard) = NonBlockingBuilder::default().buffered_lines_limit(LINES_MAX).lossy(true).finish(appender);
    let dropped = writer.error_counter();
    let filter =
        |text: &str| EnvFilter::try_new(text).map_err(|error| format!("DODO_LOG={text} is not a log filter: {error}"));
    let file = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(writer);
    let registry = tracing_subscriber::registry().with(filter(&settings.log)?).with(file);
    let started = if console {
        registry.with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr)).try_init()
    } else {
        registry.try_init()
    };
    started.map_err(|error| format!("logging was started twice: {error}"))?;
    Ok(LogGuard { _file: guard, dropped, dir })
}
