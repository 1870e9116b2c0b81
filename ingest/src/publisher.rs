//! Publishes to RabbitMQ with confirms. The supervisor reconnects for as long as the process lives.

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

/// Time for two round trips over a long distance.
const PROBE_DEADLINE: Duration = Duration::from_secs(2);

/// The shortest time between two declarations of the topology.
const REDECLARE_PAUSE: Duration = Duration::from_secs(5);

/// Why it is not known whether the broker has an event. The broker may have it all the same; the
/// workers absorb the second copy.
#[derive(Clone, Debug, Error)]
pub enum PublishError {
    /// There is no connection now.
    #[error("not connected to RabbitMQ")]
    Disconnected,
    /// The breaker is open, so the broker was not asked.
    #[error("RabbitMQ failed a moment ago")]
    BreakerOpen,
    /// The broker has a memory or disk alarm and accepts nothing.
    #[error("RabbitMQ blocks publishers (memory or disk alarm)")]
    Blocked,
    /// No confirm before the deadline.
    #[error("RabbitMQ did not confirm in time")]
    Deadline,
    /// The broker sent a nack.
    #[error("RabbitMQ refused the message")]
    Nack,
    /// This event, or another one of its batch, was returned as unroutable.
    #[error("RabbitMQ has no queue for an event of the batch")]
    Unroutable,
    /// The connection or channel broke.
    #[error("publishing failed: {0}")]
    Broken(lapin::Error),
    /// The exchange of events is missing, or the account may not use it.
    #[error("RabbitMQ does not let ingest use its exchange: {0}")]
    NoExchange(lapin::Error),
    /// The account has no right to publish to the exchange of events.
    #[error("RabbitMQ refuses to let ingest publish to its exchange: {0}")]
    Forbidden(lapin::Error),
}

/// An open connection, and its channels that no batch is using.
///
/// Each batch has a channel of its own. A returned message does not say which publish it belongs
/// to, and lapin attaches it to the channel's next confirm. On a shared channel that could be the
/// confirm of another batch, and the unroutable event would count as accepted.
struct Link {
    connection: BrokerConnection,
    idle_channels: Mutex<Vec<Channel>>,
    /// The exchange for probes is missing or not permitted, because an older `hookctl setup` made
    /// the topology. Each further attempt would leave an error in the broker's log.
    cannot_probe: AtomicBool,
    /// Whether the broker refused the account's last publish to the exchange of events.
    is_forbidden: AtomicBool,
}

impl Link {
    /// Logs once that the account may not publish, until that has changed.
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
    /// Probed to log what happens to events while there is no connection.
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
    // While one reason waits, further ones are dropped.
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
    /// Publishes the events, pipelined, and waits for their confirms until `deadline`. The results
    /// are in the order of the events. `Ok` means that a queue has stored the event durably.
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
        // If this is dropped at the deadline, the channel closes and its confirms are ignored.
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
            // It is not known which event was returned, so none counts as accepted.
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

    /// Waits until there is a connection, or until `deadline`.
    pub async fn connected(&self, deadline: Instant) {
        let mut link = self.link.clone();
        timeout_at(deadline, link.wait_for(Option::is_some))
            .await
            .ok();
    }

    /// Returns all confirmations, or an error if one is missing.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that publishes"
    )]
    async fn publish_on(
        &self,
        channel: &Channel,
        messages: &[Message<'_>],
    ) -> Result<Vec<Confirmation>, lapin::Error> {
        // Without `mandatory`, the broker confirms unroutable messages and drops them.
        let options = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        // All publishes start together and so reach the socket in few writes; lapin's future
        // resolves only when its message is written.
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

    /// Checks that the exchange of events exists, and publishes a message to the queue for probes,
    /// which the broker must confirm as it would an event. An error says why nothing can be
    /// published now.
    pub async fn probe(&self) -> Result<(), PublishError> {
        let link = self.link.borrow().clone();
        let link = link.ok_or(PublishError::Disconnected)?;
        if link.connection.status().blocked() {
            return Err(PublishError::Blocked);
        }
        match timeout(PROBE_DEADLINE, self.probe_on(&link)).await {
            Ok(outcome) => outcome,
            // The broker reports an alarm only after a publish.
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
                // Returned as unroutable, but confirmed. A channel that got a returned message is
                // not used again.
                Ok(Confirmation::Ack(Some(_))) => return Ok(()),
                Ok(Confirmation::Ack(None) | Confirmation::NotRequested) => {}
                Err(error) if broker::is_refusal(&error) => {
                    // An account without any right to publish is refused here first.
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

    /// Fails unless the account may publish events. RabbitMQ checks the right before the message,
    /// so a message that is always invalid tests the right without reaching a queue. Each test
    /// leaves an error in the broker's log, so it is done only after a refusal.
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
    /// Connects and reconnects until `stop`.
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
            // All confirms were awaited before the stop, so closing cuts nothing off. The broker
            // may be down, hence the timeout.
            let close = link.connection.close(200, "stopping".into());
            timeout(PROBE_DEADLINE, close).await.ok();
        }
    }

    /// Connects and serves until the connection ends. Returns the reason.
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
            // A queue, binding or exchange is missing. If a declaration does not help, the next
            // request follows soon, so pause.
            warn!(reason, "declaring the topology again");
            self.declare(&link.connection).await?;
            tokio::select! {
                reason = &mut ended => return Ok(reason),
                () = tokio::time::sleep(REDECLARE_PAUSE) => {}
            }
        }
    }

    /// Logs what happens to events meanwhile, which depends on Postgres.
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
