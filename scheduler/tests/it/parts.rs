//! What a deployment is put together from: the S3 endpoint, the sample site and the health checks as processes, and
//! the file that lists every variable.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dodo_scheduler::local::free_port;
use nix::sys::signal::Signal;

use crate::cluster::{Cluster, Process, dodo_program};

const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "ours"), ("AWS_SECRET_ACCESS_KEY", "secret")];

/// Exit code, and what it said on standard error.
fn run(arguments: &[&str], env: &[(&str, &str)]) -> Result<(Option<i32>, String)> {
    let log_dir = tempfile::tempdir()?;
    let out = Command::new(dodo_program())
        .args(arguments)
        .env("DODO_LOG_DIR", log_dir.path())
        .envs(env.iter().copied())
        .output()?;
    Ok((out.status.code(), String::from_utf8_lossy(&out.stderr).trim().to_owned()))
}

/// Waits until a check succeeds, or fails, as wanted.
async fn becomes(wanted: bool, check: impl Fn() -> Result<(Option<i32>, String)>) -> Result<String> {
    let start = Instant::now();
    loop {
        let (code, text) = check()?;
        if (code == Some(0)) == wanted {
            return Ok(text);
        }
        ensure!(start.elapsed() < Duration::from_secs(20), "it stays {code:?}: {text}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_s3_endpoint_serves_those_who_have_the_keys() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (objects, logs) = (dir.path().join("objects"), dir.path().join("log").display().to_string());
    let listen = format!("127.0.0.1:{}", free_port()?);
    let endpoint = format!("http://{listen}");
    let objects = objects.to_str().context("no path")?;
    let serve = ["s3", "--dir", objects, "--listen", &listen, "--bucket", "archive"];
    let env = [KEYS[0], KEYS[1], ("DODO_LOG_DIR", logs.as_str())];
    let mut s3 = Process::start(&serve, &env)?;

    let bucket = [("DODO_S3_ENDPOINT", endpoint.as_str()), ("DODO_S3_BUCKET", "archive")];
    let right = [bucket[0], bucket[1], KEYS[0], KEYS[1]];
    becomes(true, || run(&["health", "s3"], &right)).await?;
    let wrong = [bucket[0], bucket[1], KEYS[0], ("AWS_SECRET_ACCESS_KEY", "guess")];
    let (code, text) = run(&["health", "s3"], &wrong)?;
    assert!(code == Some(1) && text.lines().count() == 1 && text.contains("denied"), "{text}");
    let absent = [bucket[0], ("DODO_S3_BUCKET", "absent"), KEYS[0], KEYS[1]];
    let (code, text) = run(&["health", "s3"], &absent)?;
    assert!(code == Some(1) && text.contains("bucket absent does not exist"), "{text}");

    // One process at a time has the directory; told to stop, it ends in order.
    let (code, text) = run(&["s3", "--dir", objects, "--listen", "127.0.0.1:0"], &KEYS)?;
    assert!(code == Some(1) && text.contains("is in use"), "{text}");
    s3.signal(Signal::SIGTERM);
    assert_eq!(s3.ended(Duration::from_secs(10)).await?, Some(0));
    let (code, _) = run(&["health", "s3"], &right)?;
    assert_eq!(code, Some(1));
    Ok(())
}

#[test]
fn the_s3_endpoint_refuses_what_would_be_open_or_outside() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let dir = dir.path().to_str().context("no path")?;
    let (code, text) = run(&["s3", "--dir", dir], &[KEYS[0], ("AWS_SECRET_ACCESS_KEY", "")])?;
    assert!(code == Some(1) && text.lines().count() == 1 && text.contains("AWS_SECRET_ACCESS_KEY"), "{text}");
    let (code, text) = run(&["s3", "--dir", dir, "--bucket", "../outside"], &KEYS)?;
    assert!(code == Some(1) && text.lines().count() == 1 && text.contains("no bucket name"), "{text}");
    let (code, text) = run(&["s3", "--dir", dir, "--listen", "nowhere"], &KEYS)?;
    assert!(code == Some(2) && text.contains("--listen"), "{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn health_tells_the_well_from_the_others() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let health = |cluster: &Cluster, part: &str| {
        let out = cluster.dodo(&["health", part]);
        Ok((out.status.code(), String::from_utf8_lossy(&out.stderr).trim().to_owned()))
    };
    let (code, text) = health(&cluster, "scheduler")?;
    assert!(code == Some(1) && text.lines().count() == 1 && text.contains("no scheduler answers"), "{text}");
    let _scheduler = cluster.scheduler().await?;
    becomes(true, || health(&cluster, "scheduler")).await?;
    let (code, text) = health(&cluster, "worker")?;
    assert!(code == Some(1) && text.lines().count() == 1 && text.contains("is registered"), "{text}");
    let worker = cluster.worker()?;
    becomes(true, || health(&cluster, "worker")).await?;
    assert_eq!(cluster.dodo_text(&["health", "s3", "--json"])?.trim(), r#"{"healthy":true}"#);

    // A frozen process still runs; nobody hears it.
    worker.signal(Signal::SIGSTOP);
    becomes(false, || health(&cluster, "worker")).await?;
    cluster.redis.kill();
    let text = becomes(false, || health(&cluster, "scheduler")).await?;
    assert!(text.contains("Redis"), "{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sample_site_goes_by_the_name_it_is_given() -> Result<()> {
    let listen = format!("127.0.0.1:{}", free_port()?);
    let mut site =
        Process::start(&["sample", "--listen", &listen, "--origin", "http://sample:8000", "--latency", "80"], &[])?;
    let robots = || async {
        let http = reqwest::Client::builder().no_proxy().build()?;
        anyhow::Ok(http.get(format!("http://{listen}/robots.txt")).send().await?.text().await?)
    };
    dodo_common::install_tls_provider();
    let start = Instant::now();
    let text = loop {
        match robots().await {
            Ok(text) => break text,
            Err(error) => ensure!(start.elapsed() < Duration::from_secs(10), "{error}"),
        }
    };
    assert!(text.contains("Sitemap: http://sample:8000/sitemap.xml"), "{text}");
    let start = Instant::now();
    robots().await?;
    assert!(start.elapsed() >= Duration::from_millis(80));
    site.signal(Signal::SIGTERM);
    assert_eq!(site.ended(Duration::from_secs(10)).await?, Some(0));
    Ok(())
}

/// A test that names a point wrongly would prove nothing: the program does not start.
#[test]
fn a_wrong_fail_point_stops_the_start() -> Result<()> {
    let worker = dodo_program().with_file_name("dodo-worker");
    for (program, arguments) in [(dodo_program(), ["status"].as_slice()), (worker.as_path(), &[])] {
        let out = Command::new(program).args(arguments).env("DODO_FAIL_POINT", "committed=stop").output()?;
        let text = String::from_utf8_lossy(&out.stderr).trim().to_owned();
        assert_eq!(out.status.code(), Some(1), "{text}");
        assert!(text.contains("DODO_FAIL_POINT") && text.lines().count() == 1, "{text}");
    }
    Ok(())
}

/// Every variable that a program of ours reads is in docker/sample.env, with its default there; and what is there is
/// read by a program or by Compose.
#[test]
fn the_sample_lists_every_variable() -> Result<()> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let sample = std::fs::read_to_string(format!("{root}/docker/sample.env"))?;
    let compose = std::fs::read_to_string(format!("{root}/docker/docker-compose.yml"))?;
    let listed: BTreeMap<&str, &str> = sample
        .lines()
        .map(|line| line.strip_prefix('#').unwrap_or(line))
        .filter_map(|line| line.split_once('='))
        .filter(|(name, _)| name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_'))
        .collect();

    let worker = dodo_program().with_file_name("dodo-worker");
    let help = |program: &std::path::Path, verb: &[&str]| -> Result<String> {
        let out = Command::new(program).args(verb).arg("--help").env_clear().output()?;
        Ok(String::from_utf8(out.stdout)?)
    };
    let top = help(dodo_program(), &[])?;
    let verbs =
        top.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1).take_while(|line| !line.is_empty());
    let mut texts = vec![help(&worker, &[])?];
    for verb in verbs.filter_map(|line| line.split_whitespace().next()).filter(|verb| *verb != "help") {
        texts.push(help(dodo_program(), &[verb])?);
    }
    let mut read = BTreeSet::new();
    for text in &texts {
        // Without the line breaks of the help.
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for option in text.split("[env: ").skip(1) {
            let (name, rest) = option.split_once(']').context("no end")?;
            let name = name.trim_end_matches('=');
            let written = *listed.get(name).with_context(|| format!("{name} is not in docker/sample.env"))?;
            let default = rest.strip_prefix(" [default: ").and_then(|rest| rest.split(']').next());
            // `dodo up` has defaults of its own for what it brings along.
            if let Some(default) = default.filter(|_| !text.contains("Usage: dodo up")) {
                ensure!(written == default.trim_matches('"'), "{name}: {written} is listed, the default is {default}");
            }
            read.insert(name.to_owned());
        }
    }
    ensure!(read.len() > 25, "only {read:?}");
    for name in listed.keys() {
        ensure!(read.contains(*name) || compose.contains(&format!("${{{name}")), "nothing reads {name}");
    }
    Ok(())
}
