use dodo_common::db::commit::{Finished, Found, Retry};
use dodo_common::model::job::{JobKey, Outcome};
use uuid::Uuid;

use super::*;

/// A job that has found links of these hashes.
fn finding(hashes: impl IntoIterator<Item = u128>) -> Done {
    let key = JobKey { tenant: "default".to_owned(), id: Uuid::from_u128(1), attempt: 0 };
    let mut job = Finished::new(key, Outcome::Ok, None);
    let found = |hash| Found {
        id: Uuid::nil(),
        hash: Uuid::from_u128(hash),
        url: String::new(),
        host: String::new(),
        depth: 0,
        hops: 0,
    };
    job.found = hashes.into_iter().map(found).collect();
    Done::new(StreamId::default(), Effect::Finished { job: Box::new(job), raw: None, dispatch: Uuid::nil() })
}

#[test]
fn links_that_were_seen_meanwhile_are_only_counted() {
    let (seen, mut done) = (Seen::default(), [finding([1, 2, 3]), finding([]), finding([2, 4])]);
    seen.remember(Uuid::nil(), [UrlHash(2), UrlHash(3)].into_iter());
    seen.remember(Uuid::from_u128(9), [UrlHash(4)].into_iter());
    forget_known(&seen, &mut done);
    let left = done.iter().map(|d| {
        let Effect::Finished { job, .. } = &d.effect else { panic!("it has ended") };
        (job.found.iter().map(|found| found.hash.as_u128()).collect::<Vec<_>>(), job.known_count)
    });
    assert_eq!(left.collect::<Vec<_>>(), [(vec![1], 2), (vec![], 0), (vec![4], 1)]);
}

#[test]
fn a_batch_that_finds_too_many_links_is_split() {
    let sizes = |counts: &[usize]| -> Vec<usize> {
        parts(counts.iter().map(|count| finding(0..*count as u128)).collect()).iter().map(Vec::len).collect()
    };
    assert_eq!(sizes(&[0, 50, 50]), [3]);
    assert_eq!(sizes(&[1, FOUND_MAX - 1, 0, 1, 5]), [3, 2]);
    assert_eq!(sizes(&[FOUND_MAX + 1, 0, 1]), [2, 1]);
    assert_eq!(sizes(&[FOUND_MAX, FOUND_MAX, FOUND_MAX]), [1, 1, 1]);
    let linking = |bytes| {
        let mut done = finding([]);
        let Effect::Finished { job, .. } = &mut done.effect else { panic!("it has ended") };
        job.links = Some("x".repeat(bytes));
        done
    };
    let half = LINKS_BYTES_MAX / 2;
    let done = [half, half, 1, LINKS_BYTES_MAX + 1].map(linking);
    assert_eq!(parts(done.into()).iter().map(Vec::len).collect::<Vec<_>>(), [2, 1, 1]);
}

#[test]
fn a_job_twice_in_a_batch_ends_once() {
    let key = |attempt| JobKey { tenant: "default".to_owned(), id: Uuid::from_u128(1), attempt };
    let finished = |attempt| Effect::Finished {
        job: Box::new(Finished::new(key(attempt), Outcome::Ok, None)),
        raw: None,
        dispatch: Uuid::nil(),
    };
    let retry = |attempt| {
        Effect::Retry(Retry {
            key: key(attempt),
            delay_ms: 5,
            error: String::new(),
            refusals: None,
            status: None,
            took_ms: None,
        })
    };
    let effects = [finished(0), finished(0), retry(0), retry(1), Effect::Prepared, finished(2), retry(1)];
    let done = effects.into_iter().zip(1..).map(|(effect, ms)| Done::new(StreamId { ms, seq: 0 }, effect));
    let (batch, ended) = batch_of(done.collect());
    assert_eq!((batch.finished.len(), batch.retried.len(), ended.dispatches.len()), (2, 1, 2));
    assert_eq!(ended.entries.len(), 7, "every entry is settled");
    let gone: Vec<u64> =
        ended.entries.iter().filter(|s| s.verdict == Verdict::Gone).map(|settled| settled.entry.ms).collect();
    assert_eq!(gone, [2, 3, 7]);
}
