//! A SOCKS5 proxy and an HTTP forward proxy that ask for credentials and write down where they are sent.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub const USER: &str = "us@er";
pub const PASSWORD: &str = "pa55:w/rd";
pub const ENCODED: &str = "us%40er:pa55%3Aw%2Frd";
/// Where the proxy's own connections come from.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(127, 0, 9, 9);
pub const SITE: Ipv4Addr = Ipv4Addr::new(127, 0, 8, 8);
/// The one name the HTTP proxy knows, with all below it.
pub const NAME: &str = "site.test";

#[derive(Clone, Copy)]
pub enum Kind {
    Socks5,
    Http,
}

/// A small proxy that asks for credentials and writes down where it was asked to go.
pub struct Proxy {
    pub port: u16,
    targets: Arc<Mutex<Vec<String>>>,
    /// An HTTP proxy says this to everything, if it says anything: a status.
    refusal: Arc<Mutex<Option<u16>>>,
    /// Ends it with every connection.
    pub stop: CancellationToken,
}

impl Proxy {
    pub async fn start(kind: Kind, port: u16) -> Result<Self> {
        Self::start_at(kind, port, OUTSIDE).await
    }

    /// One whose own connections come from `outside`.
    pub async fn start_at(kind: Kind, port: u16, outside: Ipv4Addr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let port = listener.local_addr()?.port();
        let (targets, refusal) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(None)));
        let stop = CancellationToken::new();
        let (seen, refused, stopped) = (Arc::clone(&targets), Arc::clone(&refusal), stop.clone());
        tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let client = tokio::select! { client = listener.accept() => client, () = stopped.cancelled() => break };
                let Ok((client, _)) = client else { break };
                let (seen, refused) = (Arc::clone(&seen), Arc::clone(&refused));
                connections.spawn(async move {
                    // A connection that breaks is a client that has gone.
                    let _ = match kind {
                        Kind::Socks5 => socks5(client, outside, &seen).await,
                        Kind::Http => http(client, outside, &seen, &refused).await,
                    };
                });
            }
            // The listener and every connection end here.
        });
        Ok(Self { port, targets, refusal, stop })
    }

    /// From here on an HTTP proxy refuses what comes, by this status.
    pub fn refuse(&self, status: Option<u16>) {
        *self.refusal.lock().expect("no panic under this lock") = status;
    }

    pub fn targets(&self) -> BTreeSet<String> {
        self.targets.lock().expect("no panic under this lock").iter().cloned().collect()
    }
}

async fn connect(outside: Ipv4Addr, to: SocketAddr) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((outside, 0).into())?;
    Ok(socket.connect(to).await?)
}

/// RFC 1928 with RFC 1929.
async fn socks5(mut client: TcpStream, outside: Ipv4Addr, seen: &Mutex<Vec<String>>) -> Result<()> {
    ensure!(client.read_u8().await? == 5, "not SOCKS5");
    let methods = counted(&mut client).await?;
    if !methods.contains(&2) {
        return Ok(client.write_all(&[5, 0xff]).await?);
    }
    client.write_all(&[5, 2]).await?;
    ensure!(client.read_u8().await? == 1, "not RFC 1929");
    let who = (counted(&mut client).await?, counted(&mut client).await?);
    if who != (USER.into(), PASSWORD.into()) {
        return Ok(client.write_all(&[1, 1]).await?);
    }
    client.write_all(&[1, 0]).await?;
    let mut head = [0; 4];
    client.read_exact(&mut head).await?;
    // Only an IPv4 address will do: whoever sends a name lets the proxy resolve it.
    if head != [5, 1, 0, 1] {
        seen.lock().expect("no panic under this lock").push(format!("not an address: {head:?}"));
        return Ok(client.write_all(&[5, 8, 0, 1, 0, 0, 0, 0, 0, 0]).await?);
    }
    let to = SocketAddr::from((Ipv4Addr::from(client.read_u32().await?), client.read_u16().await?));
    seen.lock().expect("no panic under this lock").push(to.to_string());
    let mut server = connect(outside, to).await?;
    client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await?;
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}

async fn counted(client: &mut TcpStream) -> Result<Vec<u8>> {
    let mut bytes = vec![0; usize::from(client.read_u8().await?)];
    client.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// A forward proxy: requests in absolute form, one a connection, and CONNECT. It knows where the site is by itself.
async fn http(
    mut client: TcpStream,
    outside: Ipv4Addr,
    seen: &Mutex<Vec<String>>,
    refused: &Mutex<Option<u16>>,
) -> Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
    }
    let head = String::from_utf8(head)?;
    let (first, headers) = head.split_once("\r\n").context("no request line")?;
    let basic = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{PASSWORD}"));
    let is_ours = |line: &&str| !line.to_lowercase().starts_with("proxy-");
    let known = headers.lines().any(|line| line.eq_ignore_ascii_case(&format!("proxy-authorization: Basic {basic}")));
    let refusal = refused.lock().expect("no panic under this lock").or((!known).then_some(407));
    if let Some(status) = refusal {
        let refusal = format!(
            "HTTP/1.1 {status} No\r\nproxy-authenticate: Basic\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
        return Ok(client.write_all(refusal.as_bytes()).await?);
    }
    let mut words = first.split(' ');
    let (method, target) = words.next().zip(words.next()).context("no target")?;
    if method == "CONNECT" {
        seen.lock().expect("no panic under this lock").push(format!("CONNECT {target}"));
        let (name, port) = target.rsplit_once(':').context("no port")?;
        ensure!(name.ends_with(NAME), "another site");
        let mut server = connect(outside, (SITE, port.parse()?).into()).await?;
        client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
        copy_bidirectional(&mut client, &mut server).await?;
        return Ok(());
    }
    seen.lock().expect("no panic under this lock").push(target.to_owned());
    let (place, path) =
        target.strip_prefix("http://").and_then(|rest| rest.split_once('/')).context("no absolute form")?;
    let (name, port) = place.rsplit_once(':').context("no port")?;
    ensure!(name.ends_with(NAME), "another site");
    let mut server = connect(outside, (SITE, port.parse()?).into()).await?;
    let headers: String =
        headers.lines().filter(is_ours).filter(|line| !line.is_empty()).map(|l| format!("{l}\r\n")).collect();
    server.write_all(format!("GET /{path} HTTP/1.1\r\n{headers}connection: close\r\n\r\n").as_bytes()).await?;
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}
