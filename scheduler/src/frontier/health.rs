//! The health of one proxy: whether it may be used, by what its requests said of it. Pure: it is told the time.
//!
//! A circuit breaker (M. Nygard, "Release It!", "Stability Patterns"): too many bad ones of the last requests, and it is in
//! quarantine; after that one request at a time decides whether it returns or stays away for twice as long.

use dodo_common::clock::Millis;
use dodo_common::db::proxy::ProxyRow;
use dodo_common::model::proxy::ProxyWord;

/// The last requests that count; more than half of them bad is too many, if they are at least so many.
const WINDOW: u32 = 20;
const WINDOW_MIN: u32 = 4;
/// So many times in a row it did not answer itself: that is nobody else's fault.
const DOWNS_MAX: u32 = 3;
/// The quarantine is doubled at most so often.
const DOUBLINGS_MAX: u32 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Healthy,
    /// Nothing leaves by it until then; after that a trial may begin.
    Quarantined {
        until_ms: Millis,
    },
    /// One request is under way, which decides.
    Trial,
}

#[derive(Clone, Debug)]
pub struct Health {
    state: State,
    /// A bit for each of the last requests, the latest lowest: whether it was bad.
    window: u32,
    /// Requests since it is healthy.
    seen: u32,
    downs: u32,
    /// Quarantines in a row: between them it was not healthy for a whole window.
    strikes: u32,
    successes: i64,
    blocks: i64,
    failures: i64,
}

impl Default for Health {
    fn default() -> Self {
        Self { state: State::Healthy, window: 0, seen: 0, downs: 0, strikes: 0, successes: 0, blocks: 0, failures: 0 }
    }
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

    /// A request has ended, and said something; `counts`: it speaks of the proxy, not only of the site. The first quarantine
    /// lasts `base_ms`.
    pub fn ended(&mut self, now: Millis, word: Option<ProxyWord>, counts: bool, base_ms: Millis) {
        match word {
            Some(ProxyWord::Good) => self.successes += 1,
            Some(ProxyWord::Blocked) => self.blocks += 1,
            Some(ProxyWord::Failed | ProxyWord::Down) => self.failures += 1,
            None => {}
        }
        let word = word.filter(|_| counts);
        match (self.state, word) {
            // It had left before the quarantine.
            (State::Quarantined { .. }, _) | (State::Healthy, None) => {}
            (State::Trial, Some(ProxyWord::Good)) => self.state = State::Healthy,
            (State::Trial, Some(_)) => self.quarantine(now, base_ms),
            (State::Trial, None) => self.forget_trial(now),
            (State::Healthy, Some(word)) => self.note(now, word, base_ms),
        }
    }

    fn note(&mut self, now: Millis, word: ProxyWord, base_ms: Millis) {
        let is_bad = word != ProxyWord::Good;
        self.window = ((self.window << 1) | u32::from(is_bad)) & ((1 << WINDOW) - 1);
        self.seen = self.seen.saturating_add(1);
        self.downs = if word == ProxyWord::Down { self.downs + 1 } else { 0 };
        let counted = self.seen.min(WINDOW);
        if self.downs >= DOWNS_MAX || (counted >= WINDOW_MIN && 2 * self.window.count_ones() > counted) {
            self.quarantine(now, base_ms);
        } else if self.seen >= WINDOW {
            self.strikes = 0;
        }
    }

    fn quarantine(&mut self, now: Millis, base_ms: Millis) {
        let until_ms = now.saturating_add(base_ms.saturating_mul(1 << self.strikes.min(DOUBLINGS_MAX)));
        self.state = State::Quarantined { until_ms };
        self.strikes = self.strikes.saturating_add(1);
        (self.window, self.seen, self.downs) = (0, 0, 0);
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
        for _ in 0..times {
            health.ended(now, Some(word), true, BASE_MS);
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
        for _ in 0..1000 {
            says(&mut health, 0, ProxyWord::Good, 1);
            says(&mut health, 0, ProxyWord::Blocked, 1);
        }
        assert_eq!(health.state(), State::Healthy, "a site may forbid half of what it links to");
        for _ in 0..1000 {
            health.ended(0, Some(ProxyWord::Blocked), false, BASE_MS);
            health.ended(0, None, true, BASE_MS);
        }
        assert_eq!(health.state(), State::Healthy, "what says nothing of it");
        assert_eq!((health.successes, health.blocks, health.failures), (1000, 2000, 0), "is counted all the same");
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
        health.ended(9, None, true, BASE_MS);
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
                health.ended(now, word, dice.random_bool(0.8), BASE_MS);
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
