//! `dodo-worker`: takes jobs from the stream, runs them, commits what came of them.

use anyhow::Context as _;
use clap::Parser;
use dodo_common::fail;
use dodo_common::lifecycle::Lifecycle;
use dodo_worker::settings::Settings;
use dodo_worker::supervise;

/// A page makes some hundred small allocations; the system's allocator shows in the profile.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    let settings = Settings::parse();
    if let Err(error) = fail::arm() {
        eprintln!("dodo-worker: {error}");
        return std::process::ExitCode::FAILURE;
    }
    dodo_common::install_tls_provider();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("dodo-worker: cannot start the runtime: {error}");
            return std::process::ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(settings)) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dodo-worker: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

async fn run(settings: Settings) -> anyhow::Result<()> {
    let lifecycle = Lifecycle::install().context("cannot listen for signals")?;
    if settings.exit_with_stdin {
        lifecycle.follow_stdin();
    }
    supervise::run(settings, lifecycle).await
}
