//! What handlers take: axum's extractors, whose refusals are answered like every other error of ours.

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query};

use crate::api::ApiError;

/// A JSON body.
#[derive(FromRequest)]
#[from_request(via(Json), rejection(ApiError))]
pub struct Body<T>(pub T);

/// The query string.
#[derive(FromRequestParts)]
#[from_request(via(Query), rejection(ApiError))]
pub struct Params<T>(pub T);

/// The variable segment of the path.
#[derive(FromRequestParts)]
#[from_request(via(Path), rejection(ApiError))]
pub struct Segment<T>(pub T);

/// A refusal in one line.
macro_rules! refusals {
    ($($rejection:ty),+) => {
        $(impl From<$rejection> for ApiError {
            fn from(rejection: $rejection) -> Self {
                ApiError(rejection.status(), rejection.body_text().replace('\n', " "))
            }
        })+
    };
}

refusals!(JsonRejection, PathRejection, QueryRejection);
