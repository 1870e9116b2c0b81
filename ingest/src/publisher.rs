//! Publishing with confirms, over a connection that is brought back for as long as the process
//! lives.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::try_join_all;
use lapin::{
    BasicProperties, Channel, Confirmation, Connection,
    options::{BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions},
    types::FieldTable,
};
use shared::{
    AcceptedEvent, Program,
    broker::{self, BrokerConnection, BrokerUrl, Reconnects},
    database::{self, Pool},
    message::{Message, Receipt},
    metrics::ServiceMetrics,
    topology::{Declare, Sight, Topology},
};
use thiserror::Error;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::receipts;

/// Two round trips, over a long way perhaps.
const PROBE_DEADLINE: Duration = Duration::from_secs(2);

/// Between two declarations because of events without a queue.
const REDECLARE_PAUSE: Duration = Duration::from_secs(5);

/// Why an event is not known to be with the broker. It may be there all the same: the workers
/// absorb what then arrives twice.
#[derive(Clone, Debug, Error)]
pub enum PublishError {
    /// There is no connection just now.
    #[error("not connected to RabbitMQ")]
    Disconnected,
    /// It failed a moment ago and was not asked.
    #[error("RabbitMQ failed a moment ago")]
    LeftAlone,
    /// The broker has a memory or disk alarm and takes nothing.
    #[error("RabbitMQ blocks publishers (memory or disk alarm)")]
    Blocked,
    /// No confirm before the deadline.
    #[error("RabbitMQ did not confirm in time")]
    Deadline,
    /// The broker refused it.
    #[error("RabbitMQ refused the message")]
    Nack,
    /// No queue takes it, or another event of its batch.
    #[error("RabbitMQ has no queue for an event of the batch")]
    Unroutable,
    /// The connection or channel broke.
    #[error("publishing failed: {0}")]
    Broken(lapin::Error),
    /// The exchange of events is gone, or may not be used.
    #[error("RabbitMQ does not let ingest use its exchange: {0}")]
    NoExchange(lapin::Error),
    /// The account has no right to publish to the exchange of events.
    #[error("RabbitMQ refuses to let ingest publish to its exchange: {0}")]
    Forbidden(lapin::Error),
}

/// A connection that is open now, and its channels that no batch is using.
///
/// Each batch has a channel of its own. A returned message does not name its publish, and lapin passes
/// it to the next confirm of the channel. On a shared channel that could be the confirm of another
/// batch, and the unroutable event would count as accepted.
struct Link {
    connection: BrokerConnection,
    idle_channels: Mutex<Vec<Channel>>,
    /// The exchange for probes is not there, or is not ours to use: an older `hookctl setup` made
    /// the topology. Asking again would leave an error in the broker's log each time.
    cannot_probe: AtomicBool,
    /// The broker refused to let the account publish events when it was asked last.
    is_forbidden: AtomicBool,
}

impl Link {
    /// Says once that nothing can be published, until that has changed.
    fn forbid(&self, exchange: &str, error: lapin::Error) -> PublishError {
        if !self.is_forbidden.swap(true, Ordering::Relaxed) {
            error!(
                exchange,
                %error,
                "RabbitMQ refuses to let ingest publish; events are spooled in Postgres meanwhile"
            );
        }
        PublishError::Forbidden(error)
    }

