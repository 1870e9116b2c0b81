//! Connects to one of several servers, each with its own deadline, and explains why none could be
//! reached.

use std::{
    collections::VecDeque,
    fmt, io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use rand::seq::SliceRandom;
use thiserror::Error;
use tokio::{
    net::{TcpStream, lookup_host},
    time::{sleep, timeout},
};

use crate::{
    address::{Host, HostName},
    tls,
};

const RESOLVE_DEADLINE: Duration = Duration::from_secs(3);

pub(crate) const TCP_DEADLINE: Duration = Duration::from_secs(3);

/// The time for everything up to the login at one address: enough for 11 round trips of 250 ms and
/// a busy server.
pub(crate) const ATTEMPT_DEADLINE: Duration = Duration::from_secs(5);

/// If an attempt takes longer, the next one starts beside it. So a server that drops packets costs
/// no more than this time.
const NEXT_AFTER: Duration = Duration::from_secs(2);

/// Why a server was not reached.
#[derive(Debug, Error)]
pub enum Cause {
    /// Nothing listens on the port.
    #[error("connection refused")]
    Refused,
    /// The name does not resolve.
    #[error("no such host ({0})")]
    NoSuchHost(String),
    /// There is no answer to any packet.
    #[error("no answer: it is off, or a firewall drops the packets")]
    NoAnswer,
    /// The connection was accepted, and then nothing arrived.
    #[error("accepts connections but says nothing")]
    Silent,
    /// The connection was closed too early.
    #[error("closed the connection in the middle of the login")]
    Closed,
    /// TLS failed, or the server does not support it.
    #[error("TLS failed: {0}")]
    Tls(String),
    /// The server refused the login or the session.
    #[error("{message}")]
    Refusal {
        /// The SQLSTATE of Postgres.
        sqlstate: Option<String>,
        /// The server's message.
        message: String,
    },
    /// The Postgres server accepts no writes.
    #[error("{0}")]
    ReadOnly(&'static str),
    /// The pooler in front of Postgres has unusable settings.
    #[error("{0}")]
    Pooler(&'static str),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl From<&io::Error> for Cause {
    fn from(error: &io::Error) -> Self {
        if let Some(reason) = tls::reason(error) {
            return Self::Tls(reason);
        }
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::TimedOut => Self::NoAnswer,
            // A Unix socket does not exist.
            io::ErrorKind::NotFound => Self::Other("no such file or directory".to_owned()),
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe => Self::Closed,
            _ if error.raw_os_error().is_some() => Self::Other(error.kind().to_string()),
            _ => Self::Other(error.to_string()),
        }
    }
}

/// No server was reached. Displays each attempt with its cause.
#[derive(Debug, Error)]
pub struct Unreached {
    store: &'static str,
    causes: Vec<(String, Cause)>,
}

impl Unreached {
    pub(crate) fn new(store: &'static str, causes: Vec<(String, Cause)>) -> Self {
        Self { store, causes }
    }

    /// Whether the pooler in front of Postgres has unusable settings.
    pub fn is_of_pooler(&self) -> bool {
        let mut causes = self.causes.iter();
        causes.any(|(_, cause)| matches!(cause, Cause::Pooler(_)))
    }

    /// The SQLSTATE with which a Postgres server refused, if one did.
    pub fn sqlstate(&self) -> Option<&str> {
        self.causes.iter().find_map(|(_, cause)| match cause {
            Cause::Refusal { sqlstate, .. } => sqlstate.as_deref(),
            _ => None,
        })
    }
}

impl fmt::Display for Unreached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot connect to {}: ", self.store)?;
        for (n, (server, cause)) in self.causes.iter().enumerate() {
            let comma = if n > 0 { "; " } else { "" };
            write!(f, "{comma}{server}: {cause}")?;
        }
        Ok(())
    }
}

