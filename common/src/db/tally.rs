//! The tally of a crawl's hosts: how many pages each has given, and how many of them were new.
//!
//! Kept only by crawls that ask for it. Commits add rows of their own, so that none waits for another; a tick of the
//! leader sums them up. The true figure is the sum of both.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::db::leader;
use crate::db::pool::{Db, DbResult, Transaction};
use crate::run_tx;

/// Rows summed up in one tick.
const ROLLUP_MAX: i64 = 20_000;

/// Whether a page has said anything that its host had not said in this crawl, as far as its worker remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Novelty {
    Fresh,
    /// The same bytes as another page.
    Duplicate,
    /// Nearly the same words.
    NearDuplicate,
}

/// A page that counts.
#[derive(Clone, Debug)]
pub struct Given {
    pub dispatch: Uuid,
    pub host: String,
    pub bytes: i64,
    pub novelty: Novelty,
}

/// What a host has given a crawl.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Tally {
    pub host: String,
    pub pages: i64,
    pub bytes: i64,
    /// Pages that said something new.
    pub fresh: i64,
    /// Pages with the same bytes as another one.
    pub duplicates: i64,
    /// Pages with nearly the same words.
    pub near_duplicates: i64,
}

/// (tenant, dispatch, host).
pub type TallyKey = (String, Uuid, String);

/// Adds pages, each with its tenant, in the transaction that ends their jobs.
pub(crate) async fn add(tx: &Transaction<'_>, pages: &[(&str, &Given)]) -> DbResult<()> {
    if pages.is_empty() {
        return Ok(());
    }
    let statement = tx
        .prepare_cached(
            "-- add-tallies
             INSERT INTO dispatch_host_delta (tenant, dispatch, host, pages, bytes, fresh, duplicates, near_duplicates)
             SELECT tenant, dispatch, host, count(*), sum(bytes), count(*) FILTER (WHERE novelty = 0),
                    count(*) FILTER (WHERE novelty = 1), count(*) FILTER (WHERE novelty = 2)
               FROM unnest($1::text[], $2::uuid[], $3::text[], $4::int8[], $5::int2[]) AS p(tenant, dispatch, host, bytes, novelty)
              GROUP BY 1, 2, 3",
        )
        .await?;
    let tenants: Vec<&str> = pages.iter().map(|(tenant, _)| *tenant).collect();
    let dispatches: Vec<Uuid> = pages.iter().map(|(_, page)| page.dispatch).collect();
    let hosts: Vec<&str> = pages.iter().map(|(_, page)| page.host.as_str()).collect();
    let bytes: Vec<i64> = pages.iter().map(|(_, page)| page.bytes).collect();
    let novelties: Vec<i16> = pages.iter().map(|(_, page)| page.novelty as i16).collect();
    tx.execute(&statement, &[&tenants, &dispatches, &hosts, &bytes, &novelties]).await?;
    Ok(())
}

/// Sums delta rows up. Returns how many it took.
pub async fn roll_up(db: &Db, epoch: i64) -> DbResult<i64> {
    run_tx!(db, "roll-up-tallies", |tx| {
        leader::authorise(tx, epoch).await?;
        let row = tx
            .query_one(
                "-- roll-up-tallies
                 WITH gone AS (
                   DELETE FROM dispatch_host_delta WHERE ctid = ANY (ARRAY(SELECT ctid FROM dispatch_host_delta LIMIT $1)) RETURNING *),
                 rolled AS (
                   INSERT INTO dispatch_host AS h (tenant, dispatch, host, pages, bytes, fresh, duplicates, near_duplicates)
                   SELECT tenant, dispatch, host, sum(pages), sum(bytes), sum(fresh), sum(duplicates), sum(near_duplicates)
                     FROM gone GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
                   ON CONFLICT (tenant, dispatch, host) DO UPDATE SET pages = h.pages + excluded.pages,
                     bytes = h.bytes + excluded.bytes, fresh = h.fresh + excluded.fresh,
                     duplicates = h.duplicates + excluded.duplicates,
                     near_duplicates = h.near_duplicates + excluded.near_duplicates)
                 SELECT count(*) FROM gone",
                &[&ROLLUP_MAX],
            )
            .await?;
        Ok(row.get(0))
    })
}

/// Pages of each, and how many of them were new, exact to the last commit; in the order of `keys`.
pub async fn given(db: &Db, keys: &[TallyKey]) -> DbResult<Vec<(i64, i64)>> {
    let tenants: Vec<&str> = keys.iter().map(|(tenant, ..)| tenant.as_str()).collect();
    let dispatches: Vec<Uuid> = keys.iter().map(|(_, dispatch, _)| *dispatch).collect();
    let hosts: Vec<&str> = keys.iter().map(|(.., host)| host.as_str()).collect();
    let client = db.client().await?;
    let statement = client
        .prepare_cached(
            "-- given
             SELECT coalesce(h.pages, 0) + coalesce(d.pages, 0), coalesce(h.fresh, 0) + coalesce(d.fresh, 0)
               FROM unnest($1::text[], $2::uuid[], $3::text[]) WITH ORDINALITY AS k(tenant, dispatch, host, ord)
               LEFT JOIN dispatch_host h ON h.tenant = k.tenant AND h.dispatch = k.dispatch AND h.host = k.host
               LEFT JOIN (SELECT tenant, dispatch, host, sum(pages)::int8 AS pages, sum(fresh)::int8 AS fresh
                            FROM dispatch_host_delta GROUP BY 1, 2, 3) d
                 ON d.tenant = k.tenant AND d.dispatch = k.dispatch AND d.host = k.host
              ORDER BY k.ord",
        )
        .await?;
    let rows = client.query(&statement, &[&tenants, &dispatches, &hosts]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// The hosts of a dispatch, those with the most duplicates first.
pub async fn list(db: &Db, tenant: &str, dispatch: Uuid, limit: i64) -> DbResult<Vec<Tally>> {
    run_tx!(db, "list-tallies", tenant: tenant, |tx| {
        let rows = tx
            .query(
                "-- list-tallies
                 SELECT host, sum(pages)::int8, sum(bytes)::int8, sum(fresh)::int8, sum(duplicates)::int8, sum(near_duplicates)::int8
                   FROM (SELECT * FROM dispatch_host UNION ALL SELECT * FROM dispatch_host_delta) t
                  WHERE tenant = $1 AND dispatch = $2
                  GROUP BY host ORDER BY sum(duplicates + near_duplicates) DESC, sum(pages) DESC, host LIMIT $3",
                &[&tenant, &dispatch, &limit],
            )
            .await?;
        Ok(rows
            .iter()
            .map(|row| Tally {
                host: row.get(0),
                pages: row.get(1),
                bytes: row.get(2),
                fresh: row.get(3),
                duplicates: row.get(4),
                near_duplicates: row.get(5),
            })
            .collect())
    })
}
