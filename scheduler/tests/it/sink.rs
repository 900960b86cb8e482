//! What alerts arrive at: a real SMTP server and an HTTP receiver, slow, refusing or down when told so.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use dodo_scheduler::local::free_port;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::Value;
use tempfile::TempDir;

/// How a sink behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Ok,
    /// Takes half a minute for everything.
    Slow,
    Refuse,
}

/// A mail as it arrived.
#[derive(Clone, Debug, serde::Deserialize)]
pub struct Received {
    pub from: String,
    pub to: Vec<String>,
    pub tls: bool,
    pub login: Option<String>,
    pub text: String,
}

impl Received {
    pub fn header(&self, name: &str) -> Option<&str> {
        let head = self.text.split("\n\n").next()?;
        head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    /// The body, whatever the transfer did to its lines and its end.
    pub fn body(&self) -> String {
        let body = self.text.split_once("\n\n").map_or("", |(_, body)| body);
        format!("{}\n", body.replace("=\n", "").replace("=3D", "=").trim_end())
    }
}

/// A private CA and a server of it, or no protection at all.
pub struct MailSink {
    pub dir: TempDir,
    pub port: u16,
    protection: &'static str,
    child: Option<Child>,
}

impl MailSink {
    pub fn start(protection: &'static str) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("dodo-mail-").tempdir()?;
        let mut about = CertificateParams::new(Vec::new())?;
        about.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_key = KeyPair::generate()?;
        std::fs::write(dir.path().join("ca.pem"), about.self_signed(&ca_key)?.pem())?;
        let issuer = Issuer::new(about, ca_key);
        let key = KeyPair::generate()?;
        let server = CertificateParams::new(vec!["127.0.0.1".to_owned()])?.signed_by(&key, &issuer)?;
        std::fs::write(dir.path().join("server.pem"), server.pem())?;
        std::fs::write(dir.path().join("server.key"), key.serialize_pem())?;
        let mut sink = Self { dir, port: free_port()?, protection, child: None };
        sink.mode(Mode::Ok)?;
        sink.up()?;
        Ok(sink)
    }

    /// The URL with the user and the password the server asks for.
    pub fn url(&self) -> String {
        match self.protection {
            "starttls" => format!("smtp+starttls://dodo:s3cr3t%2Fmail@127.0.0.1:{}", self.port),
            "tls" => format!("smtps://dodo:s3cr3t%2Fmail@127.0.0.1:{}", self.port),
            _ => format!("smtp://127.0.0.1:{}", self.port),
        }
    }

    pub fn ca_file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    pub fn mode(&self, mode: Mode) -> Result<()> {
        let word = match mode {
            Mode::Ok => "ok",
            Mode::Slow => "slow",
            Mode::Refuse => "refuse",
        };
        Ok(std::fs::write(self.dir.path().join("mode"), word)?)
    }

    pub fn up(&mut self) -> Result<()> {
        let python = std::env::var("DODO_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
        let ready = self.dir.path().join("ready");
        let _ = std::fs::remove_file(&ready);
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/smtp_server.py");
        let child = Command::new(&python)
            .arg(script)
            .arg(self.dir.path())
            .args([&self.port.to_string(), self.protection])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("{python} with aiosmtpd is missing: scripts/test sets it up"))?;
        self.child = Some(child);
        let start = Instant::now();
        while !ready.exists() {
            ensure!(
                start.elapsed() < Duration::from_secs(20),
                "the SMTP server does not start: has {python} aiosmtpd?"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    pub fn down(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Every mail that was taken, in order of arrival.
    pub fn mails(&self) -> Vec<Received> {
        let mut files: Vec<(std::time::SystemTime, PathBuf)> = std::fs::read_dir(self.dir.path())
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "mail"))
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .collect();
        files.sort();
        let read = |file: &PathBuf| serde_json::from_slice(&std::fs::read(file).ok()?).ok();
        files.iter().filter_map(|(_, file)| read(file)).collect()
    }
}

impl Drop for MailSink {
    fn drop(&mut self) {
        self.down();
    }
}

#[derive(Clone)]
struct Hook {
    mode: Arc<Mutex<Mode>>,
    taken: Arc<Mutex<Vec<Value>>>,
}

/// An HTTP receiver in the place of Slack, on a runtime of its own: ending it closes every connection.
pub struct WebSink {
    port: u16,
    hook: Hook,
    serving: Option<tokio::runtime::Runtime>,
}

impl WebSink {
    pub fn start() -> Result<Self> {
        let hook = Hook { mode: Arc::new(Mutex::new(Mode::Ok)), taken: Arc::default() };
        let mut sink = Self { port: free_port()?, hook, serving: None };
        sink.up()?;
        Ok(sink)
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/services/T0/B0/s3cr3thook", self.port)
    }

    pub fn mode(&self, mode: Mode) {
        *self.hook.mode.lock().expect("no panic") = mode;
    }

    pub fn up(&mut self) -> Result<()> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, self.port))?;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let router = Router::new().route("/services/T0/B0/s3cr3thook", post(take)).with_state(self.hook.clone());
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("it listens");
            axum::serve(listener, router).await
        });
        self.serving = Some(runtime);
        Ok(())
    }

    pub fn down(&mut self) {
        if let Some(runtime) = self.serving.take() {
            runtime.shutdown_background();
        }
    }

    pub fn messages(&self) -> Vec<Value> {
        self.hook.taken.lock().expect("no panic").clone()
    }
}

impl Drop for WebSink {
    fn drop(&mut self) {
        self.down();
    }
}

async fn take(State(hook): State<Hook>, axum::Json(body): axum::Json<Value>) -> (StatusCode, &'static str) {
    let mode = *hook.mode.lock().expect("no panic");
    match mode {
        Mode::Refuse => return (StatusCode::INTERNAL_SERVER_ERROR, "no_service"),
        Mode::Slow => tokio::time::sleep(Duration::from_secs(30)).await,
        Mode::Ok => {}
    }
    hook.taken.lock().expect("no panic").push(body);
    (StatusCode::OK, "ok")
}
