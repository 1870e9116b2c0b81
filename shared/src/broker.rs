//! Connects to RabbitMQ with a deadline for each step, and detects when a connection has ended.
//!
//! lapin's own recovery is not used: it gives up after some attempts and does not restore channels
//! that the broker closed. Each service has its own loop (connect, declare, work, back off after an
//! error and start over), which ends only with the process.

use std::{
    fmt,
    net::{Shutdown, SocketAddr},
    ops::Deref,
    os::fd::AsFd,
    sync::Mutex,
    time::Duration,
};

use anyhow::ensure;
use async_compat::Compat;
use backon::ExponentialBuilder;
use futures_util::StreamExt;
use lapin::{
    AsyncTcpStream, Connection, ConnectionProperties, ErrorKind, Event,
    protocol::{AMQPErrorKind, AMQPSoftError},
    runtime,
    tcp::{RustlsConnector, RustlsConnectorConfig},
    uri::{AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo, SASLMechanism},
};
use secrecy::{ExposeSecret, SecretString};
use tokio::{io::Interest, net::TcpStream, time::timeout};

use crate::{
    address::{Address, AddressError, Host, HostName, unknown_parameter},
    port_protocol::PortProtocol,
    reach::{self, ATTEMPT_DEADLINE, Cause, Unreached},
    reason,
    tls::{Tls, TlsFiles},
};

/// Seconds between heartbeats; a connection ends after two missed ones. This ends a half-open
/// connection, long before TCP does.
const HEARTBEAT_S: u16 = 5;

/// A checked AMQP address of one broker or of several nodes of a cluster. Debug output never shows
/// its password.
#[derive(Clone)]
pub struct BrokerUrl {
    hosts: Vec<Host>,
    /// The address without its hosts.
    uri: AMQPUri,
    has_user: bool,
    has_password: bool,
    tls: TlsFiles,
}

impl fmt::Debug for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BrokerUrl")
            .field("hosts", &self.hosts)
            .field("vhost", &self.uri.vhost)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

impl BrokerUrl {
    /// Parses an `amqp://` or `amqps://` address. The error does not repeat it, because it may
    /// contain a password.
    pub fn parse(url: &str) -> Result<Self, String> {
        Self::read(url).map_err(|error| {
            format!(
                "not an AMQP address of the form amqp://user:password@host:5672,host:5672/vhost: \
                 {error}"
            )
        })
    }

    fn read(url: &str) -> Result<Self, AddressError> {
        let address = Address::parse(url, &["amqp", "amqps"], false)?;
        if address
            .hosts
            .iter()
            .any(|host| matches!(host.name, HostName::Socket(_)))
        {
            return Err(AddressError::Host);
        }
        let guest = AMQPUserInfo::default();
        let mut uri = AMQPUri {
            scheme: if address.scheme == "amqps" {
                AMQPScheme::AMQPS
            } else {
                AMQPScheme::AMQP
            },
            vhost: address.path.unwrap_or_else(|| "/".to_owned()),
            query: read_parameters(&address.parameters)?,
            ..AMQPUri::default()
        };
        let has_user = address.user.is_some();
        uri.authority.userinfo = AMQPUserInfo {
            username: address.user.unwrap_or(guest.username),
            password: address
                .password
                .as_ref()
                .map_or(guest.password, |password| {
                    password.expose_secret().to_owned()
                }),
        };
        Ok(Self {
            hosts: address.hosts,
            uri,
            has_user,
            has_password: address.password.is_some(),
            tls: TlsFiles::default(),
        })
    }

    pub(crate) fn has_password(&self) -> bool {
        self.has_password
    }

    /// The same address with this password.
    #[must_use]
    pub fn with_password(mut self, password: &SecretString) -> Self {
        password
            .expose_secret()
            .clone_into(&mut self.uri.authority.userinfo.password);
        self
    }

