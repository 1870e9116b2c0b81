//! Declares the topology on the broker, or only compares it.

use std::time::Duration;

use anyhow::Context;
use lapin::{
    Channel, Connection, ErrorKind, ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    protocol::AMQPErrorKind,
    types::{AMQPValue, FieldTable},
};
use tokio::time::timeout;
use tracing::{error, info, warn};

use super::{Declare, Drift, Sight, Topology};
use crate::Family;

/// The time to declare everything; a busy quorum can be slow.
const DECLARE_DEADLINE: Duration = Duration::from_secs(10);

/// Reply codes of AMQP.
const NOT_PERMITTED: u16 = 403;
const NOT_FOUND: u16 = 404;
const OTHER_ARGUMENTS: u16 = 406;

impl Topology {
    /// Declares this topology. Differences are logged and returned, and do not stop the rest from
    /// being declared. An error means that the connection is broken.
    pub async fn declare(
        &self,
        connection: &Connection,
        mode: Declare,
        sight: Sight,
    ) -> anyhow::Result<Vec<Drift>> {
        let drifts = timeout(DECLARE_DEADLINE, self.declare_all(connection, mode, sight))
            .await
            .context("RabbitMQ did not answer in time")?
            .context("cannot declare the topology")?;
        for drift in &drifts {
            drift.log();
        }
        Ok(drifts)
    }

    async fn declare_all(
        &self,
        connection: &Connection,
        mode: Declare,
        sight: Sight,
    ) -> Result<Vec<Drift>, lapin::Error> {
        let mut drifts = Vec::new();
        if mode == Declare::Active || sight.has_exchanges() {
            self.declare_exchanges(connection, mode, sight, &mut drifts)
                .await?;
        }
        for family in Family::ALL {
            if mode == Declare::Active || sight.has_queue(family) {
                self.declare_queue(connection, mode, family, &mut drifts)
                    .await?;
            }
        }
        if mode == Declare::Active || sight.has_exchanges() {
            self.declare_probe(connection, mode, &mut drifts).await?;
        }
        Ok(drifts)
    }