/// Runs attempts until one succeeds. The next one starts when one has failed, or when none has
/// finished for a while; running attempts continue.
pub(crate) async fn first<T, E>(
    attempts: impl IntoIterator<Item = impl Future<Output = Result<T, E>>>,
) -> Result<T, Vec<E>> {
    let mut waiting: VecDeque<_> = attempts.into_iter().collect();
    let mut running: FuturesUnordered<_> = waiting.pop_front().into_iter().collect();
    let mut errors = Vec::new();
    while !running.is_empty() {
        let next = tokio::select! {
            biased;
            Some(outcome) = running.next() => match outcome {
                Ok(reached) => return Ok(reached),
                Err(error) => {
                    errors.push(error);
                    waiting.pop_front()
                }
            },
            () = sleep(NEXT_AFTER), if !waiting.is_empty() => waiting.pop_front(),
        };
        running.extend(next);
    }
    Err(errors)
}

/// Shuffles the items, so that clients spread over equal servers.
pub(crate) fn shuffled<T>(items: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut items: Vec<T> = items.into_iter().collect();
    items.shuffle(&mut rand::rng());
    items
}

/// The addresses of a host that is not a socket, in random order.
pub(crate) async fn resolve(host: &HostName, port: u16) -> Result<Vec<SocketAddr>, Cause> {
    let name = match host {
        HostName::Ipv6(address) => return Ok(vec![(IpAddr::V6(*address), port).into()]),
        HostName::Name(name) => name.as_str(),
        HostName::Socket(_) => return Err(Cause::Other("is no host but a socket".to_owned())),
    };
    let addresses = match timeout(RESOLVE_DEADLINE, lookup_host((name, port))).await {
        Ok(Ok(addresses)) => shuffled(addresses),
        // The error's text is the resolver's, such as "Name or service not known".
        Ok(Err(error)) => {
            let text = error.to_string();
            let reason = text.strip_prefix("failed to lookup address information: ");
            return Err(Cause::NoSuchHost(reason.unwrap_or(&text).to_owned()));
        }
        Err(_elapsed) => {
            return Err(Cause::NoSuchHost(
                "the name service does not answer".to_owned(),
            ));
        }
    };
    if addresses.is_empty() {
        return Err(Cause::NoSuchHost("it has no address".to_owned()));
    }
    Ok(addresses)
}

pub(crate) async fn tcp(address: SocketAddr) -> Result<TcpStream, Cause> {
    match timeout(TCP_DEADLINE, TcpStream::connect(address)).await {
        Ok(connected) => connected.map_err(|error| Cause::from(&error)),
        Err(_elapsed) => Err(Cause::NoAnswer),
    }
}

/// A server's name in messages, with the address that was tried if the name does not contain it.
pub(crate) fn label(host: &Host, port: u16, address: Option<SocketAddr>) -> String {
    match (&host.name, address) {
        (HostName::Name(name), Some(address)) if name.parse::<IpAddr>().is_err() => {
            format!("{name}:{port} ({})", address.ip())
        }
        (HostName::Socket(folder), _) => folder.display().to_string(),
        (name, _) => format!("{name}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use futures_util::FutureExt;
    use tokio::time::Instant;

    use super::*;

    #[tokio::test]
    async fn a_server_that_never_answers_costs_no_more_than_the_wait_for_the_next() {
        let started = Instant::now();
        let silent = pending::<Result<u8, ()>>().boxed();
        let good = async { Ok(7) }.boxed();
        assert_eq!(first([silent, good]).await, Ok(7));
        assert!(started.elapsed() >= NEXT_AFTER);
    }

    #[tokio::test]
    async fn a_failure_starts_the_next_attempt_at_once() {
        let started = Instant::now();
        let attempts = [Err("a"), Err("b"), Ok(7)];
        assert_eq!(first(attempts.map(std::future::ready)).await, Ok(7));
        assert!(started.elapsed() < NEXT_AFTER);
    }

    #[tokio::test]
    async fn a_slow_server_is_not_given_up_for_the_next() {
        let slow = async {
            sleep(NEXT_AFTER * 2).await;
            Ok(7)
        };
        let refusing = async { Err("no") };
        assert_eq!(first([slow.boxed(), refusing.boxed()]).await, Ok(7));
    }

    #[tokio::test]
    async fn every_failure_is_kept() {
        let failures = first(["a", "b"].map(|a| async move { Err::<(), _>(a) })).await;
        assert_eq!(failures, Err(vec!["a", "b"]));
    }
}
