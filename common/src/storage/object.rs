//! The object store: S3 over HTTP, and a twin in memory for tests. Nothing else in the workspace speaks S3.
//!
//! Every call is bounded in time and in tries, and every error is one line that names what to mend and no secret.

mod error;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt as _;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::list::{PaginatedListOptions, PaginatedListStore as _};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    BackoffConfig, ClientOptions, Error as BackendError, ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMode,
    RetryConfig,
};
use url::{Host, Url};

use crate::clock::Millis;
use crate::model::url::has_userinfo;
use crate::storage::object::error::one_line;

pub use crate::storage::object::error::StoreError;

/// To open a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// One try, its body included.
const TRY_TIMEOUT: Duration = Duration::from_secs(60);
/// Tries after the first, on 5xx, 429 and a broken connection. A put that must not overwrite is not sent again once
/// its body may have arrived.
const RETRIES_MAX: usize = 3;
/// No try begins later than this after the first.
const RETRY_WINDOW: Duration = Duration::from_secs(20);
const BACKOFF_MAX: Duration = Duration::from_secs(3);
/// One call with all its tries; for `list`, one page.
const CALL_TIMEOUT: Duration = Duration::from_secs(120);
/// A start should say soon that the endpoint does not answer.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest object that is read into memory. A segment is far smaller; this bounds what a foreign object may cost.
pub const OBJECT_BYTES_MAX: u64 = 1 << 30;
/// Most keys one `list` returns; past it the call fails rather than answer with a part.
pub const LIST_KEYS_MAX: usize = 1_000_000;
/// A second write within this of the first may bear the same time, milliseconds.
const YOUNG_MS: Millis = 3_000;

/// A bucket. Cheap to clone: clones share their connections.
#[derive(Clone, Debug)]
pub struct Store {
    backend: Backend,
}

#[derive(Clone, Debug)]
enum Backend {
    S3 { client: AmazonS3, endpoint: String, bucket: String },
    Memory(Arc<InMemory>),
}

/// Where the bucket is and who asks.
#[derive(Clone)]
pub struct S3Settings {
    /// `http://host:port` or `https://host`; the bucket is addressed by path below it.
    pub endpoint: String,
    pub bucket: String,
    pub region: String,
    pub access_key: String,
    pub secret_key: String,
    /// Whether an `http:` endpoint is accepted at all.
    pub allow_http: bool,
}

impl fmt::Debug for S3Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let S3Settings { endpoint, bucket, region, allow_http, .. } = self;
        write!(f, "S3Settings {{ {endpoint} bucket={bucket} region={region} allow_http={allow_http} }}")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutOutcome {
    Created,
    /// There was an object of that key already, and it was left alone. It may be the caller's own, put by a try whose
    /// answer got lost: compare before concluding anything.
    Exists,
}

impl Store {
    /// Opens nothing yet; `check` does. With an `https:` endpoint, and already here, the process must have installed
    /// its rustls provider.
    ///
    /// # Errors
    /// `Settings` when the endpoint is no URL, is `http:` and that is not allowed, or something is empty.
    pub fn s3(settings: &S3Settings) -> Result<Store, StoreError> {
        let endpoint = settings.endpoint.trim_end_matches('/').to_owned();
        let host = endpoint_host(&endpoint, settings.allow_http)?;
        for (name, value) in [
            ("the bucket", &settings.bucket),
            ("the region", &settings.region),
            ("the access key", &settings.access_key),
            ("the secret key", &settings.secret_key),
        ] {
            if value.is_empty() {
                return Err(StoreError::Settings(format!("{name} is empty")));
            }
        }
        let mut options = ClientOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_timeout(TRY_TIMEOUT)
            .with_allow_http(settings.allow_http);
        if is_loopback(&host) {
            // No proxy of the environment (HTTP_PROXY) can reach this machine's loopback. The library has no switch for
            // that, but a proxy named here replaces theirs, and one that excludes the only host is never asked.
            let address = host.to_string();
            let address = address.trim_start_matches('[').trim_end_matches(']');
            options = options.with_proxy_url("http://127.0.0.1:9").with_proxy_excludes(address);
        }
        let retry = RetryConfig {
            backoff: BackoffConfig { max_backoff: BACKOFF_MAX, ..BackoffConfig::default() },
            max_retries: RETRIES_MAX,
            retry_timeout: RETRY_WINDOW,
        };
        // `new`, not `from_env`: the settings are all there is. Single deletes, because not every server knows the
        // bulk call. What counts is read back and compared after it was put: to hash it for the signature as well, here
        // and at the server, adds nothing.
        let client = AmazonS3Builder::new()
            .with_endpoint(endpoint.as_str())
            .with_bucket_name(settings.bucket.as_str())
            .with_region(settings.region.as_str())
            .with_access_key_id(settings.access_key.as_str())
            .with_secret_access_key(settings.secret_key.as_str())
            .with_disable_bulk_delete(true)
            .with_unsigned_payload(true)
            .with_client_options(options)
            .with_retry(retry)
            .build()
            .map_err(|error| StoreError::Settings(one_line(&error.to_string())))?;
        Ok(Store { backend: Backend::S3 { client, endpoint, bucket: settings.bucket.clone() } })
    }

