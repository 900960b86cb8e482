//! `dodo up` as its user meets it: run, killed, started again, interrupted.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::cluster::{Cluster, dodo_program};
use crate::web::Web;

/// What a crawl of the sample site fetches: its HTML pages, a text file and its sitemap.
const PAGES: i32 = 120;

fn data() -> Result<TempDir> {
    let dir = tempfile::Builder::new().prefix("dodo-up-").tempdir()?;
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(dir)
}

fn up(dir: &Path, arguments: &[&str]) -> Result<Child> {
    Ok(Command::new(dodo_program())
        .args(["up", "--port", "0", "--json", "--data"])
        .arg(dir)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?)
}

/// Processes that name the directory on their command line or in their environment.
fn processes_of(dir: &Path) -> Vec<String> {
    let needle = dir.to_string_lossy().into_owned();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        if entry.file_name() == *std::process::id().to_string() {
            continue;
        }
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let env = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        if [&line, &env].iter().any(|text| String::from_utf8_lossy(text).contains(&needle)) {
            found.push(String::from_utf8_lossy(&line).replace('\0', " "));
        }
    }
    found
}

/// No process of the directory runs; the orphans of one that was killed have a few seconds to notice.
fn nothing_is_left(dir: &Path) {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(15) && !processes_of(dir).is_empty() {
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(processes_of(dir), Vec::<String>::new());
}

fn wait_for_pages(dir: &Path) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(40) {
        // The workers' logs say when they are at it.
        let logs = std::fs::read_dir(dir.join("log")).into_iter().flatten().flatten();
        if logs.filter(|entry| entry.file_name().to_string_lossy().starts_with("worker-")).count() >= 2 {
            std::thread::sleep(Duration::from_millis(1500));
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    anyhow::bail!("the workers did not start")
}

#[test]
fn a_killed_cluster_goes_on_where_it_was_and_leaves_nothing_behind() -> Result<()> {
    let dir = data()?;
    let crawl = ["--sample", "--key", "demo", "--delay", "40", "--workers", "2"];
    let mut first = up(dir.path(), &crawl)?;
    wait_for_pages(dir.path())?;
    first.kill()?;
    first.wait()?;

    let second = up(dir.path(), &[&crawl[..], &["--exit-when-done"]].concat())?.wait_with_output()?;
    let (out, error) = (String::from_utf8_lossy(&second.stdout), String::from_utf8_lossy(&second.stderr));
    assert!(second.status.success(), "{out}{error}");
    let summary: Value = serde_json::from_str(out.lines().last().context("no summary")?)?;
    assert_eq!(summary["done"], true);
    assert_eq!(summary["pages"], PAGES, "each page once over both starts: {summary}");
    nothing_is_left(dir.path());

    // A third start on the same directory has nothing left to do.
    let third = up(dir.path(), &[&crawl[..], &["--exit-when-done"]].concat())?.wait_with_output()?;
    assert!(third.status.success());
    let summary: Value = serde_json::from_slice(&third.stdout)?;
    assert_eq!(summary["pages"], PAGES);
    Ok(())
}

/// special_file.json is computed again from the raw files of the run.
#[test]
fn the_report_is_what_the_raw_files_say() -> Result<()> {
    let dir = data()?;
    let out = up(dir.path(), &["--sample", "--delay", "1", "--exit-when-done"])?.wait_with_output()?;
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let summary: Value = serde_json::from_slice(&out.stdout)?;
    assert_eq!((&summary["api_pages"], &summary["records"]), (&Value::from(41), &Value::from(403)));
    let python = std::env::var("DODO_TEST_PYTHON").context("run scripts/test: it makes the Python environment")?;
    let checked = Command::new(python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/check_report.py"))
        .arg(dir.path())
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/sample/reviews.json"))
        .output()?;
    let said = format!("{}{}", String::from_utf8_lossy(&checked.stdout), String::from_utf8_lossy(&checked.stderr));
    anyhow::ensure!(checked.status.success(), "{said}");
    println!("{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_from_outside_are_used_and_left_alone() -> Result<()> {
    let cluster = Cluster::start().await?;
    let dir = data()?;
    let out = Command::new(dodo_program())
        .args(["up", "--port", "0", "--json", "--sample", "--delay", "5", "--exit-when-done", "--data"])
        .arg(dir.path())
        .envs(cluster.env())
        .stdin(Stdio::null())
        .output()?;
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let summary: Value = serde_json::from_slice(&out.stdout)?;
    assert_eq!((&summary["done"], &summary["pages"]), (&Value::from(true), &Value::from(PAGES)));
    assert!(!dir.path().join("redis").exists() && !dir.path().join("postgres").exists(), "nothing private was started");
    // They still run, and hold what was crawled.
    let logged: i64 = cluster.sql().await?.query_one("SELECT count(*) FROM crawl_log", &[]).await?.get(0);
    assert!(logged > i64::from(PAGES));
    assert!(cluster.dodo_text(&["archive", "list", "pages"])?.contains(".warc.gz"));
    Ok(())
}

/// Three sites that link to one another: the seed's is open, another by request, the third is not.
#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_opened_is_crawled_on_loopback() -> Result<()> {
    let web = Web::start(3, 7, Duration::from_millis(1)).await?;
    let dir = data()?;
    let arguments = ["--delay", "1", "--scope", "any", "--exit-when-done", "--no-sentinel", "--open", &web.places[1]];
    let out = up(dir.path(), &[&arguments[..], &["--crawl", &web.seeds()[0]]].concat())?.wait_with_output()?;
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let asked: BTreeSet<String> = web.hits().into_iter().map(|hit| hit.host).collect();
    assert_eq!(asked, web.places[..2].iter().cloned().collect());
    let summary: Value = serde_json::from_slice(&out.stdout)?;
    assert_eq!(summary["pages"], 2 * 7, "{summary}");
    // Exactly as a worker reads it.
    let refused = up(dir.path(), &["--open", "127.0.0.1"])?.wait_with_output()?;
    let text = String::from_utf8_lossy(&refused.stderr);
    assert_eq!((refused.status.code(), text.lines().count()), (Some(1), 1), "{text}");
    assert!(text.contains("host:port"), "{text}");
    Ok(())
}

#[test]
fn an_interrupt_stops_everything_and_two_cannot_share_a_directory() -> Result<()> {
    let dir = data()?;
    let child = up(dir.path(), &["--sample", "--delay", "100"])?;
    wait_for_pages(dir.path())?;
    let refused = up(dir.path(), &[])?.wait_with_output()?;
    let text = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(text.lines().count(), 1, "{text}");

    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT)?;
    let out = child.wait_with_output()?;
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let summary: Value = serde_json::from_slice(&out.stdout)?;
    assert_eq!(summary["done"], false);
    assert_eq!(processes_of(dir.path()), Vec::<String>::new());
    Ok(())
}

/// A terminal that is closed: SIGHUP, and nobody reads what is written any more.
#[test]
fn a_closed_terminal_stops_everything() -> Result<()> {
    let dir = data()?;
    let mut child = up(dir.path(), &["--sample", "--delay", "100"])?;
    wait_for_pages(dir.path())?;
    drop((child.stdout.take(), child.stderr.take()));
    kill(Pid::from_raw(child.id() as i32), Signal::SIGHUP)?;
    let status = child.wait()?;
    assert!(status.success(), "{status}");
    assert_eq!(processes_of(dir.path()), Vec::<String>::new());
    let logs = std::fs::read_dir(dir.path().join("log"))?.flatten();
    let workers = logs.filter(|entry| entry.file_name().to_string_lossy().starts_with("worker-"));
    for file in workers.flat_map(|dir| std::fs::read_dir(dir.path()).into_iter().flatten().flatten()) {
        let text = std::fs::read_to_string(file.path())?;
        assert!(text.contains("drained"), "{} was not drained: {text}", file.path().display());
    }
    Ok(())
}

#[test]
fn a_run_that_was_told_to_outlive_its_terminal_does() -> Result<()> {
    let dir = data()?;
    let mut child = Command::new("nohup")
        .arg(dodo_program())
        .args(["up", "--port", "0", "--json", "--sample", "--delay", "100", "--data"])
        .arg(dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    wait_for_pages(dir.path())?;
    let target = Pid::from_raw(child.id() as i32);
    kill(target, Signal::SIGHUP)?;
    std::thread::sleep(Duration::from_secs(1));
    assert!(child.try_wait()?.is_none(), "it goes on");
    kill(target, Signal::SIGTERM)?;
    assert!(child.wait()?.success());
    assert_eq!(processes_of(dir.path()), Vec::<String>::new());
    Ok(())
}

#[test]
fn a_wrong_url_and_a_missing_contact_stop_the_start() -> Result<()> {
    let dir = data()?;
    for (url, expected) in [("gopher://x/", "gopher"), ("https://example.com/", "DODO_CONTACT")] {
        let out = up(dir.path(), &["--crawl", url, "--exit-when-done"])?.wait_with_output()?;
        let text = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(1));
        assert!(text.contains(expected) && !text.contains("panicked"), "{text}");
        assert_eq!(processes_of(dir.path()), Vec::<String>::new());
    }
    Ok(())
}
