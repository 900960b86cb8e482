//! The dispatcher: the only place that ever issues a job (invariant 7).

mod end;
mod issue;
mod reports;
mod rules;
mod supply;
mod watch;

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dodo_common::db::generation::{self, Generation};
use dodo_common::db::tally;
use dodo_common::fail;
use dodo_common::model::stream_id::StreamId;
use dodo_common::stream::connection::StreamError;
use dodo_common::stream::report::Report;
use dodo_common::stream::status;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::backpressure::Backpressure;
use crate::census::Census;
use crate::context::{Context, Term};
use crate::frontier::{FlowKey, Frontier};
use crate::reaper;
use crate::window::{self, WindowError};

/// The loop turns at least this often.
const TURN: Duration = Duration::from_millis(20);
/// The reaper and the check of the window.
const WATCH: Duration = Duration::from_millis(200);
/// Roll-up of progress, and the states of dispatches.
const PROGRESS: Duration = Duration::from_millis(250);
/// The same while the last jobs have just ended: a dispatch that has no more waits for its end.
const LAST_PROGRESS: Duration = Duration::from_millis(25);
const LAST_FOR: Duration = Duration::from_secs(2);
const TRIM: Duration = Duration::from_secs(1);
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
    /// When a report came last.
    reported: Instant,
    watch: reaper::Watch,
    /// The rest of a scan: where it is, or nothing between two scans.
    scan: Option<Option<FlowKey>>,
    scanned: Instant,
    census: Census,
    /// Issued entries that no worker had taken at the last watch.
    unread: RangeInclusive<StreamId>,
    /// The scan is one after a takeover, or after a pause: work waits for it.
    hurried: bool,
    room: usize,
    backpressure: Backpressure,
    /// Stops the reader of reports with the dispatcher.
    _reader: DropGuard,
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
        frontier.set_exits(rules::exits(ctx, term).await?);
        let outstanding = window::outstanding(ctx).await?;
        // Behind the entries: what has become a page meanwhile is not among them, and must count.
        rules::read_rules(ctx, term, &mut frontier).await?;
        let last_report = outstanding.last_report;
        window::adopt(ctx, &mut frontier, outstanding);
        let stop = CancellationToken::new();
        let reports = reports::read_reports(ctx, last_report, stop.clone())?;
        let mut dispatcher = Self {
            ctx,
            term,
            generation,
            frontier,
            reports,
            last_report,
            reported: Instant::now(),
            watch,
            scan: Some(None),
            scanned: Instant::now(),
            census: Census::default(),
            unread: StreamId::default().next()..=StreamId::default(),
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
            if progressed.elapsed() >= if self.has_just_ended() { LAST_PROGRESS } else { PROGRESS } {
                progressed = Instant::now();
                self.progress().await?;
            }
            if trimmed.elapsed() >= TRIM {
                trimmed = Instant::now();
                status::trim_window(&self.ctx.redis, self.term.epoch, self.last_report).await?;
                self.audit().await?;
                self.end_orphaned().await?;
                self.quarantine().await?;
                self.frontier.forget_idle(self.ctx.clock.steady_ms(), FORGET_MS);
                tally::roll_up(&self.ctx.db, self.term.epoch).await?;
                self.write_down().await?;
            }
            if self.hurried {
                self.scan_slice().await?;
            }
            self.census.tick(&self.frontier, self.fullness(), &self.unread);
            self.look_up_hosts().await?;
            self.refill().await?;
            self.issue().await?;
            self.look_ahead().await?;
        }
        Ok(())
    }

    fn has_just_ended(&self) -> bool {
        self.reported.elapsed() < LAST_FOR && self.frontier.in_flight() == 0 && self.frontier.next_due_ms().is_none()
    }

    /// Waits for reports or for the next timer, and applies what has come.
    async fn wait(&mut self) -> Result<(), WindowError> {
        let now = self.ctx.clock.steady_ms();
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
            (self.last_report, self.reported) = (id, Instant::now());
            for question in &report.asked {
                self.answer(question).await?;
            }
            self.apply(report);
        }
        Ok(())
    }
}
