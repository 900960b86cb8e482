//! What can go wrong with a bucket, each in one line that names what to mend and no secret.

use std::error::Error as _;

use object_store::Error as BackendError;
use object_store::client::{HttpError, HttpErrorKind};

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("S3 settings are not usable: {0}")]
    Settings(String),
    #[error("S3 endpoint {endpoint} is unreachable: {reason}")]
    Unreachable { endpoint: String, reason: String },
    #[error("bucket {bucket} does not exist: create it, or set DODO_S3_BUCKET")]
    BucketMissing { bucket: String },
    #[error(
        "access to bucket {bucket} is denied ({code}): check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and its policy"
    )]
    AccessDenied { bucket: String, code: String },
    #[error("no object {key}")]
    NotFound { key: String },
    #[error("`{key}` is not an object key: {reason}")]
    InvalidKey { key: String, reason: String },
    #[error("{what} is above its bound of {bound}")]
    Bound { what: String, bound: u64 },
    #[error("S3 did not finish {operation} {key} within {seconds} s")]
    TimedOut { operation: &'static str, key: String, seconds: u64 },
    #[error("S3 refused {operation} {key}: {reason}")]
    Refused { operation: &'static str, key: String, reason: String },
}

impl StoreError {
    /// Turns the library's nested error, which quotes whole XML answers, into one line; of a bucket, by its endpoint and
    /// name.
    pub fn of(
        operation: &'static str,
        key: &str,
        (endpoint, bucket): (String, String),
        error: &BackendError,
    ) -> StoreError {
        if matches!(error, BackendError::NotFound { .. }) && answer_code(error).as_deref() != Some("NoSuchBucket") {
            return StoreError::NotFound { key: key.to_owned() };
        }
        if let Some(reason) = transport_failure(error) {
            return StoreError::Unreachable { endpoint, reason };
        }
        match (answer_status(error), answer_code(error)) {
            // A listing has no object to miss, and a HEAD's answer has no code.
            (Some(404), _) => StoreError::BucketMissing { bucket },
            (Some(status @ (401 | 403)), code) => {
                StoreError::AccessDenied { bucket, code: code.unwrap_or_else(|| format!("HTTP {status}")) }
            }
            (status, code) => {
                let reason = match (status, code) {
                    (Some(status), Some(code)) => format!("{code} (HTTP {status})"),
                    (Some(status), None) => format!("HTTP {status}"),
                    (None, _) => one_line(&error.to_string()),
                };
                StoreError::Refused { operation, key: key.to_owned(), reason }
            }
        }
    }
}

/// The `<Code>` of the server's XML answer, which the library keeps only as text.
fn answer_code(error: &BackendError) -> Option<String> {
    let text = error.to_string();
    let (_, rest) = text.split_once("<Code>")?;
    let (code, _) = rest.split_once("</Code>")?;
    Some(one_line(code))
}

/// The status of the server's answer, likewise.
fn answer_status(error: &BackendError) -> Option<u16> {
    let text = error.to_string();
    let (_, rest) = text.split_once("status code: ")?;
    rest.get(..3)?.parse().ok()
}

/// Why no answer came, if none did: the innermost cause, such as `Connection refused (os error 111)`.
fn transport_failure(error: &BackendError) -> Option<String> {
    let mut cause = error.source()?;
    let mut failed = false;
    loop {
        if let Some(http) = cause.downcast_ref::<HttpError>() {
            failed |= !matches!(http.kind(), HttpErrorKind::Decode | HttpErrorKind::Unknown);
        }
        match cause.source() {
            Some(inner) => cause = inner,
            None => return failed.then(|| one_line(&cause.to_string())),
        }
    }
}

/// A text of somebody else's, short enough for a log.
pub fn one_line(text: &str) -> String {
    const CHARS_MAX: usize = 160;
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(CHARS_MAX).collect::<String>().trim().to_owned()
}
