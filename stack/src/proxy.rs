//! A TCP proxy on loopback that can cut, freeze or slow down its connections, for fault tests.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};

use crate::ports;

/// How many reads of one direction may be under way at once.
const ON_THE_WAY: usize = 256;

/// What the proxy does with connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Forwards everything.
    Pass,
    /// Forwards everything with this round-trip time, as over a long distance. The bandwidth stays the
    /// same.
    Slow(Duration),
    /// Closes all connections and refuses new ones.
    Cut,
    /// Keeps and accepts connections but forwards nothing, as when a network drops all packets.
    Freeze,
}

/// A running proxy; dropping it closes all its connections.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    orders: mpsc::Sender<(Mode, oneshot::Sender<()>)>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free port and forwards to `upstream`, in [`Mode::Pass`].
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(upstream: SocketAddr) -> Result<Self> {
        let address = ports::free()?;
        let listener = TcpListener::bind(address)
            .await
            .context("the proxy cannot listen")?;
        let (orders, received) = mpsc::channel(1);
        let task = tokio::spawn(run(address, upstream, listener, received));
        Ok(Self {
            address,
            orders,
            task,
        })
    }

    /// The address to connect to instead of the upstream.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the mode. It is in effect when this returns.
    pub async fn set(&self, mode: Mode) {
        let (done, applied) = oneshot::channel();
        self.orders
            .send((mode, done))
            .await
            .expect("the proxy runs as long as its handle");
        applied.await.expect("the proxy answers every order");
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(
    address: SocketAddr,
    upstream: SocketAddr,
    listener: TcpListener,
    mut orders: mpsc::Receiver<(Mode, oneshot::Sender<()>)>,
) {
    let (mode, watched) = watch::channel(Mode::Pass);
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            order = orders.recv() => {
                let Some((next, done)) = order else { return };
                if next == Mode::Cut {
                    listener = None;
                    connections.shutdown().await;
                } else if listener.is_none() {
                    listener = Some(bind(address).await);
                }
                mode.send_replace(next);
                // An error means that the caller no longer waits. The mode is set nevertheless.
                done.send(()).ok();
            }
            client = accept(listener.as_ref()) => {
                connections.spawn(forward(client, upstream, watched.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// The port may be busy for a moment with connections that are still closing.
async fn bind(address: SocketAddr) -> TcpListener {
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn accept(listener: Option<&TcpListener>) -> TcpStream {
    let Some(listener) = listener else {
        return std::future::pending().await;
    };
    loop {
        match listener.accept().await {
            Ok((client, _)) => return client,
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn forward(client: TcpStream, upstream: SocketAddr, mut mode: watch::Receiver<Mode>) {
    if !thawed(&mut mode).await {
        return;
    }
    // The client's own handshake ended at the proxy; over a long distance it takes a round trip.
    let handshake = one_way(&mode) * 2;
    sleep(handshake).await;
    let Ok(server) = TcpStream::connect(upstream).await else {
        return;
    };
    // The proxy must not add delays of its own. Without this option it works, but slower.
    drop((client.set_nodelay(true), server.set_nodelay(true)));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::join!(
        pump(from_client, to_server, mode.clone()),
        pump(from_server, to_client, mode.clone())
    );
}

/// Bytes in flight, and when they arrive.
type Travelling = (Instant, Vec<u8>);

/// Copies one direction.
async fn pump(from: OwnedReadHalf, to: OwnedWriteHalf, mode: watch::Receiver<Mode>) {
    let (departures, arrivals) = mpsc::channel(ON_THE_WAY);
    tokio::join!(
        depart(from, departures, mode.clone()),
        arrive(arrivals, to, mode)
    );
}

async fn depart(
    mut from: OwnedReadHalf,
    departures: mpsc::Sender<Travelling>,
    mut mode: watch::Receiver<Mode>,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        if !thawed(&mut mode).await {
            return;
        }
        let Ok(read) = from.read(&mut buffer).await else {
            return;
        };
        let arrival = Instant::now() + one_way(&mode);
        let ended = read == 0;
        if ended
            || departures
                .send((arrival, buffer[..read].to_vec()))
                .await
                .is_err()
        {
            return;
        }
    }
}

/// Passes the end of the stream on by dropping the writing half.
async fn arrive(
    mut arrivals: mpsc::Receiver<Travelling>,
    mut to: OwnedWriteHalf,
    mut mode: watch::Receiver<Mode>,
) {
    while let Some((arrival, bytes)) = arrivals.recv().await {
        sleep_until(arrival).await;
        // It may have been frozen since the bytes were read, so they have to wait as well.
        if !thawed(&mut mode).await || to.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

/// How long bytes take in one direction.
fn one_way(mode: &watch::Receiver<Mode>) -> Duration {
    match *mode.borrow() {
        Mode::Slow(round_trip) => round_trip / 2,
        Mode::Pass | Mode::Cut | Mode::Freeze => Duration::ZERO,
    }
}

/// Waits until bytes may flow; false when the proxy is dropped.
async fn thawed(mode: &mut watch::Receiver<Mode>) -> bool {
    mode.wait_for(|mode| *mode != Mode::Freeze).await.is_ok()
}
