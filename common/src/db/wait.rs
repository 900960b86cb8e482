//! What the jobs of dispatches wait for, and for how long.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::db::leader;
use crate::db::pool::{Db, DbResult};
use crate::model::cause::Cause;
use crate::run_tx;

/// How long the hosts of a dispatch, taken together, have waited for something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waited {
    pub tenant: String,
    pub dispatch: Uuid,
    pub cause: Cause,
    pub ms: i64,
}

/// Adds what was seen to wait, as the leader; each (tenant, dispatch, cause) once.
pub async fn add(db: &Db, epoch: i64, waited: &[Waited]) -> DbResult<()> {
    let mut waited: Vec<&Waited> = waited.iter().collect();
    waited.sort_by_key(|w| (&w.tenant, w.dispatch, w.cause));
    let tenants: Vec<&str> = waited.iter().map(|w| w.tenant.as_str()).collect();
    let dispatches: Vec<Uuid> = waited.iter().map(|w| w.dispatch).collect();
    let causes: Vec<&str> = waited.iter().map(|w| w.cause.as_str()).collect();
    let ms: Vec<i64> = waited.iter().map(|w| w.ms).collect();
    run_tx!(db, "add-waits", |tx| {
        leader::authorise(tx, epoch).await?;
        let statement = tx
            .prepare_cached(
                "-- add-waits
                 INSERT INTO dispatch_wait AS w (tenant, dispatch, cause, ms)
                 SELECT * FROM unnest($1::text[], $2::uuid[], $3::text[], $4::int8[])
                 ON CONFLICT (tenant, dispatch, cause) DO UPDATE SET ms = w.ms + excluded.ms",
            )
            .await?;
        tx.execute(&statement, &[&tenants, &dispatches, &causes, &ms]).await?;
        Ok(())
    })
}

/// What a dispatch has waited for, the longest first; a cause that this version does not know is left out.
pub async fn of(db: &Db, tenant: &str, dispatch: Uuid) -> DbResult<Vec<(Cause, i64)>> {
    run_tx!(db, "waits", tenant: tenant, |tx| {
        let rows = tx
            .query(
                "-- waits
                 SELECT cause, ms FROM dispatch_wait WHERE tenant = $1 AND dispatch = $2 AND ms > 0 ORDER BY ms DESC, cause",
                &[&tenant, &dispatch],
            )
            .await?;
        Ok(rows.iter().filter_map(|row| Some((Cause::parse(row.get(0))?, row.get(1)))).collect())
    })
}

/// Jobs of a dispatch that wait for another try, as far as a bounded look tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Retries {
    pub jobs: i64,
    /// Until the first of them is due, milliseconds.
    pub next_in_ms: Option<i64>,
    /// What one of them failed with.
    pub error: Option<String>,
}

/// Rows looked at for [`retries`].
const LOOK_MAX: i64 = 100_000;
/// Ids of jobs are greater than that of their dispatch, but for clocks that differ by no more than this, milliseconds.
const CLOCKS_MS: u128 = 3_600_000;

pub async fn retries(db: &Db, tenant: &str, dispatch: Uuid) -> DbResult<Retries> {
    // The first 48 bits of these ids are milliseconds (RFC 9562 5.7).
    let after = Uuid::from_u128(dispatch.as_u128().saturating_sub(CLOCKS_MS << 80));
    run_tx!(db, "retries", tenant: tenant, |tx| {
        let row = tx
            .query_one(
                "-- retries
                 SELECT count(*), (extract(epoch FROM min(run_at) - clock_timestamp()) * 1000)::int8, min(last_error)
                   FROM (SELECT dispatch, run_at, last_error FROM crawl_schedule WHERE tenant = $1 AND id > $4 ORDER BY id LIMIT $3) c
                  WHERE dispatch = $2 AND last_error IS NOT NULL AND run_at > clock_timestamp()",
                &[&tenant, &dispatch, &LOOK_MAX, &after],
            )
            .await?;
        Ok(Retries { jobs: row.get(0), next_in_ms: row.get(1), error: row.get(2) })
    })
}
