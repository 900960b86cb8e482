//! Manifests: submitted without S3, and listed.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use dodo_common::db::manifest::{self, Manifest};
use dodo_common::model::job::TENANT_DEFAULT;
use serde::Deserialize;

use crate::api::extract::Params;
use crate::api::{Api, ApiResult, bad_request};
use crate::manifests;

const LIST_MAX: i64 = 100;

#[derive(Debug, Deserialize, utoipa::IntoParams)]
pub struct SubmitQuery {
    /// What it is known by: the same name with other content replaces it.
    pub name: String,
}

/// Submit a manifest: a JSON list of entries
#[utoipa::path(post, path = "/v1/manifests", params(SubmitQuery), request_body = String,
    responses((status = 202, body = Manifest), (status = 422, body = Manifest, description = "Malformed: the reasons say why")))]
pub async fn submit(
    State(api): State<Api>,
    Params(query): Params<SubmitQuery>,
    body: Bytes,
) -> ApiResult<(StatusCode, Json<Manifest>)> {
    if query.name.is_empty() || query.name.len() > 500 || query.name.contains('\0') {
        return Err(bad_request("name must have between 1 and 500 characters"));
    }
    let name = format!("submitted/{}", query.name);
    let recorded = manifests::record(&api.ctx, None, ("api", &name, ""), &body).await?;
    let status = if recorded.state == "accepted" { StatusCode::ACCEPTED } else { StatusCode::UNPROCESSABLE_ENTITY };
    Ok((status, Json(recorded)))
}

/// The latest manifests, newest first
#[utoipa::path(get, path = "/v1/manifests", responses((status = 200, body = Vec<Manifest>)))]
pub async fn list(State(api): State<Api>) -> ApiResult<Json<Vec<Manifest>>> {
    Ok(Json(manifest::list(&api.ctx.db, TENANT_DEFAULT, false, LIST_MAX).await?))
}
