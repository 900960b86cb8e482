//! Dispatches: what was submitted and how far it is.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use dodo_common::db::control::{self, Order, Ordered};
use dodo_common::db::dispatch::{self, Dispatch};
use dodo_common::db::tally::{self, Tally};
use dodo_common::model::job::TENANT_DEFAULT;
use uuid::Uuid;

use crate::api::extract::Segment;
use crate::api::{Api, ApiError, ApiResult, not_found};

const LIST_MAX: i64 = 100;
const HOSTS_MAX: i64 = 1000;

/// The latest dispatches, newest first
#[utoipa::path(get, path = "/v1/dispatches", responses((status = 200, body = Vec<Dispatch>)))]
pub async fn list(State(api): State<Api>) -> ApiResult<Json<Vec<Dispatch>>> {
    Ok(Json(dispatch::list(&api.ctx.db, TENANT_DEFAULT, None, LIST_MAX).await?))
}

/// One dispatch and its progress
#[utoipa::path(get, path = "/v1/dispatches/{id}", params(("id" = Uuid, Path)),
    responses((status = 200, body = Dispatch), (status = 404)))]
pub async fn get(State(api): State<Api>, Segment(id): Segment<Uuid>) -> ApiResult<Json<Dispatch>> {
    let found = dispatch::get(&api.ctx.db, TENANT_DEFAULT, id).await?;
    Ok(Json(found.ok_or_else(|| not_found("such dispatch"))?))
}

/// The hosts of a crawl that counts them, those with the most duplicates first
#[utoipa::path(get, path = "/v1/dispatches/{id}/hosts", params(("id" = Uuid, Path)),
    responses((status = 200, body = Vec<Tally>), (status = 404)))]
pub async fn hosts(State(api): State<Api>, Segment(id): Segment<Uuid>) -> ApiResult<Json<Vec<Tally>>> {
    let ctx = &api.ctx;
    dispatch::get(&ctx.db, TENANT_DEFAULT, id).await?.ok_or_else(|| not_found("such dispatch"))?;
    Ok(Json(tally::list(&ctx.db, TENANT_DEFAULT, id, HOSTS_MAX).await?))
}

/// Pause a dispatch and those it has started: nothing new is issued, what runs ends
#[utoipa::path(post, path = "/v1/dispatches/{id}/pause", params(("id" = Uuid, Path)),
    responses((status = 200, body = Dispatch), (status = 404), (status = 409, description = "It is done, or ending")))]
pub async fn pause(State(api): State<Api>, Segment(id): Segment<Uuid>) -> ApiResult<Json<Dispatch>> {
    order(api, id, Order::Pause).await
}

/// Let a paused dispatch go on, and those it has started
#[utoipa::path(post, path = "/v1/dispatches/{id}/resume", params(("id" = Uuid, Path)),
    responses((status = 200, body = Dispatch), (status = 404), (status = 409, description = "It is done, or ending")))]
pub async fn resume(State(api): State<Api>, Segment(id): Segment<Uuid>) -> ApiResult<Json<Dispatch>> {
    order(api, id, Order::Resume).await
}

/// Cancel a dispatch and those it has started: what is left of them ends without a request
#[utoipa::path(post, path = "/v1/dispatches/{id}/cancel", params(("id" = Uuid, Path)),
    responses((status = 200, body = Dispatch), (status = 404), (status = 409, description = "It is done")))]
pub async fn cancel(State(api): State<Api>, Segment(id): Segment<Uuid>) -> ApiResult<Json<Dispatch>> {
    order(api, id, Order::Cancel).await
}

async fn order(api: Api, id: Uuid, order: Order) -> ApiResult<Json<Dispatch>> {
    match control::order(&api.ctx.db, TENANT_DEFAULT, id, order).await? {
        Ordered::Holds => get(State(api), Segment(id)).await,
        Ordered::Unknown => Err(not_found("such dispatch")),
        Ordered::Refused(why) => Err(ApiError(StatusCode::CONFLICT, why)),
    }
}
