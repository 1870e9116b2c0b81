//! The measured pipeline: both stores, as durable as in production, one ingest, and vendor workers that are
//! started as needed.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use serde::Serialize;
use shared::{Family, Program};
use sqlx::{PgPool, Row};
use tokio::time::{Instant, sleep};

use super::load::{Load, Outcome, Pace};
use super::request::{PREFIX, Requests};
use super::{FILL_FOR, USUAL, durable, grown};
use crate::accounts::Accounts;
use crate::data_folder::DataFolder;
use crate::packages::Packages;
use crate::process::Process;
use crate::programs::Programs;
use crate::service::{Launcher, Service};
use crate::stores::Stores;

const READY_WITHIN: Duration = Duration::from_secs(60);
const STOPPED_WITHIN: Duration = Duration::from_secs(40);
const STORED_WITHIN: Duration = Duration::from_secs(600);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The worker's own counter of stored events.
const STORED: &str = r#"pleo_worker_events_total{family="vendor",outcome="stored""#;
const WORKER: Program = Program::Worker(Family::Vendor);

/// Fields are dropped in this order: users before what they use.
#[derive(Debug)]
pub(super) struct Pipeline {
    workers: Vec<Service>,
    ingest: Service,
    launcher: Launcher,
    pool: PgPool,
    stores: Stores,
    requests: Arc<Requests>,
    /// New events answered 2xx so far.
    accepted: u64,
    /// Those of them that are known to be stored.
    stored: u64,
    _base: DataFolder,
}

/// The result of a load while a worker stored.
#[derive(Debug, Clone, Serialize)]
pub struct EndToEnd {
    /// Events stored per second, until all were stored.
    pub rate: f64,
    /// The resources that this used.
    pub usage: Usage,
}

/// The resources for 1,000 events that are accepted and stored.
#[derive(Debug, Clone, Serialize)]
pub struct Usage {
    /// Processor seconds of ingest.
    pub ingest_s: f64,
    /// Processor seconds of the worker.
    pub worker_s: f64,
    /// Processor seconds of RabbitMQ.
    pub rabbitmq_s: f64,
    /// Processor seconds of Postgres.
    pub postgres_s: f64,
    /// Peak resident MiB of ingest.
    pub ingest_mib: u64,
    /// Peak resident MiB of the worker.
    pub worker_mib: u64,
}

/// Milliseconds from the receipt of an event to the transaction that stores it.
#[derive(Debug, Clone, Serialize)]
pub struct Lag {
    /// The median.
    pub p50_ms: f64,
    /// The 99th percentile.
    pub p99_ms: f64,
}

impl Pipeline {
    pub(super) async fn start(
        packages: &Packages,
        programs: Programs,
        folder: &Path,
    ) -> Result<Self> {
        let base = DataFolder::temporary()?;
        let (stores, pool) = durable::start(packages, &base).await?;
        let accounts = Accounts::random();
        accounts.set_up(&programs, &stores, folder).await?;
        let launcher = Launcher::new(programs, &stores, folder).under(&accounts);
        let ingest = launcher.start(Program::Ingest, "ingest")?;
        ingest.ready(READY_WITHIN).await?;
        stores.rabbitmq.settle().await;
        let requests = Arc::new(Requests::new(ingest.public())?);
        Ok(Self {
            workers: Vec::new(),
            ingest,
            launcher,
            pool,
            stores,
            requests,
            accepted: 0,
            stored: 0,
            _base: base,
        })
    }

    pub(super) fn stores(&self) -> &Stores {
        &self.stores
    }

    pub(super) fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Puts load on ingest.
    pub(super) async fn accept(&mut self, load: Load) -> Result<Outcome> {
        let outcome = load.put_on(self.ingest.public(), &self.requests).await?;
        self.accepted += outcome.accepted;
        Ok(outcome)
    }

    /// Fills the queue up to this number of events.
    pub(super) async fn fill(&mut self, events: u64) -> Result<()> {
        while self.accepted - self.stored < events {
            self.accept(Load {
                connections: USUAL,
                pace: Pace::Closed,
                duplicates: 0.0,
                during: FILL_FOR,
            })
            .await?;
        }
        Ok(())
    }

    /// New events answered 2xx so far.
    pub(super) fn accepted(&self) -> u64 {
        self.accepted
    }

    /// Lets this many workers store the queued events: events per second.
    pub(super) async fn drain(&mut self, replicas: usize) -> Result<f64> {
        self.start_workers(replicas)?;
        let first = loop {
            let stored = self.stored_by_workers().await?;
            if stored > 0 {
                break stored;
            }
            sleep(LOOK_EVERY).await;
        };
        let started = Instant::now();
        let all = self.until_stored().await?;
        let took = started.elapsed();
        self.stop_workers().await?;
        Ok((all - first) as f64 / took.as_secs_f64())
    }

