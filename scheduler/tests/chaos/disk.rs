//! What befalls files: logs that take nothing, data that are set back or cut off.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Log files that lead to /dev/full, which takes nothing (full(4)), until this is dropped.
pub struct LogsFull(Vec<PathBuf>);

impl LogsFull {
    pub fn begin(logs: &Path) -> Result<Self> {
        let mut full = Self(Vec::new());
        for dir in std::fs::read_dir(logs)?.flatten() {
            for file in std::fs::read_dir(dir.path())?.flatten().filter(|file| is_log(&file.path())) {
                let path = file.path();
                std::fs::rename(&path, path.with_extension("before"))?;
                full.0.push(path.clone());
                std::os::unix::fs::symlink("/dev/full", path)?;
            }
        }
        Ok(full)
    }
}

/// Not one that was set aside before.
fn is_log(path: &Path) -> bool {
    path.is_file() && path.extension().is_some_and(|extension| extension == "log")
}

impl Drop for LogsFull {
    fn drop(&mut self) {
        for path in &self.0 {
            // Nobody may read it: it has no end.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Makes `to` what `from` is.
pub fn copy_dir(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        std::fs::remove_dir_all(to)?;
    }
    let copied = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status()?;
    ensure!(copied.success(), "cannot copy {}", from.display());
    Ok(())
}

/// Cuts the end of Redis' append-only file off, so many bytes of a thousand.
pub fn cut_log(dir: &Path, permille: u64) -> Result<()> {
    let newest = std::fs::read_dir(dir)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.to_string_lossy().ends_with(".incr.aof"))
        .max()
        .context("Redis has no append-only file")?;
    let file = std::fs::OpenOptions::new().write(true).open(newest)?;
    let bytes = file.metadata()?.len();
    file.set_len(bytes - bytes * permille / 1000)?;
    Ok(())
}
