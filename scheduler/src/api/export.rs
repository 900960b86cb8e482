//! Exports by keyset, one page an answer: the client asks on with the last key it got.

use axum::Json;
use axum::extract::State;
use dodo_common::db::explain::{self, JobReport, PageLinks};
use dodo_common::model::job::TENANT_DEFAULT;
use serde::Deserialize;
use uuid::Uuid;

use crate::api::extract::Params;
use crate::api::job::PAGE_MAX;
use crate::api::{Api, ApiResult};

#[derive(Debug, Deserialize, utoipa::IntoParams)]
pub struct ExportQuery {
    pub dispatch: Uuid,
    /// The last key of the page before: a job id for pages, a URL hash for links.
    pub after: Option<Uuid>,
}

/// Fetched pages of a dispatch, 1000 an answer
#[utoipa::path(get, path = "/v1/export/pages", params(ExportQuery), responses((status = 200, body = Vec<JobReport>)))]
pub async fn pages(State(api): State<Api>, Params(query): Params<ExportQuery>) -> ApiResult<Json<Vec<JobReport>>> {
    let query = explain::JobQuery {
        tenant: TENANT_DEFAULT,
        pending: false,
        dispatch: Some(query.dispatch),
        state: None,
        after: query.after,
        limit: PAGE_MAX,
    };
    Ok(Json(explain::jobs(&api.ctx.db, &query).await?))
}

/// Pages of a dispatch with their links, at most 1000 an answer, fewer where they have many; none at the end
#[utoipa::path(get, path = "/v1/export/links", params(ExportQuery), responses((status = 200, body = Vec<PageLinks>)))]
pub async fn links(State(api): State<Api>, Params(query): Params<ExportQuery>) -> ApiResult<Json<Vec<PageLinks>>> {
    Ok(Json(explain::links(&api.ctx.db, TENANT_DEFAULT, query.dispatch, query.after, PAGE_MAX).await?))
}
