//! The health of one proxy: whether it may be used, by what its requests said of it. Pure: it is told the time.
//!
//! A circuit breaker (M. Nygard, "Release It!", "Stability Patterns"): too many bad ones of the last requests, and it is in
//! quarantine; after that one request at a time decides whether it returns or stays away for twice as long.

use std::collections::VecDeque;

use dodo_common::clock::Millis;
use dodo_common::db::proxy::ProxyRow;
use dodo_common::model::proxy::ProxyWord;

/// The last requests that count; more than half of them bad is too many, if they are at least so many and the bad ones are
/// not all of one host: that may forbid what it likes, and no other waits for it.
const WINDOW: usize = 20;
const WINDOW_MIN: usize = 4;
/// So many times in a row it did not answer itself: that is nobody else's fault.
const DOWNS_MAX: u32 = 3;
/// The quarantine is doubled at most so often.
const DOUBLINGS_MAX: u32 = 4;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    #[default]
    Healthy,
    /// Nothing leaves by it until then; after that a trial may begin.
    Quarantined { until_ms: Millis },
    /// One request is under way, which decides.
    Trial,
}

/// What a request said of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    Good,
    /// Perhaps its fault, perhaps that of the host, a hash.
    Bad {
        host: u64,
    },
    /// Nobody else's fault.
    Down,
}

#[derive(Clone, Debug, Default)]
pub struct Health {
    state: State,
    /// The last requests since it is healthy, the latest at the end.
    window: VecDeque<Heard>,
    /// All of those.
    seen: usize,
    downs: u32,
    /// Quarantines in a row: between them it was not healthy for a whole window.
    strikes: u32,
    successes: i64,
    blocks: i64,
    failures: i64,
}

impl Health {
    /// As an earlier leader has written it down. Nobody knows what became of a trial: there is another one.
    pub fn restored(now: Millis, row: &ProxyRow) -> Self {
        let state = row.quarantined_ms.map_or(State::Healthy, |ms| State::Quarantined { until_ms: now + ms.max(0) });
        Self {
            state,
            strikes: row.strikes.max(0) as u32,
            successes: row.successes,
            blocks: row.blocks,
            failures: row.failures,
            ..Self::default()
        }
    }

    pub fn state(&self) -> State {
        self.state
    }

    /// The request that decides has left. To be called only when a quarantine is over.
    pub fn begin_trial(&mut self) {
        self.state = State::Trial;
    }

    /// Nobody knows what becomes of the trial.
    pub fn forget_trial(&mut self, now: Millis) {
        if self.state == State::Trial {
            self.state = State::Quarantined { until_ms: now };
        }
    }

    /// A request has ended, and said something; `host`, a hash, is its host where it speaks of the proxy, not only of the site.
    /// The first quarantine lasts `base_ms`.
    pub fn ended(&mut self, now: Millis, word: Option<ProxyWord>, host: Option<u64>, base_ms: Millis) {
        match word {
            Some(ProxyWord::Good) => self.successes += 1,
            Some(ProxyWord::Blocked) => self.blocks += 1,
            Some(ProxyWord::Failed | ProxyWord::Down) => self.failures += 1,
            None => {}
        }
        match (self.state, word.zip(host)) {
            // It had left before the quarantine.
            (State::Quarantined { .. }, _) | (State::Healthy, None) => {}
            (State::Trial, Some((ProxyWord::Good, _))) => self.state = State::Healthy,
            (State::Trial, Some(_)) => self.quarantine(now, base_ms),
            (State::Trial, None) => self.forget_trial(now),
            (State::Healthy, Some((word, host))) => self.note(now, word, host, base_ms),
        }
    }

    fn note(&mut self, now: Millis, word: ProxyWord, host: u64, base_ms: Millis) {
        if self.window.len() >= WINDOW {
            self.window.pop_front();
        }
        self.window.push_back(match word {
            ProxyWord::Good => Heard::Good,
            ProxyWord::Blocked | ProxyWord::Failed => Heard::Bad { host },
            ProxyWord::Down => Heard::Down,
        });
        self.seen = self.seen.saturating_add(1);
        self.downs = if word == ProxyWord::Down { self.downs + 1 } else { 0 };
        let bad = || self.window.iter().filter(|heard| **heard != Heard::Good);
        let too_many = self.window.len() >= WINDOW_MIN && 2 * bad().count() > self.window.len();
        if self.downs >= DOWNS_MAX
            || (too_many && bad().any(|heard| *heard == Heard::Down || Some(heard) != bad().next()))
        {
            self.quarantine(now, base_ms);
        } else if self.seen >= WINDOW {
            self.strikes = 0;
        }
    }

