//! The generation of Redis: a number and the run id of the server that it belongs to.

use crate::db::leader;
use crate::db::pool::{Db, DbResult};
use crate::run_tx;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    pub number: i64,
    /// `run_id` of `INFO server`: another one means that Redis was restarted.
    pub run_id: String,
    /// What Redis lost before it is known and made again. Until then a leader that takes over has that to do.
    pub reconciled: bool,
}

pub async fn current(db: &Db) -> DbResult<Generation> {
    let client = db.client().await?;
    let row = client.query_one("-- current-generation\nSELECT number, run_id, reconciled FROM generation", &[]).await?;
    Ok(Generation { number: row.get(0), run_id: row.get(1), reconciled: row.get(2) })
}

/// Starts the next one. It waits for the commits that share-lock the row; after it no commit of an
/// older generation can succeed.
pub async fn advance(db: &Db, epoch: i64, run_id: &str) -> DbResult<Generation> {
    run_tx!(db, "advance-generation", |tx| {
        leader::authorise(tx, epoch).await?;
        let row = tx
            .query_one(
                "-- advance-generation
                 UPDATE generation SET number = number + 1, run_id = $1, reconciled = false,
                        started_at = clock_timestamp() RETURNING number",
                &[&run_id],
            )
            .await?;
        Ok(Generation { number: row.get(0), run_id: run_id.to_owned(), reconciled: false })
    })
}

/// What Redis lost before this generation is being made again.
pub async fn set_reconciled(db: &Db, epoch: i64, number: i64) -> DbResult<()> {
    run_tx!(db, "generation-reconciled", |tx| {
        leader::authorise(tx, epoch).await?;
        tx.execute("-- generation-reconciled\nUPDATE generation SET reconciled = true WHERE number = $1", &[&number])
            .await?;
        Ok(())
    })
}
