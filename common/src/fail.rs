//! Fail points: named steps at which a test stops a process dead, or holds it, to see what the others make of it.
//!
//! `DODO_FAIL_POINT` is read once, when a program starts: `NAME[@N][=ACTION]`, several separated by commas. N is the
//! passing that counts, the first when not given. ACTION is `abort`, which is the default, `sleep:MS`: the point is held
//! for so long, or `freeze`: the process stops as by SIGSTOP, until it is continued. Without the variable a point costs
//! one load.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, raise};

/// The variable that arms points.
const VARIABLE: &str = "DODO_FAIL_POINT";
/// A point is held no longer than this, milliseconds.
const SLEEP_MS_MAX: u64 = 600_000;

/// Every point, with what has happened when it is passed and what has not. Each is passed in one place.
pub const POINTS: &[(&str, &str)] = &[
    ("registered", "the worker's incarnation is committed; it has no heartbeat and has read nothing"),
    ("jobs-read", "entries of jobs are read; their rows are not loaded"),
    ("jobs-loaded", "the rows of a batch are loaded; none of its jobs has begun"),
    ("alone-begun", "a suspect is committed as running alone; its row is not loaded"),
    ("raw-appended", "raw results are appended; nothing is committed"),
    ("committed", "a batch is committed; nothing is acknowledged"),
    ("connected", "a connection for a request is made; the request is not sent"),
    ("settled", "a batch is acknowledged and reported; its permits are still taken"),
    ("call-begun", "a call that may not be repeated is committed as begun; it is not made"),
    ("call-answered", "a call that may not be repeated is answered; nothing is committed"),
    ("items-stored", "the records of items are committed; their entries are not acknowledged"),
    ("drain-begun", "the worker reads no more; nobody has been told"),
    ("archive-planned", "a segment is planned; nothing is uploaded"),
    ("archive-uploaded", "a segment is uploaded; it is neither verified nor recorded"),
    ("archive-recorded", "the planned segments are recorded; nothing is trimmed"),
    ("archive-trimmed", "what is archived is trimmed; the next range is not looked at"),
    ("lease-taken", "the lease is this scheduler's; Redis shows the epoch before, and nothing of its term runs"),
    ("epoch-raised", "Redis shows this leader's epoch; the window is not read"),
    ("generation-advanced", "the row of the generation has its next number; the streams are the old ones"),
    ("streams-recreated", "the streams of a generation are made; lost results are not looked for"),
    ("results-reconciled", "lost results are made again; the generation is not worked on"),
    ("jobs-picked", "jobs are picked; they are not pushed"),
    ("jobs-pushed", "jobs are pushed; the leader has not noted their entries"),
    ("worker-lost", "a worker is committed lost; its entries are still its own"),
    ("crashes-counted", "a worker's loss is counted against its jobs; its entries are still its own"),
    ("entries-taken-back", "the entries of gone workers are taken back; their slots are not free"),
    ("manifest-read", "a manifest is read; it is not recorded"),
    ("entries-expanded", "occurrences are scheduled; the dispatcher has not been told"),
    ("jobs-ended", "the leader has ended jobs itself; its frontier still has them"),
    ("progress-rolled-up", "progress is rolled up; the dispatches' states are not settled"),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Abort,
    Sleep(Duration),
    Freeze,
}

#[derive(Debug)]
struct Armed {
    name: &'static str,
    /// It acts at this passing and at no other.
    nth: u64,
    action: Action,
    passed: AtomicU64,
}

/// Empty until the variable has been read, and for good where it is not set.
static ARMED: OnceLock<Vec<Armed>> = OnceLock::new();

/// Arms what the variable names: the first call of a program, which must not start on an error.
///
/// # Errors
/// One line that says what is wrong with the variable.
pub fn arm() -> Result<(), String> {
    let Ok(text) = std::env::var(VARIABLE) else { return Ok(()) };
    if text.trim().is_empty() {
        return Ok(());
    }
    let armed = parse(&text).map_err(|error| format!("{VARIABLE}: {error}"))?;
    // A second call finds what the first one has armed: the variable is the same.
    let _ = ARMED.set(armed);
    Ok(())
}

/// Passes a point where nothing can be awaited: a point that is held holds its thread.
pub fn point(name: &'static str) {
    if let Some(held) = ARMED.get().and_then(|armed| pass(armed, name)) {
        std::thread::sleep(held);
    }
}

/// Passes a point: a point that is held holds its task, and everything else in the process goes on.
pub async fn point_async(name: &'static str) {
    if let Some(held) = ARMED.get().and_then(|armed| pass(armed, name)) {
        tokio::time::sleep(held).await;
    }
}

