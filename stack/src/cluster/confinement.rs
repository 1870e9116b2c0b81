//! Runs a program in namespaces of its own, so that it cannot leave anything behind (process, network,
//! mount, shared memory), even if the program or the stack is killed.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::unistd::{geteuid, getppid};

use crate::process::Spec;

/// The first process of a process namespace inherits every orphan and has to reap it; the shell does that.
const FIRST_PROCESS: &str = r#""$@"; exit $?"#;
const NAMESPACES: [&str; 7] = [
    "--mount",
    "--net",
    "--uts",
    "--ipc",
    "--pid",
    "--fork",
    "--kill-child",
];

/// The confined program with its arguments.
pub fn spec(name: &str, program: &Path, args: impl IntoIterator<Item = OsString>) -> Spec {
    Spec::new(name, "unshare")
        .args(NAMESPACES)
        .args([
            "--mount-proc",
            "--",
            "/bin/sh",
            "-c",
            FIRST_PROCESS,
            "first",
        ])
        .args([program])
        .args(args)
}

/// Why this machine cannot confine programs; `None` if it can.
pub fn obstacle() -> Option<String> {
    if !geteuid().is_root() {
        return Some("it needs root".to_owned());
    }
    // The same as the cluster needs: a bridge, a network with a link to it, and an overlay.
    let attempt = "mount -t tmpfs tmpfs /run && mkdir /run/netns /run/l /run/d &&
         ip link add name hub type bridge && ip netns add node &&
         ip link add name node type veth peer name eth0 netns node &&
         mount -t tmpfs tmpfs /run/d && mkdir /run/d/u /run/d/w /run/d/r &&
         mount -t overlay -o lowerdir=/run/l,upperdir=/run/d/u,workdir=/run/d/w overlay /run/d/r";
    let args = ["-c", attempt].map(OsString::from);
    let spec = spec("attempt", Path::new("/bin/sh"), args);
    let output = std::process::Command::new(&spec.program)
        .args(&spec.args)
        .output();
    match output {
        Ok(output) if output.status.success() => None,
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            Some(format!(
                "it needs network namespaces, bridges and overlays: {}",
                said.trim()
            ))
        }
        Err(error) => Some(format!("it needs unshare (util-linux): {error}")),
    }
}

/// Prepares the namespaces that this process was started in; see [`spec`].
///
/// # Errors
/// When this process is not in such namespaces.
pub fn prepare() -> Result<()> {
    let first = fs::read_to_string("/proc/1/comm").unwrap_or_default();
    ensure!(
        getppid().as_raw() == 1 && first.trim() == "sh",
        "this is for confined programs only"
    );
    for folder in ["/run", "/dev/shm"] {
        mount(
            Some("tmpfs"),
            folder,
            Some("tmpfs"),
            MsFlags::empty(),
            None::<&str>,
        )
        .with_context(|| format!("cannot mount {folder}"))?;
    }
    fs::create_dir("/run/netns").context("cannot create /run/netns")
}
