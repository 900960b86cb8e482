//! The committer: appends raw results, commits many jobs at once, then acknowledges and reports.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dodo_common::db::commit::{self, Batch, Committed};
use dodo_common::db::host::Hold;
use dodo_common::db::pool::DbError;
use dodo_common::db::tally::Novelty;
use dodo_common::fail;
use dodo_common::model::job::Outcome;
use dodo_common::model::stream_id::StreamId;
use dodo_common::model::url::UrlHash;
use dodo_common::stream::queue;
use dodo_common::stream::raw::{self, RawEntry};
use dodo_common::stream::report::{Report, Settled, Verdict};
use tokio::sync::{Mutex, OwnedMutexGuard, OwnedSemaphorePermit, mpsc};
use uuid::Uuid;

use crate::consumer::is_generation;
use crate::context::Context;
use crate::done::{Done, Effect};
use crate::pressure::Held;
use crate::seen::{Claim, Seen};

/// Committers of one worker: while one waits for the disk, the other gathers.
pub const COMMITTERS: usize = 2;
/// Jobs in one transaction at most; and so many that it begins beside another. A transaction costs as much as some
/// thirty of its jobs.
const BATCH_MAX: usize = 256;
const BATCH_FULL: usize = 144;
/// With so many jobs under way besides, a smaller batch than this waits so long for some of them.
const BATCH_SMALL: usize = 112;
const LINGER: Duration = Duration::from_millis(20);
/// Links found in one transaction at most, but for those of a single job: more of them, as a batch of sitemaps has, might
/// never be written within the time that a statement has.
const FOUND_MAX: usize = 50_000;
/// Bytes of links stored in one transaction at most, but for those of a single job; a message to Postgres has 1 GiB.
const LINKS_BYTES_MAX: usize = 32 << 20;
/// A server that does not answer is asked again this often.
const PAUSE: Duration = Duration::from_millis(100);

/// What a job has made, with the room that it takes until it is settled.
struct Item {
    done: Done,
    room: (OwnedSemaphorePermit, Held),
}

/// Where jobs leave what they have made.
#[derive(Clone)]
pub struct Results(mpsc::Sender<Item>);

impl Results {
    /// Waits while the committers are behind.
    pub async fn send(&self, ctx: &Context, done: Done, permit: OwnedSemaphorePermit) {
        let held = ctx.pressure.hold(done.bytes());
        // Nobody listens any more only when the incarnation was refused.
        let _ = self.0.send(Item { done, room: (permit, held) }).await;
    }
}

/// The receiving end, shared by the committers: who holds the lock gathers the next batch.
#[derive(Clone)]
pub struct Queue {
    receiver: Arc<Mutex<mpsc::Receiver<Item>>>,
    /// Held by a committer from its batch on until that is settled.
    turn: Arc<Mutex<()>>,
}

pub fn channel() -> (Results, Queue) {
    let (sender, receiver) = mpsc::channel(BATCH_MAX * COMMITTERS);
    (Results(sender), Queue { receiver: Arc::new(Mutex::new(receiver)), turn: Arc::default() })
}

impl Queue {
    /// The next batch: what waits, at once while nothing is being committed and few jobs are under way, and otherwise when it
    /// is full or the commit under way is over. Empty at the end.
    async fn gather(&self, ctx: &Context) -> (Vec<Item>, Option<OwnedMutexGuard<()>>) {
        let mut receiver = self.receiver.lock().await;
        let mut items = Vec::with_capacity(BATCH_MAX);
        if receiver.recv_many(&mut items, BATCH_MAX).await == 0 {
            return (items, None);
        }
        let linger = tokio::time::sleep(LINGER);
        tokio::pin!(linger);
        while items.len() < BATCH_FULL {
            let room = BATCH_MAX - items.len();
            let lacks = items.len() < BATCH_SMALL && ctx.held_count() >= (items.len() + BATCH_SMALL) as u64;
            let waits = lacks && !linger.is_elapsed();
            tokio::select! {
                biased;
                () = &mut linger, if waits => {}
                turn = Arc::clone(&self.turn).lock_owned(), if !waits => return (items, Some(turn)),
                more = receiver.recv_many(&mut items, room) => if more == 0 { break },
            }
        }
        (items, Arc::clone(&self.turn).try_lock_owned().ok())
    }
}

/// Commits batches until the consumer is gone or the incarnation is refused.
pub async fn run(ctx: Arc<Context>, queue: Queue) {
    loop {
        let (items, turn) = tokio::select! {
            gathered = queue.gather(&ctx) => gathered,
            () = ctx.refused.cancelled() => return,
        };
        if items.is_empty() {
            return;
        }
        let (done, room): (Vec<Done>, Vec<_>) = items.into_iter().map(|item| (item.done, item.room)).unzip();
        let entries: Vec<StreamId> = done.iter().map(|d| d.entry).collect();
        for part in parts(done) {
            tokio::select! {
                () = settle(&ctx, part) => {}
                () = ctx.refused.cancelled() => return,
            }
        }
        ctx.let_go(&entries);
        drop((room, turn));
    }
}

