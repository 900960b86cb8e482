//! Jobs: pending and finished, by id and by page.

use axum::Json;
use axum::extract::State;
use dodo_common::db::explain::{self, JobReport};
use dodo_common::model::job::TENANT_DEFAULT;
use serde::Deserialize;
use uuid::Uuid;

use crate::api::extract::{Params, Segment};
use crate::api::{Api, ApiResult, not_found};

/// Jobs of one answer.
pub const PAGE_MAX: i64 = 1000;

#[derive(Debug, Deserialize, utoipa::IntoParams)]
pub struct ListQuery {
    /// `pending`, or an outcome: ok, redirect, http_error, robots, refused, unwanted, noindex, budget, dead, failed, duplicate,
    /// cancelled, unknown, quarantined; finished jobs when not given.
    pub state: Option<String>,
    pub dispatch: Option<Uuid>,
    /// The last id of the page before.
    pub after: Option<Uuid>,
    /// At most 1000; 100 when not given.
    pub limit: Option<i64>,
}

/// Jobs in the order of their ids
#[utoipa::path(get, path = "/v1/jobs", params(ListQuery), responses((status = 200, body = Vec<JobReport>)))]
pub async fn list(State(api): State<Api>, Params(query): Params<ListQuery>) -> ApiResult<Json<Vec<JobReport>>> {
    let pending = query.state.as_deref() == Some("pending");
    let limit = query.limit.unwrap_or(100).clamp(1, PAGE_MAX);
    let jobs = explain::jobs(
        &api.ctx.db,
        &explain::JobQuery {
            tenant: TENANT_DEFAULT,
            pending,
            dispatch: query.dispatch,
            state: query.state.as_deref(),
            after: query.after,
            limit,
        },
    )
    .await?;
    Ok(Json(jobs))
}

/// One job
#[utoipa::path(get, path = "/v1/jobs/{id}", params(("id" = Uuid, Path)),
    responses((status = 200, body = JobReport), (status = 404)))]
pub async fn get(State(api): State<Api>, Segment(id): Segment<Uuid>) -> ApiResult<Json<JobReport>> {
    let found = explain::job(&api.ctx.db, TENANT_DEFAULT, id).await?;
    Ok(Json(found.ok_or_else(|| not_found("such job"))?))
}
