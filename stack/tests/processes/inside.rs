//! Programs in another root file system; this one borrows the machine's own programs.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use nix::unistd::geteuid;
use stack::process::{Inside, Process, Spec};
use tokio::time::timeout;

/// A root with only the folders that programs expect. Only root can enter it.
fn root_in(folder: &Path) -> Inside {
    let root = folder.join("root");
    for name in [
        "usr", "etc", "proc", "dev", "tmp", "run", "var/tmp", "lib64",
    ] {
        fs::create_dir_all(root.join(name)).expect("a folder");
    }
    for name in ["bin", "sbin", "lib"] {
        symlink(Path::new("usr").join(name), root.join(name)).expect("a link");
    }
    let binds = ["/usr", "/etc", "/lib64"].map(|path| (path.into(), path.into()));
    Inside {
        root,
        binds: binds.into(),
    }
}

fn shell(folder: &Path, script: &str) -> Spec {
    let mut spec = Spec::new("shell", "/bin/sh").args(["-c", script]);
    spec.clean_env = true;
    spec.inside = Some(root_in(folder));
    spec.log(folder.join("log"))
}

#[tokio::test]
async fn a_program_inside_another_root_writes_nothing_there_and_dies_with_the_stack() {
    if !geteuid().is_root() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    fs::create_dir(&data).expect("a folder");
    // A child of the shell would get no signal, so the last program replaces the shell.
    let script = "echo $$ > /run/data/pid; id -un; env; touch /forbidden; touch /tmp/allowed; \
                  exec setpriv --dump";
    let mut spec = shell(folder.path(), script).bind(&data, "/run/data");
    spec.user = Some("daemon".to_owned());
    nix::unistd::chown(&data, Some(1.into()), None).expect("it is ours");
    let process = Process::spawn(spec).expect("it starts");
    let ended = timeout(Duration::from_secs(30), process.wait()).await;
    assert!(
        ended.expect("it ends").success(),
        "{}",
        process.how_it_ended()
    );

    let log = fs::read_to_string(folder.path().join("log")).expect("a log");
    assert!(log.contains("daemon"), "{log}");
    assert!(log.contains("/forbidden"), "an error names it: {log}");
    assert!(!log.contains("/tmp/allowed"), "{log}");
    assert!(!log.contains("CARGO"), "the environment is clean: {log}");
    assert!(log.contains("Parent death signal: KILL"), "{log}");
    let pid = fs::read_to_string(data.join("pid")).expect("the bound folder is the machine's");
    assert_eq!(pid.trim(), process.pid().to_string());
    let mounts = fs::read_to_string("/proc/self/mounts").expect("there are mounts");
    assert!(
        !mounts.contains(&*folder.path().to_string_lossy()),
        "{mounts}"
    );
    assert_eq!(
        fs::read_dir(folder.path().join("root/tmp"))
            .expect("it is there")
            .count(),
        0
    );
}
