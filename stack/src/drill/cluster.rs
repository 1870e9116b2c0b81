//! The drill on a cluster: three brokers, a pair of Postgres servers and two replicas of each service.
//! Injects and ends the faults.

mod fault;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::{sleep, timeout};

pub use self::fault::{Fault, Part, Replica};
use super::system::{AnyFault, System};
use crate::accounts::Accounts;
use crate::cluster::{Brokers, Cluster, PartitionHandling, Replication, other};
use crate::data_folder::{self, DataFolder};
use crate::process::Process;
use crate::programs::Programs;
use crate::rabbitmq;
use crate::service::{Launcher, Listen, Service};
use crate::stores::OwnerUrls;

const READY_WITHIN: Duration = Duration::from_secs(120);
const WHOLE_WITHIN: Duration = Duration::from_secs(120);
const SETUP_TRIES: u32 = 4;
/// The queue whose leader is killed or cut off.
const QUEUE: &str = "pleo.vendor";
/// Each service's ports depend on its index in the list.
const FIRST_PORT: u16 = 8000;
/// Time after a restart of the primary in which the workers store, or find stored, the batches that they
/// hold.
const STORED_AGAIN_AFTER: Duration = Duration::from_secs(20);

/// Options of a cluster.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a> {
    /// The Debian with the stores' programs.
    pub root: &'a Path,
    /// When the primary's commits return.
    pub replication: Replication,
    /// The folder for logs to keep; without it they are deleted in the end.
    pub logs: Option<&'a Path>,
}

/// The cluster with its services. Fields are dropped in this order: users before what they use.
#[derive(Debug)]
pub struct Clustered {
    services: BTreeMap<Replica, Service>,
    /// Services that a fault has stopped for now.
    away: Vec<Replica>,
    /// Brokers that a fault has hit.
    brokers: Vec<usize>,
    /// The server that was the primary when a fault hit the database.
    primary: usize,
    cluster: Cluster,
    replication: Replication,
    _base: DataFolder,
}

impl Clustered {
    /// Starts everything and waits until it is ready. Must run confined; see
    /// [`crate::cluster::confinement`].
    ///
    /// # Errors
    /// When something does not come up.
    pub async fn start(programs: Programs, settings: Settings<'_>) -> Result<Self> {
        let base = DataFolder::temporary()?;
        let logs = match settings.logs {
            Some(logs) => {
                data_folder::create(logs)?;
                logs.to_owned()
            }
            None => base.folder("logs")?,
        };
        let replication = settings.replication;
        let cluster = Cluster::start(settings.root, base.path(), &logs, replication).await?;
        let owner = cluster.database.owner();
        cluster.create_database().await?;
        let accounts = Accounts::random();
        let hosts = cluster.for_owner();
        let urls = OwnerUrls {
            database: hosts.database_url(&owner),
            amqp: hosts.amqp_url(&rabbitmq::administrator()),
            management: cluster.brokers.management_url(),
        };
        // The balancer may regard a busy server as down. A setup can be repeated.
        let mut tries = 1..SETUP_TRIES;
        while let Err(error) = accounts.set_up_at(&programs, &urls, &logs).await {
            tries.next().ok_or(error)?;
        }
        let launcher =
            Launcher::as_owner(programs, hosts, (owner, rabbitmq::administrator()), &logs)
                .under(&accounts)
                .env("RECEIPT_TRUST", receipt_trust(replication));
        let mut services = BTreeMap::new();
        for (replica, port) in Replica::all().zip((FIRST_PORT..).step_by(2)) {
            let (hosts, enter, address) = cluster.place(replica.number);
            let listen = Listen {
                private: (address, port).into(),
                public: (address, port + 1).into(),
            };
            let launcher = launcher.clone().through(hosts).entered_by(enter);
            let service = launcher.start_at(replica.program, &replica.to_string(), listen)?;
            services.insert(replica, service);
        }
        let mut system = Self {
            services,
            away: Vec::new(),
            brokers: Vec::new(),
            primary: 0,
            cluster,
            replication,
            _base: base,
        };
        system.ready(READY_WITHIN).await?;
        system.brokers_whole().await?;
        Ok(system)
    }

