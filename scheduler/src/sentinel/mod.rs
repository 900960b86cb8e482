//! The sentinel: measures, judges by rules, writes incidents down and tells of them. A process of its own,
//! so that it outlives what it watches; it depends on neither the scheduler nor Postgres nor Redis being up.
//!
//! ```text
//! snapshot -> judge -> ledger -> (outbox in Postgres, or spool) -> delivery -> channel
//! ```

pub mod channel;
pub mod judge;
pub mod ledger;
pub mod metric;
pub mod notice;
pub mod rule;
pub mod snapshot;
pub mod spool;

use std::time::Duration;

use dodo_common::clock::Clock;
use dodo_common::db::pool::Db;
use dodo_common::lifecycle::Lifecycle;
use dodo_common::stream::connection::Redis;
use futures::future::join_all;
use tokio_util::sync::CancellationToken;

use crate::sentinel::channel::Channel;
use crate::sentinel::judge::{Change, Judge};
use crate::sentinel::ledger::Ledger;
use crate::sentinel::notice::Notice;
use crate::sentinel::snapshot::Snapshot;

/// What is under way when the process is told to stop has this long to arrive.
const STOP_GRACE: Duration = Duration::from_secs(3);
/// Channels look for due notices at least this often.
const TELL_EVERY_MAX: Duration = Duration::from_secs(1);
/// Old incidents are forgotten this often.
const EXPIRE_EVERY_MS: i64 = 3_600_000;

/// What the sentinel's loops share.
pub struct Context {
    pub db: Db,
    pub redis: Redis,
    pub clock: Clock,
    pub ledger: Ledger,
    /// Pause between two looks.
    pub every: Duration,
}

/// Watches until it is told to stop. The rules and each channel take turns on their own: a channel that is
/// slow holds up neither the rules nor another channel.
pub async fn run(ctx: &Context, judge: &mut Judge, channels: &[Channel], lifecycle: &Lifecycle) {
    let watching = watch(ctx, judge, &lifecycle.soft);
    let telling = join_all(channels.iter().map(|channel| tell(ctx, channel, &lifecycle.soft)));
    let stopped = async {
        lifecycle.soft.cancelled().await;
        tokio::select! { () = lifecycle.hard.cancelled() => {}, () = tokio::time::sleep(STOP_GRACE) => {} }
    };
    tokio::select! {
        _ = async { tokio::join!(watching, telling) } => {}
        () = stopped => tracing::info!("what is under way is left to the next sentinel"),
    }
}

async fn watch(ctx: &Context, judge: &mut Judge, soft: &CancellationToken) {
    for rule in ctx.ledger.open_rules() {
        judge.adopt(&rule);
    }
    let mut loaded = false;
    let mut expire_at_ms = ctx.clock.steady_ms();
    while !soft.is_cancelled() {
        let snapshot = snapshot::look(&ctx.db, &ctx.redis, |metric| judge.window_ms(metric)).await;
        if snapshot.postgres_up {
            loaded = loaded || load(ctx, judge).await;
            if let Err(error) = ctx.ledger.replay().await {
                tracing::warn!(%error, "the spool stays for now");
            }
            if ctx.clock.steady_ms() >= expire_at_ms {
                expire_at_ms = ctx.clock.steady_ms() + EXPIRE_EVERY_MS;
                let _ = ctx.ledger.expire().await;
            }
        }
        let changes = tick(ctx, judge, snapshot).await;
        if changes > 0 {
            tracing::debug!(changes, "judged");
        }
        tokio::select! { () = soft.cancelled() => {}, () = tokio::time::sleep(ctx.every) => {} }
    }
}

/// Judges one snapshot and writes down what it changes; returns how much that is.
async fn tick(ctx: &Context, judge: &mut Judge, snapshot: Snapshot) -> usize {
    let changes = judge.take(ctx.clock.steady_ms(), &snapshot.looks);
    let count = changes.len();
    for change in changes {
        ctx.ledger.record(change, snapshot.postgres_up).await;
    }
    count
}

/// Goes on with the open incidents of Postgres, and resolves those whose rule is gone.
async fn load(ctx: &Context, judge: &mut Judge) -> bool {
    let rules = match ctx.ledger.load().await {
        Ok(rules) => rules,
        Err(error) => {
            tracing::warn!(%error, "cannot read the open incidents yet");
            return false;
        }
    };
    for rule in rules {
        if !judge.adopt(&rule) {
            let outcome = format!("no rule is called {rule} any more");
            ctx.ledger.record(Change::Resolve { rule, outcome }, true).await;
        }
    }
    true
}

/// Delivers a channel's notices, one after another, until it is told to stop.
async fn tell(ctx: &Context, channel: &Channel, soft: &CancellationToken) {
    let name = channel.name();
    while !soft.is_cancelled() {
        match ctx.ledger.claim(&name, channel.timeout()).await {
            Ok(Some(claim)) => {
                let notice = Notice { incident: claim.incident.clone(), event: claim.key.event };
                let sent = channel.deliver(&notice).await;
                ctx.ledger.settle(&claim, sent).await;
                continue;
            }
            Ok(None) => {}
            // That Postgres is away is for the rules to tell.
            Err(error) => tracing::debug!(%error, channel = name, "cannot look for notices"),
        }
        tokio::select! { () = soft.cancelled() => {}, () = tokio::time::sleep(ctx.every.min(TELL_EVERY_MAX)) => {} }
    }
}
