//! An S3 endpoint in this process: the protocol by s3s, the objects as files of a directory.

use std::convert::Infallible;
use std::fmt;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdTcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use hyper::body::Incoming;
use hyper::header::CONTENT_LENGTH;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::{TokioIo, TokioTimer};
use s3s::Body;
use s3s::auth::SimpleAuth;
use s3s::dto::StreamingBlob;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s_fs::FileSystem;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::io::ReaderStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use url::Url;

use crate::local::new_object::NewObjects;
use crate::local::{kept_token, make_dir};

/// What a request in flight is given at the end before its connection is cut.
const DRAIN_WAIT: Duration = Duration::from_secs(5);

/// Pause after a failed accept: it fails for want of file descriptors, which pass.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What is read of an object at a time, bytes.
const READ_BYTES: usize = 256 << 10;

/// What the endpoint does to requests instead of serving them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    /// Every request is answered 503 SlowDown, as S3 does under load.
    Refuse503,
    /// Every request is answered 500 InternalError, as S3 does now and then.
    Refuse500,
    /// Every request is served this many milliseconds late.
    Slow(u32),
}

/// The one pair of keys that an endpoint accepts.
#[derive(Clone)]
pub struct Keys {
    pub access: String,
    pub secret: String,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys {{ {} }}", self.access)
    }
}

/// A running endpoint. Dropping it ends it without waiting for requests in flight.
#[derive(Debug)]
pub struct S3Endpoint {
    keys: Keys,
    bucket: String,
    port: u16,
    fault: Arc<AtomicU64>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl S3Endpoint {
    /// Serves the objects under `dir` on a free port, with an existing or new `bucket`.
    /// To be called inside a tokio runtime, which must have I/O and time.
    pub fn start(dir: &Path, bucket: &str) -> Result<Self> {
        Self::start_on(dir, bucket, None)
    }

    /// The same on a given port: a restart that clients do not notice.
    pub fn start_on(dir: &Path, bucket: &str, port: Option<u16>) -> Result<Self> {
        let dir = make_dir(dir)?;
        let keys = Keys { access: kept_token(&dir.join("access_key"))?, secret: kept_token(&dir.join("secret_key"))? };
        Self::serve(&dir, bucket, SocketAddr::from((Ipv4Addr::LOCALHOST, port.unwrap_or(0))), keys)
    }

    /// The same for others, who know the keys.
    pub fn serve(dir: &Path, bucket: &str, listen: SocketAddr, keys: Keys) -> Result<Self> {
        let objects = make_dir(&dir.join("objects"))?;
        make_dir(&objects.join(bucket))?;
        let files =
            FileSystem::new(&objects).map_err(|err| anyhow::anyhow!("cannot serve {}: {err:?}", objects.display()))?;
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single(keys.access.clone(), keys.secret.clone()));
        builder.set_route(NewObjects { objects: objects.clone() });

        let listener = StdTcpListener::bind(listen)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .and_then(TcpListener::from_std)
            .with_context(|| format!("the S3 endpoint cannot listen on {listen}"))?;
        let port = listener.local_addr().context("cannot read a port")?.port();
        let fault = Arc::new(AtomicU64::new(encode(Fault::None)));
        let door = Door { service: builder.build(), objects, fault: fault.clone() };
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn(accept(listener, door, stop.clone(), tasks.clone()));
        Ok(Self { keys, bucket: bucket.to_owned(), port, fault, stop, tasks })
    }

    /// Base url on this machine; buckets are addressed by path.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn access_key(&self) -> &str {
        &self.keys.access
    }

    pub fn secret_key(&self) -> &str {
        &self.keys.secret
    }

    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// From the next request on.
    pub fn set_fault(&self, fault: Fault) {
        self.fault.store(encode(fault), Ordering::Relaxed);
    }

    /// Takes no more requests and ends those in flight; afterwards the port is free. Idempotent.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for S3Endpoint {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// What stands between a connection and the S3 service: the fault switch before, the disk after.
#[derive(Clone)]
struct Door {
    service: S3Service,
    objects: PathBuf,
    fault: Arc<AtomicU64>,
}

impl Door {
    async fn serve(self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        match decode(self.fault.load(Ordering::Relaxed)) {
            Fault::None => {}
            Fault::Refuse503 => {
                return Ok(failure(StatusCode::SERVICE_UNAVAILABLE, "SlowDown"));
            }
            Fault::Refuse500 => {
                return Ok(failure(StatusCode::INTERNAL_SERVER_ERROR, "InternalError"));
            }
            Fault::Slow(ms) => tokio::time::sleep(Duration::from_millis(ms.into())).await,
        }
        let written = matches!(*request.method(), Method::PUT | Method::POST).then(|| request.uri().clone());
        let read = (*request.method() == Method::GET).then(|| request.uri().clone());
        let Ok(mut response) = self.service.call(request.map(Body::from)).await else {
            return Ok(failure(StatusCode::INTERNAL_SERVER_ERROR, "InternalError"));
        };
        if let Some(uri) = read
            && let Some(body) = whole(&self.objects, &uri, &response).await
        {
            *response.body_mut() = body;
        }
        // That there is one already must not be said sooner than that it was put: he who put it may be about to sync it.
        let is_there = response.status().is_success() || response.status() == StatusCode::PRECONDITION_FAILED;
        if let Some(uri) = written
            && is_there
        {
            let objects = self.objects.clone();
            let synced = tokio::task::spawn_blocking(move || sync(&objects, &uri)).await;
            if !matches!(synced, Ok(Ok(()))) {
                return Ok(failure(StatusCode::INTERNAL_SERVER_ERROR, "InternalError"));
            }
        }
        Ok(response)
    }
}

