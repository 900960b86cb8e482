//! A private redis-server on 127.0.0.1 and a socket, with its data, password and log in one directory.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::local::{
    Daemon, Ending, SOCKET_PATH_BYTES_MAX, find_program, is_plain, kept_token, make_dir, on_free_port, stop_stale,
    write_private,
};

/// SIGTERM saves: with an append-only file, Redis writes and syncs what is buffered, then exits.
const ENDING: Ending = &[(Signal::SIGTERM, Duration::from_secs(10))];

/// Redis answers at once, but after a crash it first loads the append-only file.
const READY_WAIT: Duration = Duration::from_secs(120);

/// One answer to the readiness probe; loopback needs no more.
const PROBE_WAIT: Duration = Duration::from_secs(1);

/// A running Redis. Dropping it stops the server; the data stays.
#[derive(Debug)]
pub struct RedisServer {
    dir: PathBuf,
    socket: Option<String>,
    password: String,
    port: u16,
    daemon: Daemon,
}

impl RedisServer {
    /// Starts a server on the data of `dir` (created if missing), on a free port. One that a
    /// killed run left on this directory is stopped first. Blocks until it answers.
    pub fn start(dir: &Path) -> Result<Self> {
        let dir = make_dir(dir)?;
        make_dir(&dir.join("data"))?;
        let password = kept_token(&dir.join("password"))?;
        stop_stale(&dir.join("redis.pid"), &dir.join("redis.conf"), ENDING)?;
        let socket = socket(&dir).filter(|path| may_lie_at(path));
        let (port, daemon) = on_free_port(|port| launch(&dir, socket.as_deref(), &password, port))?;
        Ok(Self { dir, socket, password, port, daemon })
    }

    /// Where clients connect, with the password.
    pub fn url(&self) -> String {
        format!("redis://:{}@127.0.0.1:{}/0", self.password, self.port)
    }

    /// The same over its socket, which costs less; none where there cannot be one.
    pub fn socket_url(&self) -> Option<String> {
        self.socket.as_ref().map(|path| format!("redis+unix://{path}?db=0&pass={}", self.password))
    }

    /// Stops the server, the append-only file synced. Idempotent.
    pub fn stop(&mut self) {
        self.daemon.stop();
    }

    /// SIGKILL: at most the last second of writes is lost (appendfsync everysec).
    pub fn kill(&mut self) {
        self.daemon.kill();
    }

    /// Stops the server if it still runs and starts it on the same port and data.
    pub fn restart(&mut self) -> Result<()> {
        self.daemon.stop();
        self.daemon = launch(&self.dir, self.socket.as_deref(), &self.password, self.port)?;
        Ok(())
    }
}

/// One start on one port, until it answers.
fn launch(dir: &Path, socket: Option<&str>, password: &str, port: u16) -> Result<Daemon> {
    let program = find_program(&["redis-server", "valkey-server"])
        .context("redis-server is not installed: apt-get install redis-server")?;
    let conf = dir.join("redis.conf");
    write_private(&conf, &configuration(dir, socket, password, port))?;
    let mut command = Command::new(program);
    command.arg(&conf).current_dir(dir);
    let mut daemon = Daemon::spawn("Redis", command, &dir.join("redis.log"), ENDING)?;
    daemon.await_ready(port, READY_WAIT, || answers(port, password))?;
    Ok(daemon)
}

/// The configuration file; directives as in the redis.conf that Redis 7.0 ships.
fn configuration(dir: &Path, socket: Option<&str>, password: &str, port: u16) -> String {
    let data = quoted(&dir.join("data"));
    let pid_file = quoted(&dir.join("redis.pid"));
    let socket = socket.map_or(String::new(), |path| format!("unixsocket {path}\nunixsocketperm 700\n"));
    // proc-title: a rewritten command line would no longer name this file, by which a later start
    // knows a server left behind. noeviction: an evicted stream is lost work. What the append-only file holds is packed
    // already and trimmed soon: neither pack it again nor write it anew too often.
    format!(
        "# Written at every start of dodo up.\n\
         bind 127.0.0.1\n\
         port {port}\n\
         {socket}\
         requirepass {password}\n\
         daemonize no\n\
         pidfile {pid_file}\n\
         set-proc-title no\n\
         dir {data}\n\
         appendonly yes\n\
         appendfsync everysec\n\
         auto-aof-rewrite-min-size 256mb\n\
         rdbcompression no\n\
         save \"\"\n\
         maxmemory-policy noeviction\n"
    )
}

/// Where the server of `dir` has its socket.
fn socket(dir: &Path) -> Option<String> {
    let path = format!("{}/redis.sock", dir.to_str()?);
    (is_plain(&path) && path.len() <= SOCKET_PATH_BYTES_MAX).then_some(path)
}

/// Whether the file system has sockets, and nothing else lies there. What a server left there is taken away.
fn may_lie_at(path: &str) -> bool {
    let _ = fs::remove_file(path);
    UnixListener::bind(path).is_ok() && fs::remove_file(path).is_ok()
}

/// A path as one double-quoted word of a Redis configuration file.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// Whether the server on `port` knows our password and serves: while it loads its data it answers
/// `-LOADING`.
fn answers(port: u16, password: &str) -> bool {
    let ask = || -> std::io::Result<bool> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut socket = TcpStream::connect_timeout(&address, PROBE_WAIT)?;
        socket.set_read_timeout(Some(PROBE_WAIT))?;
        socket.write_all(format!("AUTH {password}\r\nPING\r\nQUIT\r\n").as_bytes())?;
        let mut answer = String::new();
        socket.take(1024).read_to_string(&mut answer)?;
        Ok(answer.starts_with("+OK\r\n+PONG"))
    };
    ask().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_word() {
        let path = Path::new("/a b/c\"d");
        assert_eq!(quoted(path), "\"/a b/c\\\"d\"");
    }

    #[test]
    fn a_socket_has_a_short_and_plain_path() {
        assert_eq!(socket(Path::new("/srv/dodo-1")).as_deref(), Some("/srv/dodo-1/redis.sock"));
        for path in ["/srv/a b", "/srv/a?b", "/srv/a%20b", &format!("/{}", "d".repeat(90))] {
            assert_eq!(socket(Path::new(path)), None);
        }
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("redis.sock").display().to_string();
        assert!(may_lie_at(&path) && may_lie_at(&path), "it leaves nothing behind");
        fs::create_dir(&path).expect("a directory in its place");
        assert!(!may_lie_at(&path));
    }
}
