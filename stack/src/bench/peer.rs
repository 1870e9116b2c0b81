//! A simple implementation in Node, for comparison: a receiver that waits for confirms, and a consumer that
//! stores in batches (`peers/node`). It has the same stores, requests and checks as the pipeline.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ingest::secrets::DEVELOPMENT_SECRET;
use serde::Serialize;
use sqlx::PgPool;
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use super::load::{Load, Outcome, Pace};
use super::request::Requests;
use super::{END_TO_END, FILL_FOR, USUAL};
use crate::ports;
use crate::process::{Process, Spec};
use crate::stores::Stores;

const DATABASE: &str = "peer";
const SCHEMA: &str = include_str!("../../peers/node/schema.sql");
/// More connections cannot make it faster.
const CONNECTIONS: [usize; 3] = [1, USUAL, 256];
const READY_WITHIN: Duration = Duration::from_secs(60);
const STOPPED_WITHIN: Duration = Duration::from_secs(40);
const STORED_WITHIN: Duration = Duration::from_secs(600);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The results of the Node implementation in a round.
#[derive(Debug, Clone, Serialize)]
pub struct PeerRound {
    /// Closed loops by number of connections.
    pub accepted: Vec<(usize, Outcome)>,
    /// Events per second that one consumer stored from a full queue.
    pub drained: f64,
    /// Events per second from request to row, by number of connections.
    pub end_to_end: Vec<(usize, f64)>,
}

/// Fields are dropped in this order: users before what they use.
#[derive(Debug)]
pub(super) struct Peer {
    receiver: Process,
    address: SocketAddr,
    requests: Arc<Requests>,
    accepted: u64,
    stored: u64,
    pool: PgPool,
    scripts: PathBuf,
    logs: PathBuf,
    amqp_url: String,
    database_url: String,
}

/// A consumer, and the file in which it reports how much it has stored.
struct Consumer {
    process: Process,
    url: String,
}

impl Peer {
    /// Installs the npm packages, and starts the receiver.
    ///
    /// # Errors
    /// When there is no Node or no npm, or npm's registry cannot be reached.
    pub(super) async fn start(workspace: &Path, stores: &Stores, logs: &Path) -> Result<Self> {
        let scripts = workspace.join("stack/peers/node");
        let npm = Command::new("npm")
            .args(["ci", "--no-audit", "--no-fund", "--prefix"])
            .arg(&scripts)
            .output()
            .await
            .context("cannot run npm; `apt-get install nodejs npm` brings it")?;
        ensure!(
            npm.status.success(),
            "npm ci failed: {}",
            String::from_utf8_lossy(&npm.stderr)
        );
        stores.postgres.create_database(DATABASE).await?;
        let database_url = stores.postgres.url(DATABASE);
        let pool = PgPool::connect_lazy(&database_url)?;
        sqlx::raw_sql(SCHEMA).execute(&pool).await?;
        let address = ports::free()?;
        let amqp_url = stores.amqp_url();
        let spec = Spec::new("node-receiver", "node")
            .args([scripts.join("receiver.js")])
            .env("NODE_ENV", "production")
            .env("AMQP_URL", &amqp_url)
            .env("WEBHOOK_SECRET", DEVELOPMENT_SECRET)
            .env("PORT", address.port().to_string())
            .log(logs.join("node-receiver.log"));
        let receiver = Process::spawn(spec)?;
        until_listening(&receiver, address).await?;
        Ok(Self {
            receiver,
            address,
            requests: Arc::new(Requests::new(address)?),
            accepted: 0,
            stored: 0,
            pool,
            scripts,
            logs: logs.to_owned(),
            amqp_url,
            database_url,
        })
    }

