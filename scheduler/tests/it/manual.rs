//! A crawl of real pages: the PostgreSQL manual as Debian packages it, served by nginx on loopback, judged
//! by an independent script over the files and nginx's log, and read back with tools that are not ours.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dodo_scheduler::local::free_port;
use serde_json::json;

use crate::cluster::Cluster;

/// nginx with a configuration of its own; stopped when it is dropped.
struct Nginx {
    child: Child,
    log: PathBuf,
    port: u16,
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn manual() -> Result<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/share/doc")?
        .flatten()
        .map(|entry| entry.path().join("html"))
        .filter(|path| path.to_string_lossy().contains("postgresql-doc-") && path.join("index.html").is_file())
        .collect();
    found.sort();
    found.pop().context("the manual is missing: apt-get install postgresql-doc")
}

fn nginx(dir: &Path, root: &Path) -> Result<Nginx> {
    let port = free_port()?;
    let log = dir.join("access.log");
    let config = dir.join("nginx.conf");
    // One process in the foreground: killing it leaves nothing behind.
    std::fs::write(
        &config,
        format!(
            "daemon off; master_process off; pid {0}/nginx.pid; error_log {0}/error.log;
             events {{ worker_connections 512; }}
             http {{
               types {{ text/html html; text/css css; image/svg+xml svg; }}
               log_format plain '$request_uri $status'; access_log {0}/access.log plain;
               client_body_temp_path {0}/t1; proxy_temp_path {0}/t2; fastcgi_temp_path {0}/t3; uwsgi_temp_path {0}/t4; scgi_temp_path {0}/t5;
               server {{ listen 127.0.0.1:{port}; root {1}; }}
             }}",
            dir.display(),
            root.display()
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
    for _ in 0..200 {
        if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return Ok(Nginx { child, log, port });
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    anyhow::bail!("nginx does not answer: {}", std::fs::read_to_string(dir.join("error.log")).unwrap_or_default())
}

async fn crawl(workers: usize) -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let root = manual()?;
    let site = nginx(cluster.dir.path(), &root)?;
    cluster.open(&[format!("127.0.0.1:{}", site.port)]);
    let _scheduler = cluster.scheduler().await?;
    let _workers = (0..workers).map(|_| cluster.worker()).collect::<Result<Vec<_>>>()?;
    let seed = format!("http://127.0.0.1:{}/index.html", site.port);
    let body = json!({ "urls": [seed], "delay_ms": 0, "host_concurrency": 16 });
    let dispatch = cluster.post("/v1/crawls", &body).await?;
    cluster.wait_done(&dispatch, Duration::from_secs(180)).await?;
    let out = cluster.dir.path().join("out");
    std::fs::create_dir_all(&out)?;
    std::fs::write(out.join("pages.ndjson"), cluster.dodo_text(&["export", "pages", "--dispatch", &dispatch])?)?;
    std::fs::write(out.join("links.ndjson"), cluster.dodo_text(&["export", "links", "--dispatch", &dispatch])?)?;
    let archive = cluster.dodo_text(&["archive", "list", "pages", "--json"])?;
    let mut warcs = Vec::new();
    for (n, line) in archive.lines().enumerate() {
        let key = serde_json::from_str::<serde_json::Value>(line)?["key"].as_str().unwrap_or_default().to_owned();
        let file = cluster.object_file(&key);
        let copy = out.join(format!("{n}.warc.gz"));
        std::fs::copy(&file, &copy).with_context(|| format!("{}", file.display()))?;
        warcs.push(copy);
    }
    let python = std::env::var("DODO_TEST_PYTHON").context("run scripts/test: it makes the Python environment")?;
    let checked = Command::new(python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/check_manual.py"))
        .arg(&root)
        .arg(&site.log)
        .arg(&out)
        .arg(site.port.to_string())
        .output()?;
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
async fn the_manual_with_two_workers() -> Result<()> {
    crawl(2).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_manual_with_four_workers() -> Result<()> {
    crawl(4).await
}
