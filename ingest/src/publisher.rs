//! Publishing with confirms, over a connection that is brought back for as long as the process
//! lives.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use lapin::{
    Channel, Confirmation, Connection,
    options::{BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions},
    types::FieldTable,
};
use shared::{
    AcceptedEvent,
    broker::{self, BrokerUrl},
    message::Receipt,
    metrics::ServiceMetrics,
    topology::{Declare, Topology},
};
use thiserror::Error;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

const PROBE_DEADLINE: Duration = Duration::from_secs(1);

/// Declaring everything on a fresh connection, which a busy quorum may take a while for.
const SETUP_DEADLINE: Duration = Duration::from_secs(10);

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
    /// No queue takes it. The broker confirms that as well.
    #[error("RabbitMQ has no queue for the message")]
    Unroutable,
    /// The connection or channel broke.
    #[error("publishing failed: {0}")]
    Broken(lapin::Error),
}

/// A way to the broker that is open now.
struct Link {
    connection: Connection,
    channel: Channel,
}

/// Publishes to the events exchange.
#[derive(Clone)]
pub struct Publisher {
    link: watch::Receiver<Option<Arc<Link>>>,
    renew: Arc<Notify>,
    exchange: String,
}

/// Keeps a [`Publisher`] connected.
pub struct Supervisor {
    url: BrokerUrl,
    topology: Topology,
    declare: Declare,
    metrics: ServiceMetrics,
    link: watch::Sender<Option<Arc<Link>>>,
    renew: Arc<Notify>,
}

/// A publisher and the supervisor that must run for it.
pub fn new(
    url: BrokerUrl,
    topology: Topology,
    declare: Declare,
    metrics: ServiceMetrics,
) -> (Publisher, Supervisor) {
    let (sender, receiver) = watch::channel(None);
    let renew = Arc::new(Notify::new());
    let publisher = Publisher {
        link: receiver,
        renew: Arc::clone(&renew),
        exchange: topology.events_exchange(),
    };
    let supervisor = Supervisor {
        url,
        topology,
        declare,
        metrics,
        link: sender,
        renew,
    };
    (publisher, supervisor)
}

impl Publisher {
    /// Publishes the events, pipelined, and waits for their confirms until `deadline`. The answer is
    /// in the order of the events; `Ok` means that a queue has the event durably.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that publishes"
    )]
    pub async fn publish(
        &self,
        events: &[(&AcceptedEvent, Receipt)],
        deadline: Instant,
    ) -> Vec<Result<(), PublishError>> {
        let link = self.link.borrow().clone();
        let Some(link) = link else {
            return vec![Err(PublishError::Disconnected); events.len()];
        };
        if link.connection.status().blocked() {
            return vec![Err(PublishError::Blocked); events.len()];
        }
        let mut outcomes = vec![Err(PublishError::Deadline); events.len()];
        let publish_all = async {
            let mut confirms = Vec::with_capacity(events.len());
            for (event, receipt) in events {
                let sent = link
                    .channel
                    .basic_publish(
                        self.exchange.as_str().into(),
                        event.event_type.as_str().into(),
                        // Without `mandatory` the broker confirms and drops what it cannot route.
                        BasicPublishOptions {
                            mandatory: true,
                            ..BasicPublishOptions::default()
                        },
                        &event.body,
                        event.to_properties(*receipt),
                    )
                    .await;
                confirms.push(sent);
            }
            for (outcome, sent) in outcomes.iter_mut().zip(confirms) {
                let confirmation = match sent {
                    Ok(confirm) => confirm.await,
                    Err(error) => Err(error),
                };
                *outcome = match confirmation {
                    Ok(Confirmation::Ack(None)) => Ok(()),
                    Ok(Confirmation::Ack(Some(_))) => Err(PublishError::Unroutable),
                    Ok(Confirmation::Nack(_)) => Err(PublishError::Nack),
                    Ok(Confirmation::NotRequested) => {
                        unreachable!("every channel of the supervisor is in confirm mode")
                    }
                    Err(error) => Err(PublishError::Broken(error)),
                };
            }
        };
        // Past the deadline the outcomes that are missing stay what they were set to: unknown.
        timeout_at(deadline, publish_all).await.ok();
        if outcomes
            .iter()
            .any(|o| matches!(o, Err(PublishError::Unroutable)))
        {
            // A queue or binding is gone: connecting again declares it again.
            self.renew.notify_one();
        }
        outcomes
    }

    /// Asks the broker for the exchange; an error says why nothing can be published now.
    pub async fn probe(&self) -> Result<(), PublishError> {
        let link = self.link.borrow().clone();
        let link = link.ok_or(PublishError::Disconnected)?;
        if link.connection.status().blocked() {
            return Err(PublishError::Blocked);
        }
        let ask = async {
            let channel = link.connection.create_channel().await?;
            let options = ExchangeDeclareOptions {
                passive: true,
                ..ExchangeDeclareOptions::default()
            };
            channel
                .exchange_declare(
                    self.exchange.as_str().into(),
                    lapin::ExchangeKind::Topic,
                    options,
                    FieldTable::default(),
                )
                .await
        };
        timeout(PROBE_DEADLINE, ask)
            .await
            .map_err(|_elapsed| PublishError::Deadline)?
            .map_err(PublishError::Broken)
    }
}

impl Supervisor {
    /// Connects, and connects again whenever the connection ends, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut delays = broker::reconnect_delays();
        while !stop.is_cancelled() {
            let ended = tokio::select! {
                () = stop.cancelled() => break,
                ended = self.serve_one_connection() => ended,
            };
            self.link.send_replace(None);
            match ended {
                Ok(reason) => {
                    delays = broker::reconnect_delays();
                    warn!(reason, "the connection to RabbitMQ ended; connecting again");
                }
                Err(error) => warn!(
                    error = format!("{error:#}"),
                    "RabbitMQ is away; events are spooled in Postgres meanwhile"
                ),
            }
            let delay = delays.next().unwrap_or_default();
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
    async fn serve_one_connection(&self) -> anyhow::Result<String> {
        let connection = broker::connect(&self.url, "ingest").await?;
        let events = connection.events_listener();
        let channel = timeout(SETUP_DEADLINE, self.set_up(&connection))
            .await
            .context("RabbitMQ did not answer in time")??;
        info!("connected to RabbitMQ");
        let link = Arc::new(Link {
            connection,
            channel,
        });
        self.link.send_replace(Some(Arc::clone(&link)));
        Ok(tokio::select! {
            reason = broker::ended(&link.connection, &link.channel, events) => reason,
            () = self.renew.notified() => "a message had no queue".to_owned(),
        })
    }

    async fn set_up(&self, connection: &Connection) -> anyhow::Result<Channel> {
        let drifts = self
            .topology
            .declare(connection, self.declare)
            .await
            .context("cannot declare the topology")?;
        self.metrics.set_drift(&drifts);
        let channel = connection.create_channel().await?;
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await
            .context("cannot ask for confirms")?;
        Ok(channel)
    }
}
