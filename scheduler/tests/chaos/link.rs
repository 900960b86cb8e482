//! A wire between a role and a server that can be cut, slowed, held and made to lose what it carries.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What a link does to the bytes it carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Pass,
    /// Open connections are closed, new ones as soon as they are made.
    Cut,
    /// Nothing gets through, and nobody is told.
    Hold,
    /// Each chunk is this many milliseconds late.
    Delay(u64),
    /// The request gets through; of the answer nothing does, and the connection closes.
    LoseReply,
    /// Half of an answer gets through, then the connection closes.
    CutReply,
}

/// One proxy on loopback in front of one server.
pub struct Link {
    pub port: u16,
    mode: watch::Sender<Mode>,
    task: tokio::task::JoinHandle<()>,
}

impl Link {
    pub async fn to(server_port: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let (mode, seen) = watch::channel(Mode::Pass);
        let task = tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((client, _)) => {
                        tokio::spawn(carry(client, server_port, seen.clone()));
                    }
                    // Out of file descriptors: that passes.
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        });
        Ok(Self { port, mode, task })
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Carries one connection until either end closes it, or the link does.
async fn carry(client: TcpStream, server_port: u16, mode: watch::Receiver<Mode>) {
    if *mode.borrow() == Mode::Cut {
        return;
    }
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, server_port)).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let mut cut = mode.clone();
    tokio::select! {
        () = copy(from_client, to_server, mode.clone(), false) => {}
        () = copy(from_server, to_client, mode, true) => {}
        _ = cut.wait_for(|mode| *mode == Mode::Cut) => {}
    }
}

/// Copies one direction until it ends or the mode ends it.
async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut mode: watch::Receiver<Mode>, is_answer: bool) {
    let mut chunk = vec![0; 64 * 1024];
    while let Ok(n @ 1..) = from.read(&mut chunk).await {
        if mode.wait_for(|mode| *mode != Mode::Hold).await.is_err() {
            return;
        }
        let now = *mode.borrow();
        match now {
            Mode::Delay(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
            Mode::LoseReply if is_answer => return,
            Mode::CutReply if is_answer => {
                let _ = to.write_all(&chunk[..n / 2]).await;
                return;
            }
            _ => {}
        }
        if to.write_all(&chunk[..n]).await.is_err() {
            return;
        }
    }
}
