//! A private RabbitMQ broker with its own data, port mapper and cookie, on loopback ports.

mod cluster;
mod settings;

pub use self::cluster::Cluster;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lapin::{Connection, ConnectionProperties};
use tokio::time::{Instant, sleep, timeout};

use self::settings::Settings;
use crate::packages::Packages;
use crate::process::Process;
use crate::stores::Login;
use crate::{data_folder, ports};

/// A start takes about 9 s on two cores, and several times that when they are busy.
const READY_WITHIN: Duration = Duration::from_secs(120);
const STOP_WITHIN: Duration = Duration::from_secs(30);
/// The broker writes new queues to disk every half second; this is four times that, for a busy machine.
const SETTLED_AFTER: Duration = Duration::from_secs(2);
const CTL_WITHIN: Duration = Duration::from_secs(60);
/// Small files and a low disk alarm, because a development machine may have little free space.
const CONFIG: &str = "\
raft.wal_max_size_bytes = 67108864
disk_free_limit.absolute = 64MB
log.console = true
log.console.level = info
";

/// Arguments of `rabbitmqctl` that list how many messages each queue has, including unacked ones.
pub const COUNT_MESSAGES: [&str; 3] = ["list_queues", "--no-table-headers", "messages"];

/// Private port mappers keep brokers with the same name apart.
const NODE: &str = "stack@localhost";

/// The optional parts of the broker that run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plugins {
    /// AMQP only.
    None,
    /// Also the management UI and HTTP API, on a free port.
    Management,
}

/// The broker's plugins beside AMQP, and its settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configuration {
    /// The management plugin, or none.
    pub plugins: Plugins,
    /// Names of more plugins.
    pub more_plugins: Vec<&'static str>,
    /// Lines of `rabbitmq.conf`, after the stack's own.
    pub lines: String,
}

impl From<Plugins> for Configuration {
    fn from(plugins: Plugins) -> Self {
        Self {
            plugins,
            more_plugins: Vec::new(),
            lines: String::new(),
        }
    }
}

/// A running (or killed) private broker.
#[derive(Debug)]
pub struct RabbitMq {
    folder: PathBuf,
    packages: Packages,
    address: SocketAddr,
    management: Option<SocketAddr>,
    distribution: SocketAddr,
    node: String,
    mapper_address: SocketAddr,
    // The broker is dropped first: it would start a mapper of its own if it saw this one gone.
    process: Process,
    /// `None` for a node of a cluster, whose nodes share one.
    mapper: Option<Process>,
}

impl RabbitMq {
    /// Starts a broker on `address` with its data in `folder`, creating the folder if need be, and
    /// waits until it speaks AMQP.
    ///
    /// # Errors
    /// With the end of the broker's log when it does not come up.
    pub async fn start(
        packages: &Packages,
        folder: &Path,
        address: SocketAddr,
        configuration: impl Into<Configuration>,
    ) -> Result<Self> {
        data_folder::create(folder)?;
        let (mapper, mapper_address) = start_mapper(packages, folder)?;
        let configuration = configuration.into();
        let mut broker = Self::spawn(
            packages,
            folder,
            address,
            &configuration,
            NODE,
            mapper_address,
        )?;
        broker.mapper = Some(mapper);
        broker.until_ready().await?;
        fs::write(started_once(folder), "")?;
        Ok(broker)
    }

    /// Starts a broker without waiting for it.
    fn spawn(
        packages: &Packages,
        folder: &Path,
        address: SocketAddr,
        configuration: &Configuration,
        node: &str,
        mapper_address: SocketAddr,
    ) -> Result<Self> {
        let data = folder.join("mnesia");
        if data.exists() && !started_once(folder).exists() {
            // A broker that is killed during its very first start cannot use the data that it wrote.
            fs::remove_dir_all(&data).context("cannot delete the broker's unfinished data")?;
        }
        let management = match configuration.plugins {
            Plugins::None => None,
            Plugins::Management => Some(ports::free()?),
        };
        let mut enabled = configuration.more_plugins.clone();
        enabled.extend(management.map(|_| "rabbitmq_management"));
        let enabled = format!("[{}].", enabled.join(","));
        fs::write(folder.join("enabled_plugins"), enabled)?;
        let web = management.map_or(String::new(), |address| {
            format!(
                "management.tcp.ip = {}\nmanagement.tcp.port = {}\n",
                address.ip(),
                address.port()
            )
        });
        let lines = format!("{CONFIG}{web}{}", configuration.lines);
        fs::write(folder.join("rabbitmq.conf"), lines)?;
        let settings = Settings {
            node,
            folder,
            address,
            distribution: ports::free()?,
            mapper_address,
        };
        let process = settings.spawn(packages)?;
        Ok(Self {
            folder: folder.to_owned(),
            packages: packages.clone(),
            address,
            management,
            distribution: settings.distribution,
            node: node.to_owned(),
            mapper_address,
            process,
            mapper: None,
        })
    }

    /// Connection URL of the default virtual host, as the default user.
    pub fn amqp_url(&self) -> String {
        url(&self.address.to_string(), &self.administrator())
    }

    /// The default user, which the broker accepts on loopback only.
    pub fn administrator(&self) -> Login {
        administrator()
    }

    /// The AMQP address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address of the management UI and HTTP API, if they run.
    pub fn management(&self) -> Option<SocketAddr> {
        self.management
    }

