//! `dodo s3`: the S3 endpoint of `dodo up` as a process of its own, for where there is no other.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;
use dodo_common::config::Logging;
use dodo_common::lifecycle::Lifecycle;
use dodo_common::telemetry::logging;

use crate::local::lock_dir;
use crate::local::s3::{Keys, S3Endpoint};

/// The library tells every request at the level of `info`.
const QUIET: &str = "s3s=warn,s3s_fs=warn";

#[derive(Args, Debug)]
pub struct S3Server {
    /// Directory that holds the objects
    #[arg(long)]
    dir: PathBuf,
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1:9000")]
    listen: SocketAddr,
    /// Bucket; made if it is not there
    #[arg(long, env = "DODO_S3_BUCKET", default_value = "dodo")]
    bucket: String,
    /// Access key that clients must have
    #[arg(long, env = "AWS_ACCESS_KEY_ID", hide_env_values = true, default_value = "")]
    access_key: String,
    /// Secret key that clients must have
    #[arg(long, env = "AWS_SECRET_ACCESS_KEY", hide_env_values = true, default_value = "")]
    secret_key: String,
    #[command(flatten)]
    logging: Logging,
}

pub async fn run(args: S3Server) -> anyhow::Result<ExitCode> {
    if args.access_key.is_empty() || args.secret_key.is_empty() {
        bail!("the S3 endpoint needs keys: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY");
    }
    if !is_bucket_name(&args.bucket) {
        bail!("{:?} is no bucket name: 3 to 63 of a-z, 0-9, - and ., a letter or digit at both ends", args.bucket);
    }
    let lifecycle = Lifecycle::install().context("cannot listen for signals")?;
    let settings = Logging { log: format!("{},{QUIET}", args.logging.log), ..args.logging };
    let guard = logging::start(&settings, &format!("s3-{}", args.listen.port()), true).map_err(anyhow::Error::msg)?;
    let _lock = lock_dir(&args.dir)?;
    let keys = Keys { access: args.access_key, secret: args.secret_key };
    let endpoint = S3Endpoint::serve(&args.dir, &args.bucket, args.listen, keys)?;
    tracing::info!(listen = %args.listen, port = endpoint.port(), bucket = args.bucket, "serving");
    tokio::select! {
        () = lifecycle.soft.cancelled() => {}
        () = guard.report_dropped() => {}
    }
    tokio::select! {
        () = endpoint.stop() => {}
        () = lifecycle.hard.cancelled() => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// The rules of S3: what keeps them stays in its directory.
fn is_bucket_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (3..=63).contains(&name.len())
        && name.bytes().all(|byte| plain(byte) || byte == b'-' || byte == b'.')
        && name.bytes().next().is_some_and(plain)
        && name.bytes().last().is_some_and(plain)
        && !name.contains("..")
}

#[cfg(test)]
mod tests {
    use super::is_bucket_name;

    #[test]
    fn bucket_names_stay_in_their_directory() {
        for good in ["dodo", "a-1", "0123456789", "my.bucket"] {
            assert!(is_bucket_name(good), "{good}");
        }
        for bad in ["", "ab", "...", "../x", "a..b", "a/b", "Dodo", "-dodo", "dodo-", ".dodo"] {
            assert!(!is_bucket_name(bad), "{bad}");
        }
    }
}
