//! Which protocol a port speaks, found out by a connection of its own once a login has failed there. An address
//! at the port of something else is then told in plain words instead of a driver's.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, ToSocketAddrs},
    time::timeout,
};

/// For connecting, and for each of the answers that are waited for.
const DEADLINE: Duration = Duration::from_secs(1);

/// Asks Postgres whether it does TLS; it answers with one byte. RabbitMQ takes as many bytes for a wrong
/// header, and answers with its own.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// Most web servers wait for the end of a line.
const END_OF_HEAD: &[u8] = b"\r\n\r\n";

/// What speaks at a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spoken {
    Postgres,
    Amqp,
    Http,
    Tls,
}

impl Spoken {
    /// Asks what is there; `None` where it is away, silent, or none of them.
    pub(crate) async fn at(address: impl ToSocketAddrs) -> Option<Self> {
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
            // Yes or no.
            b"S" | b"N" => Some(Self::Postgres),
            [b'A', b'M', ..] => Some(Self::Amqp),
            [b'H', b'T', ..] => Some(Self::Http),
            // An alert of any version.
            [21, 3, ..] => Some(Self::Tls),
            _ => None,
        }
    }

    /// For messages: what answers there.
    pub(crate) const fn who(self) -> &'static str {
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
            (&b"N"[..], Some(Spoken::Postgres)),
            (b"S", Some(Spoken::Postgres)),
            (b"AMQP", Some(Spoken::Amqp)),
            (b"HTTP", Some(Spoken::Http)),
            (&[21, 3, 3, 0], Some(Spoken::Tls)),
            (b"", None),
            (b"SSH-", None),
        ] {
            assert_eq!(Spoken::read(answer), expected, "{answer:?}");
        }
    }
}
