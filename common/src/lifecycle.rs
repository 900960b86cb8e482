//! How a process ends: a first signal asks, a second one insists.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
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
    /// Cancels `soft` at the first SIGTERM or SIGINT and `hard` at the second.
    pub fn install() -> std::io::Result<Self> {
        let lifecycle = Self::default();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let tokens = lifecycle.clone();
        tokio::spawn(async move {
            for token in [&tokens.soft, &tokens.hard] {
                tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
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
