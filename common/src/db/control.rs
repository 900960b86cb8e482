//! Orders for dispatches: pause, resume, cancel; and those whose rest is to end.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::db::leader;
use crate::db::pool::{Db, DbResult, Transaction};
use crate::model::job::Outcome;
use crate::run_tx;

/// Steps from a dispatch down to those it has started, and to those they have.
const LEVELS_MAX: usize = 8;

/// What an operator may ask of a dispatch. The dispatches it has started go with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Pause,
    Resume,
    Cancel,
}

/// What came of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ordered {
    /// It holds, whether or not it held before.
    Holds,
    Unknown,
    /// One line says why not.
    Refused(String),
}

/// Carries an order out: on the row at once; the leader and the workers follow it.
pub async fn order(db: &Db, tenant: &str, id: Uuid, order: Order) -> DbResult<Ordered> {
    run_tx!(db, "order-dispatch", tenant: tenant, |tx| {
        // Whoever starts a dispatch share-locks its parent: it is seen below, or it sees what is written here.
        let row = tx
            .query_opt(
                "-- dispatch-to-order\nSELECT state, ending, note FROM dispatch WHERE tenant = $1 AND id = $2 FOR UPDATE",
                &[&tenant, &id],
            )
            .await?;
        let Some(row) = row else { return Ok(Ordered::Unknown) };
        let (state, ending): (String, Option<String>) = (row.get(0), row.get(1));
        let is_cancelled = ending.as_deref() == Some(Outcome::Cancelled.as_str());
        if order == Order::Cancel && is_cancelled {
            return Ok(Ordered::Holds);
        }
        let note = row.get::<_, Option<String>>(2).map_or(String::new(), |note| format!(": {note}"));
        if state == "done" {
            return Ok(Ordered::Refused(format!("dispatch {id} is done{note}")));
        }
        // What is made again of one whose budget is spent can be held, too.
        if is_cancelled {
            return Ok(Ordered::Refused(format!("dispatch {id} is ending{note}")));
        }
        let mut ids = vec![id];
        for _ in 0..LEVELS_MAX {
            ids = write(tx, tenant, &ids, order).await?;
            if ids.is_empty() {
                break;
            }
        }
        Ok(Ordered::Holds)
    })
}

/// Writes an order on dispatches; returns those they have started and that are not done.
async fn write(tx: &Transaction<'_>, tenant: &str, ids: &[Uuid], order: Order) -> DbResult<Vec<Uuid>> {
    let set = match order {
        Order::Pause => "paused_at = coalesce(paused_at, clock_timestamp())",
        Order::Resume => "paused_at = NULL",
        Order::Cancel => {
            "paused_at = NULL, ending = 'cancelled',
             note = 'it was cancelled at ' || to_char(clock_timestamp(), 'YYYY-MM-DD HH24:MI:SS') || ' UTC'"
        }
    };
    let sql = format!(
        "-- order-dispatches
         UPDATE dispatch SET {set} WHERE tenant = $1 AND id = ANY ($2) AND state <> 'done' AND ending IS DISTINCT FROM 'cancelled'"
    );
    tx.execute(&sql, &[&tenant, &ids]).await?;
    let rows = tx
        .query(
            "-- started-dispatches
             SELECT id FROM dispatch WHERE tenant = $1 AND parent = ANY ($2) AND parent IS NOT NULL AND state <> 'done'
              ORDER BY id FOR UPDATE",
            &[&tenant, &ids],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// What a dispatch takes over from the one that starts it: paused since when, how it ends, and why.
pub(crate) type Inherited = (Option<DateTime<Utc>>, Option<String>, Option<String>);

pub(crate) async fn inherited(tx: &Transaction<'_>, tenant: &str, parent: Uuid) -> DbResult<Inherited> {
    let row = tx
        .query_opt(
            "-- inherited\nSELECT paused_at, ending, note FROM dispatch WHERE tenant = $1 AND id = $2 FOR SHARE",
            &[&tenant, &parent],
        )
        .await?;
    Ok(row.map(|row| (row.get(0), row.get(1), row.get(2))).unwrap_or_default())
}

/// A dispatch whose rest is to end.
#[derive(Clone, Debug)]
pub struct Ending {
    pub tenant: String,
    pub id: Uuid,
    pub outcome: Outcome,
    pub note: String,
    /// It has entries to stop, too.
    pub manifest: bool,
}

/// Dispatches that are ending and may have jobs left.
pub async fn ending(db: &Db, limit: i64) -> DbResult<Vec<Ending>> {
    let client = db.client().await?;
    let rows = client
        .query(
            "-- ending-dispatches
             SELECT tenant, id, ending, coalesce(note, ''), kind = 'manifest' FROM dispatch
              WHERE ending IS NOT NULL AND state = 'running' ORDER BY tenant, id LIMIT $1",
            &[&limit],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| Ending {
            tenant: row.get(0),
            id: row.get(1),
            outcome: if row.get::<_, &str>(2) == "budget" { Outcome::Budget } else { Outcome::Cancelled },
            note: row.get(3),
            manifest: row.get(4),
        })
        .collect())
}

/// Stops the entries of a manifest's dispatch; returns how many.
pub async fn stop_entries(db: &Db, epoch: i64, tenant: &str, id: Uuid) -> DbResult<u64> {
    run_tx!(db, "stop-entries", |tx| {
        leader::authorise(tx, epoch).await?;
        let count = tx
            .execute(
                "-- stop-entries
                 UPDATE manifest_entry SET state = 'stopped' WHERE tenant = $1 AND dispatch = $2 AND state = 'active'",
                &[&tenant, &id],
            )
            .await?;
        Ok(count)
    })
}

/// Dispatches whose budget is spent are to end; returns how many. Bytes count when their job has ended.
pub async fn spend(db: &Db, epoch: i64) -> DbResult<u64> {
    run_tx!(db, "spend-budgets", |tx| {
        leader::authorise(tx, epoch).await?;
        let count = tx
            .execute(
                "-- spend-budgets
                 WITH spent AS MATERIALIZED (
                   SELECT d.tenant, d.id, d.max_bytes, d.max_seconds, coalesce(p.bytes, 0) + x.bytes AS bytes,
                          clock_timestamp() >= greatest(d.created_at, d.start_at) + d.max_seconds * interval '1 second' AS late
                     FROM dispatch d LEFT JOIN dispatch_progress p ON p.tenant = d.tenant AND p.dispatch = d.id,
                     LATERAL (SELECT coalesce(sum(bytes), 0)::int8 AS bytes FROM dispatch_delta y
                               WHERE y.tenant = d.tenant AND y.dispatch = d.id) x
                    WHERE d.state = 'running' AND d.ending IS NULL AND (d.max_bytes IS NOT NULL OR d.max_seconds IS NOT NULL))
                 UPDATE dispatch d SET ending = 'budget', note = CASE
                     WHEN s.late THEN format('its budget of %s seconds is spent', s.max_seconds)
                     ELSE format('its budget of %s bytes is spent: it has received %s', s.max_bytes, s.bytes) END
                   FROM spent s WHERE d.tenant = s.tenant AND d.id = s.id AND d.ending IS NULL AND (s.late OR s.bytes >= s.max_bytes)",
                &[],
            )
            .await?;
        Ok(count)
    })
}
