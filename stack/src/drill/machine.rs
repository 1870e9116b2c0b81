//! The drill on one machine: both stores with a proxy in front of each, two replicas of ingest, the workers,
//! and the console with an operator. Injects and ends the faults.

mod fault;
mod operator;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::unistd::geteuid;
use shared::Program;
use sqlx::{Connection, PgConnection};
use tokio::time::{sleep, timeout};

pub use self::fault::{Alarm, Fault, Part, RoundTrip, Store};
use self::operator::Operator;
use super::event::BUSY_VENDOR;
use super::system::{AnyFault, System};
use crate::accounts::Accounts;
use crate::data_folder::{self, DataFolder};
use crate::packages::Packages;
use crate::postgres::Durability;
use crate::process::Process;
use crate::programs::Programs;
use crate::proxy::{Mode, Proxy};
use crate::rabbitmq::{self, COUNT_MESSAGES};
use crate::service::{Launcher, Service};
use crate::small_disk::SmallDisk;
use crate::stores::{Addresses, DATABASE, Stores};

const READY_WITHIN: Duration = Duration::from_secs(60);
/// Longer than the services' own deadline for a stop, 25 s.
const STOPPED_WITHIN: Duration = Duration::from_secs(40);
/// Enough for the data of a drill of an hour, with Postgres' log limited to an eighth of it.
const DISK_BYTES: u64 = 2 << 30;
const LIMIT_WAL: &str = "alter system set max_wal_size = '256MB'";
/// At the usual rate, events of every family arrive within this time.
const HANDS_FULL_AFTER: Duration = Duration::from_secs(1);
const HANDS_FULL_WITHIN: Duration = Duration::from_secs(3);
/// Longer than the longest pause between two tries of ingest to reach Postgres.
const CUT_OF_SLOW_LINK: Duration = Duration::from_secs(4);
/// At the usual rate, a state of the busy vendor is stored within this time.
const BUSY_VENDOR_WITHIN: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// More than the stack's Postgres allows.
const MAX_CONNECTIONS: usize = 1_000;

/// Fields are dropped in this order: users before what they use.
#[derive(Debug)]
pub struct Machine {
    operator: Operator,
    services: BTreeMap<Part, Service>,
    /// Services that a fault has stopped for now.
    away: Vec<Part>,
    /// Services that ended in an unexpected way.
    failures: Vec<String>,
    connections: Vec<PgConnection>,
    proxies: BTreeMap<Store, Proxy>,
    stores: Stores,
    disk: Option<SmallDisk>,
    _base: DataFolder,
}

impl System for Machine {
    type Fault = Fault;

    // The longest wait in the services is the lease of a spool row that a killed worker had claimed: 60 s.
    const RECOVERED_WITHIN: Duration = Duration::from_secs(120);

    fn can(&self, fault: Fault) -> bool {
        fault != Fault::DiskFull || self.disk.is_some()
    }

    fn webhook_urls(&self) -> Vec<String> {
        [Part::Ingest1, Part::Ingest2]
            .map(|part| self.services[&part].webhook_url())
            .into()
    }

    fn database_url(&self) -> String {
        self.stores.database_url()
    }

    async fn queued(&self) -> Result<u64> {
        let listed = self.stores.rabbitmq.ctl(&COUNT_MESSAGES).await?;
        rabbitmq::sum_of_counts(&listed)
    }

    fn services(&self) -> Vec<&Process> {
        self.services
            .iter()
            .filter(|(part, _)| !self.away.contains(part))
            .map(|(_, service)| service.process())
            .collect()
    }

    fn failures(&self) -> Vec<String> {
        let mut failures = self.failures.clone();
        let services = self.services();
        failures.extend(services.into_iter().filter_map(Process::failure));
        failures
    }