    /// Measures it in the same way as [`super::round`] measures the pipeline.
    pub(super) async fn round(&mut self, slice: Duration, drained: u64) -> Result<PeerRound> {
        let closed = |connections| Load {
            connections,
            pace: Pace::Closed,
            duplicates: 0.0,
            during: slice,
        };
        let mut accepted = Vec::new();
        for connections in CONNECTIONS {
            accepted.push((connections, self.accept(closed(connections)).await?));
        }
        while self.accepted - self.stored < drained {
            let fill = Load {
                during: FILL_FOR,
                ..closed(USUAL)
            };
            self.accept(fill).await?;
        }
        let drained = self.drain().await?;
        let mut end_to_end = Vec::new();
        for connections in END_TO_END {
            end_to_end.push((connections, self.store(closed(connections)).await?));
        }
        Ok(PeerRound {
            accepted,
            drained,
            end_to_end,
        })
    }

    /// Events that were accepted and have no row, or the other way round.
    pub(super) async fn missing(&self) -> Result<u64> {
        let stored: i64 = sqlx::query_scalar("select count(*) from peer_events")
            .fetch_one(&self.pool)
            .await?;
        Ok(self.accepted.abs_diff(u64::try_from(stored)?))
    }

    /// Stops the receiver.
    pub(super) async fn stop(self) -> Result<()> {
        self.pool.close().await;
        let status = self.receiver.terminate(STOPPED_WITHIN).await?;
        ensure!(status.success(), "{}", self.receiver.how_it_ended());
        Ok(())
    }

    async fn accept(&mut self, load: Load) -> Result<Outcome> {
        let outcome = load.put_on(self.address, &self.requests).await?;
        self.accepted += outcome.accepted;
        Ok(outcome)
    }

    /// Lets a consumer store the queued events: events per second.
    async fn drain(&mut self) -> Result<f64> {
        let consumer = self.start_consumer().await?;
        let first = loop {
            match consumer.stored().await? {
                0 => sleep(LOOK_EVERY).await,
                stored => break stored,
            }
        };
        let started = Instant::now();
        let all = self.until_stored(&consumer).await?;
        let took = started.elapsed();
        consumer.stop().await?;
        Ok((all - first) as f64 / took.as_secs_f64())
    }

    /// Load while a consumer stores: events stored per second, until all were stored.
    async fn store(&mut self, load: Load) -> Result<f64> {
        let consumer = self.start_consumer().await?;
        let started = Instant::now();
        let outcome = self.accept(load).await?;
        self.until_stored(&consumer).await?;
        let rate = outcome.accepted as f64 / started.elapsed().as_secs_f64();
        consumer.stop().await?;
        Ok(rate)
    }

    async fn start_consumer(&self) -> Result<Consumer> {
        let address = ports::free()?;
        let spec = Spec::new("node-consumer", "node")
            .args([self.scripts.join("consumer.js")])
            .env("NODE_ENV", "production")
            .env("AMQP_URL", &self.amqp_url)
            .env("DATABASE_URL", &self.database_url)
            .env("PORT", address.port().to_string())
            .log(self.logs.join("node-consumer.log"));
        let consumer = Consumer {
            process: Process::spawn(spec)?,
            url: format!("http://{address}/"),
        };
        until_listening(&consumer.process, address).await?;
        Ok(consumer)
    }

    /// Waits until the consumer has stored the events that were accepted and not stored before, and returns
    /// their number.
    async fn until_stored(&mut self, consumer: &Consumer) -> Result<u64> {
        let end = Instant::now() + STORED_WITHIN;
        let expected = self.accepted - self.stored;
        loop {
            let stored = consumer.stored().await?;
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
}

impl Consumer {
    async fn stored(&self) -> Result<u64> {
        let answer = reqwest::get(&self.url).await;
        let answer = answer.with_context(|| self.process.how_it_ended())?;
        answer.text().await?.parse().context("no number")
    }

    async fn stop(self) -> Result<()> {
        let status = self.process.terminate(STOPPED_WITHIN).await?;
        ensure!(status.success(), "{}", self.process.how_it_ended());
        Ok(())
    }
}

async fn until_listening(process: &Process, address: SocketAddr) -> Result<()> {
    let end = Instant::now() + READY_WITHIN;
    while TcpStream::connect(address).await.is_err() {
        ensure!(
            process.is_running() && Instant::now() < end,
            "it does not listen: {}",
            process.how_it_ended()
        );
        sleep(LOOK_EVERY).await;
    }
    Ok(())
}