/// Splits a batch, in its order, where a part would have too many links.
fn parts(done: Vec<Done>) -> Vec<Vec<Done>> {
    let (mut parts, mut room) = (vec![Vec::new()], (FOUND_MAX, LINKS_BYTES_MAX));
    for d in done {
        let (found, bytes) = match &d.effect {
            Effect::Finished { job, .. } => (job.found.len(), job.links.as_ref().map_or(0, String::len)),
            _ => (0, 0),
        };
        if found > room.0 || bytes > room.1 {
            parts.push(Vec::new());
            room = (FOUND_MAX, LINKS_BYTES_MAX);
        }
        room = (room.0.saturating_sub(found), room.1.saturating_sub(bytes));
        parts.last_mut().expect("there is always one").push(d);
    }
    // The first one is empty where its first job has too many alone.
    parts.retain(|part| !part.is_empty());
    parts
}

/// Takes a batch through its three steps. Each is tried until it succeeds or the incarnation ends:
/// a server that is away fails nothing, and nothing is acknowledged that was not committed.
async fn settle(ctx: &Context, mut done: Vec<Done>) {
    append(ctx, &mut done).await;
    let claim = claim(&ctx.seen, &mut done).await;
    let (batch, ended) = batch_of(done);
    let committed = commit_batch(ctx, &batch).await;
    // Only what this commit wrote is certain: the links of a job that another had ended were not stored.
    for (job, dispatch) in batch.finished.iter().zip(&ended.dispatches) {
        if committed.won.contains(&job.key.id) && !committed.spoiled.contains(&job.key.id) {
            ctx.seen.remember(*dispatch, job.found.iter().map(|found| UrlHash::from_uuid(found.hash)));
        }
    }
    drop(claim);
    report(ctx, ended, committed).await;
}

/// Claims the links that may be new, and leaves out those that turn out not to be; waits for the other committer where both
/// have found the same.
async fn claim<'s>(seen: &'s Seen, done: &mut [Done]) -> Claim<'s> {
    loop {
        let freed = seen.freed();
        forget_known(seen, done);
        let found = done.iter().filter_map(|d| match &d.effect {
            Effect::Finished { job, dispatch, .. } => Some((*dispatch, &job.found)),
            _ => None,
        });
        let links = found
            .flat_map(|(dispatch, found)| found.iter().map(move |found| (dispatch, UrlHash::from_uuid(found.hash))));
        match seen.claim(links) {
            Some(claim) => return claim,
            None => freed.await,
        }
    }
}

/// Leaves out the links that have turned out to be in the seen-set since they were found.
fn forget_known(seen: &Seen, done: &mut [Done]) {
    for d in done {
        let Effect::Finished { job, dispatch, .. } = &mut d.effect else { continue };
        job.known_count += seen.drop_known(*dispatch, &mut job.found, |found| UrlHash::from_uuid(found.hash)) as i32;
    }
}

