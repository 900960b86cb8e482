//! Crawls of real pages: manuals as Debian packages them, made by DocBook, by AsciiDoc and by SQLite's own scripts, served by
//! nginx on loopback. Judged file by file by an independent script over the files and nginx's log, and read back with tools
//! that are not ours.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dodo_scheduler::local::free_port;
use serde_json::json;

use crate::cluster::Cluster;

/// Files of each manual that can be reached at least: about half of what they have today, so that one whose package has
/// nearly nothing in it proves nothing.
const FILES_MIN: [usize; 3] = [600, 100, 400];

/// A manual as its package installs it.
struct Manual {
    root: PathBuf,
    files_min: usize,
}

/// nginx with a configuration of its own; stopped when it is dropped.
struct Nginx {
    child: Child,
    log: PathBuf,
    /// One for each site.
    ports: Vec<u16>,
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The manuals of PostgreSQL, Git and SQLite.
fn manuals() -> Result<Vec<Manual>> {
    let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/share/doc")?
        .flatten()
        .map(|entry| entry.path().join("html"))
        .filter(|path| path.to_string_lossy().contains("postgresql-doc-"))
        .collect();
    found.sort();
    let postgres = found.pop().context("the manual is missing: apt-get install postgresql-doc")?;
    let roots = [postgres, "/usr/share/doc/git-doc".into(), "/usr/share/doc/sqlite3".into()];
    for root in &roots {
        let whole = root.join("index.html").is_file();
        ensure!(whole, "{} is missing: apt-get install postgresql-doc git-doc sqlite3-doc", root.display());
    }
    Ok(roots.into_iter().zip(FILES_MIN).map(|(root, files_min)| Manual { root, files_min }).collect())
}

fn nginx(dir: &Path, manuals: &[Manual]) -> Result<Nginx> {
    let ports = manuals.iter().map(|_| free_port()).collect::<Result<Vec<_>>>()?;
    let log = dir.join("access.log");
    let config = dir.join("nginx.conf");
    let servers: String = ports
        .iter()
        .zip(manuals)
        .map(|(port, manual)| format!("server {{ listen 127.0.0.1:{port}; root {}; }}\n", manual.root.display()))
        .collect();
    // One process in the foreground: killing it leaves nothing behind.
    std::fs::write(
        &config,
        format!(
            "daemon off; master_process off; pid {0}/nginx.pid; error_log {0}/error.log;
             events {{ worker_connections 512; }}
             http {{
               types {{ text/html html; text/css css; image/svg+xml svg; }}
               log_format plain '$server_port $request_uri $status'; access_log {0}/access.log plain;
               client_body_temp_path {0}/t1; proxy_temp_path {0}/t2; fastcgi_temp_path {0}/t3; uwsgi_temp_path {0}/t4; scgi_temp_path {0}/t5;
               {servers}
             }}",
            dir.display()
        ),
    )?;
    let program = if Path::new("/usr/sbin/nginx").exists() { "/usr/sbin/nginx" } else { "nginx" };
    let child = Command::new(program)
        .arg("-c")
        .arg(&config)
        .arg("-p")
        .arg(dir)
        .stderr(Stdio::null())
        .spawn()
        .context("nginx is missing: apt-get install nginx")?;
    let site = Nginx { child, log, ports };
    for _ in 0..200 {
        if site.ports.iter().all(|port| std::net::TcpStream::connect(("127.0.0.1", *port)).is_ok()) {
            return Ok(site);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    anyhow::bail!("nginx does not answer: {}", std::fs::read_to_string(dir.join("error.log")).unwrap_or_default())
}

/// All the manuals at once, each by a crawl of its own.
async fn crawl(workers: usize, manuals: &[Manual]) -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let site = nginx(cluster.dir.path(), manuals)?;
    cluster.open(&site.ports.iter().map(|port| format!("127.0.0.1:{port}")).collect::<Vec<_>>());
    let _scheduler = cluster.scheduler().await?;
    let _workers = (0..workers).map(|_| cluster.worker()).collect::<Result<Vec<_>>>()?;
    let mut dispatches = Vec::new();
    for port in &site.ports {
        let seed = format!("http://127.0.0.1:{port}/index.html");
        let body = json!({ "urls": [seed], "delay_ms": 0, "host_concurrency": 16 });
        dispatches.push(cluster.post("/v1/crawls", &body).await?);
    }
    let out = cluster.dir.path().join("out");
    let python = std::env::var("DODO_TEST_PYTHON").context("run scripts/test: it makes the Python environment")?;
    let mut check = Command::new(python);
    check.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/check_manual.py")).arg(&site.log).arg(&out);
    for (n, dispatch) in dispatches.iter().enumerate() {
        cluster.wait_done(dispatch, Duration::from_secs(180)).await?;
        let exports = out.join(n.to_string());
        std::fs::create_dir_all(&exports)?;
        for what in ["pages", "links"] {
            let text = cluster.dodo_text(&["export", what, "--dispatch", dispatch])?;
            std::fs::write(exports.join(format!("{what}.ndjson")), text)?;
        }
        let Manual { root, files_min } = &manuals[n];
        check.arg(root).arg(site.ports[n].to_string()).arg(&exports).arg(files_min.to_string());
    }
    let archive = cluster.dodo_text(&["archive", "list", "pages", "--json"])?;
    for (n, line) in archive.lines().enumerate() {
        let key = serde_json::from_str::<serde_json::Value>(line)?["key"].as_str().unwrap_or_default().to_owned();
        let file = cluster.object_file(&key);
        std::fs::copy(&file, out.join(format!("{n}.warc.gz"))).with_context(|| format!("{}", file.display()))?;
    }
    let checked = check.output()?;
    ensure!(
        checked.status.success(),
        "{}{}",
        String::from_utf8_lossy(&checked.stdout),
        String::from_utf8_lossy(&checked.stderr)
    );
    println!("{}", String::from_utf8_lossy(&checked.stdout));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_manual_with_two_workers() -> Result<()> {
    crawl(2, &manuals()?[1..2]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn three_manuals_with_four_workers() -> Result<()> {
    crawl(4, &manuals()?).await
}
