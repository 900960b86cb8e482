//! The leader's lease: one row with an epoch that only grows.

use uuid::Uuid;

use crate::db::pool::{Db, DbError, DbResult, Transaction};

/// A leader that does not renew for this long is replaced, milliseconds.
pub const LEASE_MS: i64 = 3000;

/// Takes the lease if it has run out; returns the new epoch.
pub async fn acquire(db: &Db, holder: Uuid) -> DbResult<Option<i64>> {
    let client = db.client().await?;
    let row = client
        .query_opt(
            "-- acquire-lease
             UPDATE leader_lease SET epoch = epoch + 1, holder = $1,
                    expires_at = clock_timestamp() + $2 * interval '1 millisecond'
              WHERE expires_at <= clock_timestamp() RETURNING epoch",
            &[&holder, &(LEASE_MS as f64)],
        )
        .await?;
    Ok(row.map(|row| row.get(0)))
}

/// Extends the lease; false means that it is another's, or ran out.
pub async fn renew(db: &Db, epoch: i64) -> DbResult<bool> {
    let client = db.client().await?;
    let count = client
        .execute(
            "-- renew-lease
             UPDATE leader_lease SET expires_at = clock_timestamp() + $2 * interval '1 millisecond'
              WHERE epoch = $1 AND expires_at > clock_timestamp()",
            &[&epoch, &(LEASE_MS as f64)],
        )
        .await?;
    Ok(count == 1)
}

/// Gives the lease up, so that a standby need not wait for it to run out.
pub async fn release(db: &Db, epoch: i64) -> DbResult<()> {
    let client = db.client().await?;
    client
        .execute("-- release-lease\nUPDATE leader_lease SET expires_at = '-infinity' WHERE epoch = $1", &[&epoch])
        .await?;
    Ok(())
}

/// The holder of a running lease and its epoch, for status.
pub async fn current(db: &Db) -> DbResult<Option<(Uuid, i64)>> {
    let client = db.client().await?;
    let row = client
        .query_opt(
            "-- current-leader\nSELECT holder, epoch FROM leader_lease WHERE expires_at > clock_timestamp()",
            &[],
        )
        .await?;
    Ok(row.and_then(|row| Some((row.get::<_, Option<Uuid>>(0)?, row.get(1)))))
}

/// Proves the epoch inside a transaction, to its end.
pub async fn authorise(tx: &Transaction<'_>, epoch: i64) -> DbResult<()> {
    tx.execute("SELECT authorise_leader($1)", &[&epoch]).await.map_err(DbError::of)?;
    Ok(())
}