    async fn channel(&self) -> Result<Channel, lapin::Error> {
        let idle = self.idle().pop();
        match idle.filter(|channel| channel.status().connected()) {
            Some(channel) => Ok(channel),
            None => {
                let channel = self.connection.create_channel().await?;
                channel
                    .confirm_select(ConfirmSelectOptions::default())
                    .await?;
                Ok(channel)
            }
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Channel>> {
        self.idle_channels
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Publishes to the events exchange.
#[derive(Clone)]
pub struct Publisher {
    link: watch::Receiver<Option<Arc<Link>>>,
    redeclare: mpsc::Sender<String>,
    exchange: String,
    probe_exchange: String,
}

/// Keeps a [`Publisher`] connected.
pub struct Supervisor {
    url: BrokerUrl,
    topology: Topology,
    declare: Declare,
    metrics: ServiceMetrics,
    link: watch::Sender<Option<Arc<Link>>>,
    /// Why the topology has to be declared again.
    redeclare: mpsc::Receiver<String>,
    /// Where events go while there is no connection.
    spool: Pool,
}

/// A publisher and the supervisor that must run for it.
pub fn new(
    url: BrokerUrl,
    topology: Topology,
    declare: Declare,
    metrics: ServiceMetrics,
    spool: Pool,
) -> (Publisher, Supervisor) {
    let (sender, receiver) = watch::channel(None);
    // One reason is enough; further ones are dropped while it waits.
    let (redeclare, reasons) = mpsc::channel(1);
    let publisher = Publisher {
        link: receiver,
        redeclare,
        exchange: topology.events_exchange(),
        probe_exchange: topology.probe(),
    };
    let supervisor = Supervisor {
        url,
        topology,
        declare,
        metrics,
        link: sender,
        redeclare: reasons,
        spool,
    };
    (publisher, supervisor)
}

impl Publisher {
    /// Publishes the events, pipelined, and waits for their confirms until `deadline`. The answer is
    /// in the order of the events; `Ok` means that a queue has the event durably.
    pub async fn publish(
        &self,
        events: &[&AcceptedEvent],
        receipt: Receipt,
        deadline: Instant,
    ) -> Vec<Result<(), PublishError>> {
        let all = |error: PublishError| vec![Err(error); events.len()];
        let link = self.link.borrow().clone();
        let Some(link) = link else {
            return all(PublishError::Disconnected);
        };
        if link.connection.status().blocked() {
            return all(PublishError::Blocked);
        }
        let messages = Message::of(events, receipt);
        let publish = async {
            let channel = link.channel().await?;
            let confirmations = self.publish_on(&channel, &messages).await?;
            Ok((channel, confirmations))
        };
        // A channel that is dropped in the middle is closed, and nothing of it is believed.
        let (channel, confirmations) = match timeout_at(deadline, publish).await {
            Ok(Ok(published)) => published,
            Ok(Err(error)) if broker::is_forbidden(&error) => {
                return all(link.forbid(&self.exchange, error));
            }
            Ok(Err(error)) => {
                self.redeclare(format!("publishing failed: {error}"));
                return all(PublishError::Broken(error));
            }
            Err(_elapsed) => return all(PublishError::Deadline),
        };
        if confirmations
            .iter()
            .any(|c| matches!(c, Confirmation::Ack(Some(_)) | Confirmation::Nack(Some(_))))
        {
            // Which event was returned is not known, so none counts as accepted.
            self.redeclare("an event has no queue".to_owned());
            return all(PublishError::Unroutable);
        }
        link.idle().push(channel);
        let mut outcomes = vec![Ok(()); events.len()];
        for (message, confirmation) in messages.iter().zip(&confirmations) {
            match confirmation {
                Confirmation::Ack(_) => {}
                Confirmation::Nack(_) => {
                    for &event in &message.events {
                        outcomes[event] = Err(PublishError::Nack);
                    }
                }
                Confirmation::NotRequested => {
                    unreachable!("every channel of a link is in confirm mode")
                }
            }
        }
        outcomes
    }

    fn redeclare(&self, reason: String) {
        self.redeclare.try_send(reason).ok();
    }

    /// Waits for a connection, if there is none, until `deadline`.
    pub async fn connected(&self, deadline: Instant) {
        let mut link = self.link.clone();
        timeout_at(deadline, link.wait_for(Option::is_some))
            .await
            .ok();
    }

    /// All confirmations, or an error if one is missing.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that publishes"
    )]
    async fn publish_on(
        &self,
        channel: &Channel,
        messages: &[Message<'_>],
    ) -> Result<Vec<Confirmation>, lapin::Error> {
        // Without `mandatory` the broker confirms and drops what it cannot route.
        let options = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        // Started together, they reach the socket in few writes: lapin's future of a publish waits
        // until its message is written.
        let publishes = messages.iter().map(|message| {
            channel.basic_publish(
                self.exchange.as_str().into(),
                message.routing_key.into(),
                options,
                &message.body,
                message.properties.clone(),
            )
        });
        let confirms = try_join_all(publishes).await?;
        let mut confirmations = Vec::with_capacity(messages.len());
        for confirm in confirms {
            confirmations.push(confirm.await?);
        }
        Ok(confirmations)
    }

    /// Looks at the exchange of events and has the broker confirm a message in the queue for probes,
    /// as it would have to confirm an event. An error says why nothing can be published now.
    pub async fn probe(&self) -> Result<(), PublishError> {
        let link = self.link.borrow().clone();
        let link = link.ok_or(PublishError::Disconnected)?;
        if link.connection.status().blocked() {
            return Err(PublishError::Blocked);
        }
        match timeout(PROBE_DEADLINE, self.probe_on(&link)).await {
            Ok(outcome) => outcome,
            // The broker tells of an alarm only once something was published.
            Err(_elapsed) if link.connection.status().blocked() => Err(PublishError::Blocked),
            Err(_elapsed) => Err(PublishError::Deadline),
        }
    }

    async fn probe_on(&self, link: &Link) -> Result<(), PublishError> {
        let channel = link.channel().await.map_err(PublishError::Broken)?;
        let passive = ExchangeDeclareOptions {
            passive: true,
            ..ExchangeDeclareOptions::default()
        };
        let found = channel
            .exchange_declare(
                self.exchange.as_str().into(),
                Topology::EVENTS_KIND,
                passive,
                FieldTable::default(),
            )
            .await;
        if let Err(error) = found {
            self.redeclare(format!("the exchange cannot be used: {error}"));
            return Err(if broker::is_refusal(&error) {
                PublishError::NoExchange(error)
            } else {
                PublishError::Broken(error)
            });
        }
        if link.is_forbidden.load(Ordering::Relaxed) {
            self.check_right(link).await?;
        }
        if !link.cannot_probe.load(Ordering::Relaxed) {
            match self.publish_probe(&channel).await {
                Ok(Confirmation::Nack(_)) => return Err(PublishError::Nack),
                // Returned for want of a queue, it was confirmed all the same. A channel that had a
                // message returned is not used again.
                Ok(Confirmation::Ack(Some(_))) => return Ok(()),
                Ok(Confirmation::Ack(None) | Confirmation::NotRequested) => {}
                Err(error) if broker::is_refusal(&error) => {
                    // An account that may publish nothing is refused here first.
                    self.check_right(link).await?;
                    link.cannot_probe.store(true, Ordering::Relaxed);
                    return Ok(());
                }
                Err(error) => return Err(PublishError::Broken(error)),
            }
        }
        link.idle().push(channel);
        Ok(())
    }

    /// Fails unless the account may publish events. RabbitMQ looks at the right before it looks at the
    /// message, so one that it can never accept tells without leaving anything in a queue. Each of them
    /// is an error in the broker's log, so it is asked only where something was refused.
    async fn check_right(&self, link: &Link) -> Result<(), PublishError> {
        let channel = link.channel().await.map_err(PublishError::Broken)?;
        let unacceptable = BasicProperties::default().with_expiration("none".into());
        match self
            .publish_empty(&channel, &self.exchange, unacceptable)
            .await
        {
            Err(error) if broker::is_forbidden(&error) => Err(link.forbid(&self.exchange, error)),
            Err(error) if !broker::is_refusal(&error) => Err(PublishError::Broken(error)),
            _ => {
                if link.is_forbidden.swap(false, Ordering::Relaxed) {
                    info!("RabbitMQ lets ingest publish again");
                }
                Ok(())
            }
        }
    }

    async fn publish_probe(&self, channel: &Channel) -> Result<Confirmation, lapin::Error> {
        let properties = BasicProperties::default();
        self.publish_empty(channel, &self.probe_exchange, properties)
            .await
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that publishes"
    )]
    async fn publish_empty(
        &self,
        channel: &Channel,
        exchange: &str,
        properties: BasicProperties,
    ) -> Result<Confirmation, lapin::Error> {
        let options = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        channel
            .basic_publish(exchange.into(), "".into(), options, b"", properties)
            .await?
            .await
    }
}

impl Supervisor {
    /// Connects, and connects again whenever the connection ends, until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut reconnects = Reconnects::default();
        while !stop.is_cancelled() {
            let started = Instant::now();
            let ended = tokio::select! {
                () = stop.cancelled() => break,
                ended = self.serve_one_connection() => ended,
            };
            self.link.send_replace(None);
            match ended {
                Ok(reason) => {
                    warn!(reason, "the connection to RabbitMQ ended; connecting again");
                }
                Err(error) => self.report_absence(&error).await,
            }
            let delay = reconnects.delay_after(started.elapsed());
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(delay) => {}
            }
        }
        if let Some(link) = self.link.send_replace(None) {
            // Every confirm was awaited before the stop, so nothing is cut off; the broker may be
            // away, hence the limit.
            let close = link.connection.close(200, "stopping".into());
            timeout(PROBE_DEADLINE, close).await.ok();
        }
    }

