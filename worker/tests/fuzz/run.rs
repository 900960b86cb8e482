//! Runs a target on many inputs, and tells of one that fails how to see it again.

use std::any::Any;
use std::cell::RefCell;
use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::mangle::mangle;

/// What a target draws beside its input; the same for the same case.
pub type Draw = ChaCha8Rng;

pub struct Target {
    /// That of its test.
    pub name: &'static str,
    pub seeds: &'static [&'static [u8]],
    /// What its parser looks for.
    pub words: &'static [&'static str],
    /// Cases of a plain run.
    pub cases: u64,
    /// Panics where something does not hold.
    pub check: fn(&[u8], Draw),
}

/// The first case of a plain run.
const FIRST: u64 = 0;
/// No input takes so long that is read in linear time, not even on a busy machine in a debug build.
const CASE_MAX: Duration = Duration::from_secs(30);
/// Tries to make an input that fails smaller.
const SHRINK_TRIES_MAX: usize = 2000;
/// The thread on which cases run: a panic there is a finding, and said once, by us.
const THREAD: &str = "fuzz";

/// Runs the cases from `DODO_FUZZ_SEED` on, each by its number: `DODO_FUZZ_CASES` of them, or, for `DODO_FUZZ_SECONDS`, as
/// many as there is time for.
pub fn run(target: Target) {
    quiet_panics();
    let first = number("DODO_FUZZ_SEED").unwrap_or(FIRST);
    let until = number("DODO_FUZZ_SECONDS").map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let cases = number("DODO_FUZZ_CASES").unwrap_or(if until.is_some() { u64::MAX } else { target.cases });
    let name = target.name;
    let (tell, told) = channel();
    let work = move || {
        for n in 0..cases {
            if until.is_some_and(|until| Instant::now() >= until) {
                return println!("{name}: {n} cases from {first} on");
            }
            one(&target, first.wrapping_add(n), &tell);
        }
    };
    let thread = std::thread::Builder::new().name(THREAD.to_owned()).spawn(work).expect("a thread can be had");
    let mut case = first;
    loop {
        match told.recv_timeout(CASE_MAX) {
            Ok(begun) => case = begun,
            Err(RecvTimeoutError::Disconnected) => break,
            // The thread cannot be stopped; the process ends with this test's failure.
            Err(RecvTimeoutError::Timeout) => panic!("it takes over {CASE_MAX:?}; {}", again(name, case)),
        }
    }
    if let Err(why) = thread.join() {
        panic!("{}", said(&*why));
    }
}

fn one(target: &Target, case: u64, tell: &Sender<u64>) {
    let mut draw = Draw::seed_from_u64(case);
    let input = mangle(&mut draw, target.seeds, target.words);
    let failure = |input: &[u8]| {
        // Nobody listens any more where the test has ended.
        let _ = tell.send(case);
        catch_unwind(AssertUnwindSafe(|| (target.check)(input, draw.clone()))).err().map(|why| said(&*why))
    };
    let Some(why) = failure(&input) else { return };
    let (small, why) = shrink(input, why, failure);
    panic!("{why}\ninput, made smaller: \"{}\"\n{}", small.escape_ascii(), again(target.name, case));
}

/// Leaves out what can be left out without that it passes.
fn shrink(mut input: Vec<u8>, mut why: String, failure: impl Fn(&[u8]) -> Option<String>) -> (Vec<u8>, String) {
    let (mut size, mut tries) = (input.len() / 2, 0);
    while size > 0 && tries < SHRINK_TRIES_MAX {
        let mut at = 0;
        while at + size <= input.len() && tries < SHRINK_TRIES_MAX {
            tries += 1;
            let less = [&input[..at], &input[at + size..]].concat();
            match failure(&less) {
                Some(still) => (input, why) = (less, still),
                None => at += size,
            }
        }
        size /= 2;
    }
    (input, why)
}

fn again(name: &str, case: u64) -> String {
    format!("again: DODO_FUZZ_SEED={case} DODO_FUZZ_CASES=1 cargo test --workspace --test fuzz {name}")
}

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text}")))
}

thread_local! {
    static MESSAGE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Hundreds of panics may come of one input while it is made smaller: only the last is of interest, with its place.
fn quiet_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| match std::thread::current().name() {
            Some(THREAD) => MESSAGE.set(Some(info.to_string())),
            _ => usual(info),
        }));
    });
}

/// What a panic said, on the thread where it was caught with its place, else without.
fn said(payload: &(dyn Any + Send)) -> String {
    let text =
        || payload.downcast_ref::<String>().cloned().or_else(|| Some((*payload.downcast_ref::<&str>()?).to_owned()));
    MESSAGE.take().or_else(text).unwrap_or_default()
}