/// Counts a passing; does not return if the process is to end at it, and says for how long it is held otherwise.
fn pass(armed: &[Armed], name: &str) -> Option<Duration> {
    match reached(armed, name)? {
        Action::Abort => {
            tracing::error!(point = name, "stopping at the fail point");
            std::process::abort();
        }
        Action::Sleep(held) => {
            tracing::warn!(point = name, ms = held.as_millis() as u64, "held at the fail point");
            Some(held)
        }
        Action::Freeze => {
            // Only a signal that does not exist could fail.
            let _ = raise(Signal::SIGSTOP);
            None
        }
    }
}

/// What is to happen at this passing: of several that are armed for it, the first.
fn reached(armed: &[Armed], name: &str) -> Option<Action> {
    let mut action = None;
    for armed in armed.iter().filter(|armed| armed.name == name) {
        if armed.passed.fetch_add(1, Ordering::Relaxed) + 1 == armed.nth {
            action = action.or(Some(armed.action));
        }
    }
    action
}

fn parse(text: &str) -> Result<Vec<Armed>, String> {
    text.split(',').map(|one| parse_one(one.trim())).collect()
}

fn parse_one(text: &str) -> Result<Armed, String> {
    let (place, action) = text.split_once('=').map_or((text, None), |(place, action)| (place, Some(action)));
    let (name, nth) = place.split_once('@').map_or((place, None), |(name, nth)| (name, Some(nth)));
    let Some(&(name, _)) = POINTS.iter().find(|(known, _)| *known == name) else {
        let known: Vec<&str> = POINTS.iter().map(|(name, _)| *name).collect();
        return Err(format!("there is no point {name:?}; there are {}", known.join(", ")));
    };
    let nth = match nth.map(str::parse::<u64>) {
        None => 1,
        Some(Ok(nth)) if nth >= 1 => nth,
        Some(_) => return Err(format!("{text:?}: after @ comes the number of the passing, 1 or more")),
    };
    let action = match action {
        None | Some("abort") => Action::Abort,
        Some("freeze") => Action::Freeze,
        Some(other) => match other.strip_prefix("sleep:").map(str::parse::<u64>) {
            Some(Ok(ms)) if ms <= SLEEP_MS_MAX => Action::Sleep(Duration::from_millis(ms)),
            _ => return Err(format!("{text:?}: after = comes abort, freeze, or sleep:MS with at most {SLEEP_MS_MAX}")),
        },
    };
    Ok(Armed { name, nth, action, passed: AtomicU64::new(0) })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;

    #[test]
    fn a_point_acts_at_its_passing_and_at_no_other() {
        let armed = parse("jobs-read, settled@3=sleep:20,settled@1=sleep:0").expect("they are right");
        assert_eq!(reached(&armed, "committed"), None);
        let held = |ms| Some(Action::Sleep(Duration::from_millis(ms)));
        let passings: Vec<_> = (0..4).map(|_| reached(&armed, "settled")).collect();
        assert_eq!(passings, [held(0), None, held(20), None]);
        assert_eq!(reached(&armed, "jobs-read"), Some(Action::Abort));
        assert_eq!(reached(&armed, "jobs-read"), None);
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line() {
        for (text, says) in [
            ("nowhere", "there is no point \"nowhere\""),
            ("settled@0", "1 or more"),
            ("settled@x", "1 or more"),
            ("settled=stop", "abort, freeze, or sleep:MS"),
            ("settled=sleep:", "abort, freeze, or sleep:MS"),
            ("settled=sleep:600001", "at most 600000"),
            ("settled,,committed", "there is no point \"\""),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(says) && error.lines().count() == 1, "{text}: {error}");
        }
    }

    /// Each point is passed in one place of the sources, and what is passed there is in the list.
    #[test]
    fn each_point_is_passed_in_one_place() {
        let mut passed = BTreeMap::<String, usize>::new();
        for part in ["common", "scheduler", "worker"] {
            read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(part).join("src"), &mut passed);
        }
        for (name, about) in POINTS {
            assert_eq!(passed.remove(*name), Some(1), "{name}: {about}");
        }
        assert!(passed.is_empty(), "not in the list: {passed:?}");
    }

    fn read(dir: &Path, passed: &mut BTreeMap<String, usize>) {
        for entry in std::fs::read_dir(dir).expect("the sources are here").flatten() {
            let path = entry.path();
            if path.is_dir() {
                read(&path, passed);
            } else if path.extension().is_some_and(|ext| ext == "rs") && !path.ends_with("common/src/fail.rs") {
                let text = std::fs::read_to_string(&path).expect("it can be read");
                for call in ["fail::point(\"", "fail::point_async(\""] {
                    for name in text.split(call).skip(1).filter_map(|rest| rest.split('"').next()) {
                        *passed.entry(name.to_owned()).or_default() += 1;
                    }
                }
            }
        }
    }
}