    /// The same address with these authorities and this client certificate. If the address has no
    /// user, the certificate is the login.
    ///
    /// # Errors
    /// If a file cannot be used, or the address does not use TLS.
    pub fn with_tls(mut self, files: TlsFiles) -> anyhow::Result<Self> {
        if files.is_empty() {
            return Ok(self);
        }
        ensure!(
            self.uri.scheme == AMQPScheme::AMQPS,
            "AMQP_CA_FILE or AMQP_CERT_FILE is set, and AMQP_URL is not amqps://, so that nothing \
             would be encrypted"
        );
        files.read()?;
        if files.has_identity() && !self.has_user && self.uri.query.auth_mechanism.is_none() {
            self.uri.query.auth_mechanism = Some(SASLMechanism::External);
        }
        self.tls = files;
        Ok(self)
    }

    /// Reads the authorities and the client certificate from their files.
    ///
    /// # Errors
    /// If a file cannot be used any more.
    pub fn tls(&self) -> anyhow::Result<Tls> {
        self.tls.read()
    }

    /// Whether the login is the client certificate and not a user and password.
    pub fn logs_in_by_certificate(&self) -> bool {
        self.uri.query.auth_mechanism == Some(SASLMechanism::External)
    }

    /// The virtual host.
    pub fn vhost(&self) -> String {
        self.uri.vhost.clone()
    }

    /// The user's name and password.
    pub fn credentials(&self) -> (String, SecretString) {
        let user = self.uri.authority.userinfo.clone();
        (user.username, SecretString::from(user.password))
    }

    /// The TLS connector, if the address uses TLS.
    fn connector(&self) -> Result<Option<RustlsConnector>, Cause> {
        if self.uri.scheme != AMQPScheme::AMQPS {
            return Ok(None);
        }
        let tls = self.tls();
        let Tls {
            authorities,
            identity,
        } = tls.map_err(|error| Cause::Tls(reason::one_line(&error)))?;
        let config = if authorities.is_empty() {
            RustlsConnectorConfig::new_with_webpki_root_certs()
        } else {
            RustlsConnectorConfig::default().with_parsable_certificates(authorities)
        };
        let connector = match identity {
            Some(identity) => {
                config.connector_with_single_cert(identity.certificates, identity.key)
            }
            None => config.connector_with_no_client_auth(),
        };
        connector.map(Some).map_err(|error| Cause::from(&error))
    }

    fn port(&self, host: &Host) -> u16 {
        host.port.unwrap_or_else(|| self.uri.scheme.default_port())
    }
}

fn read_parameters(parameters: &[(String, String)]) -> Result<AMQPQueryString, AddressError> {
    let number = |name, text: &str, expected| {
        let value = text.parse().ok().filter(|number: &u16| *number > 0);
        value.ok_or(AddressError::Value(name, expected))
    };
    let mut query = AMQPQueryString {
        heartbeat: Some(HEARTBEAT_S),
        ..AMQPQueryString::default()
    };
    for (name, value) in parameters {
        match name.as_str() {
            "heartbeat" => {
                let heartbeat = number("heartbeat", value, "a number of seconds, 1 to 65535")?;
                query.heartbeat = Some(heartbeat);
            }
            "channel_max" => {
                let channels = number("channel_max", value, "a number from 1 to 65535")?;
                query.channel_max = Some(channels);
            }
            "frame_max" => {
                // The minimum of the AMQP specification.
                let size = value.parse().ok().filter(|size| *size >= 4096_u32);
                let expected = "a number of bytes, at least 4096";
                query.frame_max = Some(size.ok_or(AddressError::Value("frame_max", expected))?);
            }
            "auth_mechanism" => {
                let expected = "plain, amqplain or external";
                let mechanism = ["plain", "amqplain", "external"]
                    .contains(&value.to_lowercase().as_str())
                    .then(|| value.parse().ok())
                    .flatten();
                let known = mechanism.ok_or(AddressError::Value("auth_mechanism", expected))?;
                query.auth_mechanism = Some(known);
            }
            _ => return Err(unknown_parameter(name)),
        }
    }
    Ok(query)
}

