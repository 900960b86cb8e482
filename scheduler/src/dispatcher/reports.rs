//! Reports of workers: read from `done` and applied to the frontier.

use std::sync::Arc;

use dodo_common::model::cause::Cause;
use dodo_common::model::stream_id::StreamId;
use dodo_common::stream::connection::{Redis, StreamError};
use dodo_common::stream::question::{self, Question};
use dodo_common::stream::queue;
use dodo_common::stream::report::{Report, Settled, Verdict};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::dispatcher::Dispatcher;
use crate::frontier::issued::SettledJob;
use crate::window::WindowError;

impl Dispatcher<'_> {
    /// Answers what a job waits for. Its turn is that of a worker, or of the archive, while the window is full.
    pub(super) async fn answer(&self, question: &Question) -> Result<(), WindowError> {
        let now = self.ctx.clock.steady_ms();
        let mut standing = self.frontier.standing(now, &question.of);
        // The frontier has the steady clock, and who asks has the wall clock.
        let offset = self.ctx.clock.now_ms() - now;
        let wall = |at| at + offset;
        standing.until_ms = standing.until_ms.map(wall);
        standing.last_completion_ms = standing.last_completion_ms.map(wall);
        if standing.cause == Cause::Turn {
            standing.cause = self.fullness();
        }
        Ok(question::answer(&self.ctx.redis, question.id, &standing).await?)
    }

    pub(super) fn apply(&mut self, report: Report) {
        let now = self.ctx.clock.steady_ms();
        for settled in report.settled {
            let job = match settled.verdict {
                Verdict::Finished { page, fresh, .. } => SettledJob { page, fresh, ..SettledJob::default() },
                Verdict::Retried { in_ms } => {
                    let held = settled.hold_ms.is_some_and(|ms| ms > 0);
                    let again = Some(if held { Cause::Hold } else { Cause::Errors });
                    SettledJob { due_in_ms: Some(in_ms.max(1)), again, ..SettledJob::default() }
                }
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
}

/// Reads `done` on a connection of its own, in a task of its own, until `stop`.
pub(super) fn read_reports(
    ctx: &Arc<Context>,
    from: StreamId,
    stop: CancellationToken,
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
