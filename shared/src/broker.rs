//! Connecting to RabbitMQ with deadlines on everything, and noticing when a connection has ended.
//!
//! lapin's own recovery is not used: it gives up after some tries and does not bring back channels
//! that the broker closed. Each service has a loop of its own instead (connect, declare, work, on
//! any error back off and start over), which ends only with the process.

use std::time::Duration;

use anyhow::Context;
use backon::ExponentialBuilder;
use futures_util::{Stream, StreamExt};
use lapin::{
    Channel, Connection, ConnectionProperties, Event,
    uri::{AMQPQueryString, AMQPUri},
};
use secrecy::{ExposeSecret, SecretString};

/// How long TCP, TLS and the AMQP handshake may take together.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// Seconds between heartbeats; a peer that is silent for two of them is gone. This, not TCP, is
/// what ends a half-open connection.
const HEARTBEAT_S: u16 = 5;

/// An AMQP address that was checked at startup. Its password never shows in debug output.
#[derive(Clone, Debug)]
pub struct BrokerUrl(SecretString);

impl BrokerUrl {
    /// Checks an `amqp://` or `amqps://` address. The error does not repeat it, as it may hold a
    /// password.
    pub fn parse(url: &str) -> Result<Self, String> {
        url.parse::<AMQPUri>()
            .map(|_| Self(SecretString::from(url)))
            .map_err(|_| {
                "not an AMQP address of the form amqp://user:password@host:5672/vhost".to_owned()
            })
    }

    fn uri(&self) -> AMQPUri {
        let mut uri: AMQPUri = self
            .0
            .expose_secret()
            .parse()
            .expect("the address was parsed once by the constructor");
        uri.query = AMQPQueryString {
            heartbeat: uri.query.heartbeat.or(Some(HEARTBEAT_S)),
            ..uri.query
        };
        uri
    }
}

/// Opens a connection that shows as `name` in RabbitMQ's management.
pub async fn connect(url: &BrokerUrl, name: &str) -> anyhow::Result<Connection> {
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    tokio::time::timeout(
        CONNECT_DEADLINE,
        Connection::connect_uri(url.uri(), properties),
    )
    .await
    .context("the broker did not answer in time")?
    .context("cannot connect to the broker")
}

/// Resolves when the connection or its working channel has ended, with the reason. Take `events`
/// from [`Connection::events_listener`] before using the connection, so that nothing is missed.
pub async fn ended(
    connection: &Connection,
    channel: &Channel,
    events: impl Stream<Item = Event>,
) -> String {
    /// What ends without an event (a channel that the broker closes, for one) is noticed by looking.
    const LOOK_EVERY: Duration = Duration::from_millis(200);
    let mut events = std::pin::pin!(events);
    loop {
        match tokio::time::timeout(LOOK_EVERY, events.next()).await {
            Ok(Some(Event::Error(error))) => return error.to_string(),
            Ok(Some(_)) => {}
            Ok(None) => return "the connection is closed".to_owned(),
            Err(_elapsed) if !connection.status().connected() => {
                return "the connection is gone".to_owned();
            }
            Err(_elapsed) if !channel.status().connected() => {
                return "the broker closed the channel".to_owned();
            }
            Err(_elapsed) => {}
        }
    }
}

/// The delays between attempts to reach a store: from 100 ms to 5 s, with jitter, without end.
pub fn reconnect_delays() -> impl Iterator<Item = Duration> {
    backon::BackoffBuilder::build(
        ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(100))
            .with_max_delay(Duration::from_secs(5))
            .with_jitter()
            .without_max_times(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_address_is_refused_without_repeating_it() {
        for bad in [
            "",
            "http://host",
            "amqp//x",
            "amqp://user:hunter2@host:port/",
        ] {
            let error = BrokerUrl::parse(bad).expect_err("refused");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_password_does_not_show_in_debug_output() {
        let url = BrokerUrl::parse("amqp://user:hunter2@host:5672/%2f").expect("valid");
        assert!(!format!("{url:?}").contains("hunter2"));
    }

    #[test]
    fn reconnecting_never_gives_up_and_never_waits_long() {
        let delays: Vec<_> = reconnect_delays().take(1_000).collect();
        assert_eq!(delays.len(), 1_000);
        assert!(delays.iter().all(|d| *d <= Duration::from_secs(10)));
    }
}
