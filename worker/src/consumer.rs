//! The first way in: a family's queue. Batches are stored side by side; what is acknowledged is
//! only ever the contiguous prefix of finished deliveries, on the channel that delivered them.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, anyhow};
use chrono::Utc;
use futures_util::{FutureExt, StreamExt};
use lapin::{
    Channel, Connection, Consumer as Deliveries,
    message::Delivery,
    options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use shared::{
    Family, Program,
    broker::{self, BrokerConnection, BrokerUrl, Reconnects},
    message::Delivered,
    topology::{Declare, Sight, Topology},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    acks::Acks,
    metrics::Metrics,
    persistence::{Abandoned, Persistence},
    work::Work,
};

/// A message that was given to a consumer this often without being acknowledged may be what stops
/// the consumers.
const SUSPICIOUS_REDELIVERIES: u64 = 2;

/// Subscribing on a fresh connection.
const SUBSCRIBE_DEADLINE: Duration = Duration::from_secs(10);

/// RabbitMQ 3.10 can leave a consumer without deliveries, and without a word, whose queue was deleted
/// and declared again at once. Subscribing anew costs an idle worker nothing.
const RESUBSCRIBE_AFTER: Duration = Duration::from_secs(60);

/// Ending the subscription at a stop, which must leave time for what was delivered.
const CANCEL_DEADLINE: Duration = Duration::from_secs(5);

/// Closing a connection whose broker may be gone.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);

/// Consumes one family's queue.
pub struct Consumer {
    /// Where.
    pub url: BrokerUrl,
    /// What.
    pub topology: Topology,
    /// Whether to create it.
    pub declare: Declare,
    /// Whose queue.
    pub family: Family,
    /// Stores what comes.
    pub persistence: Arc<Persistence>,
    /// Counts.
    pub metrics: Metrics,
    /// A batch is full with so many events, of which the last message may bring more; also the most
    /// messages in hand.
    pub batch_size: usize,
    /// The most transactions at once.
    pub batches_in_flight: usize,
    /// How long a batch that is not full waits for more.
    pub linger: Duration,
}

/// Why consuming on one connection ended.
enum Ended {
    /// As asked: everything delivered is finished and acknowledged.
    Stopped,
    /// The connection, the channel or the subscription is gone.
    Lost(String),
    /// Postgres is away for long; the messages are back in the queue.
    Unstorable,
    /// Nothing came for a while.
    Idle,
}

/// Messages to be stored together.
#[derive(Default)]
struct Batch {
    deliveries: Vec<Delivery>,
    /// How many events they announce.
    events: usize,
}

impl Batch {
    fn push(&mut self, delivery: Delivery) {
        self.events += Delivered::announced_by(&delivery.properties);
        self.deliveries.push(delivery);
    }

    fn is_empty(&self) -> bool {
        self.deliveries.is_empty()
    }

    fn tags(&self) -> Vec<u64> {
        self.deliveries.iter().map(|d| d.delivery_tag).collect()
    }
}

/// The deliveries of a batch, and whether they were stored.
type Finished = (Vec<u64>, Result<(), Abandoned>);

impl Consumer {
    /// Consumes, over as many connections as it takes, until `stop`; then finishes what was
    /// delivered, at the latest when `abandon` comes.
    pub async fn run(self, stop: CancellationToken, abandon: CancellationToken) {
        let mut reconnects = Reconnects::default();
        while !stop.is_cancelled() {
            let started = Instant::now();
            match self.consume_on_one_connection(&stop, &abandon).await {
                Ok(Ended::Stopped) => return,
                Ok(Ended::Lost(reason)) => {
                    warn!(family = %self.family, reason, "the connection to RabbitMQ ended; connecting again");
                }
                // Subscribed again in a moment, so it still counts as subscribed.
                Ok(Ended::Idle) => continue,
                Ok(Ended::Unstorable) => {
                    warn!(family = %self.family, "the messages are back in the queue until postgres is well");
                }
                Err(error) => {
                    let error = shared::reason::one_line(&error);
                    warn!(family = %self.family, error, "cannot consume");
                }
            }
            self.metrics.consuming.set(0);
            let delay = reconnects.delay_after(started.elapsed());
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(delay) => {}
            }
        }
    }

    async fn consume_on_one_connection(
        &self,
        stop: &CancellationToken,
        abandon: &CancellationToken,
    ) -> anyhow::Result<Ended> {
        let Some(subscribed) = stop.run_until_cancelled(self.subscribe()).await else {
            return Ok(Ended::Stopped);
        };
        let (connection, channel, deliveries) = subscribed?;
        if self.metrics.consuming.get() == 0 {
            info!(family = %self.family, "consuming");
        }
        self.metrics.consuming.set(1);
        // Batches of this connection are of no use to the next one: its broker delivers them again.
        let abandon = abandon.child_token();
        let mut running = JoinSet::new();
        let ended = tokio::select! {
            ended = self.consume(&channel, deliveries, &mut running, stop, &abandon) => ended,
            reason = broker::ended(&connection) => Ended::Lost(reason),
        };
        if !matches!(ended, Ended::Idle) {
            self.metrics.consuming.set(0);
        }
        abandon.cancel();
        // What is being committed may finish; it is then known when it comes again.
        while running.join_next().await.is_some() {}
        // Best effort: closing gives unacknowledged messages back, and so does a broken connection.
        timeout(CLOSE_DEADLINE, connection.close(200, "done".into()))
            .await
            .ok();
        Ok(ended)
    }

    async fn subscribe(&self) -> anyhow::Result<(BrokerConnection, Channel, Deliveries)> {
        // While they cannot be stored, messages are better off in the queue.
        self.persistence
            .probe()
            .await
            .map_err(|reason| anyhow!("postgres is not ready: {reason}"))?;
        let connection = broker::connect(&self.url, &format!("{}-worker", self.family)).await?;
        let drifts = self
            .topology
            .declare(
                &connection,
                self.declare,
                Sight::Of(Program::Worker(self.family)),
            )
            .await?;
        self.metrics.service.set_drift(&self.topology, &drifts);
        let (channel, deliveries) = timeout(SUBSCRIBE_DEADLINE, self.open(&connection))
            .await
            .context("RabbitMQ did not answer in time")??;
        Ok((connection, channel, deliveries))
    }

    async fn open(&self, connection: &Connection) -> anyhow::Result<(Channel, Deliveries)> {
        let channel = connection.create_channel().await?;
        // Messages, of which most have several events under load: enough that the next batch is here
        // when one is finished, and no more than fits into memory.
        let prefetch = self.batch_size;
        channel
            .basic_qos(
                u16::try_from(prefetch).unwrap_or(u16::MAX),
                BasicQosOptions::default(),
            )
            .await?;
        let queue = self.topology.queue(self.family);
        let deliveries = channel
            .basic_consume(
                queue.as_str().into(),
                "".into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            )
            .await
            .with_context(|| format!("cannot consume {queue}"))?;
        Ok((channel, deliveries))
    }

    async fn consume(
        &self,
        channel: &Channel,
        mut deliveries: Deliveries,
        running: &mut JoinSet<Finished>,
        stop: &CancellationToken,
        abandon: &CancellationToken,
    ) -> Ended {
        let mut acks = Acks::default();
        let mut batch = Batch::default();
        let mut flush_at = Instant::now();
        let mut stopping = false;
        let mut last_delivery = Instant::now();
        let mut exhausted = false;
        loop {
            let full = batch.events >= self.batch_size;
            let has_slot = running.len() < self.batches_in_flight;
            if exhausted && batch.is_empty() && running.is_empty() {
                return Ended::Stopped;
            }
            tokio::select! {
                Some(finished) = running.join_next(), if !running.is_empty() => {
                    let (tags, outcome) = match finished {
                        Ok(finished) => finished,
                        // Its message comes again, is counted, and in the end set aside.
                        Err(panic) => return Ended::Lost(panic.to_string()),
                    };
                    if outcome == Err(Abandoned) {
                        return if stopping {
                            Ended::Lost("stopped before everything was stored".to_owned())
                        } else {
                            Ended::Unstorable
                        };
                    }
                    if let Some(tag) = acks.finish(tags)
                        && let Err(error) = acknowledge(channel, tag).await
                    {
                        return Ended::Lost(error.to_string());
                    }
                }
                delivery = deliveries.next(), if !full && !exhausted => {
                    last_delivery = Instant::now();
                    if batch.is_empty() {
                        flush_at = last_delivery + self.linger;
                    }
                    // Whatever has arrived by now needs no further turn of this loop. The end of the
                    // subscription arrives in the same way, and only once.
                    let mut arrived = Some(delivery);
                    while let Some(delivery) = arrived {
                        match delivery {
                            Some(Ok(delivery)) => batch.push(delivery),
                            Some(Err(error)) => return Ended::Lost(error.to_string()),
                            None if stopping => exhausted = true,
                            None => {
                                return Ended::Lost("the broker cancelled the subscription".to_owned());
                            }
                        }
                        arrived = if batch.events < self.batch_size && !exhausted {
                            deliveries.next().now_or_never()
                        } else {
                            None
                        };
                    }
                }
                () = sleep_until(flush_at), if has_slot && !batch.is_empty() && !full => {
                    self.start(std::mem::take(&mut batch), running, abandon);
                }
                () = std::future::ready(()), if has_slot && full => {
                    self.start(std::mem::take(&mut batch), running, abandon);
                }
                () = sleep_until(last_delivery + RESUBSCRIBE_AFTER),
                    if batch.is_empty() && running.is_empty() && !stopping =>
                {
                    return Ended::Idle;
                }
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    let cancel = channel.basic_cancel(deliveries.tag(), BasicCancelOptions::default());
                    match timeout(CANCEL_DEADLINE, cancel).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => return Ended::Lost(error.to_string()),
                        // What is not being stored yet is better off in the queue by then.
                        Err(_elapsed) => {
                            return Ended::Lost("RabbitMQ did not end the subscription".to_owned());
                        }
                    }
                }
            }
        }
    }

    /// Starts to bring a batch to safety.
    fn start(&self, batch: Batch, running: &mut JoinSet<Finished>, abandon: &CancellationToken) {
        let tags = batch.tags();
        let now = Utc::now();
        let (suspicious, ordinary): (Vec<Delivered>, Vec<Delivered>) = batch
            .deliveries
            .into_iter()
            .flat_map(|d| Delivered::from_message(&d.properties, d.redelivered, d.data, now))
            .partition(|delivered| delivered.redeliveries >= SUSPICIOUS_REDELIVERIES);
        let suspicious: Vec<Work> = suspicious.into_iter().map(Work::from).collect();
        let ordinary: Vec<Work> = ordinary.into_iter().map(Work::from).collect();
        let persistence = Arc::clone(&self.persistence);
        let abandon = abandon.clone();
        running.spawn(async move {
            let outcome = async {
                if !ordinary.is_empty() {
                    persistence.persist(ordinary, &abandon).await?;
                }
                if !suspicious.is_empty() {
                    persistence.isolate(&suspicious, &abandon).await?;
                }
                Ok(())
            };
            (tags, outcome.await)
        });
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "this is the one place that acknowledges"
)]
async fn acknowledge(channel: &Channel, tag: u64) -> Result<(), lapin::Error> {
    channel
        .basic_ack(tag, BasicAckOptions { multiple: true })
        .await
}
