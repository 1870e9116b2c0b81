use std::path::Path;
use std::time::{Duration, Instant};

use stack::process::{Process, Spec};

const SOON: Duration = Duration::from_secs(5);

/// A shell whose child moves to a session of its own, as the backends of Postgres do.
fn family(folder: &Path) -> Spec {
    let script = "setsid sleep 1000 & echo $! > \"$0\"; wait";
    let child = folder.join("child");
    let shell = Spec::new("family", "/bin/sh").args(["-c", script]);
    let mut spec = shell.args([child]).log(folder.join("log"));
    spec.pid_file = Some(folder.join("family.pid"));
    spec
}

fn child_of(folder: &Path) -> u32 {
    let end = Instant::now() + SOON;
    loop {
        let text = std::fs::read_to_string(folder.join("child")).unwrap_or_default();
        if let Ok(pid) = text.trim().parse() {
            return pid;
        }
        assert!(
            Instant::now() < end,
            "the shell did not write its child's pid"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The state letter in `/proc` for a process; `None` once it is gone.
fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat[stat.rfind(')')? + 2..]
        .chars()
        .next()
        .filter(|state| !"ZX".contains(*state))
}

fn wait_for_state(pid: u32, accepted: impl Fn(Option<char>) -> bool) {
    let end = Instant::now() + SOON;
    while !accepted(state(pid)) {
        assert!(
            Instant::now() < end,
            "process {pid} is in state {:?}",
            state(pid)
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn dropping_a_process_leaves_neither_it_nor_its_descendants() {
    let folder = tempfile::tempdir().expect("a folder");
    let process = Process::spawn(family(folder.path())).expect("a shell");
    let (parent, child) = (process.pid(), child_of(folder.path()));
    drop(process);
    assert_eq!(state(parent), None);
    wait_for_state(child, |state| state.is_none());
    assert!(!folder.path().join("family.pid").exists());
}

#[test]
fn pausing_freezes_the_whole_family_and_resuming_thaws_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let process = Process::spawn(family(folder.path())).expect("a shell");
    let child = child_of(folder.path());
    process.pause().expect("it runs");
    for pid in [process.pid(), child] {
        wait_for_state(pid, |state| state == Some('T'));
    }
    process.resume().expect("it runs");
    for pid in [process.pid(), child] {
        wait_for_state(pid, |state| state == Some('S'));
    }
}

#[test]
fn the_next_start_kills_what_a_crashed_stack_left_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = Process::spawn(family(folder.path())).expect("a shell");
    let child = child_of(folder.path());
    let second = Process::spawn(family(folder.path())).expect("a shell");
    assert!(!first.is_running());
    assert!(second.is_running());
    wait_for_state(child, |state| state.is_none());
}

#[test]
fn a_child_outlives_the_thread_that_started_it() {
    let spawned = std::thread::spawn(|| Process::spawn(Spec::new("sleep", "sleep").args(["1000"])));
    let process = spawned.join().expect("no panic").expect("a process");
    std::thread::sleep(Duration::from_millis(200));
    assert!(process.is_running());
}

#[tokio::test]
async fn a_process_that_ignores_sigterm_is_killed_at_the_deadline() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let script = "trap '' TERM; echo ready; while :; do sleep 0.1; done";
    let process = Process::spawn(
        Spec::new("stubborn", "/bin/sh")
            .args(["-c", script])
            .log(&log),
    );
    let process = process.expect("a shell");
    let end = Instant::now() + SOON;
    while !process.log_tail(1).contains("ready") && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let stopped = process.terminate(Duration::from_millis(300)).await;
    assert!(stopped.is_err_and(|error| error.to_string().contains("was killed")));
    assert!(!process.is_running());
}
