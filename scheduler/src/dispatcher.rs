//! The dispatcher: the only place that ever issues a job (invariant 7).

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dodo_common::db::dispatch::{self, Dispatch};
use dodo_common::db::generation::{self, Generation};
use dodo_common::db::wait;
use dodo_common::db::{host, page, proxy, schedule, suspect, tally};
use dodo_common::fail;
use dodo_common::model::cause::Cause;
use dodo_common::model::job::Outcome;
use dodo_common::model::source::PagedSpec;
use dodo_common::model::spec::{CrawlSpec, DELAY_MS_DEFAULT};
use dodo_common::model::stream_id::StreamId;
use dodo_common::stream::connection::{Redis, StreamError};
use dodo_common::stream::question::{self, Question};
use dodo_common::stream::queue::{self, Authority, Order};
use dodo_common::stream::report::{Report, Settled, Verdict};
use dodo_common::stream::status;
use tokio::sync::mpsc;
use tokio::time::Instant;
use uuid::Uuid;

use crate::backpressure::Backpressure;
use crate::census::Census;
use crate::context::{Context, Term};
use crate::frontier::budget::Rules;
use crate::frontier::exits::Exits;
use crate::frontier::host_budget::HostRules;
use crate::frontier::{FlowKey, Frontier, Pick, SettledJob, Wanted};
use crate::reaper;
use crate::window::{self, WindowError};

/// Entries in the window at least, and at most; between them twice what live workers hold at once.
const WINDOW_MIN: usize = 64;
const WINDOW_MAX: usize = 4096;
/// One live worker of so many may have a suspect: the others go on with everything else.
const SUSPECTS_SHARE: usize = 2;
/// Flows refilled, and hosts looked up, in one statement.
const REFILL_FLOWS: usize = 200;
const VIEW_HOSTS: usize = 500;
/// The loop turns at least this often.
const TURN: Duration = Duration::from_millis(20);
/// The reaper and the check of the window.
const WATCH: Duration = Duration::from_millis(200);
/// Roll-up of progress, and the states of dispatches.
const PROGRESS: Duration = Duration::from_millis(250);
const TRIM: Duration = Duration::from_secs(1);
/// A whole scan over the hosts with work; slices of it run at every watch.
const SCAN: Duration = Duration::from_secs(60);
const SCAN_SLICE: i64 = 500;
/// Hosts whose pace is written down in one tick.
const PACES_MAX: usize = 1000;
/// Entries older than this are compared with what Redis holds.
const AUDIT_MS: i64 = 15_000;
/// Orphaned calls ended in one tick.
const ORPHANED_MAX: i64 = 1000;
/// Jobs quarantined in one tick.
const QUARANTINED_MAX: i64 = 100;
/// Hosts idle for this long are forgotten.
const FORGET_MS: i64 = 3_600_000;

/// Runs for one term of leadership.
pub async fn run(ctx: Arc<Context>, term: Term) {
    // While a server is away the same trouble comes back with each try: it is said once.
    let mut said = String::new();
    while !term.over.is_cancelled() {
        let mut dispatcher = match Dispatcher::open(&ctx, &term).await {
            Ok(dispatcher) => dispatcher,
            Err(error) => {
                if ended(&error, &term) {
                    return;
                }
                let text = error.to_string();
                if text != said {
                    tracing::warn!(%error, "the window cannot be opened yet");
                    said = text;
                }
                pause(&term).await;
                continue;
            }
        };
        said.clear();
        if let Err(error) = dispatcher.work().await {
            ctx.window_ready.store(false, Ordering::Relaxed);
            if ended(&error, &term) {
                return;
            }
            // Whatever it was, what we believe of the window may be wrong: read it again.
            tracing::warn!(%error, "the window is read again");
            pause(&term).await;
        }
    }
}

fn ended(error: &WindowError, term: &Term) -> bool {
    if error.ends_term() {
        tracing::warn!(%error, "another scheduler leads");
        term.over.cancel();
    }
    term.over.is_cancelled()
}

async fn pause(term: &Term) {
    tokio::select! { () = term.over.cancelled() => {}, () = tokio::time::sleep(WATCH) => {} }
}

struct Dispatcher<'a> {
    ctx: &'a Arc<Context>,
    term: &'a Term,
    generation: Generation,
    frontier: Frontier,
    reports: mpsc::Receiver<(StreamId, Report)>,
    last_report: StreamId,
    watch: reaper::Watch,
    /// The rest of a scan: where it is, or nothing between two scans.
    scan: Option<Option<FlowKey>>,
    scanned: Instant,
    census: Census,
    /// The scan is one after a takeover, or after a pause: work waits for it.
    hurried: bool,
    room: usize,
    backpressure: Backpressure,
    /// Stops the reader of reports with the dispatcher.
    _reader: tokio_util::sync::DropGuard,
}