/// The body of an answer that is a whole object, read in large parts: s3s-fs 0.14 hands 4 KiB at a time from thread to
/// thread (s3.rs), which costs more than all the rest of an answer.
async fn whole(objects: &Path, uri: &Uri, response: &Response<Body>) -> Option<Body> {
    let length: u64 = response.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()?;
    if response.status() != StatusCode::OK || uri.query().is_some() {
        return None;
    }
    let file = tokio::fs::File::open(objects.join(name_of(uri)?)).await.ok()?;
    // An object is replaced by a rename: this is the one that the answer tells of, or the length differs.
    let about = file.metadata().await.ok()?;
    let is_it = about.is_file() && about.len() == length;
    is_it.then(|| Body::from(StreamingBlob::wrap(ReaderStream::with_capacity(file, READ_BYTES))))
}

/// The path of the object that a request is about, below the directory of all objects.
pub(super) fn name_of(uri: &Uri) -> Option<PathBuf> {
    // A file url is a path with the same escapes.
    let path = Url::parse(&format!("file://{}", uri.path())).ok()?.to_file_path().ok()?;
    Some(path.strip_prefix("/").ok()?.to_owned())
}

/// Puts an object on disk before it is acknowledged: the acknowledgement is what allows its source
/// to be trimmed, so it must survive a power cut, and s3s-fs renames files into place unsynced.
/// Beside the object it keeps two side files.
fn sync(objects: &Path, uri: &Uri) -> io::Result<()> {
    let Some(name) = name_of(uri) else {
        return Ok(());
    };
    let object = objects.join(&name);
    if !object.is_file() {
        return Ok(()); // A new bucket, or a step of a multipart upload that is not its last.
    }
    File::open(&object)?.sync_all()?;
    for side in ["metadata", "internal"] {
        match File::open(side_file(objects, &name, side)) {
            Ok(file) => file.sync_all()?,
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(err) => return Err(err),
        }
    }
    let dirs = object.ancestors().skip(1).take_while(|dir| dir.starts_with(objects));
    for dir in dirs {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

/// Where s3s-fs keeps what it knows of the object at BUCKET/KEY besides what it holds (0.14, fs.rs).
pub(super) fn side_file(objects: &Path, name: &Path, side: &str) -> PathBuf {
    let mut parts = name.components();
    let bucket = parts.next().map(|part| BASE64.encode(part.as_os_str().as_encoded_bytes()));
    let key = BASE64.encode(parts.as_path().as_os_str().as_encoded_bytes());
    objects.join(format!(".bucket-{}.object-{key}.{side}.json", bucket.unwrap_or_default()))
}

/// Serves connections until `stop`; the listener closes with this task.
async fn accept(listener: TcpListener, door: Door, stop: CancellationToken, tasks: TaskTracker) {
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((socket, _)) => {
                tasks.spawn(converse(socket, door.clone(), stop.clone()));
            }
            Err(err) => {
                tracing::warn!(error = %err, "the S3 endpoint cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one connection; after `stop` it finishes the request in flight, within a bound.
async fn converse(socket: TcpStream, door: Door, stop: CancellationToken) {
    // Small answers must not wait for the client's delayed acknowledgement.
    let _ = socket.set_nodelay(true);
    let service = service_fn(move |request| door.clone().serve(request));
    let mut connection =
        std::pin::pin!(http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(socket), service));
    // A connection's own failure is the client's to report: it was closed on it.
    if stop.run_until_cancelled(connection.as_mut()).await.is_none() {
        connection.as_mut().graceful_shutdown();
        let _ = tokio::time::timeout(DRAIN_WAIT, connection).await;
    }
}

/// An error in the form of the S3 API ("Error responses").
fn failure(status: StatusCode, code: &str) -> Response<Body> {
    let mut response = Response::new(Body::from(format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code></Error>"
    )));
    *response.status_mut() = status;
    response
}

/// One word, so that the switch costs a request one relaxed load.
fn encode(fault: Fault) -> u64 {
    match fault {
        Fault::None => 0,
        Fault::Refuse503 => u64::MAX,
        Fault::Refuse500 => u64::MAX - 1,
        Fault::Slow(ms) => u64::from(ms),
    }
}

fn decode(word: u64) -> Fault {
    match u32::try_from(word) {
        Ok(0) => Fault::None,
        Ok(ms) => Fault::Slow(ms),
        Err(_) if word == u64::MAX => Fault::Refuse503,
        Err(_) => Fault::Refuse500,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_survive_their_word() {
        for fault in [Fault::None, Fault::Refuse503, Fault::Refuse500, Fault::Slow(250)] {
            assert_eq!(decode(encode(fault)), fault);
        }
    }
}
