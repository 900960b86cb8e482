//! The generation of Redis: a number and the run id of the server that it belongs to.

use crate::db::leader;
use crate::db::pool::{Db, DbResult};
use crate::run_tx;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    pub number: i64,
    /// `run_id` of `INFO server`: another one means that Redis was restarted.
    pub run_id: String,
}

pub async fn current(db: &Db) -> DbResult<Generation> {
    let client = db.client().await?;
    let row = client.query_one("-- current-generation\nSELECT number, run_id FROM generation", &[]).await?;
    Ok(Generation { number: row.get(0), run_id: row.get(1) })
}

/// Starts the next one. It waits for the commits that share-lock the row; after it no commit of an
/// older generation can succeed.
pub async fn advance(db: &Db, epoch: i64, run_id: &str) -> DbResult<Generation> {
    run_tx!(db, "advance-generation", |tx| {
        leader::authorise(tx, epoch).await?;
        let row = tx
            .query_one(
                "-- advance-generation
                 UPDATE generation SET number = number + 1, run_id = $1, started_at = clock_timestamp() RETURNING number",
                &[&run_id],
            )
            .await?;
        Ok(Generation { number: row.get(0), run_id: run_id.to_owned() })
    })
}
