//! The daily partitions of `crawl_log`.

use chrono::{DateTime, Utc};
use tokio_postgres::error::SqlState;

use crate::db::pool::{Db, DbResult};
use crate::run_tx;

/// Rows that are moved out of the default partition at most: nobody else reads or writes the log meanwhile.
pub const MOVED_ROWS_MAX: i64 = 20_000;

/// What became of the partition of a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ensured {
    There,
    Made,
    /// The default partition held so many rows of the day, which have moved.
    Moved(u64),
    /// It holds more than [`MOVED_ROWS_MAX`] of them: the day stays there.
    Crowded,
}

/// Makes the partition of the day that comes in so many days, unless it is there.
pub async fn ensure(db: &Db, in_days: i32) -> DbResult<Ensured> {
    let client = db.client().await?;
    let made = client
        .query_one(
            "-- ensure-partition
             SELECT ensure_log_partition((now() AT TIME ZONE 'UTC')::date + $1::int4)",
            &[&in_days],
        )
        .await;
    match made {
        Ok(row) if row.get(0) => Ok(Ensured::Made),
        Ok(_) => Ok(Ensured::There),
        // No partition may be made of what the default one holds.
        Err(error) if error.code() == Some(&SqlState::CHECK_VIOLATION) => {
            drop(client);
            make_of_default(db, in_days).await
        }
        Err(error) => Err(error.into()),
    }
}

/// The same where the default partition has rows of the day: they step aside, and come back to where they belong.
async fn make_of_default(db: &Db, in_days: i32) -> DbResult<Ensured> {
    run_tx!(db, "move-partition", |tx| {
        // At once as strong as it is going to be: to strengthen a lock is to risk a deadlock. A row more must not come.
        tx.batch_execute(
            "-- lock-log
             LOCK TABLE crawl_log IN ACCESS EXCLUSIVE MODE",
        )
        .await?;
        let day = tx
            .query_one(
                "-- day-of-log
                 SELECT day::timestamptz, (day + 1)::timestamptz
                   FROM CAST((now() AT TIME ZONE 'UTC')::date + $1::int4 AS date) AS day",
                &[&in_days],
            )
            .await?;
        // As values, so that no other partition is looked at.
        let (from, to): (DateTime<Utc>, DateTime<Utc>) = (day.get(0), day.get(1));
        let row = tx
            .query_one(
                "-- count-stray-log
                 SELECT count(*) FROM (
                   SELECT FROM crawl_log WHERE finished_at >= $1 AND finished_at < $2 LIMIT $3) s",
                &[&from, &to, &(MOVED_ROWS_MAX + 1)],
            )
            .await?;
        if row.get::<_, i64>(0) > MOVED_ROWS_MAX {
            return Ok(Ensured::Crowded);
        }
        tx.batch_execute(
            "-- make-stray-log
             CREATE TEMPORARY TABLE stray_log (LIKE crawl_log) ON COMMIT DROP",
        )
        .await?;
        tx.execute(
            "-- take-stray-log
             WITH stray AS (DELETE FROM crawl_log WHERE finished_at >= $1 AND finished_at < $2 RETURNING *)
             INSERT INTO stray_log SELECT * FROM stray",
            &[&from, &to],
        )
        .await?;
        tx.execute(
            "-- ensure-partition
             SELECT ensure_log_partition((now() AT TIME ZONE 'UTC')::date + $1::int4)",
            &[&in_days],
        )
        .await?;
        let rows = tx
            .execute(
                "-- put-stray-log
                 INSERT INTO crawl_log SELECT * FROM stray_log",
                &[],
            )
            .await?;
        Ok(Ensured::Moved(rows))
    })
}
