//! Connections of attackers and legitimate senders, which differ in their addresses.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};

/// How ingest is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entrance {
    /// Its own public port.
    Direct,
    /// The proxy, to which clients connect directly.
    Proxy,
    /// The proxy, behind a TLS terminator that passes the client's address on with the PROXY protocol.
    Terminator,
}

impl Entrance {
    /// Every way.
    pub const ALL: [Self; 3] = [Self::Direct, Self::Proxy, Self::Terminator];

    /// A word for tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Proxy => "proxy",
            Self::Terminator => "terminator",
        }
    }
}

/// The target of requests.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// How it is reached.
    pub entrance: Entrance,
    /// A port on the loopback interface.
    pub address: SocketAddr,
}

/// Who connects.
#[derive(Debug, Clone, Copy)]
pub(super) enum Client {
    Stranger,
    Good,
}

impl Client {
    /// Their addresses, as real addresses on the loopback interface or as a terminator reports them.
    fn address(self, entrance: Entrance) -> Ipv4Addr {
        match (self, entrance) {
            (Self::Stranger, Entrance::Direct | Entrance::Proxy) => Ipv4Addr::new(127, 0, 0, 2),
            (Self::Good, Entrance::Direct | Entrance::Proxy) => Ipv4Addr::new(127, 0, 0, 3),
            (Self::Stranger, Entrance::Terminator) => Ipv4Addr::new(203, 0, 113, 2),
            (Self::Good, Entrance::Terminator) => Ipv4Addr::new(203, 0, 113, 3),
        }
    }

    /// Opens a connection.
    pub(super) async fn connect(self, target: Target) -> io::Result<TcpStream> {
        let own = self.address(target.entrance);
        let socket = TcpSocket::new_v4()?;
        if target.entrance != Entrance::Terminator {
            socket.bind(SocketAddr::new(IpAddr::V4(own), 0))?;
        }
        let mut stream = socket.connect(target.address).await?;
        stream.set_nodelay(true)?;
        if matches!(self, Self::Stranger) {
            // A closed connection would keep its port for a minute, and a bound port serves no other address
            // meanwhile. So strangers would use up the ports of this machine, which they share with the proxy.
            stream.set_zero_linger()?;
        }
        if target.entrance == Entrance::Terminator {
            let port = stream.local_addr()?.port();
            let line = format!("PROXY TCP4 {own} 127.0.0.1 {port} 443\r\n");
            stream.write_all(line.as_bytes()).await?;
        }
        Ok(stream)
    }
}
