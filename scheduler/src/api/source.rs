//! Sources: their documents, their secrets, and the page dispatches they start.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use dodo_common::db::source::{self, SecretName, Source};
use dodo_common::db::submit::Submission;
use dodo_common::model::job::TENANT_DEFAULT;
use dodo_common::model::paged::{PagedSpec, Place};
use dodo_common::model::source::Document;
use dodo_common::model::terms::{Terms, start_of};
use serde::{Deserialize, Serialize};

use crate::api::crawl::may_ask;
use crate::api::extract::{Body, Segment};
use crate::api::timer::{self, Answer, Recurring};
use crate::api::{Api, ApiError, ApiResult, bad_request, not_found};
use crate::context::Context;

/// Bytes of a secret.
const SECRET_BYTES_MAX: usize = 8192;

/// What a dispatch of a source may say.
#[derive(Clone, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RunRequest {
    /// What `{base}` stands for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// Which installation of the platform; the authority of its URL when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// Names in braces of the URL, and what they stand for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub subject: BTreeMap<String, String>,
    /// An answer that holds the count, if it is known: then the API is not asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object)]
    pub metadata: Option<serde_json::Value>,
    /// A second request with the same key returns the first one's dispatch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Body bytes received before the rest is skipped; what is in flight then comes on top.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<i64>,
    /// Seconds after its submission, or its start, after which the rest is skipped; a pause does not stop the clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_seconds: Option<i64>,
    /// How often a request is tried again; what the document says when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<i16>,
    /// Between -100 and 100; at one API the higher goes first. 0 when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i16>,
    /// Not before this time, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_at: Option<String>,
    /// Not before so many milliseconds from now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_in_ms: Option<i64>,
    /// Submit it again and again: a cron pattern of five fields, or six with seconds first. The answer is a timer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cron: Option<String>,
    /// The time zone of the pattern's clock, an IANA name; UTC when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
}

#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Stored {
    pub name: String,
    pub version: i32,
}

#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretRequest {
    pub value: String,
}

/// Store a source's document
#[utoipa::path(put, path = "/v1/sources/{name}", params(("name" = String, Path)), request_body = Document,
    responses((status = 200, body = Stored), (status = 400, description = "One line says what is wrong")))]
pub async fn put(
    State(api): State<Api>,
    Segment(name): Segment<String>,
    Body(document): Body<Document>,
) -> ApiResult<Json<Stored>> {
    if !is_name(&name, 39) || ["crawl", "page"].contains(&name.as_str()) {
        return Err(bad_request(
            "a source's name has up to 39 of a-z, 0-9 and -, begins with a letter or digit, and is not crawl or page",
        ));
    }
    document.check().map_err(bad_request)?;
    if document.every_s.is_some() {
        // What a timer starts, nobody completes.
        PagedSpec::new(&name, 1, document.clone(), None, None, BTreeMap::new()).map_err(bad_request)?;
    }
    let version = source::put(&api.ctx.db, TENANT_DEFAULT, &name, &document).await?;
    Ok(Json(Stored { name, version }))
}

/// The stored sources
#[utoipa::path(get, path = "/v1/sources", responses((status = 200, body = Vec<Source>)))]
pub async fn list(State(api): State<Api>) -> ApiResult<Json<Vec<Source>>> {
    Ok(Json(source::list(&api.ctx.db, TENANT_DEFAULT).await?))
}

/// One source
#[utoipa::path(get, path = "/v1/sources/{name}", params(("name" = String, Path)),
    responses((status = 200, body = Source), (status = 404)))]
pub async fn get(State(api): State<Api>, Segment(name): Segment<String>) -> ApiResult<Json<Source>> {
    Ok(Json(source::get(&api.ctx.db, TENANT_DEFAULT, &name).await?.ok_or_else(|| not_found("such source"))?))
}

/// Forget a source; its records stay
#[utoipa::path(delete, path = "/v1/sources/{name}", params(("name" = String, Path)),
    responses((status = 204), (status = 404)))]
pub async fn delete(State(api): State<Api>, Segment(name): Segment<String>) -> ApiResult<StatusCode> {
    if source::delete(&api.ctx.db, TENANT_DEFAULT, &name).await? {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(not_found("such source"))
}

/// Start a page dispatch
#[utoipa::path(post, path = "/v1/sources/{name}/dispatches", params(("name" = String, Path)), request_body = RunRequest,
    responses((status = 202, body = Answer), (status = 400, description = "One line says what is wrong"), (status = 404)))]
