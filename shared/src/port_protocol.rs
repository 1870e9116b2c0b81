//! Detects which protocol a port speaks, on a separate connection after a failed login. So the
//! error for an address with the wrong port is clear, unlike a driver's message.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, ToSocketAddrs},
    time::timeout,
};

/// The time to connect, and the time to wait for each answer.
const DEADLINE: Duration = Duration::from_secs(1);

/// Postgres's request for TLS, which it answers with one byte. RabbitMQ reads these eight bytes as
/// a wrong protocol header and answers with its own.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// Most web servers answer only after an empty line.
const END_OF_HEAD: &[u8] = b"\r\n\r\n";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PortProtocol {
    Postgres,
    Amqp,
    Http,
    Tls,
}

impl PortProtocol {
    /// Connects and detects the protocol; `None` if nothing answers or the answer is unknown.
    pub(crate) async fn detect(address: impl ToSocketAddrs) -> Option<Self> {
        let connected = timeout(DEADLINE, TcpStream::connect(address)).await;
        let mut stream = connected.ok()?.ok()?;
        for question in [&SSL_REQUEST[..], END_OF_HEAD] {
            stream.write_all(question).await.ok()?;
            let mut answer = [0; 4];
            match timeout(DEADLINE, stream.read(&mut answer)).await {
                Ok(Ok(length)) => return Self::read(&answer[..length]),
                Ok(Err(_)) => return None,
                Err(_elapsed) => {}
            }
        }
        None
    }

    fn read(answer: &[u8]) -> Option<Self> {
        match answer {
            // TLS: yes or no.
            b"S" | b"N" => Some(Self::Postgres),
            [b'A', b'M', ..] => Some(Self::Amqp),
            [b'H', b'T', ..] => Some(Self::Http),
            // A TLS alert of any version.
            [21, 3, ..] => Some(Self::Tls),
            _ => None,
        }
    }

    /// Says in a message what answers there.
    pub(crate) const fn description(self) -> &'static str {
        match self {
            Self::Postgres => "Postgres answers on this port",
            Self::Amqp => "RabbitMQ answers on this port",
            Self::Http => "a web server answers on this port",
            Self::Tls => "this port wants TLS",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell_protocols_apart() {
        for (answer, expected) in [
            (&b"N"[..], Some(PortProtocol::Postgres)),
            (b"S", Some(PortProtocol::Postgres)),
            (b"AMQP", Some(PortProtocol::Amqp)),
            (b"HTTP", Some(PortProtocol::Http)),
            (&[21, 3, 3, 0], Some(PortProtocol::Tls)),
            (b"", None),
            (b"SSH-", None),
        ] {
            assert_eq!(PortProtocol::read(answer), expected, "{answer:?}");
        }
    }
}
