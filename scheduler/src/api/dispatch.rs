//! Dispatches: what was submitted and how far it is.

use axum::Json;
use axum::extract::State;
use dodo_common::db::dispatch::{self, Dispatch};
use dodo_common::model::job::TENANT_DEFAULT;
use uuid::Uuid;

use crate::api::extract::Segment;
use crate::api::{Api, ApiResult, not_found};

const LIST_MAX: i64 = 100;

/// The latest dispatches, newest first
#[utoipa::path(get, path = "/v1/dispatches", responses((status = 200, body = Vec<Dispatch>)))]
pub async fn list(State(api): State<Api>) -> ApiResult<Json<Vec<Dispatch>>> {
    Ok(Json(dispatch::list(&api.ctx.db, TENANT_DEFAULT, LIST_MAX).await?))
}

/// One dispatch and its progress
#[utoipa::path(get, path = "/v1/dispatches/{id}", params(("id" = Uuid, Path)),
    responses((status = 200, body = Dispatch), (status = 404)))]
pub async fn get(State(api): State<Api>, Segment(id): Segment<Uuid>) -> ApiResult<Json<Dispatch>> {
    let found = dispatch::get(&api.ctx.db, TENANT_DEFAULT, id).await?;
    Ok(Json(found.ok_or_else(|| not_found("such dispatch"))?))
}
