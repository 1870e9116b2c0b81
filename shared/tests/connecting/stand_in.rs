//! Faulty servers, and the parts of the real stores' addresses.

use std::{net::SocketAddr, time::Duration};

use secrecy::ExposeSecret;
use shared::address::Address;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    time::{sleep, timeout},
};

/// A store's user, password and `host:port`.
pub(crate) struct Store {
    pub(crate) user: String,
    pub(crate) password: String,
    pub(crate) place: String,
}

impl Store {
    fn of(variable: &str, scheme: &str) -> Self {
        let url = std::env::var(variable).expect("the stores' addresses are in the environment");
        let address = Address::parse(&url, &[scheme], false).expect("a valid address");
        let host = &address.hosts[0];
        Self {
            user: address.user.unwrap_or_else(|| "guest".to_owned()),
            password: address
                .password
                .map_or_else(|| "guest".to_owned(), |p| p.expose_secret().to_owned()),
            place: format!("{}:{}", host.name, host.port.expect("a port")),
        }
    }

    pub(crate) fn postgres() -> Self {
        Self::of("DATABASE_URL", "postgres")
    }

    pub(crate) fn rabbitmq() -> Self {
        Self::of("AMQP_URL", "amqp")
    }

    pub(crate) fn port(&self) -> u16 {
        let (_, port) = self.place.rsplit_once(':').expect("a port");
        port.parse().expect("a port")
    }
}

/// A port on which nothing listens.
pub(crate) async fn closed_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    listener.local_addr().expect("an address")
}

/// Accepts connections and stays silent, as the kernel does for a process that hangs.
pub(crate) async fn silent() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    (listener, address)
}

/// A typical web server: it waits for the end of a line and answers with an error.
pub(crate) async fn web_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut seen = Vec::new();
                while !seen.contains(&b'\n') {
                    let mut more = [0; 4_096];
                    match client.read(&mut more).await {
                        Ok(n) if n > 0 => seen.extend(&more[..n]),
                        _ => return,
                    }
                }
                let answer = "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";
                client.write_all(answer.as_bytes()).await.ok();
            });
        }
    });
    address
}

/// A port whose backlog is full, so the kernel drops further packets, until this is dropped.
pub(crate) struct DropsPackets {
    pub(crate) address: SocketAddr,
    _listener: TcpListener,
    _waiting: Vec<TcpStream>,
}

impl DropsPackets {
    pub(crate) async fn on(address: SocketAddr) -> Self {
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()
        } else {
            TcpSocket::new_v6()
        }
        .expect("a socket");
        socket.bind(address).expect("a free port");
        let listener = socket.listen(1).expect("it listens");
        let address = listener.local_addr().expect("an address");
        let mut waiting = Vec::new();
        while let Ok(connected) =
            timeout(Duration::from_millis(500), TcpStream::connect(address)).await
        {
            waiting.push(connected.expect("room in the queue"));
        }
        Self {
            address,
            _listener: listener,
            _waiting: waiting,
        }
    }

    pub(crate) async fn somewhere() -> Self {
        Self::on(([127, 0, 0, 1], 0).into()).await
    }
}

/// Forwards everything to `to`, and delays each part of an answer by `delay`.
pub(crate) async fn forward(listen: &str, to: String, delay: Duration) -> SocketAddr {
    let listener = TcpListener::bind(listen).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(pass_on(client, to.clone(), delay));
        }
    });
    address
}

async fn pass_on(client: TcpStream, to: String, delay: Duration) -> std::io::Result<()> {
    let server = TcpStream::connect(to).await?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let requests = tokio::io::copy(&mut from_client, &mut to_server);
    let answers = async {
        let mut buffer = [0; 65_536];
        loop {
            let n = from_server.read(&mut buffer).await?;
            if n == 0 {
                return Ok::<_, std::io::Error>(());
            }
            sleep(delay).await;
            to_client.write_all(&buffer[..n]).await?;
        }
    };
    // If either side ends, both end.
    tokio::select! {
        ended = requests => ended.map(drop),
        ended = answers => ended,
    }
}