    async fn brokers_whole(&mut self) -> Result<()> {
        let brokers = &mut self.cluster.brokers;
        brokers.until_whole(WHOLE_WITHIN).await
    }

    async fn cut_broker(
        &mut self,
        index: usize,
        on_minority: PartitionHandling,
        cut: fn(&Brokers, usize) -> Result<()>,
    ) -> Result<()> {
        let brokers = &self.cluster.brokers;
        brokers.set_partition_handling(on_minority).await?;
        self.brokers.push(index);
        cut(brokers, index)
    }

    async fn rejoin_broker(&mut self, join: fn(&Brokers, usize) -> Result<()>) -> Result<()> {
        for index in std::mem::take(&mut self.brokers) {
            join(&self.cluster.brokers, index)?;
            self.cluster.brokers.end_partition(index).await?;
        }
        let brokers = &self.cluster.brokers;
        brokers
            .set_partition_handling(PartitionHandling::PauseMinority)
            .await
    }

    async fn kill_brokers(&mut self, first: usize, count: usize) {
        for index in (0..3).map(|i| (first + i) % 3).take(count) {
            self.cluster.brokers.kill(index);
            self.brokers.push(index);
        }
    }

    async fn boot_brokers(&mut self) -> Result<()> {
        let killed = std::mem::take(&mut self.brokers);
        for index in &killed {
            self.cluster.brokers.boot(*index)?;
        }
        for index in &killed {
            self.cluster.brokers.ready(*index).await?;
        }
        Ok(())
    }

    async fn begin_database(&mut self, fault: Fault) -> Result<()> {
        let database = &self.cluster.database;
        database.until_whole(self.replication).await?;
        let primary = database.primary().await?;
        self.primary = primary;
        match fault {
            Fault::LosePrimary => database.switch_off(primary),
            Fault::Switchover => database.switch_over(primary).await,
            Fault::PrimaryOffNetwork => database.cut(primary),
            _ => database.cut(other(primary)),
        }
    }

    async fn end_database(&mut self, fault: Fault) -> Result<()> {
        let primary = self.primary;
        let standby = other(primary);
        let database = &mut self.cluster.database;
        match fault {
            Fault::LosePrimary => {
                database.until_primary(standby).await?;
                database.boot(primary)
            }
            Fault::PrimaryOffNetwork => {
                database.until_primary(standby).await?;
                database.join(primary)
            }
            Fault::StandbyOffNetwork => database.join(standby),
            Fault::StandbyThenPrimary => {
                database.restart(primary).await?;
                sleep(STORED_AGAIN_AFTER).await;
                database.destroy(primary)?;
                database.join(standby)?;
                database.fail_over_to(standby).await?;
                database.boot(primary)
            }
            _ => Ok(()),
        }
    }
}

/// With an asynchronous standby a receipt may survive without its event, and ingest answers *duplicate* for
/// that long.
fn receipt_trust(replication: Replication) -> &'static str {
    match replication {
        Replication::Synchronous => "5m",
        Replication::Asynchronous => "10s",
    }
}

impl System for Clustered {
    type Fault = Fault;

    // The same as on one machine, plus the lease of a primary that is lost once more.
    const RECOVERED_WITHIN: Duration = Duration::from_secs(150);

    fn can(&self, _: Fault) -> bool {
        true
    }

    fn webhook_urls(&self) -> Vec<String> {
        let ingests = self
            .services
            .iter()
            .filter(|(replica, _)| replica.program == shared::Program::Ingest);
        ingests.map(|(_, service)| service.webhook_url()).collect()
    }

    fn database_url(&self) -> String {
        let owner = self.cluster.database.owner();
        self.cluster.for_owner().database_url(&owner)
    }

