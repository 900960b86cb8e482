//! `dodo archive gc`: deletes what no segment of Postgres names.

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use dodo_common::clock::Clock;
use dodo_common::db::migrate as migrations;
use dodo_common::db::pool::Db;
use dodo_common::storage::object::Store;

use crate::cli::{bytes, say};
use crate::gc::{self, Orphan, Survey};
use crate::sentinel::rule::Span;

#[derive(Args, Debug)]
pub struct Gc {
    /// Postgres, which knows what belongs there; with --data that of the running `dodo up`
    #[arg(
        long,
        env = "DODO_DATABASE_URL",
        hide_env_values = true,
        default_value = "postgres://dodo@127.0.0.1:5432/dodo"
    )]
    pub database_url: String,
    /// Leave alone what was written later than this ago, by the store's own date
    #[arg(long, default_value = "1h")]
    older_than: Span,
    /// Only say what would be deleted
    #[arg(long)]
    dry_run: bool,
    /// Also where Postgres knows nothing of what is there
    #[arg(long)]
    force: bool,
}

pub async fn run(store: &Store, gc: Gc, json: bool) -> anyhow::Result<ExitCode> {
    let db = Db::pipeline(&gc.database_url, "dodo-gc", 1)?;
    migrations::check(&db).await?;
    let before_ms = Clock::System.now_ms().saturating_sub(gc.older_than.0);
    let found = gc::survey(store, &db, before_ms).await?;
    if found.known == 0 && found.segments > 0 && !gc.force {
        bail!(
            "Postgres knows none of the {} segments in the bucket; is it the cluster's that wrote them? --force deletes them all the same",
            found.segments
        );
    }
    let mut deleted = (0, 0);
    for orphan in &found.orphans {
        if !gc.dry_run && !gc::remove(store, &db, orphan).await? {
            continue;
        }
        for (key, size) in &orphan.objects {
            say(line(orphan, key, *size, gc.dry_run, json))?;
            deleted = (deleted.0 + 1, deleted.1 + size);
        }
    }
    if !json {
        say(summary(&found, deleted, gc.dry_run))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn line(orphan: &Orphan, key: &str, size: u64, dry_run: bool, json: bool) -> String {
    if json {
        let modified_ms = orphan.modified_ms;
        return serde_json::json!({ "key": key, "bytes": size, "modified_ms": modified_ms, "deleted": !dry_run })
            .to_string();
    }
    format!("{:>10}  {key}", bytes(size))
}

fn summary(found: &Survey, (objects, size): (usize, u64), dry_run: bool) -> String {
    let verb = if dry_run { "would be deleted" } else { "deleted" };
    let mut text = format!("{objects} objects {verb}, {}; {} segments kept", bytes(size), found.known);
    if found.young > 0 {
        text.push_str(&format!("; {} unknown ones are too young", found.young));
    }
    if found.foreign > 0 {
        text.push_str(&format!("; {} objects are no segment's and stay", found.foreign));
    }
    text
}
