//! `dodo`: the scheduler, the whole cluster on one machine, and the operator's tool.

use clap::Parser;
use dodo_scheduler::cli::{self, Cli};

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    if let Err(error) = dodo_common::fail::arm() {
        cli::tell(error);
        return std::process::ExitCode::FAILURE;
    }
    dodo_common::install_tls_provider();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            cli::tell(format!("cannot start the runtime: {error}"));
            return std::process::ExitCode::FAILURE;
        }
    };
    let code = match runtime.block_on(cli::run(cli)) {
        Ok(code) => code,
        // A reader that has seen enough (`dodo export .. | head`) is not our failure.
        Err(error) if cli::is_broken_pipe(&error) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            cli::tell(format!("{error:#}"));
            std::process::ExitCode::FAILURE
        }
    };
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    code
}