/// Opens a connection to any of the hosts, with the name `name` in RabbitMQ's management.
pub async fn connect(url: &BrokerUrl, name: &str) -> Result<BrokerConnection, Unreached> {
    let hosts = reach::shuffled(&url.hosts);
    let attempts = hosts.into_iter().map(|host| connect_to(url, host, name));
    reach::first(attempts)
        .await
        .map_err(|causes| Unreached::new("RabbitMQ", causes.into_iter().flatten().collect()))
}

/// Opens a connection to any of a host's addresses.
async fn connect_to(
    url: &BrokerUrl,
    host: &Host,
    name: &str,
) -> Result<BrokerConnection, Vec<(String, Cause)>> {
    let port = url.port(host);
    let addresses = reach::resolve(&host.name, port)
        .await
        .map_err(|cause| vec![(reach::label(host, port, None), cause)])?;
    let attempts = addresses.into_iter().map(async |address| {
        let attempt = attempt(url, host, address, name).await;
        attempt.map_err(|cause| (reach::label(host, port, Some(address)), cause))
    });
    reach::first(attempts).await
}

async fn attempt(
    url: &BrokerUrl,
    host: &Host,
    address: SocketAddr,
    name: &str,
) -> Result<BrokerConnection, Cause> {
    let io = |error| Cause::from(&error);
    let stream = reach::tcp(address).await?;
    stream.set_nodelay(true).map_err(io)?;
    let socket = Socket::of(&stream).map_err(io)?;
    let watched = socket.watched().map_err(io)?;
    let mut uri = url.uri.clone();
    uri.authority.host = match &host.name {
        HostName::Ipv6(address) => address.to_string(),
        name => name.to_string(),
    };
    uri.authority.port = address.port();
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let runtime = runtime::default_runtime().map_err(|error| cause(&error))?;
    let tls = url.connector()?;
    // lapin calls this again if the connection ends before the broker has sent anything.
    let stream = Mutex::new(Some(stream));
    let hand_over = async move |uri: AMQPUri, _| {
        let stream = stream.lock().ok().and_then(|mut stream| stream.take());
        let stream =
            stream.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::UnexpectedEof))?;
        let stream = AsyncTcpStream::Plain(Compat::new(stream));
        Ok(match &tls {
            None => stream,
            Some(connector) => stream.into_rustls(connector, &uri.authority.host).await?,
        })
    };
    let connected = Connection::connector(uri, runtime, hand_over, properties);
    match timeout(ATTEMPT_DEADLINE, connected).await {
        Ok(Ok(connection)) => Ok(BrokerConnection { connection, socket }),
        // The broker sends an alert about a certificate and closes at once, so the alert may be
        // lost.
        Ok(Err(error)) => Err(match or_another(url, cause(&error), address).await {
            Cause::Closed if url.tls.has_identity() => Cause::Tls(
                "the server closed the connection, as it does where it refuses a client \
                 certificate: its log says why"
                    .to_owned(),
            ),
            Cause::Refusal { sqlstate, message } if url.uri.vhost.is_empty() => Cause::Refusal {
                sqlstate,
                message: format!("{message} ({EMPTY_VHOST})"),
            },
            other => other,
        }),
        Err(_elapsed) if watched.try_io(Interest::READABLE, || Ok(())).is_ok() => {
            Err(Cause::Other("did not finish the login in time".to_owned()))
        }
        Err(_elapsed) => Err(or_another(url, Cause::Silent, address).await),
    }
}

/// Explains that a slash with nothing after it means an empty virtual host.
const EMPTY_VHOST: &str = "the virtual host in AMQP_URL is empty: for the virtual host / leave the slash at its \
                           end out, or write %2F behind it";

