//! Three brokers and a pair of Postgres servers with automatic failover, each on a machine of its own, with
//! balancers in front of them.
//!
//! A machine here is a network namespace on a bridge, a process namespace and a copy-on-write disk. It
//! needs root, and has to run inside [`confinement`], which removes everything at the end.

mod balancer;
mod brokers;
pub mod confinement;
mod database;
mod network;
mod node;
mod rest;

use std::fmt::Write;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use sqlx::{Connection, PgConnection};
use tokio::time::{Instant, sleep};

pub use self::balancer::Balancer;
use self::balancer::Behind;
pub use self::brokers::{Brokers, PartitionHandling};
pub use self::database::{Database, Replication, other};
use self::network::Link;
use self::node::Folders;
use crate::postgres;
use crate::stores::Hosts;

/// [`crate::stores::DATABASE`].
const CREATE_DATABASE: &str = "create database pleo";
const REACHABLE_WITHIN: Duration = Duration::from_secs(30);
/// Machines that services run on; they have the drill's own disk.
const APPS: [&str; 2] = ["app-1", "app-2"];

/// Everything except the services. Fields are dropped in this order: users before what they use.
#[derive(Debug)]
pub struct Cluster {
    /// The balancer in front of the primary.
    pub database_balancer: Balancer,
    /// The balancer in front of the brokers.
    pub broker_balancer: Balancer,
    /// A balancer in front of the primary for the drill itself; no fault hits it.
    observer: Balancer,
    /// The brokers.
    pub brokers: Brokers,
    /// The database.
    pub database: Database,
    apps: [Link; 2],
}

impl Cluster {
    /// Starts everything in `folder` from the Debian in `root`, and waits until all parts are up.
    ///
    /// # Errors
    /// When something does not come up.
    pub async fn start(
        root: &Path,
        folder: &Path,
        logs: &Path,
        replication: Replication,
    ) -> Result<Self> {
        network::create_bridge()?;
        let link = |names: &[&'static str], first: u8| {
            let numbered = names.iter().zip(first..);
            numbered
                .map(|(name, number)| Link::create(name, number))
                .collect::<Result<Vec<_>>>()
        };
        let brokers = link(&brokers::NAMES, 11)?;
        let etcd = link(&[database::ETCD], 21)?;
        let servers = link(&database::NAMES, 31)?;
        let balancers = link(&["lb-postgres", "lb-rabbitmq", "lb-observer"], 41)?;
        let apps = link(&APPS, 51)?;
        let mut hosts = "127.0.0.1 localhost\n".to_owned();
        for link in [&brokers, &etcd, &servers, &balancers, &apps]
            .into_iter()
            .flatten()
        {
            writeln!(hosts, "{} {}", link.address, link.name)?;
        }
        let disks = folder.join("disks");
        fs::create_dir_all(&disks)?;
        let folders = Folders {
            root,
            disks: &disks,
            logs,
        };
        let (brokers, database) = tokio::try_join!(
            Brokers::start(folders, &brokers, &hosts),
            Database::start(folders, etcd[0], &servers, &hosts, replication)
        )?;
        let (queues, servers) = (brokers.addresses(), database.addresses());
        let balancer = |index: usize, port, behind| {
            Balancer::start(folders, balancers[index], &hosts, port, behind)
        };
        let primary = Behind::Primary(&servers);
        Ok(Self {
            database_balancer: balancer(0, database::POSTGRES, primary)?,
            broker_balancer: balancer(1, brokers::AMQP, Behind::Brokers(&queues))?,
            observer: balancer(2, database::POSTGRES, primary)?,
            brokers,
            database,
            apps: [apps[0], apps[1]],
        })
    }

    /// The stores behind the balancers.
    fn through_balancers(&self) -> Hosts {
        Hosts::one(
            self.database_balancer.address(),
            self.broker_balancer.address(),
        )
    }

    /// The addresses of the stores themselves.
    fn directly(&self) -> Hosts {
        let list = |addresses: Vec<SocketAddr>| {
            let addresses = addresses.iter().map(ToString::to_string);
            addresses.collect::<Vec<_>>().join(",")
        };
        Hosts {
            postgres: list(self.database.addresses()),
            amqp: list(self.brokers.addresses()),
        }
    }

    /// The stores behind the drill's own balancer, and one of the brokers.
    pub fn for_owner(&self) -> Hosts {
        Hosts::one(self.observer.address(), self.brokers.addresses()[0])
    }

    /// Where the first or second replica of each service runs: how it reaches the stores, the command that
    /// starts it, and its address. The first uses the balancers, the second a list of the stores'
    /// addresses.
    pub fn place(&self, number: u8) -> (Hosts, Vec<String>, Ipv4Addr) {
        let link = self.apps[usize::from(number) - 1];
        let enter = ["nsenter".to_owned()].into_iter().chain(link.enter());
        let hosts = match number {
            1 => self.through_balancers(),
            _ => self.directly(),
        };
        (hosts, enter.collect(), link.address)
    }

    /// Creates the database of the services.
    ///
    /// # Errors
    /// When the primary refuses.
    pub async fn create_database(&self) -> Result<()> {
        let host = self.observer.address().to_string();
        let url = postgres::url(&host, &self.database.owner(), "postgres");
        // The balancer checks for the primary every second.
        let end = Instant::now() + REACHABLE_WITHIN;
        let mut connection = loop {
            match PgConnection::connect(&url).await {
                Ok(connection) => break connection,
                Err(error) if Instant::now() > end => return Err(error.into()),
                Err(_) => sleep(Duration::from_millis(200)).await,
            }
        };
        sqlx::raw_sql(CREATE_DATABASE)
            .execute(&mut connection)
            .await?;
        connection
            .close()
            .await
            .context("cannot close the connection")
    }
}
