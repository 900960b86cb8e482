//! Puts that must not replace anything, which are all that an archive consists of. s3s-fs 0.14 honours `If-None-Match: *`,
//! but looks before it writes, and takes an MD5 of each object, a fortieth of all that a crawl on one machine costs.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;

use futures::TryStreamExt as _;
use hyper::header::{
    ACCEPT, AUTHORIZATION, CONTENT_LENGTH, ETAG, HOST, HeaderMap, HeaderValue, IF_NONE_MATCH, USER_AGENT,
};
use hyper::http::Extensions;
use hyper::{Method, Uri};
use s3s::route::S3Route;
use s3s::{Body, S3Error, S3ErrorCode, S3Request, S3Response, S3Result};
use tokio::fs::{self, File};
use tokio::io::{AsyncWriteExt as _, BufWriter};
use uuid::Uuid;
use xxhash_rust::xxh3::Xxh3;

use crate::local::s3::{name_of, side_file};

/// What is written of an object at a time, bytes.
const WRITTEN_BYTES: usize = 1 << 20;

/// Takes such puts, if they ask for nothing else: any other header is for s3s-fs.
pub struct NewObjects {
    /// The directory of all objects.
    pub objects: PathBuf,
}

impl S3Route for NewObjects {
    fn is_match(&self, method: &Method, uri: &Uri, headers: &HeaderMap, _: &mut Extensions) -> bool {
        let known = [HOST, AUTHORIZATION, CONTENT_LENGTH, IF_NONE_MATCH, USER_AGENT, ACCEPT];
        let is_known = |name: &str| {
            known.iter().any(|known| known == name)
                || matches!(name, "x-amz-date" | "x-amz-content-sha256" | "x-amz-security-token")
        };
        let is = |name: &str, value: &str| headers.get(name).is_some_and(|given| given == value);
        *method == Method::PUT
            && uri.query().is_none()
            && is("if-none-match", "*")
            && is("x-amz-content-sha256", "UNSIGNED-PAYLOAD")
            && headers.keys().all(|name| is_known(name.as_str()))
            && is_plain(uri.path())
    }

    fn call<'s, 'f>(
        &'s self,
        request: S3Request<Body>,
    ) -> Pin<Box<dyn Future<Output = S3Result<S3Response<Body>>> + Send + 'f>>
    where
        's: 'f,
        Self: 'f,
    {
        Box::pin(self.put(request))
    }
}

impl NewObjects {
    async fn put(&self, request: S3Request<Body>) -> S3Result<S3Response<Body>> {
        let name = name_of(&request.uri).ok_or(S3ErrorCode::InvalidURI)?;
        let bucket = name.iter().next().map(|bucket| self.objects.join(bucket));
        if !bucket.is_some_and(|bucket| bucket.is_dir()) {
            return Err(S3ErrorCode::NoSuchBucket.into());
        }
        let object = self.objects.join(&name);
        if object.exists() {
            return Err(exists());
        }
        let temporary = Temporary::of(&self.objects);
        let tag = receive(request.input, &temporary.0).await.map_err(S3Error::internal_error)?;
        place(&temporary.0, &object).await?;
        // Of an object of this key that was deleted: it would be taken for this one's.
        match fs::remove_file(side_file(&self.objects, &name, "metadata")).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(S3Error::internal_error(error)),
            _ => {}
        }
        // Without it s3s-fs takes an MD5 each time that it is asked for the object.
        let info = Temporary::of(&self.objects);
        let text = serde_json::json!({ "e_tag": tag }).to_string();
        let noted = async {
            fs::write(&info.0, text).await?;
            fs::rename(&info.0, side_file(&self.objects, &name, "internal")).await
        };
        noted.await.map_err(S3Error::internal_error)?;
        let mut response = S3Response::new(Body::empty());
        response.headers.extend(HeaderValue::try_from(format!("\"{tag}\"")).ok().map(|tag| (ETAG, tag)));
        Ok(response)
    }
}

/// A file that is gone when nobody writes it any more; what a crash leaves, s3s-fs takes away when it starts.
struct Temporary(PathBuf);

impl Temporary {
    fn of(objects: &Path) -> Self {
        Self(objects.join(format!(".tmp.{}.internal.part", Uuid::new_v4().simple())))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // It may have been renamed, or never made.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Writes what comes; returns its tag, in the form of one that is no MD5.
async fn receive(mut body: Body, to: &Path) -> io::Result<String> {
    let mut file = BufWriter::with_capacity(WRITTEN_BYTES, File::create_new(to).await?);
    let mut hash = Xxh3::new();
    while let Some(bytes) = body.try_next().await.map_err(io::Error::other)? {
        hash.update(&bytes);
        file.write_all(&bytes).await?;
    }
    file.flush().await?;
    Ok(format!("{:032x}-1", hash.digest128()))
}

/// A link is made or there is one: of several at the same moment, one is.
async fn place(written: &Path, object: &Path) -> S3Result<()> {
    if let Some(parent) = object.parent() {
        fs::create_dir_all(parent).await.map_err(S3Error::internal_error)?;
    }
    match fs::hard_link(written, object).await {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(exists()),
        // Not every file system has links.
        Err(error) if matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied) => {
            fs::rename(written, object).await.map_err(S3Error::internal_error)
        }
        Err(error) => Err(S3Error::internal_error(error)),
    }
}

fn exists() -> S3Error {
    S3Error::with_message(S3ErrorCode::PreconditionFailed, "there is an object of that key")
}

/// A path of which nothing is escaped or left out: what it says is where the object is.
fn is_plain(path: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'=' | b'~');
    path.strip_prefix('/').is_some_and(|path| {
        path.contains('/')
            && path.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && part.bytes().all(is_plain))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_ours(path: &str, headers: &[(&'static str, &'static str)]) -> bool {
        let mut all = HeaderMap::new();
        for (name, value) in
            [("if-none-match", "*"), ("x-amz-content-sha256", "UNSIGNED-PAYLOAD")].iter().chain(headers)
        {
            all.insert(*name, HeaderValue::from_static(value));
        }
        let route = NewObjects { objects: PathBuf::new() };
        route.is_match(&Method::PUT, &Uri::try_from(path).unwrap(), &all, &mut Extensions::new())
    }

    #[test]
    fn only_a_put_that_asks_for_nothing_else_is_taken() {
        assert!(is_ours("/archive/a/pages/1-2.warc.gz", &[("content-length", "5"), ("x-amz-date", "now")]));
        for path in [
            "/archive",
            "/archive/",
            "/archive/../x",
            "/archive/.x",
            "/archive//x",
            "/archive/%41",
            "/.a/b",
            "/a/b?acl",
        ] {
            assert!(!is_ours(path, &[]), "{path}");
        }
        for header in [("content-type", "a/b"), ("x-amz-meta-a", "1"), ("content-md5", "x"), ("if-none-match", "\"x\"")]
        {
            assert!(!is_ours("/archive/a", &[header]), "{header:?}");
        }
    }
}
