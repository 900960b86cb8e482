//! Migrations: embedded, applied in order, each in a transaction of its own.

use sha2::{Digest, Sha256};

use crate::db::pool::{Db, DbError, DbResult};

/// Two processes that migrate at once take turns; the number is "dodo" in ASCII.
const LOCK: i64 = 0x646f_646f;

/// (version, name, SQL), in order.
const MIGRATIONS: &[(i32, &str, &str)] = &[
    (1, "core", include_str!("../../../sql/migrations/0001_core.sql")),
    (2, "source", include_str!("../../../sql/migrations/0002_source.sql")),
    (3, "sentinel", include_str!("../../../sql/migrations/0003_sentinel.sql")),
    (4, "proxy", include_str!("../../../sql/migrations/0004_proxy.sql")),
    (5, "core_fixes", include_str!("../../../sql/migrations/0005_core_fixes.sql")),
    (6, "suspects", include_str!("../../../sql/migrations/0006_suspects.sql")),
    (7, "control", include_str!("../../../sql/migrations/0007_control.sql")),
    (8, "throughput", include_str!("../../../sql/migrations/0008_throughput.sql")),
    (9, "reconciled", include_str!("../../../sql/migrations/0009_reconciled.sql")),
    (10, "pace", include_str!("../../../sql/migrations/0010_pace.sql")),
    (11, "wait", include_str!("../../../sql/migrations/0011_wait.sql")),
    (12, "seen", include_str!("../../../sql/migrations/0012_seen.sql")),
    (13, "tally", include_str!("../../../sql/migrations/0013_tally.sql")),
    (14, "proxy_pool", include_str!("../../../sql/migrations/0014_proxy_pool.sql")),
    (15, "revisit", include_str!("../../../sql/migrations/0015_revisit.sql")),
    (16, "link_statistics", include_str!("../../../sql/migrations/0016_link_statistics.sql")),
    (17, "plain_links", include_str!("../../../sql/migrations/0017_plain_links.sql")),
    (18, "lost_results", include_str!("../../../sql/migrations/0018_lost_results.sql")),
    (19, "tries", include_str!("../../../sql/migrations/0019_tries.sql")),
    (20, "timer_secret", include_str!("../../../sql/migrations/0020_timer_secret.sql")),
];

/// Applies what is missing; returns the versions that were applied.
///
/// # Errors
/// [`DbError::Schema`] if the database was migrated by a newer Dodo or by a changed file.
pub async fn migrate(database_url: &str) -> DbResult<Vec<i32>> {
    let db = Db::owner(database_url)?;
    let mut applied = Vec::new();
    for &(version, name, sql) in MIGRATIONS {
        let mut client = db.client().await?;
        let tx = client.transaction().await?;
        tx.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await?;
        tx.batch_execute(
            "CREATE TABLE IF NOT EXISTS schema_migration (version int PRIMARY KEY, name text NOT NULL, \
             sha256 text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now()); \
             GRANT SELECT ON schema_migration TO PUBLIC",
        )
        .await?;
        let row = tx.query_opt("SELECT sha256 FROM schema_migration WHERE version = $1", &[&version]).await?;
        if let Some(row) = row {
            if row.get::<_, String>(0) != fingerprint(sql) {
                return Err(DbError::Schema(format!(
                    "migration {version} ({name}) of this database is not the one in this binary; use the Dodo that made it"
                )));
            }
            continue;
        }
        tx.batch_execute(sql).await?;
        tx.execute(
            "INSERT INTO schema_migration (version, name, sha256) VALUES ($1, $2, $3)",
            &[&version, &name, &fingerprint(sql)],
        )
        .await?;
        tx.commit().await?;
        applied.push(version);
    }
    check(&db).await?;
    Ok(applied)
}

/// Refuses a database whose schema is not exactly the one this binary was built for.
pub async fn check(db: &Db) -> DbResult<()> {
    let client = db.client().await?;
    let known = MIGRATIONS.last().map_or(0, |migration| migration.0);
    let missing = client.query_one("SELECT to_regclass('schema_migration') IS NULL", &[]).await?.get::<_, bool>(0);
    let found: i32 = if missing {
        0
    } else {
        client.query_one("SELECT coalesce(max(version), 0) FROM schema_migration", &[]).await?.get(0)
    };
    if found == known {
        return Ok(());
    }
    let advice = if found < known { "run `dodo migrate`" } else { "use the newer Dodo that migrated it" };
    Err(DbError::Schema(format!("the database has schema version {found}, this binary needs {known}: {advice}")))
}

fn fingerprint(sql: &str) -> String {
    data_encoding::HEXLOWER.encode(&Sha256::digest(sql.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_applied() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../sql/migrations");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .expect("the migrations are beside the crates")
            .map(|file| file.expect("it can be listed").file_name().to_string_lossy().into_owned())
            .collect();
        files.sort();
        let listed: Vec<String> =
            MIGRATIONS.iter().map(|(version, name, _)| format!("{version:04}_{name}.sql")).collect();
        assert_eq!(files, listed);
    }
}
