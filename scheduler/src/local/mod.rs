//! The ground of `dodo up`: what the servers it runs on this machine have in common.
//!
//! Every server listens on 127.0.0.1 only, on a port that was free a moment ago, Redis and Postgres on a
//! socket of their directory, too. It keeps all its files under one directory, and outlives neither
//! `dodo up` nor, if `dodo up` was killed, the next start on the same directory.

mod new_object;
pub mod postgres;
pub mod redis;
pub mod reviews;
pub mod s3;
pub mod sample;
pub mod site;
pub mod up;
pub mod watch;
pub mod workers;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use rand::distr::{Alphanumeric, SampleString};

/// A start that lost its port between the choice and the bind is tried this often in all.
const PORT_TRIES: usize = 5;

/// How often a server is asked whether it is up, or gone.
const POLL: Duration = Duration::from_millis(10);

/// A log longer than this is set aside as `NAME.old` at the next start, the older one removed.
const LOG_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// What one start of a server may have logged that is read back to explain a failure.
const LOG_TAIL_BYTES_MAX: u64 = 64 * 1024;

/// Longest path of a unix socket that every system takes is 107 bytes; Postgres adds a lock file.
const SOCKET_PATH_BYTES_MAX: usize = 99;

/// How a server is ended: each signal, and how long it is given before the next one.
/// SIGKILL follows the last.
pub type Ending = &'static [(Signal, Duration)];

/// The end of a server that is not our child and so cannot be waited for.
const KILLING: Ending = &[(Signal::SIGKILL, Duration::from_secs(5))];

/// Held for as long as a `dodo up` uses a directory; the kernel drops it with the process.
pub type DirLock = Flock<File>;

/// The chosen port went to somebody else before the server could bind it.
#[derive(Debug, thiserror::Error)]
#[error("port {0} of 127.0.0.1 is taken")]
pub struct PortTaken(pub u16);

/// Whether a path means in a url what it means here.
fn is_plain(path: &str) -> bool {
    path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte))
}

/// A server process of ours, ended when this value is dropped.
#[derive(Debug)]
pub struct Daemon {
    name: &'static str,
    child: Child,
    ending: Ending,
    log: PathBuf,
    /// Length of the log before this start, in bytes: what follows is this process speaking.
    log_start_bytes: u64,
}

impl Daemon {
    /// Starts `command` with its output appended to `log`, in a process group of its own: a Ctrl-C
    /// at the terminal must reach `dodo up` only, which then ends its servers in order.
    pub fn spawn(name: &'static str, mut command: Command, log: &Path, ending: Ending) -> Result<Self> {
        if fs::metadata(log).is_ok_and(|meta| meta.len() > LOG_BYTES_MAX) {
            fs::rename(log, log.with_extension("old"))
                .with_context(|| format!("cannot set aside {}", log.display()))?;
        }
        let out = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(log)
            .with_context(|| format!("cannot open {}", log.display()))?;
        let log_start_bytes = out.metadata().context("cannot read a log's length")?.len();
        let err = out.try_clone().context("cannot share a log")?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot run {}", command.get_program().display()))?;
        Ok(Self { name, child, ending, log: log.to_owned(), log_start_bytes })
    }

