//! Sources, their secrets, and the dispatches that read them.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::db::pool::{Db, DbError, DbResult, Transaction};
use crate::db::submit::{self, Submission, Submitted};
use crate::db::timer;
use crate::model::paged::PagedSpec;
use crate::model::source::Document;
use crate::run_tx;

/// A stored source.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Source {
    pub name: String,
    /// Grows with every change of the document.
    pub version: i32,
    pub document: Document,
    /// When its timer starts the next dispatch.
    pub next_at: Option<DateTime<Utc>>,
    pub updated_at: DateTime<Utc>,
}

/// Stores a document under a name; the same document again changes nothing. Returns its version.
pub async fn put(db: &Db, tenant: &str, name: &str, document: &Document) -> DbResult<i32> {
    let value = serde_json::to_value(document).map_err(|error| DbError::Input(error.to_string()))?;
    run_tx!(db, "put-source", tenant: tenant, |tx| {
        let row = tx
            .query_one(
                "-- put-source
                 INSERT INTO source AS s (tenant, name, document) VALUES ($1, $2, $3)
                 ON CONFLICT (tenant, name) DO UPDATE SET
                   version = s.version + CASE WHEN s.document = excluded.document THEN 0 ELSE 1 END,
                   updated_at = CASE WHEN s.document = excluded.document THEN s.updated_at ELSE excluded.updated_at END,
                   document = excluded.document
                 RETURNING version",
                &[&tenant, &name, &value],
            )
            .await?;
        timer::of_source(tx, tenant, name, document.every_s).await?;
        Ok(row.get(0))
    })
}

const SELECT: &str = "SELECT name, version, document, (SELECT t.next_at FROM timer t WHERE t.tenant = source.tenant
    AND t.source = source.name), updated_at FROM source";

pub async fn list(db: &Db, tenant: &str) -> DbResult<Vec<Source>> {
    run_tx!(db, "list-sources", tenant: tenant, |tx| {
        let sql = format!("-- list-sources\n{SELECT} WHERE tenant = $1 ORDER BY name");
        tx.query(&sql, &[&tenant]).await?.iter().map(of_row).collect()
    })
}

pub async fn get(db: &Db, tenant: &str, name: &str) -> DbResult<Option<Source>> {
    run_tx!(db, "get-source", tenant: tenant, |tx| { find(tx, tenant, name).await })
}

/// The same within a transaction.
pub(crate) async fn find(tx: &Transaction<'_>, tenant: &str, name: &str) -> DbResult<Option<Source>> {
    let sql = format!("-- get-source\n{SELECT} WHERE tenant = $1 AND name = $2");
    tx.query_opt(&sql, &[&tenant, &name]).await?.as_ref().map(of_row).transpose()
}

/// Forgets a source; its dispatches and records stay. False: there is none.
pub async fn delete(db: &Db, tenant: &str, name: &str) -> DbResult<bool> {
    run_tx!(db, "delete-source", tenant: tenant, |tx| {
        timer::of_source(tx, tenant, name, None).await?;
        let count = tx
            .execute("-- delete-source\nDELETE FROM source WHERE tenant = $1 AND name = $2", &[&tenant, &name])
            .await?;
        Ok(count == 1)
    })
}

/// Submits a page dispatch: one job, which makes the others.
pub async fn submit(db: &Db, tenant: &str, spec: &PagedSpec, submission: &Submission<'_>) -> DbResult<Submitted> {
    run_tx!(db, "submit-pages", tenant: tenant, |tx| { submit_in(tx, tenant, spec, submission).await })
}

pub(crate) async fn submit_in(
    tx: &Transaction<'_>,
    tenant: &str,
    spec: &PagedSpec,
    submission: &Submission<'_>,
) -> DbResult<Submitted> {
    let mut submission = submission.clone();
    submission.terms.retries = submission.terms.retries.or(spec.document.retries);
    let terms = &submission.terms;
    let value = serde_json::to_value(spec).map_err(|error| DbError::Input(error.to_string()))?;
    let id = Uuid::now_v7();
    if let Some(known) = submit::insert(tx, tenant, id, ("paged", &value), &submission).await? {
        return Ok(Submitted { id: known, created: false, scheduled: 0 });
    }
    submit::keep_headers(tx, tenant, id, &submission.headers).await?;
    tx.execute(
        "-- submit-pages
         WITH delta AS (INSERT INTO dispatch_delta (tenant, dispatch, scheduled) VALUES ($1, $2, 1))
         INSERT INTO crawl_schedule (tenant, id, dispatch, kind, payload, dedupe_key, priority, run_at)
         VALUES ($1, $3, $2, 'page_dispatch', '{}', $4, $5, coalesce($6, now()))",
        &[&tenant, &id, &Uuid::now_v7(), &format!("pages:{id}:0:1"), &terms.rank(), &terms.start_at],
    )
    .await?;
    Ok(Submitted { id, created: true, scheduled: 1 })
}

fn of_row(row: &tokio_postgres::Row) -> DbResult<Source> {
    let name: String = row.get(0);
    let document = serde_json::from_value::<Document>(row.get::<_, Value>(2)).map_err(|error| {
        DbError::Input(format!("the document of source {name} is not one of this version: {error}"))
    })?;
    Ok(Source { document, name, version: row.get(1), next_at: row.get(3), updated_at: row.get(4) })
}

/// A secret's name; its value is never read back by an answer.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SecretName {
    pub name: String,
    pub updated_at: DateTime<Utc>,
}

pub async fn put_secret(db: &Db, tenant: &str, name: &str, value: &str) -> DbResult<()> {
    run_tx!(db, "put-secret", |tx| {
        tx.execute(
            "-- put-secret
             INSERT INTO secret (tenant, name, value, updated_at) VALUES ($1, $2, $3, clock_timestamp())
             ON CONFLICT (tenant, name) DO UPDATE SET value = excluded.value, updated_at = excluded.updated_at",
            &[&tenant, &name, &value],
        )
        .await?;
        Ok(())
    })
}

pub async fn secrets(db: &Db, tenant: &str) -> DbResult<Vec<SecretName>> {
    run_tx!(db, "list-secrets", tenant: tenant, |tx| {
        let rows = tx
            .query("-- list-secrets\nSELECT name, updated_at FROM secret WHERE tenant = $1 ORDER BY name", &[&tenant])
            .await?;
        Ok(rows.iter().map(|row| SecretName { name: row.get(0), updated_at: row.get(1) }).collect())
    })
}

/// The value, for the worker that sends it.
pub async fn secret(db: &Db, tenant: &str, name: &str) -> DbResult<Option<String>> {
    let client = db.client().await?;
    let row = client
        .query_opt("-- secret\nSELECT value FROM secret WHERE tenant = $1 AND name = $2", &[&tenant, &name])
        .await?;
    Ok(row.map(|row| row.get(0)))
}
