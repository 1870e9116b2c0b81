//! Log files of children.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::{Context, Result};

/// How many bytes are read from the end of a log; far more than the lines that are shown.
const TAIL_BYTES: u64 = 64 * 1024;

pub(super) fn open(path: &Path) -> Result<File> {
    File::options()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("cannot write the log {}", path.display()))
}

/// The last `lines` lines of a file, indented for a message. If it cannot be read, says so.
pub fn tail(path: &Path, lines: usize) -> String {
    let text = match read_end(path) {
        Ok(text) => text,
        Err(error) => return format!("  (cannot read it: {error})"),
    };
    let all: Vec<&str> = text.lines().collect();
    let last: Vec<String> = all[all.len().saturating_sub(lines)..]
        .iter()
        .map(|line| format!("  {line}"))
        .collect();
    last.join("\n")
}

fn read_end(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