impl<'a> Dispatcher<'a> {
    /// Makes the window whole, waits until every worker follows, and takes over what is in it.
    async fn open(ctx: &'a Arc<Context>, term: &'a Term) -> Result<Self, WindowError> {
        dodo_common::stream::control::take_epoch(&ctx.redis, term.epoch).await?;
        fail::point_async("epoch-raised").await;
        let mut generation = generation::current(&ctx.db).await?;
        if let Some(why) = window::fault(ctx, term, &generation).await? {
            generation = window::renew(ctx, term, &why).await?;
        }
        if !generation.reconciled {
            window::reconcile(ctx, term, &generation).await?;
        }
        ctx.generation.store(generation.number, Ordering::Relaxed);
        let mut watch = reaper::Watch::default();
        while !window::workers_follow(ctx, generation.number).await? {
            reaper::tick(ctx, term, &mut watch).await?;
            tokio::select! {
                () = term.over.cancelled() => return Err(StreamError::Epoch("the term is over".to_owned()).into()),
                () = tokio::time::sleep(Duration::from_millis(25)) => {}
            }
        }
        let mut frontier = Frontier::default();
        frontier.set_exits(exits(ctx, term).await?);
        read_rules(ctx, term, &mut frontier).await?;
        let last_report = window::adopt(ctx, &mut frontier).await?;
        let stop = tokio_util::sync::CancellationToken::new();
        let reports = read_reports(ctx, last_report, stop.clone())?;
        let mut dispatcher = Self {
            ctx,
            term,
            generation,
            frontier,
            reports,
            last_report,
            watch,
            scan: Some(None),
            scanned: Instant::now(),
            census: Census::default(),
            hurried: true,
            room: 0,
            backpressure: Backpressure::default(),
            _reader: stop.drop_guard(),
        };
        // The addresses of adopted entries must be known before anything else is issued.
        dispatcher.look_up_hosts().await?;
        dispatcher.scan_slice().await?;
        ctx.window_ready.store(true, Ordering::Relaxed);
        tracing::info!(
            epoch = term.epoch,
            generation = dispatcher.generation.number,
            adopted = dispatcher.frontier.in_flight(),
            "dispatching"
        );
        Ok(dispatcher)
    }

    async fn work(&mut self) -> Result<(), WindowError> {
        let now = Instant::now();
        let (mut watched, mut progressed, mut trimmed) = (now - WATCH, now, now);
        while !self.term.over.is_cancelled() {
            self.wait().await?;
            if watched.elapsed() >= WATCH {
                watched = Instant::now();
                self.watch().await?;
            }
            if progressed.elapsed() >= PROGRESS {
                progressed = Instant::now();
                self.progress().await?;
            }
            if trimmed.elapsed() >= TRIM {
                trimmed = Instant::now();
                status::trim_window(&self.ctx.redis, self.term.epoch, self.last_report).await?;
                self.audit().await?;
                self.end_orphaned().await?;
                self.quarantine().await?;
                self.frontier.forget_idle(self.ctx.clock.now_ms(), FORGET_MS);
                tally::roll_up(&self.ctx.db, self.term.epoch).await?;
                self.write_down().await?;
            }
            if self.hurried {
                self.scan_slice().await?;
            }
            self.census.tick(&self.frontier, self.fullness());
            self.look_up_hosts().await?;
            self.refill().await?;
            self.issue().await?;
            self.look_ahead().await?;
        }
        Ok(())
    }

    /// Waits for reports or for the next timer, and applies what has come.
    async fn wait(&mut self) -> Result<(), WindowError> {
        let now = self.ctx.clock.now_ms();
        let until = self
            .frontier
            .next_due_ms()
            .map_or(TURN, |at| Duration::from_millis(at.saturating_sub(now).max(0) as u64).min(TURN));
        let mut batch = Vec::new();
        tokio::select! {
            count = self.reports.recv_many(&mut batch, 1000) => if count == 0 {
                return Err(StreamError::Generation("the reports cannot be read".to_owned()).into());
            },
            () = tokio::time::sleep(until) => {}
            () = self.term.over.cancelled() => {}
        }
        for (id, report) in batch {
            self.last_report = id;
            for question in &report.asked {
                self.answer(question).await?;
            }
            self.apply(report);
        }
        Ok(())
    }

