//! A private Postgres server with its own data, on a loopback port.

mod data;
mod standby;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::time::{Instant, sleep};

pub(crate) use self::data::{ACCOUNT, give};
use self::data::{ROLE, initialise, password, spawn};
use crate::data_folder;
use crate::packages::Packages;
use crate::process::Process;
use crate::stores::Login;

/// Recovery after a kill takes about a second; loaded machines take longer.
const READY_WITHIN: Duration = Duration::from_secs(60);
const STOP_WITHIN: Duration = Duration::from_secs(20);
/// A new server may find its killed predecessor's children still exiting, and then gives up.
const TRIES: u32 = 5;

/// The durability of the server's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Commits survive a crash of the machine.
    Full,
    /// Commits survive a kill of the server, but not a crash of the machine; much faster. For tests.
    ProcessOnly,
}

/// A running (or killed) private server.
#[derive(Debug)]
pub struct Postgres {
    folder: PathBuf,
    packages: Packages,
    address: SocketAddr,
    durability: Durability,
    password: String,
    process: Process,
}

impl Postgres {
    /// Starts a server on `address` with its data in `folder`, creating both data and folder if they do not
    /// exist yet, and waits until it answers queries.
    ///
    /// # Errors
    /// With the end of the server's log when it does not come up.
    pub async fn start(
        packages: &Packages,
        folder: &Path,
        address: SocketAddr,
        durability: Durability,
    ) -> Result<Self> {
        data_folder::create(folder)?;
        let password = password(folder, packages)?;
        if !folder.join("data").exists() {
            initialise(folder, packages, durability).await?;
        }
        let process = spawn(folder, packages, address, durability)?;
        let mut server = Self {
            folder: folder.into(),
            packages: packages.clone(),
            address,
            durability,
            password,
            process,
        };
        server.until_ready().await?;
        Ok(server)
    }

    /// Connection URL for a database of this server, as the superuser.
    pub fn url(&self, database: &str) -> String {
        url(&self.address.to_string(), &self.owner(), database)
    }

    /// The superuser.
    pub fn owner(&self) -> Login {
        Login {
            user: ROLE.to_owned(),
            password: self.password.clone(),
        }
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The server's process, to freeze it or read its log.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Creates a database unless it exists.
    ///
    /// # Errors
    /// When the server refuses; `name` must be a plain identifier.
    pub async fn create_database(&self, name: &str) -> Result<()> {
        let plain = name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        ensure!(
            plain && !name.is_empty(),
            "{name:?} is not a plain database name"
        );
        let mut connection = PgConnection::connect(&self.url("postgres")).await?;
        let exists: bool =
            sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
                .bind(name)
                .fetch_one(&mut connection)
                .await?;
        if !exists {
            sqlx::query(AssertSqlSafe(format!("create database {name}")))
                .execute(&mut connection)
                .await
                .with_context(|| format!("cannot create the database {name}"))?;
        }
        connection
            .close()
            .await
            .context("cannot close the connection")
    }

    /// Kills the server and its backends with SIGKILL, as a crash would.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// Freezes the server: connections stay open and nothing answers.
    ///
    /// # Errors
    /// When it is not running.
    pub fn pause(&self) -> Result<()> {
        self.process.pause()
    }

    /// Ends [`Postgres::pause`].
    ///
    /// # Errors
    /// When it is not running.
    pub fn resume(&self) -> Result<()> {
        self.process.resume()
    }

    /// Stops in order, disconnecting clients.
    ///
    /// # Errors
    /// When it had to be killed.
    pub async fn stop(&self) -> Result<()> {
        // SIGTERM would wait until every client disconnects.
        self.process
            .stop(Signal::SIGINT, STOP_WITHIN)
            .await
            .map(drop)
    }

    /// Starts again on the same port and data; kills the server first if it runs.
    ///
    /// # Errors
    /// As [`Postgres::start`].
    pub async fn restart(&mut self) -> Result<()> {
        self.kill();
        self.process = spawn(&self.folder, &self.packages, self.address, self.durability)?;
        self.until_ready().await
    }

    async fn until_ready(&mut self) -> Result<()> {
        let end = Instant::now() + READY_WITHIN;
        let mut tries = 1;
        loop {
            let error = match PgConnection::connect(&self.url("postgres")).await {
                Ok(connection) => {
                    return connection
                        .close()
                        .await
                        .context("cannot close the connection");
                }
                Err(error) => error,
            };
            if !self.process.is_running() {
                ensure!(
                    tries < TRIES,
                    "postgres does not start: {}",
                    self.process.how_it_ended()
                );
                tries += 1;
                sleep(Duration::from_millis(500)).await;
                self.process = spawn(&self.folder, &self.packages, self.address, self.durability)?;
            }
            if Instant::now() > end {
                let log = self.process.log_tail(15);
                bail!(
                    "postgres does not answer within {READY_WITHIN:?} ({error}); its log ends:\n{log}"
                );
            }
            sleep(Duration::from_millis(50)).await;
        }
    }
}

pub(crate) fn url(hosts: &str, login: &Login, database: &str) -> String {
    let Login { user, password } = login;
    format!("postgres://{user}:{password}@{hosts}/{database}")
}
