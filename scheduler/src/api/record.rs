//! Records, the items that did not fit, and the report.

use axum::Json;
use axum::extract::State;
use dodo_common::db::record::{self, RecordQuery, Unfit};
use dodo_common::db::source;
use dodo_common::model::job::TENANT_DEFAULT;
use dodo_common::model::record::{Mapper, Record};
use serde::{Deserialize, Serialize};

use crate::api::extract::{Body, Params};
use crate::api::job::PAGE_MAX;
use crate::api::{Api, ApiResult, bad_request, not_found};
use crate::report::{self, Report};

#[derive(Debug, Deserialize, utoipa::IntoParams)]
pub struct ListQuery {
    /// Only those of this source.
    pub source: Option<String>,
    /// The last key of the page before: source, instance, and external id (or hash), as a JSON list.
    pub after: Option<String>,
    /// At most 1000, which is also what is meant when not given.
    pub limit: Option<i64>,
}

impl ListQuery {
    fn parsed(&self) -> ApiResult<RecordQuery<'_>> {
        let after = match &self.after {
            Some(text) => Some(
                serde_json::from_str(text)
                    .map_err(|_| bad_request("after must be a JSON list: [source, instance, external id]"))?,
            ),
            None => None,
        };
        let limit = self.limit.unwrap_or(PAGE_MAX).clamp(1, PAGE_MAX);
        Ok(RecordQuery { tenant: TENANT_DEFAULT, source: self.source.as_deref(), after, limit })
    }
}

/// Records by source, instance and external id
#[utoipa::path(get, path = "/v1/records", params(ListQuery), responses((status = 200, body = Vec<Record>)))]
pub async fn list(State(api): State<Api>, Params(query): Params<ListQuery>) -> ApiResult<Json<Vec<Record>>> {
    Ok(Json(record::list(&api.ctx.db, &query.parsed()?).await?))
}

/// Items that did not fit, with the reason
#[utoipa::path(get, path = "/v1/unfit", params(ListQuery), responses((status = 200, body = Vec<Unfit>)))]
pub async fn unfit(State(api): State<Api>, Params(query): Params<ListQuery>) -> ApiResult<Json<Vec<Unfit>>> {
    Ok(Json(record::unfit(&api.ctx.db, &query.parsed()?).await?))
}

#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplayRequest {
    /// Whose items: they are read by its present document.
    pub source: String,
}

#[derive(Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ReplayedItems {
    /// Items that became records.
    pub fit: usize,
    /// Items that still do not fit.
    pub unfit: usize,
}

/// Try the items that did not fit again, by the present document of their source
#[utoipa::path(post, path = "/v1/unfit/replay", request_body = ReplayRequest,
    responses((status = 200, body = ReplayedItems), (status = 404)))]
pub async fn replay(State(api): State<Api>, Body(request): Body<ReplayRequest>) -> ApiResult<Json<ReplayedItems>> {
    let db = &api.ctx.db;
    let found = source::get(db, TENANT_DEFAULT, &request.source).await?.ok_or_else(|| not_found("such source"))?;
    let mut total = ReplayedItems::default();
    let mut after = None;
    loop {
        let query = RecordQuery { tenant: TENANT_DEFAULT, source: Some(&request.source), after, limit: PAGE_MAX };
        let items = record::unfit(db, &query).await?;
        after = match items.last() {
            Some(last) => Some((last.source.clone(), last.instance.clone(), last.hash.to_string())),
            None => return Ok(Json(total)),
        };
        let (mut fit, mut still) = (Vec::new(), Vec::new());
        for item in items {
            let mapper = Mapper::new(&item.source, &item.instance, &found.document.id, &found.document.fields)
                .map_err(bad_request)?;
            match mapper.record(&item.item, item.fetched_at) {
                Ok(record) => fit.push((item, record)),
                Err(reason) => still.push(Unfit { reason, ..item }),
            }
        }
        total.fit += fit.len();
        total.unfit += still.len();
        record::replay(db, TENANT_DEFAULT, &fit, &still).await?;
    }
}

/// Totals of what was gathered
#[utoipa::path(get, path = "/v1/report", responses((status = 200, body = Report)))]
pub async fn report(State(api): State<Api>) -> ApiResult<Json<Report>> {
    Ok(Json(report::compute(&api.ctx, TENANT_DEFAULT).await?))
}
