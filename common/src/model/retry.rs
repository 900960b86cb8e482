//! When a failed job is tried again: exponential backoff with full jitter and a cap, a policy for each kind of job.

use crate::clock::Millis;
use crate::model::job::{Job, JobKind};

/// Refusals (429, 503, nobody there) of one job, after which it is dead: they cost no try, and are bounded so.
pub const REFUSALS_MAX: i16 = 10;
/// Refusals of a host in a row, with nothing else between them, after which its jobs end without a request for a while.
pub const HOST_REFUSALS_MAX: i32 = 20;
/// What the base of [`Policy`] is meant for: the setting's default, milliseconds.
pub const BASE_MS: i64 = 1000;

/// How often, and how soon, a kind of job is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The first one included.
    pub tries: i16,
    /// The first wait is at most this, each further one twice as long, milliseconds.
    pub base_ms: Millis,
    pub cap_ms: Millis,
}

impl Policy {
    pub fn of(kind: JobKind) -> Self {
        match kind {
            JobKind::Crawl | JobKind::GetPage | JobKind::GetMetadata => {
                Self { tries: 5, base_ms: BASE_MS, cap_ms: 60_000 }
            }
            // They ask nobody but Postgres, and everything else of their dispatch waits for them.
            JobKind::Occurrence | JobKind::PageDispatch => Self { tries: 8, base_ms: BASE_MS / 4, cap_ms: 10_000 },
            JobKind::Noop => Self { tries: 5, base_ms: BASE_MS / 4, cap_ms: 10_000 },
        }
    }

    /// With a first wait of `base_ms` where the constants say [`BASE_MS`].
    pub fn scaled(self, base_ms: Millis) -> Self {
        Self { base_ms: (self.base_ms * base_ms.max(0) / BASE_MS).max(1), ..self }
    }

    /// The longest wait before a try; `before` tries, or refusals, lie behind it.
    pub fn ceiling_ms(&self, before: i16) -> Millis {
        self.base_ms.saturating_mul(1 << before.clamp(0, 30)).min(self.cap_ms).max(1)
    }

    /// Full jitter: anywhere between nothing and the ceiling. `die` is the caller's: the same gives the same.
    pub fn wait_ms(&self, before: i16, die: u64) -> Millis {
        (die % self.ceiling_ms(before) as u64) as Millis
    }
}

/// A die for a job's next wait: its id and what lies behind it, well mixed (splitmix64). It needs no state, differs
/// from job to job and from try to try, and is the same when a try is told again.
pub fn die(job: &Job) -> u64 {
    let id = job.key.id.as_u128();
    let behind = (u64::from(job.key.attempt as u16) << 16) | u64::from(job.refusals as u16);
    let mut z = (id as u64) ^ ((id >> 64) as u64).rotate_left(32) ^ behind.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::model::job::JobKey;

    fn job(attempt: i16, refusals: i16) -> Job {
        Job {
            key: JobKey { tenant: "default".to_owned(), id: Uuid::now_v7(), attempt },
            dispatch: Uuid::nil(),
            kind: JobKind::Crawl,
            host: String::new(),
            depth: 0,
            hops: 0,
            url: None,
            payload: None,
            page: None,
            remake_of: None,
            retries: None,
            refusals,
            host_refusals: 0,
        }
    }

    #[test]
    fn the_ceiling_doubles_up_to_the_cap() {
        let policy = Policy { tries: 5, base_ms: 1000, cap_ms: 60_000 };
        let ceilings: Vec<Millis> = (0..9).map(|before| policy.ceiling_ms(before)).collect();
        assert_eq!(ceilings, [1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000, 60_000]);
        assert_eq!(policy.ceiling_ms(i16::MAX), 60_000);
        assert_eq!(policy.scaled(100).ceiling_ms(1), 200);
        assert_eq!(policy.scaled(0).ceiling_ms(0), 1, "never nothing to divide by");
    }

    #[test]
    fn the_jitter_is_full_and_even() {
        let policy = Policy::of(JobKind::Crawl);
        let mut tenths = [0; 10];
        for _ in 0..20_000 {
            let wait = policy.wait_ms(3, die(&job(3, 0)));
            tenths[(wait * 10 / policy.ceiling_ms(3)) as usize] += 1;
        }
        assert!(tenths.iter().all(|count| (1700..2300).contains(count)), "{tenths:?}");
    }

    #[test]
    fn the_same_try_waits_the_same() {
        let first = job(1, 2);
        assert_eq!(die(&first), die(&first.clone()));
        let next = Job { refusals: 3, ..first.clone() };
        assert_ne!(die(&first), die(&next));
    }
}