    /// The broker's process, to read its log.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Runs `rabbitmqctl` with these arguments against this broker and returns its output.
    ///
    /// # Errors
    /// With its output when it fails, or when it takes longer than a minute.
    pub async fn ctl(&self, args: &[&str]) -> Result<String> {
        let output = tempfile::Builder::new()
            .prefix("ctl-")
            .tempfile_in(&self.folder)?;
        let program = self.packages.rabbitmq.join("rabbitmqctl");
        let mut spec = self
            .settings()
            .environment(self.packages.spec("rabbitmqctl", program));
        spec = spec
            .args(["--quiet"])
            .args(args.iter().copied())
            .log(output.path());
        let process = Process::spawn(spec)?;
        let status = timeout(CTL_WITHIN, process.wait()).await.with_context(|| {
            format!(
                "rabbitmqctl {} takes longer than {CTL_WITHIN:?}",
                args.join(" ")
            )
        })?;
        let printed = fs::read_to_string(output.path())?;
        ensure!(
            status.success(),
            "rabbitmqctl {} failed:\n{printed}",
            args.join(" ")
        );
        Ok(printed)
    }

    /// Waits until queues that were declared before are certain to survive [`RabbitMq::kill`].
    ///
    /// The broker answers a declaration before it has written the queue to disk. If it is killed in
    /// between, it comes back with a quorum queue that has no leader and delivers no message, not even
    /// confirmed ones.
    pub async fn settle(&self) {
        sleep(SETTLED_AFTER).await;
    }

    /// Kills the broker with SIGKILL, as a crash would.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// Freezes the broker: connections stay open and nothing answers.
    ///
    /// # Errors
    /// When it is not running.
    pub fn pause(&self) -> Result<()> {
        self.process.pause()
    }

    /// Ends [`RabbitMq::pause`].
    ///
    /// # Errors
    /// When it is not running.
    pub fn resume(&self) -> Result<()> {
        self.process.resume()
    }

    /// Stops in order.
    ///
    /// # Errors
    /// When it had to be killed.
    pub async fn stop(&self) -> Result<()> {
        self.process.terminate(STOP_WITHIN).await.map(drop)
    }

    /// Starts again on the same ports and data; kills the broker first if it runs.
    ///
    /// # Errors
    /// As [`RabbitMq::start`].
    pub async fn restart(&mut self) -> Result<()> {
        self.kill();
        self.process = self.settings().spawn(&self.packages)?;
        self.until_ready().await
    }

    fn settings(&self) -> Settings<'_> {
        Settings {
            node: &self.node,
            folder: &self.folder,
            address: self.address,
            distribution: self.distribution,
            mapper_address: self.mapper_address,
        }
    }

    async fn until_ready(&self) -> Result<()> {
        let end = Instant::now() + READY_WITHIN;
        loop {
            ensure!(
                self.process.is_running(),
                "rabbitmq does not start: {}",
                self.process.how_it_ended()
            );
            ensure!(
                Instant::now() < end,
                "rabbitmq does not answer within {READY_WITHIN:?}; its log ends:\n{}",
                self.process.log_tail(15)
            );
            if handshake(self.address).await.is_ok() {
                return Ok(());
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
}

/// The default user of every new broker.
pub(crate) fn administrator() -> Login {
    let guest = || "guest".to_owned();
    Login {
        user: guest(),
        password: guest(),
    }
}

/// Connects as the default user. The port opens before the broker accepts clients, so a TCP connection
/// proves too little.
pub(crate) async fn handshake(address: SocketAddr) -> Result<()> {
    // Otherwise lapin would silently retry a refused connection.
    tokio::net::TcpStream::connect(address).await?;
    let url = url(&address.to_string(), &administrator());
    let connect = Connection::connect(&url, ConnectionProperties::default());
    let Ok(connection) = timeout(Duration::from_secs(5), connect).await else {
        bail!("no answer to the handshake");
    };
    connection?
        .close(200, "ready".into())
        .await
        .context("cannot close the connection")
}

/// The sum of the numbers that [`COUNT_MESSAGES`] printed.
///
/// # Errors
/// When it printed something other than numbers.
pub fn sum_of_counts(listed: &str) -> Result<u64> {
    listed
        .split_whitespace()
        .map(|count| {
            count
                .parse::<u64>()
                .with_context(|| format!("rabbitmqctl printed {listed:?}"))
        })
        .sum()
}

/// Starts the port mapper with which nodes find each other, with its log in `folder`.
fn start_mapper(packages: &Packages, folder: &Path) -> Result<(Process, SocketAddr)> {
    let address = ports::free()?;
    let mut mapper = packages
        .spec("epmd", &packages.epmd)
        .args([
            "-address",
            "127.0.0.1",
            "-port",
            &address.port().to_string(),
        ])
        .log(folder.join("epmd.log"));
    mapper.pid_file = Some(folder.join("epmd.pid"));
    Ok((Process::spawn(mapper)?, address))
}

pub(crate) fn url(hosts: &str, login: &Login) -> String {
    let Login { user, password } = login;
    format!("amqp://{user}:{password}@{hosts}/%2f")
}

/// This file exists once the broker has come up; see [`RabbitMq::start`].
fn started_once(folder: &Path) -> PathBuf {
    folder.join("started-once")
}
