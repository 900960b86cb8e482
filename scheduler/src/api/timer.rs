//! Timers: what recurs. Crawls, no-op jobs and runs of sources make one when they are submitted with `cron`.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use dodo_common::clock::Millis;
use dodo_common::db::timer::{self, Deleted, New, Timer};
use dodo_common::model::job::TENANT_DEFAULT;
use dodo_common::model::recurrence::Recurrence;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::api::crawl::Accepted;
use crate::api::extract::Segment;
use crate::api::{Api, ApiError, ApiResult, bad_request, not_found};
use crate::context::Context;

/// What was submitted: a dispatch, or with `cron` a timer.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(untagged)]
pub enum Answer {
    Dispatch(Accepted),
    Timer(Box<Timer>),
}

/// When a request recurs.
pub struct Recurring<'a> {
    pub key: Option<&'a str>,
    pub cron: Option<&'a str>,
    pub timezone: Option<&'a str>,
    /// It asks for a start, too.
    pub starts: bool,
}

/// The pattern, its zone and its first time; nothing for what happens once.
pub fn first_time<'a>(
    recurring: &Recurring<'a>,
    now: Millis,
) -> ApiResult<Option<(&'a str, &'a str, chrono::DateTime<chrono::Utc>)>> {
    let Some(cron) = recurring.cron else {
        return match recurring.timezone {
            Some(_) => Err(bad_request("timezone belongs to cron")),
            None => Ok(None),
        };
    };
    if recurring.starts {
        return Err(bad_request("give cron or a start, not both"));
    }
    let recurrence = Recurrence::parse(cron, recurring.timezone).map_err(bad_request)?;
    let now = chrono::DateTime::from_timestamp_millis(now).unwrap_or_default();
    let next = recurrence.after(now).ok_or_else(|| bad_request(format!("cron {cron:?} never comes")))?;
    Ok(Some((cron, recurring.timezone.unwrap_or("UTC"), next)))
}

/// Stores a timer for a request that was checked, if it recurs.
pub async fn store(
    ctx: &Context,
    kind: &str,
    request: Value,
    recurring: Recurring<'_>,
    headers: &BTreeMap<String, String>,
) -> ApiResult<Option<(StatusCode, Json<Answer>)>> {
    let Some((cron, timezone, next_at)) = first_time(&recurring, ctx.clock.now_ms())? else { return Ok(None) };
    let new = New { key: recurring.key, kind, request, cron, timezone, next_at, headers };
    let timer = timer::create(&ctx.db, TENANT_DEFAULT, &new).await?;
    Ok(Some((StatusCode::ACCEPTED, Json(Answer::Timer(Box::new(timer))))))
}

/// The stored timers, the next one first
#[utoipa::path(get, path = "/v1/timers", responses((status = 200, body = Vec<Timer>)))]
pub async fn list(State(api): State<Api>) -> ApiResult<Json<Vec<Timer>>> {
    Ok(Json(timer::list(&api.ctx.db, TENANT_DEFAULT).await?))
}

/// Forget a timer; what it has started goes on
#[utoipa::path(delete, path = "/v1/timers/{id}", params(("id" = Uuid, Path)),
    responses((status = 204), (status = 404), (status = 409, description = "It belongs to a source's document")))]
pub async fn delete(State(api): State<Api>, Segment(id): Segment<Uuid>) -> ApiResult<StatusCode> {
    match timer::delete(&api.ctx.db, TENANT_DEFAULT, id).await? {
        Deleted::Done => Ok(StatusCode::NO_CONTENT),
        Deleted::Unknown => Err(not_found("such timer")),
        Deleted::OfSource(name) => Err(ApiError(
            StatusCode::CONFLICT,
            format!("timer {id} belongs to source {name}; store its document without every_s"),
        )),
    }
}