    /// Load while a worker stores.
    pub(super) async fn store(&mut self, load: Load) -> Result<EndToEnd> {
        self.start_workers(1)?;
        self.workers[0].ready(READY_WITHIN).await?;
        let before = self.processes().map(Process::processor_time);
        let started = Instant::now();
        let outcome = self.accept(load).await?;
        self.until_stored().await?;
        let rate = outcome.accepted as f64 / started.elapsed().as_secs_f64();
        let processes = self.processes();
        let after = processes.map(Process::processor_time);
        let thousands = outcome.accepted as f64 / 1_000.0;
        let spent = |part: usize| (after[part] - before[part]).as_secs_f64() / thousands;
        let usage = Usage {
            ingest_s: spent(0),
            worker_s: spent(1),
            rabbitmq_s: spent(2),
            postgres_s: spent(3),
            ingest_mib: processes[0].peak_memory_mib().context("ingest is gone")?,
            worker_mib: processes[1]
                .peak_memory_mib()
                .context("the worker is gone")?,
        };
        self.stop_workers().await?;
        Ok(EndToEnd { rate, usage })
    }

    /// Load while a worker stores: how long events take from receipt to storage.
    pub(super) async fn lag(&mut self, load: Load) -> Result<Lag> {
        self.start_workers(1)?;
        self.workers[0].ready(READY_WITHIN).await?;
        let began: DateTime<Utc> = Utc::now();
        self.accept(load).await?;
        self.until_stored().await?;
        self.stop_workers().await?;
        let row = sqlx::query(
            "select percentile_cont(array[0.5, 0.99]) within group
                        (order by extract(epoch from stored_at - received_at) * 1000.0)::float8[]
               from events where received_at >= $1",
        )
        .bind(began)
        .fetch_one(&self.pool)
        .await?;
        let quantiles: Vec<f64> = row.try_get(0)?;
        Ok(Lag {
            p50_ms: quantiles[0],
            p99_ms: quantiles[1],
        })
    }

    /// Events that were accepted and are not in `events`, or are in `events` without a 2xx.
    pub(super) async fn missing(&self) -> Result<u64> {
        let stored: i64 = sqlx::query_scalar(
            "select count(*) from events
              where starts_with(webhook_id, $1) and right(webhook_id, length($2)) <> $2",
        )
        .bind(PREFIX)
        .bind(grown::SUFFIX)
        .fetch_one(&self.pool)
        .await?;
        Ok(self.accepted.abs_diff(u64::try_from(stored)?))
    }

    /// Stops everything in order.
    pub(super) async fn stop(mut self) -> Result<()> {
        self.stop_workers().await?;
        self.ingest.stop(STOPPED_WITHIN).await?;
        self.pool.close().await;
        self.stores.stop().await
    }

    fn start_workers(&mut self, replicas: usize) -> Result<()> {
        for number in 1..=replicas {
            let name = format!("vendor-worker-{number}");
            self.workers.push(self.launcher.start(WORKER, &name)?);
        }
        Ok(())
    }

    async fn stop_workers(&mut self) -> Result<()> {
        for worker in self.workers.drain(..) {
            let status = worker.stop(STOPPED_WITHIN).await?;
            ensure!(status.success(), "{}", worker.process().how_it_ended());
        }
        Ok(())
    }

    /// Ingest, worker, RabbitMQ, Postgres.
    fn processes(&self) -> [&Process; 4] {
        [
            self.ingest.process(),
            self.workers[0].process(),
            self.stores.rabbitmq.process(),
            self.stores.postgres.process(),
        ]
    }

    /// Waits until the running workers have stored the events that were accepted and not stored before, and
    /// returns their number.
    async fn until_stored(&mut self) -> Result<u64> {
        let end = Instant::now() + STORED_WITHIN;
        let expected = self.accepted - self.stored;
        loop {
            let stored = self.stored_by_workers().await?;
            if stored == expected {
                self.stored = self.accepted;
                return Ok(stored);
            }
            ensure!(
                stored < expected && Instant::now() < end,
                "{stored} of {expected} events are stored"
            );
            sleep(LOOK_EVERY).await;
        }
    }

    async fn stored_by_workers(&self) -> Result<u64> {
        let mut stored = 0;
        for worker in &self.workers {
            // It is not listening yet.
            let Ok(answer) = reqwest::get(worker.private_url("/metrics")).await else {
                ensure!(
                    worker.process().is_running(),
                    "{}",
                    worker.process().how_it_ended()
                );
                continue;
            };
            stored += answer
                .text()
                .await?
                .lines()
                .filter(|line| line.starts_with(STORED))
                .find_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
                .context("the worker does not count what it stores")?;
        }
        Ok(stored)
    }
}
