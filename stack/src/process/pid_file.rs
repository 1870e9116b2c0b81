//! Records a child on disk, so that the next start can kill it if this one crashes.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::tree;

/// How long to wait until a killed leftover is gone; the kernel takes milliseconds.
const GONE_WITHIN: Duration = Duration::from_secs(5);

/// A file with `<pid> <start time>` of a running child.
#[derive(Debug)]
pub(crate) struct PidFile {
    path: PathBuf,
    text: String,
}

impl PidFile {
    pub(super) fn write(path: &Path, pid: u32) -> Result<Self> {
        // It has ended already. Readers treat 0 as "no process".
        let started = tree::stat(pid).map_or(0, |stat| stat.started);
        let text = format!("{pid} {started}");
        fs::write(path, &text)
            .with_context(|| format!("cannot write the pid file {}", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            text,
        })
    }

    pub(super) fn remove(self) {
        // A restarted child may already have written its own pid.
        if fs::read_to_string(&self.path).is_ok_and(|text| text == self.text) {
            // A leftover file names a process that is gone, and the next start recognises that.
            drop(fs::remove_file(self.path));
        }
    }

    /// Kills the process that a pid file names, if it is still that process, and its descendants.
    pub(crate) fn kill_leftover(path: &Path) -> Result<()> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        let Some((pid, started)) = parse(&text) else {
            return Ok(());
        };
        let alive = || tree::stat(pid).is_some_and(|stat| stat.started == started);
        if !alive() {
            return Ok(());
        }
        tree::kill(pid);
        let end = Instant::now() + GONE_WITHIN;
        while alive() {
            if Instant::now() > end {
                bail!("process {pid}, left over from an earlier run, cannot be killed");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

fn parse(text: &str) -> Option<(u32, u64)> {
    let (pid, started) = text.trim().split_once(' ')?;
    Some((pid.parse().ok()?, started.parse().ok()?))
}
