//! A private PostgreSQL on 127.0.0.1 with its cluster, password and log in one directory.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, User, chown};

use crate::local::{
    Daemon, Ending, PortTaken, SOCKET_PATH_BYTES_MAX, find_program, is_plain, kept_token, make_dir, on_free_port,
    stop_stale, write_private,
};

/// PostgreSQL manual 19.5: SIGINT is the fast shutdown (ends sessions, checkpoints), SIGQUIT the
/// immediate one (recovers at the next start).
const ENDING: Ending = &[(Signal::SIGINT, Duration::from_secs(30)), (Signal::SIGQUIT, Duration::from_secs(5))];

/// Up in 0.2 s as a rule; after a crash it replays up to `max_wal_size` first.
const READY_WAIT: Duration = Duration::from_secs(120);

/// After a crash of the postmaster its sessions end by themselves, but hold the shared memory
/// until they do, and a new postmaster refuses to start meanwhile.
const ORPHANS_WAIT: Duration = Duration::from_secs(30);

/// A running PostgreSQL. Dropping it stops the server; the data stays.
#[derive(Debug)]
pub struct PostgresServer {
    cluster: Cluster,
    password: String,
    port: u16,
    daemon: Daemon,
}

impl PostgresServer {
    /// Starts a server on the cluster of `dir` (both created if missing), on a free port. One that
    /// a killed run left on this directory is stopped first. Blocks until it takes connections.
    ///
    /// `fast` spares the syncs of the cluster's creation, for tests; the server itself always
    /// runs with fsync on.
    pub fn start(dir: &Path, fast: bool) -> Result<Self> {
        let dir = make_dir(dir)?;
        stop_stale(&dir.join("data/postmaster.pid"), &dir.join("data"), ENDING)?;
        let cluster = Cluster::find(dir)?;
        let password = kept_token(&cluster.dir.join("password"))?;
        cluster.create_once(fast)?;
        let (port, daemon) = on_free_port(|port| cluster.launch(port))?;
        Ok(Self { cluster, password, port, daemon })
    }

    /// Where clients connect, with the password. The user owns the server.
    pub fn url(&self) -> String {
        let (password, port) = (&self.password, self.port);
        format!("postgres://dodo:{password}@127.0.0.1:{port}/dodo")
    }

    /// The same over its socket, which costs less; none where there cannot be one.
    pub fn socket_url(&self) -> Option<String> {
        let (dir, password, port) = (self.cluster.socket_dir(), &self.password, self.port);
        let host = dir.replace('/', "%2F");
        (!dir.is_empty() && is_plain(&dir)).then(|| format!("postgres://dodo:{password}@{host}:{port}/dodo"))
    }

    /// Stops the server: open sessions are ended, the data is checkpointed. Idempotent.
    pub fn stop(&mut self) {
        self.daemon.stop();
    }

    /// SIGKILL: a crash, after which the next start recovers from the log.
    pub fn kill(&mut self) {
        self.daemon.kill();
    }

    /// Stops the server if it still runs and starts it on the same port and cluster.
    pub fn restart(&mut self) -> Result<()> {
        self.daemon.stop();
        self.daemon = self.cluster.launch(self.port)?;
        Ok(())
    }
}

/// A cluster's directory, the programs of its version and the account that runs them.
#[derive(Debug)]
struct Cluster {
    dir: PathBuf,
    bin: PathBuf,
    /// None: as we are. PostgreSQL refuses to run as root.
    account: Option<(Uid, Gid)>,
}

impl Cluster {
    fn find(dir: PathBuf) -> Result<Self> {
        let bin = find_bin(&dir.join("data"))?;
        let account = find_account(&dir.join("data"))?;
        let cluster = Self { dir, bin, account };
        if let Some((uid, gid)) = cluster.account {
            let dir = cluster.dir.display();
            chown(&cluster.dir, Some(uid), Some(gid))
                .with_context(|| format!("cannot give {dir} to the account of Postgres"))?;
            cluster.check_searchable()?;
        }
        fs::set_permissions(&cluster.dir, fs::Permissions::from_mode(0o700))
            .with_context(|| format!("cannot close {} to others", cluster.dir.display()))?;
        Ok(cluster)
    }