    /// An empty bucket that lives as long as its last clone.
    pub fn memory() -> Store {
        Store { backend: Backend::Memory(Arc::new(InMemory::new())) }
    }

    /// Asks for one key of the bucket: tells an endpoint that does not answer, a missing bucket and a refused access
    /// apart. That writing is allowed too only a put shows.
    ///
    /// # Errors
    /// `Unreachable`, `BucketMissing`, `AccessDenied`, or `Refused` with the server's code.
    pub async fn check(&self) -> Result<(), StoreError> {
        let Backend::S3 { client, endpoint, .. } = &self.backend else { return Ok(()) };
        let options = PaginatedListOptions { max_keys: Some(1), ..PaginatedListOptions::default() };
        match tokio::time::timeout(CHECK_TIMEOUT, client.list_paginated(None, options)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(StoreError::of("list", "of it", self.names(), &error)),
            Err(_) => Err(StoreError::Unreachable {
                endpoint: endpoint.clone(),
                reason: format!("no answer within {} s", CHECK_TIMEOUT.as_secs()),
            }),
        }
    }

    /// Puts an object unless there is one (`If-None-Match: *`). AWS decides that atomically; others look before
    /// they write, so that of two puts at the same moment both may be told `Created`, and the object is whole and one of the
    /// two. A server that ignores the header overwrites. Callers are safe under all three when what they put under a key is
    /// always the same.
    pub async fn put_new(&self, key: &str, body: Bytes) -> Result<PutOutcome, StoreError> {
        let path = parse_key(key)?;
        let put = self.objects().put_opts(&path, body.into(), PutMode::Create.into());
        match self.bounded("put", key, async { put.await.map_or_else(existing, |_| Ok(PutOutcome::Created)) }).await {
            Err(StoreError::NotFound { .. }) => Err(self.bucket_missing()),
            outcome => outcome,
        }
    }

    /// Puts an object, over another if there is one.
    pub async fn put(&self, key: &str, body: Bytes) -> Result<(), StoreError> {
        let path = parse_key(key)?;
        match self.bounded("put", key, self.objects().put(&path, body.into())).await {
            Err(StoreError::NotFound { .. }) => Err(self.bucket_missing()),
            outcome => outcome.map(drop),
        }
    }

    /// A whole object of at most [`OBJECT_BYTES_MAX`].
    ///
    /// # Errors
    /// `NotFound`, or `Bound` before any of the body is read.
    pub async fn get(&self, key: &str) -> Result<Bytes, StoreError> {
        let path = parse_key(key)?;
        let found = self.bounded("get", key, self.objects().get(&path)).await?;
        bound(key, found.meta.size)?;
        self.bounded("get", key, found.bytes()).await
    }

