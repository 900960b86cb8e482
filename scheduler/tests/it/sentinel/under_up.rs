//! The sentinel that `dodo up` starts, with the rules it brings along.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::cluster::dodo_program;
use crate::sentinel::until;
use crate::sink::{MailSink, WebSink};

/// What tells a child's command line; arguments end with a zero byte.
const WORKER: &str = "/dodo-worker\0";
const SENTINEL: &str = "\0sentinel\0";

/// The processes of a `dodo up` whose log directory is below `dir` and whose command line has `word`.
fn children(dir: &std::path::Path, word: &str) -> Vec<i32> {
    let needle = format!("DODO_LOG_DIR={}", dir.display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let env = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        let has = |bytes: &[u8], text: &str| String::from_utf8_lossy(bytes).contains(text);
        if has(&line, word) && has(&env, &needle) {
            found.push(pid);
        }
    }
    found
}

fn send(pids: &[i32], signal: Signal) {
    for pid in pids {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), signal);
    }
}

/// A `dodo up` that ends in order however the test ends: its servers are nobody's children once it is killed.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        send(&[self.0.id() as i32], Signal::SIGINT);
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn under_up_a_rolling_restart_is_silent_and_killed_workers_alert_within_15_s() -> Result<()> {
    let dir = tempfile::Builder::new().prefix("dodo-up-").tempdir()?;
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let (mail, web) = (MailSink::start("starttls")?, WebSink::start()?);
    let up = std::process::Command::new(dodo_program())
        .args(["up", "--port", "0", "--workers", "3", "--sample", "--delay", "100", "--data"])
        .arg(dir.path())
        .env("DODO_SLACK_WEBHOOK", web.url())
        .env("DODO_SMTP_URL", mail.url())
        .env("DODO_SMTP_CA_FILE", mail.ca_file())
        .env("DODO_MAIL_FROM", "dodo@example.com")
        .env("DODO_MAIL_TO", "ops@example.org")
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()?;
    let up = Running(up);
    let alive = |count: usize| children(dir.path(), WORKER).len() == count;
    // Everything is made for the first time.
    let (begin, there) = (Instant::now(), || alive(3) && children(dir.path(), SENTINEL).len() == 1);
    while !there() {
        ensure!(begin.elapsed() < Duration::from_secs(60), "it does not start");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(Duration::from_secs(4)).await;

    // A rolling restart: each worker drains and is followed by another. Then all of them at once.
    let before = children(dir.path(), WORKER);
    for pid in &before {
        send(&[*pid], Signal::SIGTERM);
        until(|| !children(dir.path(), WORKER).contains(pid) && alive(3)).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    send(&children(dir.path(), WORKER), Signal::SIGTERM);
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert_eq!(web.messages(), Vec::<Value>::new(), "a drain is no incident");
    assert!(mail.mails().is_empty() && alive(3));

    // A sentinel that dies is started again, and it is the successor that tells.
    let sentinel = children(dir.path(), SENTINEL);
    send(&sentinel, Signal::SIGKILL);
    until(|| children(dir.path(), SENTINEL).iter().any(|pid| !sentinel.contains(pid))).await?;
    let killed = Instant::now();
    send(&children(dir.path(), WORKER), Signal::SIGKILL);
    until(|| !mail.mails().is_empty() && !web.messages().is_empty()).await?;
    let took = killed.elapsed();
    assert!(took < Duration::from_secs(15), "{took:?}");
    assert_eq!(mail.mails()[0].header("Subject"), Some("[dodo] workers-lost fired (critical)"));
    let body = mail.mails()[0].body();
    assert!(body.starts_with("workers_lost: sum over 1 m is ") && body.contains("died without draining"), "{body}");
    assert_eq!(web.messages()[0]["text"], ":rotating_light: *workers-lost fired (critical)*");
    drop(up);
    until(|| children(dir.path(), "dodo").is_empty()).await?;
    Ok(())
}
