use std::time::Duration;

use stack::proxy::{Mode, Proxy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};

const SOON: Duration = Duration::from_secs(5);
const LONG_ENOUGH: Duration = Duration::from_millis(200);

/// An echo server behind a proxy.
async fn echo_behind_proxy() -> Proxy {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = client.split();
                tokio::io::copy(&mut from, &mut to).await
            });
        }
    });
    Proxy::start(address).await.expect("a proxy")
}

async fn echoed(connection: &mut TcpStream) -> std::io::Result<()> {
    connection.write_all(b"ping").await?;
    let mut answer = [0; 4];
    connection.read_exact(&mut answer).await?;
    assert_eq!(&answer, b"ping");
    Ok(())
}

#[tokio::test]
async fn a_cut_proxy_closes_connections_and_refuses_new_ones_until_it_passes_again() {
    let proxy = echo_behind_proxy().await;
    let mut connection = TcpStream::connect(proxy.address())
        .await
        .expect("it listens");
    echoed(&mut connection).await.expect("it forwards");
    proxy.set(Mode::Cut).await;
    let closed = timeout(SOON, echoed(&mut connection))
        .await
        .expect("closed, not silent");
    assert!(closed.is_err());
    assert!(TcpStream::connect(proxy.address()).await.is_err());
    proxy.set(Mode::Pass).await;
    let mut connection = TcpStream::connect(proxy.address())
        .await
        .expect("it listens again");
    echoed(&mut connection).await.expect("it forwards again");
}

#[tokio::test]
async fn a_frozen_proxy_keeps_old_and_new_connections_open_but_silent_until_it_passes_again() {
    let proxy = echo_behind_proxy().await;
    let mut old = TcpStream::connect(proxy.address())
        .await
        .expect("it listens");
    echoed(&mut old).await.expect("it forwards");
    proxy.set(Mode::Freeze).await;
    let mut new = TcpStream::connect(proxy.address())
        .await
        .expect("it accepts");
    for connection in [&mut old, &mut new] {
        connection
            .write_all(b"ping")
            .await
            .expect("the connection is open");
        let mut byte = [0];
        assert!(
            timeout(LONG_ENOUGH, connection.read(&mut byte))
                .await
                .is_err()
        );
    }
    proxy.set(Mode::Pass).await;
    for connection in [&mut old, &mut new] {
        let mut answer = [0; 4];
        timeout(SOON, connection.read_exact(&mut answer))
            .await
            .expect("thawed")
            .expect("open");
        assert_eq!(&answer, b"ping");
    }
}

#[tokio::test]
async fn a_slow_proxy_adds_its_round_trip_and_does_not_add_up() {
    const ROUND_TRIP: Duration = Duration::from_millis(200);
    let proxy = echo_behind_proxy().await;
    let mut connection = TcpStream::connect(proxy.address())
        .await
        .expect("it listens");
    echoed(&mut connection).await.expect("it forwards");
    proxy.set(Mode::Slow(ROUND_TRIP)).await;
    let started = Instant::now();
    echoed(&mut connection).await.expect("it forwards");
    assert!(started.elapsed() >= ROUND_TRIP, "{:?}", started.elapsed());

    // Bytes that are sent while others are in flight arrive right behind them.
    let started = Instant::now();
    let (mut from, mut to) = connection.split();
    let send = async {
        for _ in 0..10 {
            to.write_all(b"ping").await.expect("open");
            sleep(ROUND_TRIP / 10).await;
        }
    };
    let mut answers = [0; 40];
    let (received, ()) = tokio::join!(from.read_exact(&mut answers), send);
    received.expect("open");
    assert_eq!(answers, *b"ping".repeat(10));
    let took = started.elapsed();
    assert!(took >= ROUND_TRIP && took < ROUND_TRIP * 10, "{took:?}");

    proxy.set(Mode::Pass).await;
    let started = Instant::now();
    echoed(&mut connection).await.expect("it forwards");
    assert!(started.elapsed() < ROUND_TRIP, "{:?}", started.elapsed());
}