/// Replaces the cause if another program listens on the port.
async fn or_another(url: &BrokerUrl, cause: Cause, address: SocketAddr) -> Cause {
    let may_be_another = matches!(cause, Cause::Closed | Cause::Silent | Cause::Other(_));
    if !may_be_another || url.uri.scheme == AMQPScheme::AMQPS {
        return cause;
    }
    match PortProtocol::detect(address).await {
        Some(protocol @ (PortProtocol::Postgres | PortProtocol::Http)) => {
            Cause::Other(format!("not a RabbitMQ: {}", protocol.description()))
        }
        Some(PortProtocol::Amqp | PortProtocol::Tls) | None => cause,
    }
}

/// A connection to RabbitMQ that is shut down on drop, if it was not closed before.
#[derive(Debug)]
pub struct BrokerConnection {
    connection: Connection,
    #[expect(dead_code, reason = "it is there to be dropped")]
    socket: Socket,
}

impl Deref for BrokerConnection {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

/// A second handle to lapin's socket, which shuts the connection down on drop.
///
/// lapin's thread for a connection may outlive the connection's last user and keeps answering
/// heartbeats. A slow broker would then deliver to a consumer that no longer exists.
#[derive(Debug)]
struct Socket(std::net::TcpStream);

impl Socket {
    fn of(stream: &TcpStream) -> std::io::Result<Self> {
        let socket = stream.as_fd().try_clone_to_owned()?;
        Ok(Self(socket.into()))
    }

    /// The same socket, registered with the runtime a second time, so that it shows whether bytes
    /// arrived.
    fn watched(&self) -> std::io::Result<TcpStream> {
        TcpStream::from_std(self.0.try_clone()?)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // This fails only if the connection has already ended.
        self.0.shutdown(Shutdown::Both).ok();
    }
}

fn cause(error: &lapin::Error) -> Cause {
    match error.kind() {
        ErrorKind::IOError(error) => Cause::from(&**error),
        ErrorKind::ProtocolError(error) => Cause::Refusal {
            sqlstate: None,
            message: error.get_message().to_string(),
        },
        ErrorKind::ParsingError(_) => Cause::Other(
            "does not speak plain AMQP on this port (amqps:// is for a port of TLS)".to_owned(),
        ),
        _ => Cause::Other(error.to_string()),
    }
}

/// Waits until the connection has ended. Returns the reason.
pub async fn ended(connection: &Connection) -> String {
    /// If the peer vanishes, events come late or never, so the status is polled too.
    const LOOK_EVERY: Duration = Duration::from_millis(200);
    let mut events = std::pin::pin!(connection.events_listener());
    let mut reason = "the connection is gone".to_owned();
    while connection.status().connected() {
        // A refusal that closes only its channel is an event too; the connection stays open.
        if let Ok(Some(Event::Error(error))) = tokio::time::timeout(LOOK_EVERY, events.next()).await
        {
            reason = error.to_string();
        }
    }
    reason
}

/// Whether the broker refused a request with a reason (403, 404, 406). That closes only the
/// channel. Any other error means a broken connection.
pub fn is_refusal(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(refusal)
        if matches!(refusal.kind(), AMQPErrorKind::Soft(_)))
}

/// Whether the broker refused a request because the account has no right to it (403).
pub fn is_forbidden(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(refusal)
        if matches!(refusal.kind(), AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED)))
}

/// A connection that lasted longer counts as stable.
const STABLE_AFTER: Duration = Duration::from_secs(10);

/// The backoff between connections. It grows until a connection was stable.
pub struct Reconnects(Box<dyn Iterator<Item = Duration> + Send>);

impl Default for Reconnects {
    fn default() -> Self {
        Self(Box::new(reconnect_delays()))
    }
}

impl Reconnects {
    /// The delay after a connection attempt, and its connection if there was one, that lasted
    /// `lived`.
    pub fn delay_after(&mut self, lived: Duration) -> Duration {
        if lived > STABLE_AFTER {
            *self = Self::default();
        }
        self.0.next().unwrap_or_default()
    }
}

