//! Signals to a process and all its descendants.
//!
//! A process group is not enough: Postgres puts each of its backends into a session of its own.

use std::collections::{HashMap, HashSet};
use std::fs;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill as send};
use nix::unistd::Pid;

use crate::progress::note;

/// The fields of `/proc/<pid>/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) parent: u32,
    /// Clock ticks after boot. With the pid it identifies a process, because pids are reused.
    pub(super) started: u64,
    /// Clock ticks of processor time, in user and system mode, including ended children.
    pub(super) ticks: u64,
}

/// The state of a live process; `None` if there is no such process.
pub(super) fn stat(pid: u32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// A zombie counts as ended: it only waits for its parent to reap it.
///
/// The second field is the command in parentheses and may itself contain spaces and parentheses.
fn parse_stat(line: &str) -> Option<Stat> {
    let fields: Vec<&str> = line[line.rfind(')')? + 1..].split_whitespace().collect();
    if matches!(*fields.first()?, "Z" | "X") {
        return None;
    }
    Some(Stat {
        parent: fields.get(1)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
        ticks: (fields.get(11..15)?.iter())
            .map(|ticks| ticks.parse::<u64>())
            .sum::<Result<_, _>>()
            .ok()?,
    })
}

/// Signals one process. If it has ended meanwhile, that is not an error.
pub(super) fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("linux pids fit into 22 bits"));
    match send(pid, signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(errno) => note(&format!("cannot send {signal} to process {pid}: {errno}")),
    }
}

/// Signals a process and all its descendants, ancestors first.
pub(super) fn signal_all(pid: u32, what: Signal) {
    for member in family(pid) {
        signal(member, what);
    }
}

/// Kills a process and all its descendants with SIGKILL.
///
/// They are stopped first, until there are no new ones, so that none forks while the list is made.
pub(super) fn kill(pid: u32) {
    let mut seen = HashSet::new();
    loop {
        let fresh: Vec<u32> = family(pid)
            .into_iter()
            .filter(|member| seen.insert(*member))
            .collect();
        if fresh.is_empty() {
            break;
        }
        for member in fresh {
            signal(member, Signal::SIGSTOP);
        }
    }
    for member in seen {
        signal(member, Signal::SIGKILL);
    }
}

/// The process and its descendants, each parent before its children.
pub(super) fn family(root: u32) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        if let Some(stat) = stat(pid) {
            children.entry(stat.parent).or_default().push(pid);
        }
    }
    let mut members = vec![root];
    let mut next = 0;
    while let Some(member) = members.get(next) {
        members.extend(children.remove(member).unwrap_or_default());
        next += 1;
    }
    members
}

#[cfg(test)]
mod tests {
    use super::{Stat, parse_stat, stat};

    #[test]
    fn a_command_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let line = "42 (a) (b c) S 7 42 42 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 987654 99 1";
        assert_eq!(
            parse_stat(line),
            Some(Stat {
                parent: 7,
                started: 987_654,
                ticks: 5 + 6 + 7 + 8
            })
        );
    }

    #[test]
    fn the_own_process_has_a_parent() {
        assert!(stat(std::process::id()).is_some_and(|own| own.parent > 0));
    }
}