    /// A program of this cluster, as its account, untouched by the caller's PGDATA and the like.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"PG") {
                command.env_remove(name);
            }
        }
        command.env("LC_ALL", "C").current_dir(&self.dir);
        self.run_as_account(&mut command);
        command
    }

    fn run_as_account(&self, command: &mut Command) {
        if let Some((uid, gid)) = self.account {
            command.uid(uid.as_raw()).gid(gid.as_raw());
        }
    }

    /// Enters each parent directory as the account does: that covers modes, groups and ACLs.
    fn check_searchable(&self) -> Result<()> {
        let parents: Vec<&Path> = self.dir.ancestors().collect();
        for parent in parents.into_iter().rev() {
            let mut command = Command::new("/bin/true");
            command.current_dir(parent);
            self.run_as_account(&mut command);
            if command.status().is_err() {
                bail!(
                    "as root, Postgres runs as another account, which may not enter {}: chmod o+x it or choose another directory with --data",
                    parent.display()
                );
            }
        }
        Ok(())
    }

    /// Creates the cluster with user and database `dodo`, under a draft name until it is whole.
    fn create_once(&self, fast: bool) -> Result<()> {
        let (data, draft) = (self.dir.join("data"), self.dir.join("data.draft"));
        if data.exists() {
            return Ok(());
        }
        if draft.exists() {
            fs::remove_dir_all(&draft).with_context(|| format!("cannot remove {}", draft.display()))?;
        }
        let password_file = self.dir.join("password");
        if let Some((uid, gid)) = self.account {
            chown(&password_file, Some(uid), Some(gid)).context("cannot hand over the password")?;
        }
        let mut initdb = self.command("initdb");
        initdb.arg("--pgdata").arg(&draft);
        initdb.arg("--pwfile").arg(&password_file);
        initdb.args(["--username=dodo", "--auth=scram-sha-256", "--no-locale"]);
        initdb.args(["--encoding=UTF8", "--data-checksums"]);
        if fast {
            initdb.arg("--no-sync");
        }
        run(initdb, "")?;

        // Single-user mode needs neither a port nor a client program.
        let mut single = self.command("postgres");
        single.arg("--single").arg("-D").arg(&draft).arg("postgres");
        run(single, "CREATE DATABASE dodo;\n")?;
        fs::rename(&draft, &data).with_context(|| format!("cannot create {}", data.display()))
    }

    /// One start on one port, until it takes connections.
    fn launch(&self, port: u16) -> Result<Daemon> {
        let conf = self.dir.join("postgresql.conf");
        write_private(&conf, &self.configuration(port))?;
        if let Some((uid, gid)) = self.account {
            chown(&conf, Some(uid), Some(gid)).context("cannot hand over the configuration")?;
        }
        let deadline = Instant::now() + ORPHANS_WAIT;
        loop {
            let mut command = self.command("postgres");
            command.arg("-D").arg(self.dir.join("data"));
            command.arg(format!("--config-file={}", conf.display()));
            let log = self.dir.join("postgres.log");
            let mut daemon = Daemon::spawn("PostgreSQL", command, &log, ENDING)?;
            let pid = daemon.pid();
            match daemon.await_ready(port, READY_WAIT, || self.says_ready(pid)) {
                Ok(()) => return Ok(daemon),
                Err(err) if err.is::<PortTaken>() || Instant::now() > deadline => return Err(err),
                Err(_) if daemon.said().contains("shared memory block") => {
                    thread::sleep(Duration::from_millis(200));
                }
                Err(err) => return Err(err),
            }
        }
    }

    /// The last line of postmaster.pid is the server's state (miscadmin.h, since PostgreSQL 10):
    /// what pg_ctl waits for.
    fn says_ready(&self, pid: u32) -> bool {
        let text = fs::read_to_string(self.dir.join("data/postmaster.pid")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        lines.first().and_then(|line| line.parse().ok()) == Some(pid) && lines.get(7) == Some(&"ready")
    }

    /// The whole configuration; names and units as in the PostgreSQL manual, chapter 20.
    fn configuration(&self, port: u16) -> String {
        let socket_dir = self.socket_dir();
        let memory_mb = memory_mb();
        let shared_buffers_mb = (memory_mb / 16).clamp(128, 512);
        let cache_mb = (memory_mb / 2).max(256);
        let mut conf = format!(
            "# Written at every start of dodo up.\n\
             listen_addresses = '127.0.0.1'\n\
             port = {port}\n\
             unix_socket_directories = '{socket_dir}'\n\
             max_connections = 200\n\
             password_encryption = 'scram-sha-256'\n\
             shared_buffers = {shared_buffers_mb}MB\n\
             effective_cache_size = {cache_mb}MB\n"
        );
        conf.push_str(SETTINGS);
        // Asked of the server itself: these depend on how it was built, not only on its version.
        for (name, value, otherwise) in
            [("wal_compression", "lz4", Some("on")), ("default_toast_compression", "lz4", None)]
        {
            let value = if self.takes(name, value) { Some(value) } else { otherwise };
            if let Some(value) = value {
                conf.push_str(&format!("{name} = {value}\n"));
            }
        }
        conf
    }

    /// Whether this server knows a setting and this value of it.
    fn takes(&self, name: &str, value: &str) -> bool {
        let mut command = self.command("postgres");
        command.arg("-C").arg(name).arg("-D").arg(self.dir.join("data"));
        command.arg("-c").arg(format!("{name}={value}"));
        command.output().is_ok_and(|output| output.status.success())
    }

    /// Our own directory, if a socket's path fits and needs no quoting of a list's kind.
    fn socket_dir(&self) -> String {
        let dir = self.dir.display().to_string();
        let length = dir.len() + "/.s.PGSQL.65535".len();
        if length > SOCKET_PATH_BYTES_MAX || dir.contains([',', '"', '\'', '\\']) {
            return String::new();
        }
        dir
    }
}