    fn quarantine(&mut self, now: Millis, base_ms: Millis) {
        let until_ms = now.saturating_add(base_ms.saturating_mul(1 << self.strikes.min(DOUBLINGS_MAX)));
        self.state = State::Quarantined { until_ms };
        self.strikes = self.strikes.saturating_add(1);
        self.window.clear();
        (self.seen, self.downs) = (0, 0);
    }

    /// What is written down of it.
    pub fn row(&self, now: Millis, address: &str, region: &str) -> ProxyRow {
        ProxyRow {
            address: address.to_owned(),
            region: region.to_owned(),
            quarantined_ms: match self.state {
                State::Healthy => None,
                State::Quarantined { until_ms } => Some(until_ms - now),
                State::Trial => Some(0),
            },
            strikes: self.strikes.min(i32::MAX as u32) as i32,
            successes: self.successes,
            blocks: self.blocks,
            failures: self.failures,
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::seq::IndexedRandom as _;
    use rand::{Rng as _, SeedableRng as _};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    const BASE_MS: Millis = 1000;

    fn says(health: &mut Health, now: Millis, word: ProxyWord, times: usize) {
        // Each by another host.
        for host in 0..times as u64 {
            health.ended(now, Some(word), Some(host), BASE_MS);
        }
    }

    #[test]
    fn most_of_the_last_requests_must_be_bad() {
        let mut health = Health::default();
        says(&mut health, 0, ProxyWord::Blocked, 3);
        assert_eq!(health.state(), State::Healthy, "too few to tell");
        says(&mut health, 5, ProxyWord::Blocked, 1);
        assert_eq!(health.state(), State::Quarantined { until_ms: 5 + BASE_MS });

        let mut health = Health::default();
        says(&mut health, 0, ProxyWord::Good, 1000);
        says(&mut health, 0, ProxyWord::Blocked, 10);
        assert_eq!(health.state(), State::Healthy, "half of them");
        says(&mut health, 0, ProxyWord::Failed, 1);
        assert_ne!(health.state(), State::Healthy);

        let mut health = Health::default();
        for host in 0..1000 {
            says(&mut health, 0, ProxyWord::Good, 1);
            health.ended(0, Some(ProxyWord::Blocked), Some(host % 3), BASE_MS);
        }
        assert_eq!(health.state(), State::Healthy, "a site may forbid half of what it links to");
        for _ in 0..1000 {
            health.ended(0, Some(ProxyWord::Blocked), None, BASE_MS);
            health.ended(0, None, Some(1), BASE_MS);
        }
        assert_eq!(health.state(), State::Healthy, "what says nothing of it");
        assert_eq!((health.successes, health.blocks, health.failures), (1000, 2000, 0), "is counted all the same");
    }

    /// It would take all others of its region along.
    #[test]
    fn one_host_alone_blocks_no_proxy() {
        let mut health = Health::default();
        for _ in 0..1000 {
            health.ended(0, Some(ProxyWord::Blocked), Some(7), BASE_MS);
        }
        assert_eq!(health.state(), State::Healthy);
        health.ended(0, Some(ProxyWord::Blocked), Some(8), BASE_MS);
        assert_eq!(health.state(), State::Quarantined { until_ms: BASE_MS }, "and no good word of anybody");
        let mut health = Health::default();
        for n in 0..1000 {
            let word = if n % 10 < 7 { ProxyWord::Failed } else { ProxyWord::Good };
            health.ended(0, Some(word), Some(7), BASE_MS);
        }
        assert_eq!(health.state(), State::Healthy);
        for word in [ProxyWord::Down, ProxyWord::Down, ProxyWord::Good].into_iter().cycle().take(30) {
            health.ended(0, Some(word), Some(7), BASE_MS);
        }
        assert_ne!(health.state(), State::Healthy, "what is its own fault counts whoever asks");
    }

    #[test]
    fn one_that_is_down_is_found_out_at_once() {
        let mut health = Health::default();
        says(&mut health, 0, ProxyWord::Good, 1000);
        says(&mut health, 0, ProxyWord::Down, 2);
        says(&mut health, 0, ProxyWord::Good, 1);
        says(&mut health, 0, ProxyWord::Down, 2);
        assert_eq!(health.state(), State::Healthy);
        says(&mut health, 0, ProxyWord::Down, 1);
        assert_eq!(health.state(), State::Quarantined { until_ms: BASE_MS });
    }

    #[test]
    fn a_trial_decides_and_a_failed_one_doubles_the_wait() {
        let mut health = Health::default();
        says(&mut health, 0, ProxyWord::Down, 3);
        says(&mut health, 1, ProxyWord::Good, 50);
        assert_eq!(health.state(), State::Quarantined { until_ms: BASE_MS }, "what had left before says nothing");
        for (doublings, now) in [1, 2, 3, 4, 4, 4].into_iter().zip(1..) {
            health.begin_trial();
            says(&mut health, now, ProxyWord::Blocked, 1);
            assert_eq!(health.state(), State::Quarantined { until_ms: now + (BASE_MS << doublings) });
        }
        health.begin_trial();
        health.ended(9, None, Some(1), BASE_MS);
        assert_eq!(health.state(), State::Quarantined { until_ms: 9 }, "another trial");
        health.begin_trial();
        says(&mut health, 10, ProxyWord::Good, 1);
        assert_eq!(health.state(), State::Healthy);
        says(&mut health, 10, ProxyWord::Good, 18);
        says(&mut health, 10, ProxyWord::Down, 3);
        assert_eq!(health.state(), State::Quarantined { until_ms: 10 + BASE_MS }, "healthy for long enough");
    }

    #[test]
    fn what_is_written_down_comes_back() {
        let mut health = Health::default();
        says(&mut health, 100, ProxyWord::Down, 3);
        let row = health.row(300, "10.0.0.7:1080", "eu");
        assert_eq!((row.quarantined_ms, row.strikes, row.failures), (Some(800), 1, 3));
        let again = Health::restored(7000, &row);
        assert_eq!(again.state(), State::Quarantined { until_ms: 7800 });
        assert_eq!(again.row(7000, "10.0.0.7:1080", "eu"), row);
        health.begin_trial();
        assert_eq!(Health::restored(5, &health.row(5, "", "")).state(), State::Quarantined { until_ms: 5 });
        assert_eq!(Health::restored(5, &Health::default().row(5, "", "")).state(), State::Healthy);
    }

    /// Whatever is said in whatever order: only a trial ends a quarantine, none is longer than its bound, and a proxy that
    /// only ever answers well is never in one.
    #[test]
    fn random_words_keep_the_rules() {
        const WORDS: [Option<ProxyWord>; 5] =
            [None, Some(ProxyWord::Good), Some(ProxyWord::Blocked), Some(ProxyWord::Failed), Some(ProxyWord::Down)];
        for seed in 0..300 {
            let mut dice = ChaCha8Rng::seed_from_u64(seed);
            let (mut health, mut now) = (Health::default(), 0);
            let well = dice.random_bool(0.1);
            for _ in 0..500 {
                now += dice.random_range(0..BASE_MS);
                if matches!(health.state(), State::Quarantined { until_ms } if until_ms <= now) {
                    health.begin_trial();
                }
                let word = if well { Some(ProxyWord::Good) } else { *WORDS.choose(&mut dice).unwrap() };
                let before = health.state();
                let host = dice.random_bool(0.8).then(|| dice.random_range(0..3));
                health.ended(now, word, host, BASE_MS);
                match (before, health.state()) {
                    (State::Quarantined { until_ms }, after) => assert_eq!(after, State::Quarantined { until_ms }),
                    (State::Trial, State::Healthy) => assert_eq!(word, Some(ProxyWord::Good)),
                    (_, State::Quarantined { until_ms }) => {
                        assert!((now..=now + (BASE_MS << DOUBLINGS_MAX)).contains(&until_ms) && !well);
                    }
                    (before, after) => assert_eq!((before, after), (State::Healthy, State::Healthy)),
                }
            }
        }
    }
}
