//! A private PgBouncer in front of a private Postgres.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::unistd::geteuid;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::data_folder;
use crate::packages::Packages;
use crate::postgres::{ACCOUNT, give};
use crate::process::{Process, Spec};
use crate::stores::{DATABASE, Login};

/// The path is the same in every Debian.
pub(crate) const PROGRAM: &str = "usr/sbin/pgbouncer";
const READY_WITHIN: Duration = Duration::from_secs(30);

/// PgBouncer's version: major, minor.
pub type Version = (u32, u32);

/// The settings that tests vary; all others are defaults.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// `session`, `transaction` or `statement`.
    pub pool_mode: &'static str,
    /// How many connections to Postgres each user may have.
    pub pool_size: u32,
    /// `None` keeps the default; versions before 1.21 do not have this setting.
    pub max_prepared_statements: Option<u32>,
}

/// A running (or ended) PgBouncer.
#[derive(Debug)]
pub struct PgBouncer {
    spec: Spec,
    address: SocketAddr,
    process: Process,
}

impl PgBouncer {
    /// The installed version.
    ///
    /// # Errors
    /// When the program is missing or does not print its version.
    pub async fn version(packages: &Packages, folder: &Path) -> Result<Version> {
        data_folder::create(folder)?;
        let log = folder.join("version.log");
        let spec = packages.spec("pgbouncer", Path::new("/").join(PROGRAM));
        let process = Process::spawn(spec.args(["--version"]).log(&log))?;
        ensure!(process.wait().await.success(), "{}", process.how_it_ended());
        let text = fs::read_to_string(&log)?;
        read_version(&text).with_context(|| format!("no version of PgBouncer: {text:?}"))
    }

    /// Starts one on `address`, in front of the database [`DATABASE`] of the server at `postgres`, for
    /// these users, and waits until it accepts connections.
    ///
    /// # Errors
    /// With the end of its log when it does not come up.
    pub async fn start(
        packages: &Packages,
        folder: &Path,
        address: SocketAddr,
        postgres: SocketAddr,
        logins: &[Login],
        settings: Settings,
    ) -> Result<Self> {
        data_folder::create(folder)?;
        let (users, config) = (folder.join("users.txt"), folder.join("pgbouncer.ini"));
        let lines = logins
            .iter()
            .map(|Login { user, password }| format!("\"{user}\" \"{password}\"\n"));
        fs::write(&users, lines.collect::<String>())?;
        fs::write(&config, render(address, postgres, &users, settings))?;
        for file in [&users, &config] {
            give(file, 0o600, packages)?;
        }
        let mut spec = packages
            .spec("pgbouncer", Path::new("/").join(PROGRAM))
            .args([config.into_os_string()])
            .log(folder.join("pgbouncer.log"));
        spec.user = geteuid().is_root().then(|| ACCOUNT.to_owned());
        spec.pid_file = Some(folder.join("pgbouncer.pid"));
        let process = Process::spawn(spec.clone())?;
        let bouncer = Self {
            spec,
            address,
            process,
        };
        bouncer.until_ready().await?;
        Ok(bouncer)
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Kills it and starts it again on the same port.
    ///
    /// # Errors
    /// As [`PgBouncer::start`].
    pub async fn restart(&mut self) -> Result<()> {
        self.process.kill();
        self.process = Process::spawn(self.spec.clone())?;
        self.until_ready().await
    }

    /// Kills it, which disconnects its clients.
    pub fn kill(&self) {
        self.process.kill();
    }

    async fn until_ready(&self) -> Result<()> {
        let end = Instant::now() + READY_WITHIN;
        while TcpStream::connect(self.address).await.is_err() {
            ensure!(
                self.process.is_running() && Instant::now() < end,
                "pgbouncer does not come up: {}",
                self.process.log_tail(15)
            );
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }
}

fn render(address: SocketAddr, postgres: SocketAddr, users: &Path, settings: Settings) -> String {
    let Settings {
        pool_mode,
        pool_size,
        max_prepared_statements,
    } = settings;
    let statements = max_prepared_statements
        .map(|number| format!("max_prepared_statements = {number}\n"))
        .unwrap_or_default();
    format!(
        "[databases]
{DATABASE} = host={} port={}
[pgbouncer]
listen_addr = {}
listen_port = {}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {}
pool_mode = {pool_mode}
default_pool_size = {pool_size}
{statements}",
        postgres.ip(),
        postgres.port(),
        address.ip(),
        address.port(),
        users.display(),
    )
}

fn read_version(text: &str) -> Option<Version> {
    let version = text.lines().next()?.strip_prefix("PgBouncer ")?;
    let mut numbers = version.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::read_version;

    #[test]
    fn the_version_is_read_from_the_first_line() {
        let text = "PgBouncer 1.24.1\nlibevent 2.1.12-stable\n";
        assert_eq!(read_version(text), Some((1, 24)));
        assert_eq!(read_version("libevent 2.1.12-stable"), None);
    }
}