    /// Resolves with the reason when a connection that worked has ended.
    async fn serve_one_connection(&mut self) -> anyhow::Result<String> {
        let connection = broker::connect(&self.url, "ingest").await?;
        self.declare(&connection).await?;
        info!("connected to RabbitMQ");
        let link = Arc::new(Link {
            connection,
            idle_channels: Mutex::default(),
            cannot_probe: AtomicBool::new(false),
            is_forbidden: AtomicBool::new(false),
        });
        self.link.send_replace(Some(Arc::clone(&link)));
        let mut ended = std::pin::pin!(broker::ended(&link.connection));
        loop {
            let reason = tokio::select! {
                reason = &mut ended => return Ok(reason),
                Some(reason) = self.redeclare.recv() => reason,
            };
            // A queue, binding or exchange is gone. Where this does not help, it is asked for again
            // and again, so not too often.
            warn!(reason, "declaring the topology again");
            self.declare(&link.connection).await?;
            tokio::select! {
                reason = &mut ended => return Ok(reason),
                () = tokio::time::sleep(REDECLARE_PAUSE) => {}
            }
        }
    }

    /// Says what becomes of events meanwhile, which depends on Postgres.
    async fn report_absence(&self, error: &anyhow::Error) {
        let error = shared::reason::one_line(error);
        match database::probe(&self.spool, receipts::PROBE).await {
            Ok(()) => warn!(
                error,
                "RabbitMQ is away; events are spooled in Postgres meanwhile"
            ),
            Err(postgres) => error!(
                error,
                %postgres,
                "RabbitMQ is away, and Postgres takes no event either; senders are answered 503"
            ),
        }
    }

    async fn declare(&self, connection: &Connection) -> anyhow::Result<()> {
        let drifts = self
            .topology
            .declare(connection, self.declare, Sight::Of(Program::Ingest))
            .await?;
        self.metrics.set_drift(&self.topology, &drifts);
        Ok(())
    }
}
