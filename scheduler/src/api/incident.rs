//! Incidents: what the sentinel has found, and whom it has told.

use axum::Json;
use axum::extract::State;
use chrono::{DateTime, Utc};
use dodo_common::db::incident::{self, Delivery, Incident};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::api::extract::Params;
use crate::api::{Api, ApiResult};

const LIST_MAX: i64 = 1000;
const LIST_DEFAULT: i64 = 100;

#[derive(Debug, Deserialize, utoipa::IntoParams)]
pub struct IncidentQuery {
    /// At most 1000; 100 when not given.
    pub limit: Option<i64>,
}

/// An incident as one wants to read it.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct IncidentView {
    pub id: Uuid,
    pub rule: String,
    pub metric: String,
    /// info, warning or critical.
    pub severity: String,
    /// What was seen when it fired.
    pub summary: String,
    /// What the rule advises.
    pub advice: String,
    pub fired_at: DateTime<Utc>,
    /// Nothing while it is open.
    pub resolved_at: Option<DateTime<Utc>>,
    /// What was seen when it was resolved.
    pub outcome: Option<String>,
    pub notices: Vec<Delivery>,
}

/// Incidents: the open ones first, then the latest
#[utoipa::path(get, path = "/v1/incidents", params(IncidentQuery), responses((status = 200, body = Vec<IncidentView>)))]
pub async fn list(State(api): State<Api>, Params(query): Params<IncidentQuery>) -> ApiResult<Json<Vec<IncidentView>>> {
    let limit = query.limit.unwrap_or(LIST_DEFAULT).clamp(1, LIST_MAX);
    let listed = incident::list(&api.ctx.db, limit).await?;
    Ok(Json(listed.into_iter().map(|(incident, notices)| view(incident, notices)).collect()))
}

fn view(incident: Incident, notices: Vec<Delivery>) -> IncidentView {
    IncidentView {
        id: incident.id,
        rule: incident.rule,
        metric: incident.metric,
        severity: incident.severity,
        summary: incident.summary,
        advice: incident.advice,
        fired_at: incident.fired_at,
        resolved_at: incident.resolved_at,
        outcome: incident.outcome,
        notices,
    }
}
