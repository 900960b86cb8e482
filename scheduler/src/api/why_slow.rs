//! Why a dispatch is as fast as it is: its time by what its jobs waited for.

use axum::Json;
use axum::extract::State;
use chrono::{DateTime, Utc};
use dodo_common::db::dispatch;
use dodo_common::db::wait::{self, Retries};
use dodo_common::model::cause::Cause;
use dodo_common::model::job::TENANT_DEFAULT;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::api::extract::Segment;
use crate::api::{Api, ApiResult, not_found};

/// A share of the time of a dispatch.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Share {
    pub cause: Cause,
    /// What it means, and what would help.
    pub meaning: String,
    /// Summed over the hosts that waited and the requests under way, milliseconds.
    pub ms: i64,
    /// Of all of them, between 0 and 1.
    pub share: f64,
}

/// The time of a dispatch by cause.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct WhySlow {
    pub dispatch: Uuid,
    pub state: String,
    pub created_at: DateTime<Utc>,
    pub finished_at: Option<DateTime<Utc>>,
    pub pages: i64,
    pub pages_per_s: f64,
    /// The largest first. Looked at about twice a second: what takes less than that in all may show nothing.
    pub shares: Vec<Share>,
    /// Time that is lost to errors: tries that wait to be repeated.
    pub retries: Retries,
}

/// Why a dispatch is as fast as it is
#[utoipa::path(get, path = "/v1/dispatches/{id}/why-slow", params(("id" = Uuid, Path)),
    responses((status = 200, body = WhySlow), (status = 404)))]
pub async fn why_slow(State(api): State<Api>, Segment(id): Segment<Uuid>) -> ApiResult<Json<WhySlow>> {
    let db = &api.ctx.db;
    let dispatch = dispatch::get(db, TENANT_DEFAULT, id).await?.ok_or_else(|| not_found("such dispatch"))?;
    let waits = wait::of(db, TENANT_DEFAULT, id).await?;
    let all: i64 = waits.iter().map(|(_, ms)| ms).sum();
    let shares = waits
        .into_iter()
        .map(|(cause, ms)| Share { cause, meaning: cause.meaning().to_owned(), ms, share: ms as f64 / all as f64 })
        .collect();
    let until_ms = dispatch.finished_at.map_or_else(|| api.ctx.clock.now_ms(), |at| at.timestamp_millis());
    let seconds = (until_ms - dispatch.created_at.timestamp_millis()).max(1) as f64 / 1000.0;
    Ok(Json(WhySlow {
        dispatch: id,
        state: dispatch.state,
        created_at: dispatch.created_at,
        finished_at: dispatch.finished_at,
        pages: dispatch.progress.pages,
        pages_per_s: dispatch.progress.pages as f64 / seconds,
        shares,
        retries: wait::retries(db, TENANT_DEFAULT, id).await?,
    }))
}
