//! Connecting to RabbitMQ with deadlines on everything, and noticing when a connection has ended.
//!
//! lapin's own recovery is not used: it gives up after some tries and does not bring back channels
//! that the broker closed. Each service has a loop of its own instead (connect, declare, work, on
//! any error back off and start over), which ends only with the process.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use backon::ExponentialBuilder;
use futures_util::StreamExt;
use lapin::{
    Connection, ConnectionProperties, ErrorKind, Event,
    protocol::AMQPErrorKind,
    uri::{AMQPQueryString, AMQPUri},
};
use secrecy::{ExposeSecret, SecretString};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// How long TCP, TLS and the AMQP handshake may take together.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// Seconds between heartbeats; a peer that is silent for two of them is gone. This, not TCP, is
/// what ends a half-open connection.
const HEARTBEAT_S: u16 = 5;

/// An AMQP address that was checked at startup. Its password never shows in debug output.
#[derive(Clone, Debug)]
pub struct BrokerUrl {
    url: SecretString,
    /// In place of what the address says.
    password: Option<SecretString>,
    /// The last attempt to connect met a peer that accepts and then says nothing.
    went_silent: Arc<AtomicBool>,
}

impl BrokerUrl {
    /// Checks an `amqp://` or `amqps://` address. The error does not repeat it, as it may hold a
    /// password.
    pub fn parse(url: &str) -> Result<Self, String> {
        url.parse::<AMQPUri>()
            .map(|_| Self {
                url: SecretString::from(url),
                password: None,
                went_silent: Arc::default(),
            })
            .map_err(|_| {
                "not an AMQP address of the form amqp://user:password@host:5672/vhost".to_owned()
            })
    }

    /// The same address with this password.
    #[must_use]
    pub fn with_password(self, password: SecretString) -> Self {
        Self {
            password: Some(password),
            ..self
        }
    }

    /// The virtual host.
    pub fn vhost(&self) -> String {
        self.uri().vhost
    }

    /// The user's name and password.
    pub fn credentials(&self) -> (String, SecretString) {
        let user = self.uri().authority.userinfo;
        (user.username, SecretString::from(user.password))
    }

    fn uri(&self) -> AMQPUri {
        let mut uri: AMQPUri = self
            .url
            .expose_secret()
            .parse()
            .expect("the address was parsed once by the constructor");
        if let Some(password) = &self.password {
            uri.authority.userinfo.password = password.expose_secret().to_owned();
        }
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
    let uri = url.uri();
    if url.went_silent.load(Ordering::Relaxed) {
        knock(&uri).await?;
    }
    let connected =
        tokio::time::timeout(CONNECT_DEADLINE, Connection::connect_uri(uri, properties)).await;
    url.went_silent.store(connected.is_err(), Ordering::Relaxed);
    connected
        .context("the broker did not answer in time")?
        .context("cannot connect to the broker")
}

/// Waits for any sign of life. lapin's thread for a connection outlives an attempt that timed out,
/// for as long as the peer stays silent, so not every attempt may start one.
async fn knock(uri: &AMQPUri) -> anyhow::Result<()> {
    let authority = &uri.authority;
    let knock = async {
        let address = (authority.host.as_str(), authority.port);
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"AMQP\x00\x00\x09\x01").await?;
        // Whatever it says, closing included, somebody is there.
        stream.read(&mut [0]).await
    };
    tokio::time::timeout(CONNECT_DEADLINE, knock)
        .await
        .context("the broker accepts connections but says nothing")?
        .context("cannot connect to the broker")?;
    Ok(())
}

/// Resolves when the connection has ended, with the reason.
pub async fn ended(connection: &Connection) -> String {
    /// Events come late or not at all where the peer just vanishes, so the status is looked at too.
    const LOOK_EVERY: Duration = Duration::from_millis(200);
    let mut events = std::pin::pin!(connection.events_listener());
    let mut reason = "the connection is gone".to_owned();
    while connection.status().connected() {
        // A refusal that costs only its channel is an event as well; the connection lives on.
        if let Ok(Some(Event::Error(error))) = tokio::time::timeout(LOOK_EVERY, events.next()).await
        {
            reason = error.to_string();
        }
    }
    reason
}

/// Whether the broker refused a request with a reason (403, 404, 406), which costs only its channel.
/// Anything else is a broken connection.
pub fn is_refusal(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(refusal)
        if matches!(refusal.kind(), AMQPErrorKind::Soft(_)))
}

/// A connection that lived for longer was a good one.
const STABLE_AFTER: Duration = Duration::from_secs(10);

/// The delays between one connection and the next: they grow, until a connection was a good one.
pub struct Reconnects(Box<dyn Iterator<Item = Duration> + Send>);

impl Default for Reconnects {
    fn default() -> Self {
        Self(Box::new(reconnect_delays()))
    }
}

impl Reconnects {
    /// The delay after an attempt to connect, and what came of it, that took so long.
    pub fn delay_after(&mut self, lived: Duration) -> Duration {
        if lived > STABLE_AFTER {
            *self = Self::default();
        }
        self.0.next().unwrap_or_default()
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

    #[test]
    fn delays_grow_until_a_connection_was_a_good_one() {
        let mut reconnects = Reconnects::default();
        for _ in 0..20 {
            reconnects.delay_after(Duration::from_secs(1));
        }
        assert!(reconnects.delay_after(Duration::from_secs(1)) >= Duration::from_secs(5));
        assert!(reconnects.delay_after(Duration::from_secs(11)) < Duration::from_secs(1));
    }

    /// The threads that lapin has for connections of this process.
    fn connection_threads() -> usize {
        std::fs::read_dir("/proc/self/task")
            .expect("the process's threads")
            .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
            .filter(|name| name.starts_with("lapin-io-loop"))
            .count()
    }

    #[tokio::test]
    async fn a_peer_that_stays_silent_costs_one_thread_and_not_one_an_attempt() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let address = silent.local_addr().expect("an address");
        tokio::spawn(async move {
            let mut connections = Vec::new();
            while let Ok(connection) = silent.accept().await {
                connections.push(connection);
            }
        });
        let url = BrokerUrl::parse(&format!("amqp://{address}")).expect("valid");
        for _ in 0..3 {
            connect(&url, "test").await.expect_err("nobody answers");
        }
        assert_eq!(connection_threads(), 1);
    }
}