    /// Answers what a job waits for. Its turn is that of a worker, or of the archive, while the window is full.
    async fn answer(&self, question: &Question) -> Result<(), WindowError> {
        let mut standing = self.frontier.standing(self.ctx.clock.now_ms(), &question.host, question.dispatch);
        if standing.cause == Cause::Turn {
            standing.cause = self.fullness();
        }
        Ok(question::answer(&self.ctx.redis, question.id, &standing).await?)
    }

    fn apply(&mut self, report: Report) {
        let now = self.ctx.clock.now_ms();
        for settled in report.settled {
            let job = match settled.verdict {
                Verdict::Finished { page, fresh, .. } => SettledJob { page, fresh, ..SettledJob::default() },
                Verdict::Retried { in_ms } => SettledJob { due_in_ms: Some(in_ms.max(1)), ..SettledJob::default() },
                Verdict::Prepared => SettledJob { reload_host: true, due_in_ms: Some(0), ..SettledJob::default() },
                // Ended by a commit whose answer was lost, perhaps as a page.
                Verdict::Gone => SettledJob { page: settled.requested, due_in_ms: Some(0), ..SettledJob::default() },
                Verdict::Paused => SettledJob { due_in_ms: Some(0), idle: true, ..SettledJob::default() },
                Verdict::Returned => SettledJob { due_in_ms: Some(0), ..SettledJob::default() },
            };
            // A host that asked to wait may have refused too often: its row says so.
            let reload_host = job.reload_host || settled.hold_ms.is_some();
            let Settled { requested, ended_ms_ago, hold_ms, answered, proxy, .. } = settled;
            let job = SettledJob { requested, ended_ms_ago, hold_ms, answered, proxy, reload_host, ..job };
            self.frontier.settled(now, settled.entry, &job);
        }
        for (tenant, host) in report.gained {
            self.frontier.gained(&tenant, &host);
        }
    }

    /// The check of the window, the reaper, and what the raw streams still have room for.
    async fn watch(&mut self) -> Result<(), WindowError> {
        if let Some(why) = window::fault(self.ctx, self.term, &self.generation).await? {
            return Err(StreamError::Generation(why).into());
        }
        let summary = reaper::tick(self.ctx, self.term, &mut self.watch).await?;
        let now = self.ctx.clock.now_ms();
        for entry in summary.returned {
            self.frontier.settled(now, entry, &SettledJob::lost());
        }
        self.frontier.set_suspects_max((summary.live / SUSPECTS_SHARE).max(1));
        let full = self.backpressure.tick(self.ctx).await?;
        self.room = if full { 0 } else { (summary.permits * 2).clamp(WINDOW_MIN, WINDOW_MAX) };
        if self.scan.is_none() && self.scanned.elapsed() >= SCAN {
            self.scan = Some(None);
        }
        self.scan_slice().await
    }

