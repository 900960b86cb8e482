//! The proxies of the pool: how each fares, as the leader has written it down for its successor and for those who ask.

use crate::db::leader;
use crate::db::pool::{Db, DbResult};
use crate::run_tx;

/// How a proxy fares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyRow {
    /// host:port.
    pub address: String,
    pub region: String,
    /// It is in quarantine for so long by the server's clock, milliseconds; over, but not proven well, at 0 or below. None: it
    /// is healthy.
    pub quarantined_ms: Option<i64>,
    /// Quarantines in a row.
    pub strikes: i32,
    pub successes: i64,
    pub blocks: i64,
    /// Requests without an answer, for whatever reason.
    pub failures: i64,
}

/// Every proxy, by region and address.
pub async fn all(db: &Db) -> DbResult<Vec<ProxyRow>> {
    let client = db.client().await?;
    let rows = client
        .query(
            "-- all-proxies
             SELECT address, region, (extract(epoch FROM quarantined_until - clock_timestamp()) * 1000)::int8,
                    strikes, successes, blocks, failures
               FROM proxy ORDER BY region, address",
            &[],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| ProxyRow {
            address: row.get(0),
            region: row.get(1),
            quarantined_ms: row.get(2),
            strikes: row.get(3),
            successes: row.get(4),
            blocks: row.get(5),
            failures: row.get(6),
        })
        .collect())
}

/// Writes down how proxies fare, as the leader.
pub async fn save(db: &Db, epoch: i64, proxies: &[ProxyRow]) -> DbResult<()> {
    let mut proxies: Vec<&ProxyRow> = proxies.iter().collect();
    proxies.sort_by_key(|row| &row.address);
    let addresses: Vec<&str> = proxies.iter().map(|row| row.address.as_str()).collect();
    let regions: Vec<&str> = proxies.iter().map(|row| row.region.as_str()).collect();
    let quarantined: Vec<Option<i64>> = proxies.iter().map(|row| row.quarantined_ms).collect();
    let strikes: Vec<i32> = proxies.iter().map(|row| row.strikes).collect();
    let successes: Vec<i64> = proxies.iter().map(|row| row.successes).collect();
    let blocks: Vec<i64> = proxies.iter().map(|row| row.blocks).collect();
    let failures: Vec<i64> = proxies.iter().map(|row| row.failures).collect();
    run_tx!(db, "save-proxies", |tx| {
        leader::authorise(tx, epoch).await?;
        let statement = tx
            .prepare_cached(
                "-- save-proxies
                 INSERT INTO proxy (address, region, quarantined_until, strikes, successes, blocks, failures)
                 SELECT p.address, p.region, clock_timestamp() + p.ms * interval '1 millisecond', p.strikes, p.successes,
                        p.blocks, p.failures
                   FROM unnest($1::text[], $2::text[], $3::int8[], $4::int4[], $5::int8[], $6::int8[], $7::int8[])
                     AS p(address, region, ms, strikes, successes, blocks, failures)
                 ON CONFLICT (address) DO UPDATE SET region = excluded.region, strikes = excluded.strikes,
                        quarantined_until = excluded.quarantined_until, successes = excluded.successes,
                        blocks = excluded.blocks, failures = excluded.failures",
            )
            .await?;
        tx.execute(&statement, &[&addresses, &regions, &quarantined, &strikes, &successes, &blocks, &failures]).await?;
        Ok(())
    })
}

/// Forgets the proxies that the pool does not name any more.
pub async fn forget_others(db: &Db, epoch: i64, addresses: &[&str]) -> DbResult<()> {
    run_tx!(db, "forget-proxies", |tx| {
        leader::authorise(tx, epoch).await?;
        tx.execute("-- forget-proxies\nDELETE FROM proxy WHERE address <> ALL ($1::text[])", &[&addresses]).await?;
        Ok(())
    })
}