    async fn close(&self) -> Result<Vec<String>> {
        Ok(vec![self.operator.finish().await?])
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

    async fn begin(&mut self, fault: Fault, alone: bool) -> Result<()> {
        match fault {
            Fault::Kill(Part::RabbitMq) => self.stores.rabbitmq.kill(),
            Fault::Kill(Part::Postgres) => self.stores.postgres.kill(),
            Fault::Kill(part) => {
                let lock = self.fill_hands(part).await;
                self.services[&part].process().kill();
                self.away.push(part);
                drop(lock);
            }
            Fault::Stop(Part::RabbitMq) => self.stores.rabbitmq.stop().await?,
            Fault::Stop(Part::Postgres) => self.stores.postgres.stop().await?,
            Fault::Stop(part) => {
                self.away.push(part);
                let ended = self.services[&part].stop(STOPPED_WITHIN).await;
                // While a store is away a worker may have to give up its batches, and reports that.
                match ended {
                    Ok(status) if status.success() || !alone => {}
                    Ok(status) => self
                        .failures
                        .push(format!("{} stopped with {status}", part.name())),
                    Err(error) => self.failures.push(format!("{error:#}")),
                }
            }
            Fault::Pause(Part::RabbitMq) => self.stores.rabbitmq.pause()?,
            Fault::Pause(Part::Postgres) => self.stores.postgres.pause()?,
            Fault::Pause(part) => self.services[&part].process().pause()?,
            Fault::Cut(store) => self.proxies[&store].set(Mode::Cut).await,
            Fault::HalfOpen(store) => self.proxies[&store].set(Mode::Freeze).await,
            Fault::Alarm(alarm) => self.alarm(alarm, ["absolute", "1"], "1000000GB").await?,
            Fault::NoConnections => self.take_all_connections().await?,
            Fault::DiskFull => self.disk()?.fill()?,
            Fault::RowLock => self.lock_busy_vendor().await?,
            Fault::StandbyAway => {
                self.standbys("alter system set synchronous_standby_names = 'away'")
                    .await?;
            }
            Fault::SlowLink(round_trip) => {
                let proxy = &self.proxies[&Store::Postgres];
                proxy.set(Mode::Cut).await;
                sleep(CUT_OF_SLOW_LINK).await;
                let round_trip = Duration::from_millis(round_trip.ms());
                proxy.set(Mode::Slow(round_trip)).await;
            }
        }
        Ok(())
    }

    async fn end(&mut self, fault: Fault) -> Result<()> {
        match fault {
            Fault::Kill(Part::RabbitMq) | Fault::Stop(Part::RabbitMq) => {
                self.stores.rabbitmq.restart().await?;
            }
            Fault::Kill(Part::Postgres) | Fault::Stop(Part::Postgres) => {
                self.stores.postgres.restart().await?;
            }
            Fault::Kill(part) | Fault::Stop(part) => {
                self.away.retain(|away| *away != part);
                self.services
                    .get_mut(&part)
                    .with_context(|| format!("{} is no service", part.name()))?
                    .restart()?;
            }
            Fault::Pause(Part::RabbitMq) => self.stores.rabbitmq.resume()?,
            Fault::Pause(Part::Postgres) => self.stores.postgres.resume()?,
            Fault::Pause(part) => self.services[&part].process().resume()?,
            Fault::Cut(store) | Fault::HalfOpen(store) => {
                self.proxies[&store].set(Mode::Pass).await;
            }
            Fault::Alarm(alarm) => self.alarm(alarm, ["0.4", ""], "64MB").await?,
            // Closing the connection releases its lock.
            Fault::NoConnections | Fault::RowLock => self.connections.clear(),
            Fault::StandbyAway => {
                self.standbys("alter system reset synchronous_standby_names")
                    .await?;
            }
            Fault::SlowLink(_) => self.proxies[&Store::Postgres].set(Mode::Pass).await,
            Fault::DiskFull => {
                self.disk()?.clear()?;
                // Without space for its log Postgres shuts down, and its operator has to fix that.
                if !self.stores.postgres.process().is_running() {
                    self.stores.postgres.restart().await?;
                }
            }
        }
        Ok(())
    }

    fn must_refuse(&self, faults: &[Fault]) -> bool {
        let hits = |part| faults.iter().any(|fault| fault.part() == part);
        let keeps_no_deadline =
            |fault: &Fault| matches!(fault, Fault::Pause(Part::Ingest1 | Part::Ingest2));
        hits(Part::RabbitMq) && hits(Part::Postgres) || faults.iter().any(keeps_no_deadline)
    }
}

impl Machine {
    /// Starts everything and waits until it is ready. If `logs` names a folder, the services' logs are kept
    /// there.
    ///
    /// # Errors
    /// When something does not come up.
    pub async fn start(
        packages: &Packages,
        programs: Programs,
        logs: Option<&Path>,
    ) -> Result<Self> {
        let base = DataFolder::temporary()?;
        let logs = match logs {
            Some(logs) => {
                data_folder::create(logs)?;
                logs.to_owned()
            }
            None => base.folder("logs")?,
        };
        // Only root can mount; without root the drill has no full disk.
        let disk = if geteuid().is_root() {
            Some(SmallDisk::mount(&base.path().join("postgres"), DISK_BYTES)?)
        } else {
            None
        };
        let stores =
            Stores::start(packages, &base, Addresses::free()?, Durability::ProcessOnly).await?;
        let mut owner = PgConnection::connect(&stores.database_url()).await?;
        for sql in [LIMIT_WAL, "select pg_reload_conf()"] {
            sqlx::raw_sql(sql).execute(&mut owner).await?;
        }
        owner.close().await?;

        let accounts = Accounts::random();
        accounts.set_up(&programs, &stores, &logs).await?;
        let rabbitmq = Proxy::start(stores.rabbitmq.address()).await?;
        let postgres = Proxy::start(stores.postgres.address()).await?;
        let launcher = Launcher::new(programs, &stores, logs)
            .under(&accounts)
            .env("LOOPBACK_ROLE", "operator")
            .through(Addresses {
                postgres: postgres.address(),
                amqp: rabbitmq.address(),
            });
        let mut services = BTreeMap::new();
        for part in Part::ALL {
            if let Some(program) = part.program() {
                services.insert(part, launcher.start(program, part.name())?);
            }
        }
        let console = services[&Part::Console].public();
        let system = Self {
            operator: Operator::start(console, &stores.database_url())?,
            services,
            away: Vec::new(),
            failures: Vec::new(),
            connections: Vec::new(),
            proxies: BTreeMap::from([(Store::RabbitMq, rabbitmq), (Store::Postgres, postgres)]),
            stores,
            disk,
            _base: base,
        };
        system.ready(READY_WITHIN).await?;
        system.stores.rabbitmq.settle().await;
        Ok(system)
    }