    /// Whether the object is these bytes: it is read to the first one that differs, and not kept.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn equals(&self, key: &str, expected: &[u8]) -> Result<bool, StoreError> {
        let path = parse_key(key)?;
        let found = self.bounded("get", key, self.objects().get(&path)).await?;
        if found.meta.size != expected.len() as u64 {
            return Ok(false);
        }
        let compare = async {
            let (mut parts, mut rest) = (found.into_stream(), expected);
            while let Some(part) = parts.try_next().await? {
                let Some(behind) = rest.strip_prefix(part.as_ref()) else { return Ok(false) };
                rest = behind;
            }
            Ok(rest.is_empty())
        };
        self.bounded("get", key, compare).await
    }

    /// Exactly the bytes of `range`; a range that the object does not cover is an error.
    pub async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let wanted = range.end.saturating_sub(range.start);
        bound(key, wanted)?;
        let path = parse_key(key)?;
        let bytes = self.bounded("get", key, self.objects().get_range(&path, range)).await?;
        if bytes.len() as u64 == wanted {
            return Ok(bytes);
        }
        let reason = format!("{} bytes came of a range of {wanted}", bytes.len());
        Err(StoreError::Refused { operation: "get", key: key.to_owned(), reason })
    }

    /// The size of an object in bytes, `None` if there is no such object.
    pub async fn head(&self, key: &str) -> Result<Option<u64>, StoreError> {
        let path = parse_key(key)?;
        match self.bounded("head", key, self.objects().head(&path)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The keys below `prefix` (whole path segments; empty means all) that sort after `start_after`, with their sizes
    /// in bytes, in byte order. Reads page after page.
    ///
    /// # Errors
    /// `Bound` past [`LIST_KEYS_MAX`] keys: ask again with a longer prefix.
    pub async fn list(&self, prefix: &str, start_after: Option<&str>) -> Result<Vec<(String, u64)>, StoreError> {
        Ok(self.list_meta(prefix, start_after).await?.into_iter().map(|m| (String::from(m.location), m.size)).collect())
    }

    /// The same with a stamp: as long as an object's stamp is the same, so is its content. It is empty where the
    /// store names no entity tag and the object is too young for its time alone to tell.
    pub async fn list_stamped(&self, prefix: &str, now: Millis) -> Result<Vec<(String, u64, String)>, StoreError> {
        let stamp = |m: &ObjectMeta| match &m.e_tag {
            None if m.last_modified.timestamp_millis() > now - YOUNG_MS => String::new(),
            tag => format!("{} {} {}", tag.as_deref().unwrap_or("-"), m.last_modified, m.size),
        };
        let metas = self.list_meta(prefix, None).await?;
        Ok(metas.into_iter().map(|m| (m.location.to_string(), m.size, stamp(&m))).collect())
    }

    /// The keys below `prefix` with their sizes in bytes and when they were last written, by the store's clock.
    pub async fn list_dated(&self, prefix: &str) -> Result<Vec<(String, u64, Millis)>, StoreError> {
        let metas = self.list_meta(prefix, None).await?;
        Ok(metas.into_iter().map(|m| (m.location.into(), m.size, m.last_modified.timestamp_millis())).collect())
    }

    async fn list_meta(&self, prefix: &str, start_after: Option<&str>) -> Result<Vec<ObjectMeta>, StoreError> {
        let below = parse_key(prefix)?;
        let below = (!prefix.is_empty()).then_some(&below);
        let mut pages = match start_after {
            Some(key) => self.objects().list_with_offset(below, &parse_key(key)?),
            None => self.objects().list(below),
        };
        let mut metas = Vec::new();
        while let Some(meta) = self.bounded("list", prefix, pages.try_next()).await? {
            if metas.len() == LIST_KEYS_MAX {
                let what = format!("the number of keys below {prefix}");
                return Err(StoreError::Bound { what, bound: LIST_KEYS_MAX as u64 });
            }
            metas.push(meta);
        }
        metas.sort_unstable_by(|a, b| a.location.cmp(&b.location));
        Ok(metas)
    }

    /// Deletes an object; that there was none is no error.
    pub async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let path = parse_key(key)?;
        match self.bounded("delete", key, self.objects().delete(&path)).await {
            Err(StoreError::NotFound { .. }) => Ok(()),
            outcome => outcome,
        }
    }

    fn objects(&self) -> &dyn ObjectStore {
        match &self.backend {
            Backend::S3 { client, .. } => client,
            Backend::Memory(memory) => memory.as_ref(),
        }
    }

    async fn bounded<T>(
        &self,
        operation: &'static str,
        key: &str,
        call: impl Future<Output = Result<T, BackendError>>,
    ) -> Result<T, StoreError> {
        match tokio::time::timeout(CALL_TIMEOUT, call).await {
            Ok(outcome) => outcome.map_err(|error| StoreError::of(operation, key, self.names(), &error)),
            Err(_) => {
                let seconds = CALL_TIMEOUT.as_secs();
                Err(StoreError::TimedOut { operation, key: key.to_owned(), seconds })
            }
        }
    }

    /// A put has no object to miss either, whatever the body of the 404 said.
    fn bucket_missing(&self) -> StoreError {
        StoreError::BucketMissing { bucket: self.names().1 }
    }

    fn names(&self) -> (String, String) {
        match &self.backend {
            Backend::S3 { endpoint, bucket, .. } => (endpoint.clone(), bucket.clone()),
            Backend::Memory(_) => ("memory".to_owned(), "memory".to_owned()),
        }
    }
}

fn endpoint_host(endpoint: &str, allow_http: bool) -> Result<Host, StoreError> {
    let refused = |what: &str| StoreError::Settings(format!("endpoint `{endpoint}` {what}"));
    let url = Url::parse(endpoint).map_err(|error| refused(&format!("is no URL: {error}")))?;
    match url.scheme() {
        "https" => {}
        "http" if allow_http => {}
        "http" => return Err(refused("is not https, which was not allowed")),
        _ => return Err(refused("must begin with http:// or https://")),
    }
    if has_userinfo(&url) {
        return Err(StoreError::Settings("the endpoint must not hold credentials".to_owned()));
    }
    url.host().map(|host| host.to_owned()).ok_or_else(|| refused("names no host"))
}

fn is_loopback(host: &Host) -> bool {
    match host {
        Host::Domain(name) => name == "localhost" || name.ends_with(".localhost"),
        Host::Ipv4(address) => address.is_loopback(),
        Host::Ipv6(address) => address.is_loopback(),
    }
}

fn existing(error: BackendError) -> Result<PutOutcome, BackendError> {
    match error {
        BackendError::AlreadyExists { .. } => Ok(PutOutcome::Exists),
        other => Err(other),
    }
}

fn parse_key(key: &str) -> Result<Path, StoreError> {
    Path::parse(key)
        .map_err(|error| StoreError::InvalidKey { key: key.to_owned(), reason: one_line(&error.to_string()) })
}

fn bound(key: &str, size_bytes: u64) -> Result<(), StoreError> {
    if size_bytes <= OBJECT_BYTES_MAX {
        return Ok(());
    }
    Err(StoreError::Bound { what: format!("{key} with {size_bytes} bytes"), bound: OBJECT_BYTES_MAX })
}

#[cfg(test)]
mod tests;
