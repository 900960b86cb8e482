//! What open dispatches ask for, read for the frontier, and the states that follow from their progress.

use std::collections::HashSet;
use std::sync::Arc;

use dodo_common::db::dispatch::{self, Dispatch};
use dodo_common::db::proxy;
use dodo_common::fail;
use dodo_common::model::job::Outcome;
use dodo_common::model::paged::PagedSpec;
use dodo_common::model::spec::{CrawlSpec, DELAY_MS_DEFAULT};
use uuid::Uuid;

use crate::context::{Context, Term};
use crate::dispatcher::Dispatcher;
use crate::frontier::Frontier;
use crate::frontier::budget::Rules;
use crate::frontier::exits::Exits;
use crate::frontier::host_budget::HostRules;
use crate::window::WindowError;

impl Dispatcher<'_> {
    /// Rolls progress up and moves dispatches to the state it says.
    pub(super) async fn progress(&mut self) -> Result<(), WindowError> {
        if dispatch::roll_up(&self.ctx.db, self.term.epoch).await? > 0 {
            fail::point_async("progress-rolled-up").await;
        }
        read_rules(self.ctx, self.term, &mut self.frontier).await?;
        if self.frontier.take_resumed() {
            self.scan = Some(None);
            self.hurried = true;
        }
        Ok(())
    }

    /// Reads the rules of dispatches that jobs were found for. One that is done by now has no rules: its jobs ended
    /// meanwhile.
    pub(super) async fn look_up_dispatches(&mut self) -> Result<(), WindowError> {
        let unknown = self.frontier.take_unknown_dispatches();
        if unknown.is_empty() {
            return Ok(());
        }
        let open = dispatch::open_of(&self.ctx.db, &unknown).await?;
        let known: HashSet<Uuid> = open.iter().map(|open| open.id).collect();
        for open in &open {
            self.frontier.set_rules(open.id, rules_of(open));
        }
        for (_, id) in unknown.into_iter().filter(|(_, id)| !known.contains(id)) {
            self.frontier.set_rules(id, Rules::idle());
        }
        Ok(())
    }
}

/// Reads the open dispatches: their rules for the frontier, their state for the row.
pub(super) async fn read_rules(ctx: &Context, term: &Term, frontier: &mut Frontier) -> Result<(), WindowError> {
    let mut known = HashSet::new();
    for open in dispatch::open(&ctx.db).await? {
        if dispatch::settle_state(&ctx.db, term.epoch, &open).await? == Some("done") {
            tracing::info!(dispatch = %open.id, tenant = %open.tenant, pages = open.progress.pages, "dispatch done");
            continue;
        }
        known.insert(open.id);
        frontier.set_rules(open.id, rules_of(&open));
    }
    frontier.forget_dispatches(&known);
    Ok(())
}

/// The pool, each proxy as the last leader left it.
pub(super) async fn exits(ctx: &Context, term: &Term) -> Result<Exits, WindowError> {
    let addresses: Vec<String> = ctx.pool.all().iter().map(|pooled| pooled.proxy.to_string()).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    proxy::forget_others(&ctx.db, term.epoch, &addresses).await?;
    let known = proxy::all(&ctx.db).await?;
    Ok(Exits::new(ctx.clock.steady_ms(), &ctx.pool, ctx.bounds.proxies.bounds(), &known))
}

fn rules_of(open: &Dispatch) -> Rules {
    let budget = Outcome::Budget.as_str();
    let mut region = None;
    let plain = (DELAY_MS_DEFAULT, 1, None, None);
    let (delay_ms, concurrency, max_pages, host) = match open.kind.as_str() {
        "crawl" => serde_json::from_value::<CrawlSpec>(open.spec.clone()).map_or(plain, |spec| {
            let host = host_rules(&spec);
            region = spec.region.map(Arc::from);
            (spec.delay_ms, spec.host_concurrency, spec.max_pages, host)
        }),
        "paged" => serde_json::from_value::<PagedSpec>(open.spec.clone())
            .map_or(plain, |spec| (spec.document.delay_ms, spec.document.concurrency, None, None)),
        // No-op jobs and occurrences send no request.
        _ => (0, i32::MAX, None, None),
    };
    Rules {
        region,
        delay_ms,
        host_concurrency: concurrency.max(1) as u32,
        max_pages,
        pages: open.progress.pages - open.progress.revisits,
        in_flight: 0,
        exact: true,
        idle: open.paused_at.is_some() || open.ending.as_deref().is_some_and(|ending| ending != budget),
        spent: open.ending.as_deref() == Some(budget),
        host,
    }
}

fn host_rules(spec: &CrawlSpec) -> Option<HostRules> {
    let rules = HostRules { max_pages: spec.max_pages_per_host, allowance: spec.host_allowance };
    (rules.max_pages.is_some() || rules.allowance.is_some()).then_some(rules)
}
