//! What HAProxy, with the settings of `deploy/`, lets a client do with its connections.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use stack::haproxy::HaProxy;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};

/// Longer than the longest of HAProxy's timeouts.
const SOON: Duration = Duration::from_secs(40);

/// More than a client may have, and than the settings say.
const CROWD: usize = 300;
const MOST: usize = 256;

const REQUEST: &str = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";
const HALF_A_HEAD: &str = "GET / HTTP/1.1\r\nhost:";

/// HAProxy in front of a backend that answers every request with 200.
async fn proxy(folder: &TempDir) -> HaProxy {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                while client.read(&mut [0; 1024]).await.is_ok_and(|read| read > 0) {
                    client.write_all(answer).await.ok();
                }
            });
        }
    });
    HaProxy::start(folder.path(), address, address)
        .await
        .expect("a proxy")
}

/// The header of the PROXY protocol for a client of this address.
fn header(client: &str) -> String {
    let (version, server) = match client.contains(':') {
        true => ("TCP6", "2001:db8::ffff"),
        false => ("TCP4", "192.0.2.1"),
    };
    format!("PROXY {version} {client} {server} 40000 443\r\n")
}

async fn open(address: SocketAddr, bytes: &str) -> TcpStream {
    let mut connection = TcpStream::connect(address).await.expect("it listens");
    // HAProxy may have closed the connection already.
    connection.write_all(bytes.as_bytes()).await.ok();
    connection
}

/// Everything until the end of the connection.
async fn rest(mut connection: TcpStream) -> String {
    let mut answer = Vec::new();
    let read = timeout(SOON, connection.read_to_end(&mut answer)).await;
    read.expect("an end in time").ok();
    String::from_utf8_lossy(&answer).into_owned()
}

/// The status of the first answer; 0 without one.
async fn status(mut connection: TcpStream) -> u16 {
    let mut answer = [0; 1024];
    let read = timeout(SOON, connection.read(&mut answer)).await;
    let read = read.expect("an answer in time").unwrap_or(0);
    let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
    let status = answer.get(9..12).and_then(|status| status.parse().ok());
    status.unwrap_or(0)
}

#[tokio::test]
async fn only_the_terminators_port_takes_the_proxy_protocol_and_it_takes_nothing_else() {
    let folder = TempDir::new().expect("a folder");
    let proxy = proxy(&folder).await;
    let announced = header("203.0.113.2") + REQUEST;
    let to = async |address, bytes: &str| status(open(address, bytes).await).await;
    assert_eq!(to(proxy.address(), REQUEST).await, 200);
    assert_eq!(to(proxy.address(), &announced).await, 400);
    assert_eq!(to(proxy.behind_terminator(), &announced).await, 200);
    assert_eq!(to(proxy.behind_terminator(), REQUEST).await, 0);
}

/// How many of a crowd's connections get in, which send half a head each. Meanwhile another client of the
/// same port, with this header, gets an answer.
async fn admitted(address: SocketAddr, headers: &[String], other: &str) -> usize {
    let crowd = (0..CROWD).map(|number| {
        let bytes = headers[number % headers.len()].clone() + HALF_A_HEAD;
        async move { open(address, &bytes).await }
    });
    let crowd = join_all(crowd).await;
    let other = open(address, &format!("{other}{REQUEST}")).await;
    assert_eq!(status(other).await, 200);
    let statuses = join_all(crowd.into_iter().map(status)).await;
    // An admitted one is told that its head is slow.
    let admitted = statuses.iter().filter(|status| **status == 408).count();
    let refused = statuses.iter().filter(|status| **status == 0).count();
    assert_eq!(admitted + refused, CROWD, "{statuses:?}");
    admitted
}

#[tokio::test]
async fn a_client_has_at_most_an_eighth_of_the_connections() {
    let folder = TempDir::new().expect("a folder");
    let proxy = proxy(&folder).await;
    let (terminator, direct) = (proxy.behind_terminator(), proxy.address());
    let (one, other) = (header("203.0.113.2"), header("203.0.113.3"));
    assert_eq!(
        admitted(terminator, std::slice::from_ref(&one), &other).await,
        MOST
    );
    let network = ["2001:db8::1", "2001:db8::2:0:0:1"].map(header);
    let neighbour = header("2001:db8:0:1::1");
    assert_eq!(admitted(terminator, &network, &neighbour).await, MOST);
    // Two clients have an eighth each.
    assert_eq!(admitted(terminator, &[one, other], &neighbour).await, CROWD);
    // Many clients share an address of this machine.
    assert_eq!(admitted(direct, &[String::new()], "").await, CROWD);
}

/// Only a limit of its own ends the idle connection first: it begins to be idle later than the other one
/// begins its head, and that has the next longer limit.
#[tokio::test]
async fn an_idle_connection_ends_before_one_whose_head_began_earlier() {
    let folder = TempDir::new().expect("a folder");
    let proxy = proxy(&folder).await;
    let ended = async |connection| {
        let answer = rest(connection).await;
        (answer, Instant::now())
    };
    let slow = open(proxy.address(), HALF_A_HEAD).await;
    let idle = async {
        sleep(Duration::from_secs(1)).await;
        ended(open(proxy.address(), REQUEST).await).await
    };
    let (slow, idle) = tokio::join!(ended(slow), idle);
    assert!(slow.0.contains(" 408 "), "{slow:?}");
    assert!(idle.0.starts_with("HTTP/1.1 200 "), "{idle:?}");
    assert!(
        idle.1 < slow.1,
        "it may be idle for as long as a head takes"
    );
}

#[tokio::test]
async fn http_2_is_not_understood() {
    let folder = TempDir::new().expect("a folder");
    let proxy = proxy(&folder).await;
    // The preface, and empty settings.
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0";
    for (address, header) in [
        (proxy.address(), String::new()),
        (proxy.behind_terminator(), header("203.0.113.2")),
    ] {
        let answer = rest(open(address, &(header + preface)).await).await;
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1."),
            "{answer:?}"
        );
    }
}