    async fn alarm(&self, alarm: Alarm, watermark: [&str; 2], disk_limit: &str) -> Result<()> {
        let args = match alarm {
            Alarm::Memory => {
                let mut args = vec!["set_vm_memory_high_watermark"];
                args.extend(watermark.iter().filter(|arg| !arg.is_empty()));
                args
            }
            Alarm::Disk => vec!["set_disk_free_limit", disk_limit],
        };
        self.stores.rabbitmq.ctl(&args).await.map(drop)
    }

    /// A worker is between delivery and commit for only milliseconds, and a random kill hardly ever hits
    /// that moment. So the worker is killed while it has unacked deliveries, which the lock keeps from
    /// being stored. While Postgres is away it has unacked deliveries anyway.
    async fn fill_hands(&self, part: Part) -> Option<PgConnection> {
        part.program()
            .filter(|program| matches!(program, Program::Worker(_)))?;
        let fill = async {
            let mut connection = PgConnection::connect(&self.stores.database_url())
                .await
                .ok()?;
            let lock = "begin; lock table events in exclusive mode";
            sqlx::raw_sql(lock).execute(&mut connection).await.ok()?;
            sleep(HANDS_FULL_AFTER).await;
            Some(connection)
        };
        timeout(HANDS_FULL_WITHIN, fill).await.ok().flatten()
    }

    /// Takes every connection of Postgres, including those of the services. Some of theirs may get through,
    /// because they keep trying.
    async fn take_all_connections(&mut self) -> Result<()> {
        const END_ALL_OTHERS: &str = "select pg_terminate_backend(pid) from pg_stat_activity
             where pid <> pg_backend_pid() and backend_type = 'client backend'
               and application_name <> 'drill'";
        const ROUNDS: usize = 3;
        let url = format!(
            "{}?application_name=drill",
            self.stores.postgres.url(DATABASE)
        );
        let mut first = PgConnection::connect(&url).await?;
        for _ in 0..ROUNDS {
            sqlx::raw_sql(END_ALL_OTHERS).execute(&mut first).await?;
            while let Ok(connection) = PgConnection::connect(&url).await {
                self.connections.push(connection);
                ensure!(
                    self.connections.len() <= MAX_CONNECTIONS,
                    "postgres never runs out of connections"
                );
            }
        }
        self.connections.push(first);
        Ok(())
    }

    /// Holds a row lock on the busy vendor, like a user with an open transaction in a shell.
    async fn lock_busy_vendor(&mut self) -> Result<()> {
        let mut connection = PgConnection::connect(&self.stores.database_url()).await?;
        sqlx::raw_sql("begin").execute(&mut connection).await?;
        let lock = async {
            loop {
                let locked = sqlx::query("select from vendors where id = $1 for update")
                    .bind(BUSY_VENDOR)
                    .fetch_optional(&mut connection)
                    .await?;
                if locked.is_some() {
                    return anyhow::Ok(());
                }
                sleep(LOOK_EVERY).await;
            }
        };
        timeout(BUSY_VENDOR_WITHIN, lock)
            .await
            .context("no state of the busy vendor is stored")??;
        self.connections.push(connection);
        Ok(())
    }

    /// Sets which standbys a commit waits for.
    async fn standbys(&self, sql: &'static str) -> Result<()> {
        let mut connection = PgConnection::connect(&self.stores.database_url()).await?;
        for sql in [sql, "select pg_reload_conf()"] {
            sqlx::raw_sql(sql).execute(&mut connection).await?;
        }
        connection.close().await?;
        Ok(())
    }

    fn disk(&self) -> Result<&SmallDisk> {
        self.disk
            .as_ref()
            .context("only root can simulate a full disk")
    }
}
