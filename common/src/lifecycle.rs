//! How a process ends: a first signal asks, a second one insists.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What a child whose parent has died may take to finish.
const ORPHAN_GRACE: Duration = Duration::from_secs(2);

/// Two tokens: `soft` means finish what you hold and take nothing new, `hard` means leave now.
#[derive(Clone, Debug, Default)]
pub struct Lifecycle {
    pub soft: CancellationToken,
    pub hard: CancellationToken,
}

impl Lifecycle {
    /// Cancels `soft` at the first SIGTERM, SIGINT or SIGHUP and `hard` at the second. A closed terminal (SIGHUP)
    /// ends a process in order, unless it was started to outlive it (`nohup`).
    pub fn install() -> std::io::Result<Self> {
        let lifecycle = Self::default();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = if ignores_hangup() { None } else { Some(signal(SignalKind::hangup())?) };
        let tokens = lifecycle.clone();
        tokio::spawn(async move {
            for token in [&tokens.soft, &tokens.hard] {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                    () = received(hangup.as_mut()) => {}
                }
                token.cancel();
            }
        });
        Ok(lifecycle)
    }

    /// Cancels `soft` when standard input closes, and `hard` a little later: a child learns so that its parent
    /// has died, whose servers may be gone as well, so that there is nothing to drain into.
    pub fn follow_stdin(&self) {
        let tokens = self.clone();
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
            tokens.soft.cancel();
            std::thread::sleep(ORPHAN_GRACE);
            tokens.hard.cancel();
        });
    }
}

/// Waits for a signal that is listened to; never ends otherwise.
async fn received(signal: Option<&mut Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

/// Whether this process was started with SIGHUP ignored: a handler of ours would undo that. Linux tells by a mask in
/// which signal n is bit n - 1 (proc_pid_status(5)); elsewhere it counts as not ignored.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 == 1)
}