/// Appends raw results; each finished job then knows its entry.
async fn append(ctx: &Context, done: &mut [Done]) {
    for stream in dodo_common::stream::names::RAW_STREAMS {
        let entries: Vec<&RawEntry> = done
            .iter()
            .filter_map(|d| match &d.effect {
                Effect::Finished { raw: Some((name, entry)), .. } if name == stream => Some(entry),
                _ => None,
            })
            .collect();
        if entries.is_empty() {
            continue;
        }
        let _step = ctx.pressure.step("Redis", ctx.clock.steady_ms());
        // Part by part: what has its id is not appended again, whatever becomes of the rest.
        let mut ids = Vec::with_capacity(entries.len());
        let mut bytes_max = raw::BYTES_MAX;
        while ids.len() < entries.len() {
            match raw::append(&ctx.redis, stream, &entries[ids.len()..], bytes_max).await {
                Ok(part) => ids.extend(part),
                Err(error) => {
                    // What was too slow may be there all the same, and is there again then: the less the better.
                    bytes_max /= 2;
                    if is_generation(&error) {
                        tracing::debug!(%error, stream, "cannot append raw results; trying again");
                        ctx.check_current().await;
                    } else {
                        tracing::warn!(%error, stream, "cannot append raw results; trying again");
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        fail::point_async("raw-appended").await;
        let mut ids = ids.into_iter();
        for d in done.iter_mut() {
            if let Effect::Finished { raw: raw @ Some(_), job, .. } = &mut d.effect
                && raw.as_ref().is_some_and(|(name, _)| name == stream)
            {
                job.raw = ids.next().map(|id| (dodo_common::stream::names::archive_name(stream), id));
                // The bytes lie in the stream; nothing needs them here any more.
                *raw = None;
            }
        }
    }
}

/// What a batch settles, beside what it writes.
struct Ended {
    entries: Vec<Settled>,
    /// When the request of each entry was over.
    requests: Vec<Instant>,
    /// The dispatch of each finished job, in their order.
    dispatches: Vec<Uuid>,
}

/// Splits results into what is written and what is reported; a job that turns out not to be won is put
/// right in [`report`].
fn batch_of(done: Vec<Done>) -> (Batch, Ended) {
    let mut batch = Batch::default();
    let (entries, requests) = (Vec::with_capacity(done.len()), Vec::with_capacity(done.len()));
    let mut ended = Ended { entries, requests, dispatches: Vec::new() };
    let mut keys = HashSet::with_capacity(done.len());
    for mut d in done {
        // The same try twice, by two entries: the first counts, for the other its row is gone.
        if d.effect.key().is_some_and(|key| !keys.insert(key.clone())) {
            d.effect = Effect::Gone;
        }
        let mut answered = None;
        let verdict = match d.effect {
            Effect::Finished { job, dispatch, .. } => {
                let well = job.outcome.is_page() || matches!(job.outcome, Outcome::Redirect | Outcome::Unwanted);
                answered = d.head_ms.or(job.fetch_ms).map(|ms| (i64::from(ms), well));
                let fresh = job.given.as_ref().is_some_and(|given| given.novelty == Novelty::Fresh);
                let page = job.outcome.is_page() && !job.is_revisit();
                let verdict = Verdict::Finished { job: job.key.id, page, fresh };
                ended.dispatches.push(dispatch);
                batch.finished.push(*job);
                verdict
            }
            Effect::Retry(retry) => {
                // No error makes a host seem faster, but one that is slow to fail is slow.
                answered = d.head_ms.or(retry.took_ms).map(|ms| (i64::from(ms), false));
                let verdict = Verdict::Retried { in_ms: retry.delay_ms };
                batch.retried.push(retry);
                verdict
            }
            Effect::Prepared => Verdict::Prepared,
            Effect::Gone => Verdict::Gone,
            Effect::Paused => Verdict::Paused,
            Effect::Returned => Verdict::Returned,
        };
        let hold_ms = d.hold.as_ref().and_then(Hold::ms);
        let Done { entry, requested, proxy, .. } = d;
        // How long ago is said when it is reported.
        ended.entries.push(Settled { entry, verdict, requested, ended_ms_ago: 0, hold_ms, answered, proxy });
        ended.requests.push(d.ended);
        batch.hosts.extend(d.host);
        batch.holds.extend(d.hold);
    }
    // One write a host: of several, the last one.
    let mut names = HashSet::new();
    batch.hosts.reverse();
    batch.hosts.retain(|update| names.insert(update.host.clone()));
    batch.holds.sort();
    (batch, ended)
}

async fn commit_batch(ctx: &Context, batch: &Batch) -> Committed {
    let empty =
        batch.finished.is_empty() && batch.retried.is_empty() && batch.hosts.is_empty() && batch.holds.is_empty();
    if empty {
        return Committed::default();
    }
    let _step = ctx.pressure.step("Postgres", ctx.clock.steady_ms());
    loop {
        match commit::commit(&ctx.db, &ctx.incarnation, batch).await {
            Ok(committed) => {
                fail::point_async("committed").await;
                return committed;
            }
            Err(DbError::WorkerRefused(why)) => {
                ctx.refuse(&why);
                std::future::pending::<()>().await;
            }
            Err(error) => {
                tracing::warn!(%error, jobs = batch.finished.len(), "cannot commit; trying again");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn report(ctx: &Context, ended: Ended, committed: Committed) {
    let Ended { entries: mut settled, requests, .. } = ended;
    for (entry, request) in settled.iter_mut().zip(requests) {
        entry.ended_ms_ago = request.elapsed().as_millis() as i64;
        // Not won: the row had ended already (or our own first try at this commit did it).
        if matches!(entry.verdict, Verdict::Finished { job, .. } if !committed.won.contains(&job)) {
            entry.verdict = Verdict::Gone;
        }
    }
    let _step = ctx.pressure.step("Redis", ctx.clock.steady_ms());
    let report = Report { worker: ctx.incarnation.id, settled, gained: committed.gained, ..Report::default() };
    loop {
        match queue::settle(&ctx.redis, ctx.incarnation.generation, &report).await {
            Ok(()) => return fail::point_async("settled").await,
            Err(error) => {
                if is_generation(&error) {
                    ctx.check_current().await;
                }
                tracing::debug!(%error, "cannot settle; trying again");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests;
