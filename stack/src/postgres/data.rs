//! The data of a server: creates it, gives it to the right account and starts a server with it.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::unistd::{chown, geteuid};

use super::Durability;
use crate::data_folder;
use crate::packages::Packages;
use crate::process::{Process, Spec};

/// The account to run as when we are root, because Postgres refuses to run as root. Debian's package
/// creates it.
pub(crate) const ACCOUNT: &str = "postgres";
/// The superuser inside the server.
pub(super) const ROLE: &str = "pleo";

pub(super) fn spawn(
    folder: &Path,
    packages: &Packages,
    address: SocketAddr,
    durability: Durability,
) -> Result<Process> {
    let mut settings = vec![
        format!("listen_addresses={}", address.ip()),
        format!("port={}", address.port()),
        // The path of a socket may be too long, and the services use TCP.
        "unix_socket_directories=".to_owned(),
        "max_connections=200".to_owned(),
        "timezone=UTC".to_owned(),
        "log_timezone=UTC".to_owned(),
    ];
    if durability == Durability::ProcessOnly {
        settings.extend(["fsync=off".to_owned(), "full_page_writes=off".to_owned()]);
    }
    let mut spec = as_account(packages, "postgres", folder);
    spec = spec.args(["-D".into(), folder.join("data").into_os_string()]);
    for setting in settings {
        spec = spec.args(["-c".to_owned(), setting]);
    }
    spec.pid_file = Some(folder.join("postgres.pid"));
    Process::spawn(spec)
}

/// Creates the data under a temporary name first, so that an interrupted start leaves no incomplete data.
pub(super) async fn initialise(
    folder: &Path,
    packages: &Packages,
    durability: Durability,
) -> Result<()> {
    let fresh = folder.join("data.new");
    if fresh.exists() {
        fs::remove_dir_all(&fresh).with_context(|| format!("cannot delete {}", fresh.display()))?;
    }
    data_folder::create(&fresh)?;
    give(&fresh, 0o700, packages)?;
    let mut spec = as_account(packages, "initdb", folder)
        .args([
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--username",
            ROLE,
        ])
        .args(["--pwfile".into(), folder.join("password").into_os_string()])
        .args(["-D".into(), fresh.clone().into_os_string()]);
    if durability == Durability::ProcessOnly {
        spec = spec.args(["--no-sync"]);
    }
    let process = Process::spawn(spec)?;
    let status = process.wait().await;
    if !status.success() {
        let account = if geteuid().is_root() {
            format!(
                "; as root, {ACCOUNT} must be able to reach {}",
                folder.display()
            )
        } else {
            String::new()
        };
        bail!(
            "cannot create the postgres data{account}: {}",
            process.how_it_ended()
        );
    }
    fs::rename(&fresh, folder.join("data")).context("cannot name the new postgres data")
}

pub(super) fn as_account(packages: &Packages, program: &str, folder: &Path) -> Spec {
    let path = packages.postgres.join(program);
    let mut spec = packages
        .spec(program, path)
        .log(folder.join("postgres.log"));
    spec.user = geteuid().is_root().then(|| ACCOUNT.to_owned());
    spec
}

/// The superuser's password, generated at the first start.
pub(super) fn password(folder: &Path, packages: &Packages) -> Result<String> {
    let path = folder.join("password");
    if !path.exists() {
        fs::write(&path, format!("{:032x}", rand::random::<u128>()))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    give(&path, 0o600, packages)?;
    Ok(fs::read_to_string(&path)?.trim().to_owned())
}

/// Sets the mode and, when we are root, makes the server's account the owner.
pub(crate) fn give(path: &Path, mode: u32, packages: &Packages) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    if geteuid().is_root() {
        let (user, group) = packages.account()?;
        chown(path, Some(user), Some(group))
            .with_context(|| format!("cannot give {} to {ACCOUNT}", path.display()))?;
    }
    Ok(())
}