pub async fn run(
    State(api): State<Api>,
    Segment(name): Segment<String>,
    Body(mut request): Body<RunRequest>,
) -> ApiResult<(StatusCode, Json<Answer>)> {
    let ctx = &api.ctx;
    let found = source::get(&ctx.db, TENANT_DEFAULT, &name).await?.ok_or_else(|| not_found("such source"))?;
    let (cron, timezone) = (request.cron.take(), request.timezone.take());
    let recurring = Recurring {
        key: request.key.as_deref(),
        cron: cron.as_deref(),
        timezone: timezone.as_deref(),
        starts: request.start_at.is_some() || request.start_in_ms.is_some(),
    };
    let (spec, terms) = planned(request.clone(), found, ctx)?;
    if let Some(auth) = &spec.document.auth
        && source::secret(&ctx.db, TENANT_DEFAULT, &auth.secret).await?.is_none()
    {
        let advice = format!("there is no secret {0}; store it with `dodo sources secret {0}`", auth.secret);
        return Err(bad_request(advice));
    }
    let value = serde_json::json!({ "source": name, "run": request });
    if let Some(answer) = timer::store(ctx, "paged", value, recurring, &BTreeMap::new()).await? {
        return Ok(answer);
    }
    let submission = Submission { key: request.key.as_deref(), terms, ..Submission::default() };
    let submitted = source::submit(&ctx.db, TENANT_DEFAULT, &spec, &submission).await?;
    ctx.hint(vec![(TENANT_DEFAULT.to_owned(), String::new())]).await;
    Ok((StatusCode::ACCEPTED, Json(Answer::Dispatch(submitted.into()))))
}

/// What a run of a source is, and its terms.
pub fn planned(request: RunRequest, found: Source, ctx: &Context) -> ApiResult<(PagedSpec, Terms)> {
    let start_at = start_of(request.start_at.as_deref(), request.start_in_ms, ctx.clock.now_ms());
    let terms = Terms {
        max_bytes: request.max_bytes,
        max_seconds: request.max_seconds,
        retries: request.retries,
        priority: request.priority.unwrap_or_default(),
        start_at: start_at.map_err(bad_request)?,
    };
    terms.check().map_err(bad_request)?;
    let (base, instance) = (request.base.as_deref(), request.instance.as_deref());
    let mut spec = PagedSpec::new(&found.name, found.version, found.document, base, instance, request.subject)
        .map_err(bad_request)?;
    spec.metadata = request.metadata;
    for url in [spec.page_url(Place { page: 1, cursor: None }), spec.count_url()] {
        may_ask(&url.map_err(bad_request)?, &ctx.duties.contact).map_err(bad_request)?;
    }
    Ok((spec, terms))
}

/// Store a secret's value; no answer ever shows it
#[utoipa::path(put, path = "/v1/secrets/{name}", params(("name" = String, Path)), request_body = SecretRequest,
    responses((status = 204), (status = 400, description = "One line says what is wrong")))]
pub async fn put_secret(
    State(api): State<Api>,
    Segment(name): Segment<String>,
    body: Result<Body<SecretRequest>, ApiError>,
) -> ApiResult<StatusCode> {
    // The rejection of a body may quote it.
    let Body(request) = body.map_err(|_| bad_request("send the secret as {\"value\": \"...\"}"))?;
    if !is_name(&name, 63) {
        return Err(bad_request("a secret's name has up to 63 of a-z, 0-9, - . and _"));
    }
    if request.value.is_empty() || request.value.len() > SECRET_BYTES_MAX || request.value.chars().any(char::is_control)
    {
        return Err(bad_request(format!(
            "a secret has between 1 and {SECRET_BYTES_MAX} bytes, none of them a control character"
        )));
    }
    source::put_secret(&api.ctx.db, TENANT_DEFAULT, &name, &request.value).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The names of the stored secrets
#[utoipa::path(get, path = "/v1/secrets", responses((status = 200, body = Vec<SecretName>)))]
pub async fn secrets(State(api): State<Api>) -> ApiResult<Json<Vec<SecretName>>> {
    Ok(Json(source::secrets(&api.ctx.db, TENANT_DEFAULT).await?))
}

fn is_name(name: &str, length_max: usize) -> bool {
    let more = if length_max > 39 { "-._" } else { "-" };
    name.len() <= length_max
        && name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || more.contains(c))
}