    /// Process id; of a reaped process too.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether the process has ended.
    pub fn ended(&mut self) -> bool {
        // An error means that it was reaped already, so there is no process either way.
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until `ready` says so. The error is one line: the server's own last words and the
    /// log's path. [`PortTaken`] is found in it by `downcast_ref`.
    pub fn await_ready(&mut self, port: u16, bound: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
        let deadline = Instant::now() + bound;
        loop {
            let ended = self.ended();
            if !ended && ready() {
                return Ok(());
            }
            if ended && self.said().contains("Address already in use") {
                return Err(PortTaken(port).into());
            }
            if ended || Instant::now() > deadline {
                let (name, log) = (self.name, self.log.display());
                let what = if ended { "did not start" } else { "is not ready" };
                bail!("{name} {what}: {} (log: {log})", last_words(&self.said()));
            }
            thread::sleep(POLL);
        }
    }

    /// What this process logged, the last 64 KiB of it.
    pub fn said(&self) -> String {
        let mut bytes = Vec::new();
        // A log that cannot be read leaves the explanation empty; the failure itself is reported.
        if let Ok(mut file) = File::open(&self.log) {
            let end = file.metadata().map_or(0, |meta| meta.len());
            let from = self.log_start_bytes.max(end.saturating_sub(LOG_TAIL_BYTES_MAX));
            if file.seek(SeekFrom::Start(from)).is_ok() {
                let _ = file.take(LOG_TAIL_BYTES_MAX).read_to_end(&mut bytes);
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Ends the process: each signal of its ending with its wait, then SIGKILL. Idempotent.
    pub fn stop(&mut self) {
        let pid = self.pid();
        let ending = self.ending;
        end(pid, ending, || self.ended());
        self.kill();
    }

    /// SIGKILL and reap: the crash of a server, for tests.
    pub fn kill(&mut self) {
        // Both fail only for a process that was reaped before, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Ends the server a killed `dodo up` left behind: the process named by the first line of
/// `pid_file`, provided that one of its arguments is exactly `own_arg`. A process id is used again
/// by others, so the file alone proves nothing.
pub fn stop_stale(pid_file: &Path, own_arg: &Path, ending: Ending) -> Result<()> {
    let Ok(text) = fs::read_to_string(pid_file) else {
        return Ok(());
    };
    let Some(pid) = text.lines().next().and_then(|line| line.trim().parse().ok()) else {
        return Ok(());
    };
    if !runs_with(pid, own_arg) {
        return Ok(());
    }
    end(pid, ending, || !runs_with(pid, own_arg));
    end(pid, KILLING, || !runs_with(pid, own_arg));
    if runs_with(pid, own_arg) {
        bail!("process {pid} of an earlier run does not end; end it and start again");
    }
    Ok(())
}

/// Starts something on a free port, and again on another one when it lost the port meanwhile.
pub fn on_free_port<T>(mut launch: impl FnMut(u16) -> Result<T>) -> Result<(u16, T)> {
    let mut tries = 0;
    loop {
        tries += 1;
        let port = free_port()?;
        match launch(port) {
            Ok(server) => return Ok((port, server)),
            Err(err) if err.is::<PortTaken>() && tries < PORT_TRIES => {}
            Err(err) => return Err(err),
        }
    }
}

/// A port of 127.0.0.1 that nobody listens on now. Nothing reserves it.
pub fn free_port() -> Result<u16> {
    let probe = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .context("cannot listen on 127.0.0.1: is the loopback interface up?")?;
    Ok(probe.local_addr().context("cannot read a port")?.port())
}

/// 32 letters and digits from the system-seeded generator: 190 bits, and no character that a url,
/// a shell or a configuration file would need escaped.
pub fn random_token() -> String {
    Alphanumeric.sample_string(&mut rand::rng(), 32)
}

/// The token kept in `path`, made on first use: a later start must still know the password of the
/// data it finds.
pub fn kept_token(path: &Path) -> Result<String> {
    match fs::read_to_string(path) {
        Ok(text) if text.trim().is_empty() => bail!("{} is empty; restore it", path.display()),
        Ok(text) => Ok(text.trim().to_owned()),
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => {
            let token = random_token();
            write_private(path, &token)?;
            Ok(token)
        }
        Err(err) => Err(err).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Writes a file that only its owner reads, whole or not at all.
pub fn write_private(path: &Path, text: &str) -> Result<()> {
    let draft = path.with_extension("draft");
    // A draft left by a crash may have another mode: never write into it.
    let _ = fs::remove_file(&draft);
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&draft, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Creates `dir` and gives its absolute path without links, as later starts will spell it too.
pub fn make_dir(dir: &Path) -> Result<PathBuf> {
    fs::create_dir_all(dir)
        .and_then(|()| dir.canonicalize())
        .with_context(|| format!("cannot create {}", dir.display()))
}

/// Takes `dir` for this process, or says who has it.
pub fn lock_dir(dir: &Path) -> Result<DirLock> {
    let dir = make_dir(dir)?;
    let path = dir.join("lock");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    let mut lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
        let holder = fs::read_to_string(&path).unwrap_or_default();
        anyhow!(
            "{} is in use by another dodo up (process {}, {errno}): stop it or choose another directory with --data",
            dir.display(),
            holder.trim(),
        )
    })?;
    lock.set_len(0)
        .and_then(|()| write!(lock, "{}", std::process::id()))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(lock)
}

/// The first of `names` found in PATH.
pub fn find_program(names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    names.iter().find_map(|name| std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file()))
}

/// Sends each signal in turn until `ended`, waiting after each as long as the ending grants.
fn end(pid: u32, ending: Ending, mut ended: impl FnMut() -> bool) {
    let target = Pid::from_raw(pid.cast_signed());
    for &(signal, patience) in ending {
        if ended() {
            return;
        }
        // Fails only if the process has just gone, which `ended` then tells.
        let _ = signal::kill(target, signal);
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if ended() {
                return;
            }
            thread::sleep(POLL);
        }
    }
}

/// Whether process `pid` runs and has `arg` among its arguments. A zombie has none.
fn runs_with(pid: u32, arg: &Path) -> bool {
    fs::read(format!("/proc/{pid}/cmdline"))
        .is_ok_and(|line| line.split(|byte| *byte == 0).any(|word| word == arg.as_os_str().as_encoded_bytes()))
}

/// The line that explains a failed start: Postgres marks it, for others it is the last one.
fn last_words(said: &str) -> &str {
    let lines = || said.lines().rev().map(str::trim);
    lines()
        .find(|line| line.contains("FATAL:") || line.contains("PANIC:"))
        .or_else(|| lines().find(|line| !line.is_empty()))
        .unwrap_or("it logged nothing")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_prefer_the_marked_line() {
        assert_eq!(last_words("a\nFATAL:  no\nLOG: down\n"), "FATAL:  no");
        assert_eq!(last_words("a\nb\n\n"), "b");
        assert_eq!(last_words(""), "it logged nothing");
    }

    #[test]
    fn tokens_differ_and_need_no_escape() {
        let token = random_token();
        assert_eq!(token.len(), 32);
        assert!(token.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        assert_ne!(token, random_token());
    }
}