    /// Rolls progress up and moves dispatches to the state it says.
    async fn progress(&mut self) -> Result<(), WindowError> {
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

    /// What keeps the window full, if it is.
    fn fullness(&self) -> Cause {
        match self.room {
            0 => Cause::Backpressure,
            room if room <= self.frontier.in_flight() => Cause::Workers,
            _ => Cause::Turn,
        }
    }

    /// What is to outlive this leader: how fast hosts answer, how proxies fare, and what dispatches wait for.
    async fn write_down(&mut self) -> Result<(), WindowError> {
        let paces = self.frontier.take_paces(PACES_MAX);
        if !paces.is_empty() {
            host::save_paces(&self.ctx.db, self.term.epoch, &paces).await?;
        }
        let proxies = self.frontier.take_exits(self.ctx.clock.now_ms());
        if !proxies.is_empty() {
            proxy::save(&self.ctx.db, self.term.epoch, &proxies).await?;
        }
        let waited = self.census.take();
        if !waited.is_empty() {
            wait::add(&self.ctx.db, self.term.epoch, &waited).await?;
        }
        Ok(())
    }

    /// Issued entries that Redis does not hold any more, and that no report settled, are settled here.
    async fn audit(&mut self) -> Result<(), WindowError> {
        let now = self.ctx.clock.now_ms();
        let old = self.frontier.issued_before(now - AUDIT_MS);
        if old.is_empty() {
            return Ok(());
        }
        let outstanding: HashSet<StreamId> =
            queue::outstanding(&self.ctx.redis).await?.into_iter().map(|(entry, _)| entry.entry).collect();
        for entry in old.into_iter().filter(|entry| !outstanding.contains(entry)) {
            tracing::debug!(%entry, "an issued entry was settled without a report");
            self.frontier.settled(now, entry, &SettledJob::lost());
        }
        Ok(())
    }

    /// Calls that may not be repeated and whose worker is gone: nobody knows how they ended (at most once).
    async fn end_orphaned(&mut self) -> Result<(), WindowError> {
        let orphaned = page::orphaned(&self.ctx.db, self.term.epoch, ORPHANED_MAX).await?;
        for batch in orphaned.chunk_by(|a, b| a.0 == b.0) {
            let ids: Vec<_> = batch.iter().map(|(_, id)| *id).collect();
            let reason = "its call had begun when its worker was lost; it is not repeated";
            self.end(&batch[0].0, &ids, Outcome::Unknown, reason).await?;
            tracing::warn!(jobs = ids.len(), "calls ended unknown with their worker");
        }
        Ok(())
    }

    /// Jobs that were lost with their worker once too often while they ran alone.
    async fn quarantine(&mut self) -> Result<(), WindowError> {
        for (tenant, id, reason) in suspect::doomed(&self.ctx.db, QUARANTINED_MAX).await? {
            self.end(&tenant, &[id], Outcome::Quarantined, &reason).await?;
            metrics::counter!("dodo_jobs_quarantined_total").increment(1);
            tracing::error!(job = %id, tenant, "a job is quarantined: {reason}");
        }
        Ok(())
    }

    /// The next hosts with work. It rests where it is while the frontier is full.
    async fn scan_slice(&mut self) -> Result<(), WindowError> {
        let Some(after) = &self.scan else { return Ok(()) };
        if !self.frontier.has_room() {
            return Ok(());
        }
        let flows = schedule::scan_hosts(&self.ctx.db, after.as_ref(), SCAN_SLICE).await?;
        let held = flows.iter().take_while(|(tenant, host)| self.frontier.found(tenant, host)).count();
        let full = held < flows.len();
        self.scan = if full || flows.len() as i64 >= SCAN_SLICE {
            // It goes on behind the last one that was held.
            Some(flows[..held].last().or(after.as_ref()).cloned())
        } else {
            self.frontier.scanned().then_some(None)
        };
        self.scanned = Instant::now();
        self.hurried &= self.scan.is_some() && !full;
        Ok(())
    }

    async fn look_up_hosts(&mut self) -> Result<(), WindowError> {
        loop {
            let hosts = self.frontier.wants_view(VIEW_HOSTS);
            if hosts.is_empty() {
                return Ok(());
            }
            let views = host::view(&self.ctx.db, &hosts).await?;
            self.frontier.viewed(self.ctx.clock.now_ms(), &hosts, views);
        }
    }

    /// Reads the rules of dispatches that jobs were found for. One that is done by now has no rules: its jobs ended
    /// meanwhile.
    async fn look_up_dispatches(&mut self) -> Result<(), WindowError> {
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

    async fn refill(&mut self) -> Result<(), WindowError> {
        let wanted = self.frontier.wants_refill(self.ctx.clock.now_ms(), REFILL_FLOWS);
        for Wanted { flows, limits, past } in wanted {
            let refills = schedule::refill(&self.ctx.db, &flows, &limits, &past).await?;
            let now = self.ctx.clock.now_ms();
            for (refill, limit) in refills.into_iter().zip(limits) {
                self.frontier.refilled(now, refill, limit);
            }
        }
        self.look_up_dispatches().await?;
        self.read_tallies().await?;
        self.look_up_hosts().await
    }

    /// What hosts have given crawls that bound them.
    async fn read_tallies(&mut self) -> Result<(), WindowError> {
        loop {
            let keys = self.frontier.take_unread(VIEW_HOSTS);
            if keys.is_empty() {
                return Ok(());
            }
            for (key, given) in keys.iter().zip(tally::given(&self.ctx.db, &keys).await?) {
                self.frontier.set_given(key, given);
            }
        }
    }

    /// When more becomes due where all that is has been read; after the issue, which does not wait for it.
    async fn look_ahead(&mut self) -> Result<(), WindowError> {
        let short = self.frontier.take_short();
        for flows in short.chunks(REFILL_FLOWS) {
            let next = schedule::next_due(&self.ctx.db, flows).await?;
            let now = self.ctx.clock.now_ms();
            for (flow, in_ms) in next {
                self.frontier.due_in(now, &flow, in_ms);
            }
        }
        Ok(())
    }

    /// Picks what the window has room for and pushes it.
    async fn issue(&mut self) -> Result<(), WindowError> {
        let room = self.room.saturating_sub(self.frontier.in_flight());
        let picks = self.frontier.pick(self.ctx.clock.now_ms(), room);
        let authority = Authority { epoch: self.term.epoch, generation: self.generation.number };
        for batch in picks.chunks(queue::BATCH_MAX) {
            let order = |pick: &Pick| Order { key: pick.key.clone(), alone: pick.alone, proxy: pick.proxy.clone() };
            let orders: Vec<Order> = batch.iter().map(order).collect();
            fail::point_async("jobs-picked").await;
            let entries = queue::push(&self.ctx.redis, authority, &orders).await?;
            fail::point_async("jobs-pushed").await;
            let now = self.ctx.clock.now_ms();
            for (entry, pick) in entries.into_iter().zip(batch) {
                self.frontier.issued(now, entry, Pick::clone(pick));
            }
            metrics::counter!("dodo_jobs_issued_total").increment(batch.len() as u64);
        }
        metrics::gauge!("dodo_window_entries").set(self.frontier.in_flight() as f64);
        self.skip().await
    }

    /// Ends jobs for which a budget has no room.
    async fn skip(&mut self) -> Result<(), WindowError> {
        let mut jobs = self.frontier.take_over_budget();
        jobs.sort_by(|(a, over_a), (b, over_b)| (&a.tenant, over_a, a).cmp(&(&b.tenant, over_b, b)));
        for batch in jobs.chunk_by(|(a, over_a), (b, over_b)| (&a.tenant, over_a) == (&b.tenant, over_b)) {
            let ids: Vec<_> = batch.iter().map(|(key, _)| key.id).collect();
            let (first, over) = &batch[0];
            self.end(&first.tenant, &ids, Outcome::Budget, &over.to_string()).await?;
            for (key, _) in batch {
                self.frontier.skipped(key);
            }
        }
        Ok(())
    }

    /// Ends jobs that no worker will.
    async fn end(&self, tenant: &str, ids: &[Uuid], outcome: Outcome, reason: &str) -> Result<(), WindowError> {
        schedule::skip(&self.ctx.db, self.term.epoch, tenant, ids, outcome, reason).await?;
        fail::point_async("jobs-ended").await;
        Ok(())
    }
}

/// Reads the open dispatches: their rules for the frontier, their state for the row.
async fn read_rules(ctx: &Context, term: &Term, frontier: &mut Frontier) -> Result<(), WindowError> {
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
async fn exits(ctx: &Context, term: &Term) -> Result<Exits, WindowError> {
    let addresses: Vec<String> = ctx.pool.all().iter().map(|pooled| pooled.proxy.to_string()).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    proxy::forget_others(&ctx.db, term.epoch, &addresses).await?;
    let known = proxy::all(&ctx.db).await?;
    Ok(Exits::new(ctx.clock.now_ms(), &ctx.pool, ctx.bounds.proxies.bounds(), &known))
}

fn rules_of(open: &Dispatch) -> Rules {
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
        idle: open.paused_at.is_some() || open.ending.is_some(),
        host,
    }
}

fn host_rules(spec: &CrawlSpec) -> Option<HostRules> {
    let rules = HostRules { max_pages: spec.max_pages_per_host, allowance: spec.host_allowance };
    (rules.max_pages.is_some() || rules.allowance.is_some()).then_some(rules)
}

/// Reads `done` on a connection of its own, in a task of its own, until `stop`.
fn read_reports(
    ctx: &Arc<Context>,
    from: StreamId,
    stop: tokio_util::sync::CancellationToken,
) -> Result<mpsc::Receiver<(StreamId, Report)>, StreamError> {
    let redis = Redis::blocking(&ctx.redis_url, &format!("scheduler:{}:reports", ctx.id))?;
    let (sender, receiver) = mpsc::channel(4096);
    tokio::spawn(async move {
        let mut after = from;
        while !stop.is_cancelled() {
            let reports = match queue::reports(&redis, after).await {
                Ok(reports) => reports,
                Err(error) => {
                    // The end of the channel tells the dispatcher to read the window again.
                    tracing::debug!(%error, "cannot read reports");
                    return;
                }
            };
            for (id, report) in reports {
                after = id;
                if sender.send((id, report)).await.is_err() {
                    return;
                }
            }
        }
    });
    Ok(receiver)
}
