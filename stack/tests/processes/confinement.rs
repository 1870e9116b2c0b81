//! When a confined program ends, all processes that it started end as well.

use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use stack::cluster::confinement;
use stack::process::Process;

const WITHIN: Duration = Duration::from_secs(30);

/// Whether a process with this among its arguments is running.
fn runs(argument: &str) -> bool {
    let processes = std::fs::read_dir("/proc").expect("proc is mounted");
    processes.flatten().any(|entry| {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        command
            .split(|byte| *byte == 0)
            .any(|part| part == argument.as_bytes())
    })
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + WITHIN;
    while !condition() {
        assert!(Instant::now() < end, "not within {WITHIN:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_daemon_of_a_confined_program_ends_when_the_program_is_killed() {
    // A machine without namespaces cannot run the drill on a cluster either.
    if confinement::obstacle().is_some() {
        return;
    }
    let marker = format!("{}.25", rand::random_range(100_000..1_000_000));
    let daemonize = format!("setsid --fork sleep {marker}; sleep 600");
    let args = ["-c", daemonize.as_str()].map(OsString::from);
    let confined = Process::spawn(confinement::spec("confined", Path::new("/bin/sh"), args))
        .expect("unshare is there");
    until("the daemon runs", || runs(&marker)).await;

    // Only this process, as the kernel's out-of-memory killer does, without its children.
    let pid = i32::try_from(confined.pid()).expect("pids fit");
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it runs");

    until("the daemon is gone", || !runs(&marker)).await;
}