    async fn declare_exchanges(
        &self,
        connection: &Connection,
        mode: Declare,
        sight: Sight,
        drifts: &mut Vec<Drift>,
    ) -> Result<(), lapin::Error> {
        let options = ExchangeDeclareOptions {
            passive: mode == Declare::Passive,
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        let unrouted = self.unrouted_exchange();
        // No service publishes to it, so none has a right on it.
        if mode == Declare::Active || sight == Sight::All {
            let channel = connection.create_channel().await?;
            let declared = channel
                .exchange_declare(
                    unrouted.as_str().into(),
                    ExchangeKind::Fanout,
                    options,
                    FieldTable::default(),
                )
                .await;
            note_drift(declared, &unrouted, drifts)?;
        }

        let mut arguments = FieldTable::default();
        arguments.insert(
            "alternate-exchange".into(),
            AMQPValue::LongString(unrouted.as_str().into()),
        );
        let events = self.events_exchange();
        let channel = connection.create_channel().await?;
        let declared = channel
            .exchange_declare(
                events.as_str().into(),
                Self::EVENTS_KIND,
                options,
                arguments,
            )
            .await;
        note_drift(declared, &events, drifts)
    }

    async fn declare_queue(
        &self,
        connection: &Connection,
        mode: Declare,
        family: Family,
        drifts: &mut Vec<Drift>,
    ) -> Result<(), lapin::Error> {
        let queue = self.queue(family);
        // A refused declaration closes its channel, so each entity gets its own channel.
        let channel = connection.create_channel().await?;
        let options = QueueDeclareOptions {
            passive: mode == Declare::Passive,
            durable: true,
            ..QueueDeclareOptions::default()
        };
        let mut declared = declare(
            channel.clone(),
            &queue,
            options,
            Topology::queue_arguments(),
        )
        .await;
        let refused = declared.is_err();
        if mode == Declare::Active
            && refusal(&declared).is_some_and(|(code, _)| code == OTHER_ARGUMENTS)
        {
            let channel = connection.create_channel().await?;
            let earlier = Topology::earlier_queue_arguments();
            let as_earlier = declare(channel, &queue, options, earlier).await;
            if as_earlier.is_ok() {
                info!(
                    queue,
                    "the queue was declared by an earlier version, without x-overflow; see the upgrade notes"
                );
                declared = as_earlier;
            }
        }
        note_drift(declared, &queue, drifts)?;
        if mode == Declare::Passive {
            return Ok(());
        }
        // The queue exists, perhaps with other arguments. It is bound in any case, because events
        // must still reach it.
        let channel = if refused {
            connection.create_channel().await?
        } else {
            channel
        };
        let bound = self.bind(&channel, family, &queue).await;
        note_drift(bound, &queue, drifts)
    }

    async fn declare_probe(
        &self,
        connection: &Connection,
        mode: Declare,
        drifts: &mut Vec<Drift>,
    ) -> Result<(), lapin::Error> {
        let name = self.probe();
        let channel = connection.create_channel().await?;
        let options = ExchangeDeclareOptions {
            passive: mode == Declare::Passive,
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        let declared = channel
            .exchange_declare(
                name.as_str().into(),
                ExchangeKind::Fanout,
                options,
                FieldTable::default(),
            )
            .await;
        note_drift(declared, &name, drifts)?;
        // A probe shows whether the queue exists; a service has no right to look at it.
        if mode == Declare::Passive {
            return Ok(());
        }
        let channel = connection.create_channel().await?;
        let made = async {
            channel
                .queue_declare(
                    name.as_str().into(),
                    QueueDeclareOptions::durable(),
                    Self::probe_queue_arguments(),
                )
                .await?;
            channel
                .queue_bind(
                    name.as_str().into(),
                    name.as_str().into(),
                    "".into(),
                    QueueBindOptions::default(),
                    FieldTable::default(),
                )
                .await
        };
        note_drift(made.await, &name, drifts)
    }

    async fn bind(
        &self,
        channel: &Channel,
        family: Family,
        queue: &str,
    ) -> Result<(), lapin::Error> {
        let (exchange, key) = match family.resource() {
            Some(resource) => (self.events_exchange(), resource),
            None => (self.unrouted_exchange(), ""),
        };
        channel
            .queue_bind(
                queue.into(),
                exchange.as_str().into(),
                key.into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await
    }
}

impl Drift {
    /// Logs the difference for operators.
    pub fn log(&self) {
        let Self {
            entity,
            reason,
            remedy,
        } = self;
        error!(entity, reason, remedy, "the broker's topology differs");
    }
}

async fn declare(
    channel: Channel,
    queue: &str,
    options: QueueDeclareOptions,
    arguments: FieldTable,
) -> Result<(), lapin::Error> {
    let declared = channel.queue_declare(queue.into(), options, arguments);
    declared.await.map(|_| ())
}

/// The code and text of a refusal that closed only the channel.
fn refusal(declared: &Result<(), lapin::Error>) -> Option<(u16, String)> {
    let ErrorKind::ProtocolError(error) = declared.as_ref().err()?.kind() else {
        return None;
    };
    matches!(error.kind(), AMQPErrorKind::Soft(_))
        .then(|| (error.get_id(), error.get_message().to_string()))
}

/// Records a refusal as drift, unless the account may not see the entity. Any other error means a
/// broken connection.
fn note_drift(
    declared: Result<(), lapin::Error>,
    entity: &str,
    drifts: &mut Vec<Drift>,
) -> Result<(), lapin::Error> {
    let Some((code, reason)) = refusal(&declared) else {
        return declared;
    };
    match remedy(code) {
        Some(remedy) => drifts.push(Drift {
            entity: entity.to_owned(),
            reason,
            remedy,
        }),
        // A service that needs the entity gets its own error when it uses it.
        None => warn!(
            entity,
            reason, "not permitted to declare it or to look at it; not compared"
        ),
    }
    Ok(())
}

/// What to do about a refusal with this code; `None` if it says nothing about the topology.
fn remedy(code: u16) -> Option<&'static str> {
    match code {
        NOT_PERMITTED => None,
        NOT_FOUND => Some("run `hookctl setup`, or start a service with DECLARE_TOPOLOGY=true"),
        OTHER_ARGUMENTS => Some(
            "compare its arguments with the topology in the documentation, let it run empty, \
             delete it and run `hookctl setup`",
        ),
        _ => Some("`hookctl doctor` looks closer"),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(403, None)]
    #[case(404, Some("setup"))]
    #[case(405, Some("doctor"))]
    #[case(406, Some("delete it"))]
    fn only_other_arguments_are_a_reason_to_delete(
        #[case] code: u16,
        #[case] expected: Option<&str>,
    ) {
        let remedy = remedy(code);
        assert_eq!(remedy.is_some(), expected.is_some());
        let text = remedy.unwrap_or_default();
        assert!(text.contains(expected.unwrap_or_default()), "{text}");
        assert_eq!(text.contains("delete"), code == OTHER_ARGUMENTS);
    }
}
