//! A private HAProxy with the settings of `deploy/haproxy.cfg`, in front of one ingest service.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::time::{Instant, sleep};

use crate::data_folder;
use crate::packages::install_if_permitted;
use crate::ports;
use crate::process::{Process, Spec};
use crate::progress::Progress;

const PROGRAM: &str = "/usr/sbin/haproxy";
const READY_WITHIN: Duration = Duration::from_secs(30);
const SHIPPED: &str = include_str!("../../deploy/haproxy.cfg");

/// A running (or ended) HAProxy.
#[derive(Debug)]
pub struct HaProxy {
    address: SocketAddr,
    behind_terminator: SocketAddr,
    health: SocketAddr,
    process: Process,
}

impl HaProxy {
    /// Starts one on free ports and waits until its health check has found that the ingest service is up.
    ///
    /// # Errors
    /// With the end of its log when it does not come up.
    pub async fn start(folder: &Path, public: SocketAddr, private: SocketAddr) -> Result<Self> {
        Self::start_with(folder, public, private, &[]).await
    }

    /// The same as [`HaProxy::start`], with these environment variables.
    ///
    /// # Errors
    /// As [`HaProxy::start`].
    pub async fn start_with(
        folder: &Path,
        public: SocketAddr,
        private: SocketAddr,
        environment: &[(&str, &str)],
    ) -> Result<Self> {
        ensure!(
            Path::new(PROGRAM).exists(),
            "missing: haproxy; install with: sudo apt-get install -y haproxy"
        );
        data_folder::create(folder)?;
        let (address, behind_terminator, health) = (ports::free()?, ports::free()?, ports::free()?);
        let config = folder.join("haproxy.cfg");
        let text = render(address, behind_terminator, health, public, private)?;
        fs::write(&config, text)?;
        let mut spec = Spec::new("haproxy", PROGRAM)
            .args(["-db", "-f"])
            .args([config.into_os_string()])
            .log(folder.join("haproxy.log"));
        spec.clean_env = true;
        for (name, value) in environment {
            spec = spec.env(name, value);
        }
        let proxy = Self {
            address,
            behind_terminator,
            health,
            process: Process::spawn(spec)?,
        };
        proxy.until_ready().await?;
        Ok(proxy)
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The port for a TLS terminator, which passes the client's address on with the PROXY protocol.
    pub fn behind_terminator(&self) -> SocketAddr {
        self.behind_terminator
    }

    async fn until_ready(&self) -> Result<()> {
        let end = Instant::now() + READY_WITHIN;
        let url = format!("http://{}/health", self.health);
        while !reqwest::get(&url)
            .await
            .is_ok_and(|answer| answer.status().is_success())
        {
            ensure!(
                self.process.is_running() && Instant::now() < end,
                "haproxy does not come up: {}",
                self.process.log_tail(15)
            );
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }
}

/// Installs HAProxy, which only tests and sieges need, if it is missing and we have the rights.
///
/// # Errors
/// As [`Packages::find_or_install`](crate::packages::Packages::find_or_install).
pub async fn install(log: &Path, progress: Progress) -> Result<()> {
    let exists = Path::new(PROGRAM).exists();
    let missing: &[&str] = if exists { &[] } else { &["haproxy"] };
    install_if_permitted(missing, log, progress).await
}

/// The settings of `deploy/`, with other addresses and without Docker's DNS.
fn render(
    address: SocketAddr,
    behind_terminator: SocketAddr,
    health: SocketAddr,
    public: SocketAddr,
    private: SocketAddr,
) -> Result<String> {
    let mut text = SHIPPED.to_owned();
    for (shipped, here) in [
        ("bind :8080", format!("bind {address}")),
        ("bind :8081", format!("bind {behind_terminator}")),
        ("bind :8404", format!("bind {health}")),
        (" resolvers docker init-addr none", String::new()),
        (
            "server-template ingest 16 ingest:8080 port 9100",
            format!("server ingest {public} port {}", private.port()),
        ),
    ] {
        ensure!(
            text.contains(shipped),
            "no {shipped:?} in deploy/haproxy.cfg"
        );
        text = text.replace(shipped, &here);
    }
    let (before, rest) = text
        .split_once("resolvers docker\n")
        .context("no resolvers")?;
    let (_resolvers, after) = rest
        .split_once("\n\n")
        .context("resolvers without an end")?;
    Ok(format!("{before}{after}"))
}