    async fn queued(&self) -> Result<u64> {
        self.cluster.brokers.queued().await
    }

    fn services(&self) -> Vec<&Process> {
        self.services
            .iter()
            .filter(|(replica, _)| !self.away.contains(replica))
            .map(|(_, service)| service.process())
            .collect()
    }

    fn failures(&self) -> Vec<String> {
        let services = self.services();
        services.into_iter().filter_map(Process::failure).collect()
    }

    async fn ready(&self, within: Duration) -> Result<()> {
        let ready = async {
            for service in self.services.values() {
                service.ready(within).await?;
            }
            Ok(())
        };
        timeout(within, ready)
            .await
            .context("not every service is ready in time")?
    }

    async fn begin(&mut self, fault: Fault, _: bool) -> Result<()> {
        if fault.part() == Part::Brokers {
            self.brokers_whole().await?;
        }
        match fault {
            Fault::Kill(replica) => {
                self.services[&replica].process().kill();
                self.away.push(replica);
            }
            Fault::KillLeader => {
                let leader = self.cluster.brokers.leader(QUEUE).await?;
                self.kill_brokers(leader, 1).await;
            }
            Fault::KillConnected => {
                let connected = self.cluster.brokers.connected().await?;
                self.kill_brokers(connected, 1).await;
            }
            Fault::KillTwo => {
                let leader = self.cluster.brokers.leader(QUEUE).await?;
                self.kill_brokers(leader, 2).await;
            }
            Fault::KillAll => self.kill_brokers(0, 3).await,
            Fault::CutFromPeers(on_minority) => {
                let leader = self.cluster.brokers.leader(QUEUE).await?;
                self.cut_broker(leader, on_minority, Brokers::cut_from_peers)
                    .await?;
            }
            Fault::CutFromAll(on_minority) => {
                let connected = self.cluster.brokers.connected().await?;
                self.cut_broker(connected, on_minority, Brokers::cut)
                    .await?;
            }
            Fault::Roll => self.cluster.brokers.roll().await?,
            Fault::HangBrokerBalancer => self.cluster.broker_balancer.freeze()?,
            Fault::HangDatabaseBalancer => self.cluster.database_balancer.freeze()?,
            Fault::LosePrimary
            | Fault::Switchover
            | Fault::PrimaryOffNetwork
            | Fault::StandbyOffNetwork
            | Fault::StandbyThenPrimary => self.begin_database(fault).await?,
        }
        Ok(())
    }

    async fn end(&mut self, fault: Fault) -> Result<()> {
        match fault {
            Fault::Kill(replica) => {
                self.away.retain(|away| *away != replica);
                let service = self.services.get_mut(&replica);
                service.context("there is such a service")?.restart()
            }
            Fault::KillLeader | Fault::KillConnected | Fault::KillTwo | Fault::KillAll => {
                self.boot_brokers().await
            }
            Fault::CutFromPeers(_) => self.rejoin_broker(Brokers::join_peers).await,
            Fault::CutFromAll(_) => self.rejoin_broker(Brokers::join).await,
            Fault::Roll | Fault::Switchover => Ok(()),
            Fault::HangBrokerBalancer => self.cluster.broker_balancer.thaw(),
            Fault::HangDatabaseBalancer => self.cluster.database_balancer.thaw(),
            Fault::LosePrimary
            | Fault::PrimaryOffNetwork
            | Fault::StandbyOffNetwork
            | Fault::StandbyThenPrimary => self.end_database(fault).await,
        }
    }

    fn must_refuse(&self, faults: &[Fault]) -> bool {
        let hits = |parts: [Part; 2]| faults.iter().any(|fault| parts.contains(&fault.part()));
        // The first replica of each service reaches the stores only through the balancers.
        hits([Part::Brokers, Part::BrokerBalancer])
            && hits([Part::Database, Part::DatabaseBalancer])
    }
}
