//! Dead letters: listed, and replayed.

use axum::Json;
use axum::extract::State;
use chrono::{DateTime, Utc};
use dodo_common::db::dead::{self, DeadQuery};
use dodo_common::db::explain::JobReport;
use dodo_common::model::job::TENANT_DEFAULT;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::api::extract::{Body, Params};
use crate::api::job::PAGE_MAX;
use crate::api::{Api, ApiResult};

/// Which dead letters.
#[derive(Debug, Default, Serialize, Deserialize, utoipa::IntoParams, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Which {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dispatch: Option<Uuid>,
    /// crawl, get_page, get_metadata, ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// dead, failed, unknown or quarantined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// A part of the reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Ended at this time or later, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<DateTime<Utc>>,
    /// The last id of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Uuid>,
    /// Calls that may not be repeated and whose end is unknown, too.
    #[serde(default)]
    pub force: bool,
}

impl Which {
    fn query(&self) -> DeadQuery<'_> {
        DeadQuery {
            tenant: TENANT_DEFAULT,
            dispatch: self.dispatch,
            kind: self.kind.as_deref(),
            outcome: self.outcome.as_deref(),
            host: self.host.as_deref(),
            reason: self.reason.as_deref(),
            since: self.since,
            after: self.after,
            limit: PAGE_MAX,
        }
    }
}

#[derive(Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ReplayedJobs {
    pub replayed: u64,
    /// Calls that may not be repeated, left alone without `force`.
    pub left: u64,
}

/// Jobs that ended dead, failed, unknown or quarantined and were not replayed
#[utoipa::path(get, path = "/v1/dead", params(Which), responses((status = 200, body = Vec<JobReport>)))]
pub async fn list(State(api): State<Api>, Params(which): Params<Which>) -> ApiResult<Json<Vec<JobReport>>> {
    Ok(Json(dead::list(&api.ctx.db, &which.query()).await?))
}

/// Schedule dead letters again, at most 1000 a request
#[utoipa::path(post, path = "/v1/dead/replay", request_body = Which, responses((status = 200, body = ReplayedJobs)))]
pub async fn replay(State(api): State<Api>, Body(which): Body<Which>) -> ApiResult<Json<ReplayedJobs>> {
    let replayed = dead::replay(&api.ctx.db, &which.query(), which.force).await?;
    let gained = replayed.hosts.into_iter().map(|host| (TENANT_DEFAULT.to_owned(), host)).collect();
    api.ctx.hint(gained).await;
    Ok(Json(ReplayedJobs { replayed: replayed.jobs, left: replayed.left }))
}