/// What does not depend on the machine. Settlement is many small durable transactions on tables
/// that are inserted into and deleted from all day: autovacuum has to keep up, queries never
/// gain from compilation, and nothing may be acknowledged before it is on disk.
const SETTINGS: &str = "\
fsync = on
synchronous_commit = on
full_page_writes = on
max_wal_size = 2GB
min_wal_size = 256MB
checkpoint_timeout = 15min
checkpoint_completion_target = 0.9
autovacuum = on
autovacuum_naptime = 10s
autovacuum_vacuum_cost_limit = 2000
autovacuum_vacuum_scale_factor = 0.05
autovacuum_analyze_scale_factor = 0.05
# Queries are by key: little is to be known of what columns hold, and a log of forty of them is looked at all day.
default_statistics_target = 20
jit = off
# /dev/shm is tiny or closed in many containers; nothing here runs in parallel workers.
dynamic_shared_memory_type = mmap
max_parallel_workers_per_gather = 0
random_page_cost = 1.1
timezone = 'UTC'
log_timezone = 'UTC'
datestyle = 'iso, mdy'
lc_messages = 'C'
log_line_prefix = '%m [%p] '
log_checkpoints = off
log_min_duration_statement = 2s
";

/// Runs one step of the creation to its end; its error is its last line.
fn run(mut command: Command, input: &str) -> Result<()> {
    let program = command.get_program().display().to_string();
    let cannot = || format!("cannot run {program}");
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().with_context(cannot)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).with_context(cannot)?;
    }
    let output = child.wait_with_output().with_context(cannot)?;
    let said = String::from_utf8_lossy(&output.stderr);
    // Single-user mode reports a failed statement, yet exits with 0.
    if !output.status.success() || said.contains("ERROR:") {
        let line = said.lines().rev().find(|line| !line.trim().is_empty());
        bail!("{program} failed: {}", line.unwrap_or("it said nothing"));
    }
    Ok(())
}

/// The programs for `data`: of its own major version if it exists, else of the newest one.
fn find_bin(data: &Path) -> Result<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = Vec::new();
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let packaged = versions.flatten().map(|entry| entry.path().join("bin"));
    let in_path = find_program(&["initdb"])
        .and_then(|file| file.canonicalize().ok())
        .and_then(|file| file.parent().map(Path::to_owned));
    for bin in packaged.chain(in_path) {
        if bin.join("initdb").is_file()
            && let Some(major) = major_version(&bin.join("postgres"))
        {
            found.push((major, bin));
        }
    }
    found.sort();
    if let Ok(text) = fs::read_to_string(data.join("PG_VERSION")) {
        let major: u32 = text.trim().parse().context("PG_VERSION holds no number")?;
        let Some((_, bin)) = found.into_iter().find(|(version, _)| *version == major) else {
            bail!(
                "{} was made by PostgreSQL {major}, which is not installed: install it or move the directory away",
                data.display()
            );
        };
        return Ok(bin);
    }
    let (_, bin) = found.pop().context("PostgreSQL is not installed: apt-get install postgresql")?;
    Ok(bin)
}

/// 15 for `postgres (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)`.
fn major_version(postgres: &Path) -> Option<u32> {
    let output = Command::new(postgres).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.split_whitespace().nth(2)?;
    let digits = version.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

/// As root: the owner of the cluster, or else the account that the packages create.
fn find_account(data: &Path) -> Result<Option<(Uid, Gid)>> {
    if !Uid::effective().is_root() {
        return Ok(None);
    }
    if let Ok(meta) = fs::metadata(data) {
        return Ok(Some((Uid::from_raw(meta.uid()), Gid::from_raw(meta.gid()))));
    }
    let user = User::from_name("postgres")
        .context("cannot look up the account postgres")?
        .context("PostgreSQL does not run as root and there is no account postgres: start as another user")?;
    Ok(Some((user.uid, user.gid)))
}

/// Memory of the machine in MB; 0 if it does not say.
fn memory_mb() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kb = total.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kb.unwrap_or(0) / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_path_has_no_socket() {
        let cluster = |dir: &str| Cluster { dir: dir.into(), bin: "/usr/bin".into(), account: None };
        assert_eq!(cluster("/srv/dodo").socket_dir(), "/srv/dodo");
        assert_eq!(cluster(&format!("/{}", "d".repeat(90))).socket_dir(), "");
        assert_eq!(cluster("/srv/a,b").socket_dir(), "");
    }
}