/// The backoff between attempts to reach a store: from 100 ms to 2 s, with jitter, without end.
pub fn reconnect_delays() -> impl Iterator<Item = Duration> {
    backon::BackoffBuilder::build(
        ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(100))
            .with_max_delay(Duration::from_secs(2))
            .with_jitter()
            .without_max_times(),
    )
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("")]
    #[case("http://host")]
    #[case("amqp//x")]
    #[case("amqp://")]
    #[case("amqp://user:hunter2@host:port/")]
    #[case("amqp://user:hunter2@h1/v,amqp://user:hunter2@h2/v")]
    #[case("amqp://user:hunter2@%2Frun%2Frabbitmq/v")]
    #[case("amqp://user:hunter2@host/v?heartbeats=5")]
    #[case("amqp://user:hunter2@host/v?heartbeat=hunter2")]
    #[case("amqp://user:hunter2@host/v?heartbeat=0")]
    #[case("amqp://user:hunter2@host/v?frame_max=1")]
    #[case("amqp://user:hunter2@host/v?auth_mechanism=hunter2")]
    fn a_bad_address_is_refused_without_repeating_it(#[case] bad: &str) {
        let error = BrokerUrl::parse(bad).expect_err("refused");
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn every_part_of_an_address_is_taken() {
        let url = BrokerUrl::parse(
            "amqps://u%40x:p%2Fw@h1:7,[2001:db8::5]/v%2F?heartbeat=9&auth_mechanism=external",
        )
        .expect("valid");
        let ports: Vec<_> = url.hosts.iter().map(|host| url.port(host)).collect();
        assert_eq!(ports, [7, 5671]);
        assert_eq!(url.vhost(), "v/");
        let (user, password) = url.credentials();
        assert_eq!((user.as_str(), password.expose_secret()), ("u@x", "p/w"));
        assert_eq!(url.uri.query.heartbeat, Some(9));
    }

    #[test]
    fn what_an_address_leaves_out_has_rabbitmqs_defaults() {
        let url = BrokerUrl::parse("amqp://h").expect("valid");
        let (user, password) = url.credentials();
        assert_eq!(
            (user.as_str(), password.expose_secret()),
            ("guest", "guest")
        );
        assert_eq!((url.vhost().as_str(), url.port(&url.hosts[0])), ("/", 5672));
        assert_eq!(url.uri.query.heartbeat, Some(HEARTBEAT_S));
    }

    #[test]
    fn a_password_does_not_show_in_debug_output() {
        let url = BrokerUrl::parse("amqp://user:hunter2@host:5672/%2f").expect("valid");
        assert!(!format!("{url:?}").contains("hunter2"));
        let url = url.with_password(&"hunter3".into());
        assert!(!format!("{url:?}").contains("hunter3"));
    }

    #[test]
    fn reconnecting_never_gives_up_and_never_waits_long() {
        let delays: Vec<_> = reconnect_delays().take(1_000).collect();
        assert_eq!(delays.len(), 1_000);
        assert!(delays.iter().all(|d| *d <= Duration::from_secs(4)));
    }

    #[test]
    fn delays_grow_until_a_connection_was_a_good_one() {
        let mut reconnects = Reconnects::default();
        for _ in 0..20 {
            reconnects.delay_after(Duration::from_secs(1));
        }
        assert!(reconnects.delay_after(Duration::from_secs(1)) >= Duration::from_secs(2));
        assert!(reconnects.delay_after(Duration::from_secs(11)) < Duration::from_secs(1));
    }

    /// The number of this process's threads for lapin's connections.
    fn connection_threads() -> usize {
        std::fs::read_dir("/proc/self/task")
            .expect("the process's threads")
            .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
            .filter(|name| name.starts_with("lapin-io-loop"))
            .count()
    }

    #[tokio::test]
    async fn a_peer_that_stays_silent_is_called_so_and_leaves_no_thread_behind() {
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
        let error = connect(&url, "test").await.expect_err("nobody answers");
        assert!(error.to_string().contains("says nothing"), "{error}");
        let ended = async {
            while connection_threads() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(Duration::from_secs(20), ended)
            .await
            .expect("no thread is left");
    }
}
