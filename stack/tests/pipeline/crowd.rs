//! Many connections to one ingest service, well-behaved and not.

#![expect(clippy::print_stdout, reason = "figures for whoever runs it by hand")]

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use hookctl::{delivery::Outcome, sample};
use ingest::secrets::DEVELOPMENT_SECRET;
use stack::process::Process;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::pipeline::{SOON, post};

const VENDOR: &str = r#"{"eventType":"v1.vendor.created","data":{"id":"v","companyId":"c","name":"n","state":"DRAFT"}}"#;

/// A crowd needs a file descriptor for each of its connections, and other tests need some, too.
pub(crate) fn raise_file_limit(connections: usize) {
    let limit = rlimit::increase_nofile_limit(u64::MAX).expect("a limit");
    assert!(limit > 3 * connections as u64, "only {limit} open files");
}

/// The webhook address of an ingest service.
pub(crate) fn address(url: &str) -> SocketAddr {
    let host = url.split('/').nth(2).expect("a host");
    host.parse().expect("an address")
}

/// The headers of a valid request, without those for its framing.
pub(crate) fn signed_head(id: &str, body: &str) -> String {
    let timestamp = chrono::Utc::now().timestamp();
    let signature = ingest::signature::sign(DEVELOPMENT_SECRET, id, timestamp, body.as_bytes())
        .expect("a good secret");
    format!(
        "POST /webhooks/pleo HTTP/1.1\r\nhost: x\r\nwebhook-id: {id}\r\n\
         webhook-timestamp: {timestamp}\r\nwebhook-signature: {signature}\r\n"
    )
}

/// A valid request.
pub(crate) fn signed(id: &str) -> String {
    let head = signed_head(id, VENDOR);
    format!("{head}content-length: {}\r\n\r\n{VENDOR}", VENDOR.len())
}

/// Opens connections, all of which must succeed, sends `first` on each, and keeps their order.
pub(crate) async fn open(
    address: SocketAddr,
    count: usize,
    first: impl Fn(usize) -> Vec<u8>,
) -> Vec<TcpStream> {
    let opening = (0..count).map(|number| {
        let first = first(number);
        tokio::spawn(async move {
            let mut connection = TcpStream::connect(address).await.expect("a connection");
            connection.write_all(&first).await.expect("a write");
            connection
        })
    });
    let opened = join_all(opening.collect::<Vec<_>>()).await;
    opened
        .into_iter()
        .map(|connection| connection.expect("a connection"))
        .collect()
}

/// Writes one byte a second until it is cut off, and returns the status.
pub(crate) async fn drip(mut connection: TcpStream) -> u16 {
    let started = Instant::now();
    let mut buffer = [0; 1_024];
    while started.elapsed() < SOON {
        match timeout(Duration::from_secs(1), connection.read(&mut buffer)).await {
            // A write after the end fails; the next read notices that as well.
            Err(_nothing_yet) => drop(connection.write_all(b"a").await),
            Ok(read) => return status(&buffer[..read.unwrap_or(0)]),
        }
    }
    panic!("it may drip for ever");
}

/// Writes nothing more until it is cut off, and returns the status.
pub(crate) async fn until_cut(mut connection: TcpStream) -> u16 {
    let mut buffer = [0; 1_024];
    let read = timeout(SOON, connection.read(&mut buffer)).await;
    let read = read.expect("it may stay for ever");
    status(&buffer[..read.unwrap_or(0)])
}

/// 0 if there is no answer.
fn status(answer: &[u8]) -> u16 {
    let status = str::from_utf8(answer).ok().and_then(|text| text.get(9..12));
    status.and_then(|status| status.parse().ok()).unwrap_or(0)
}

/// Reads one whole answer, or nothing if the connection is closed before.
pub(crate) async fn answer(mut connection: TcpStream) -> String {
    let mut text = String::new();
    let mut buffer = [0; 1_024];
    let reading = async {
        while !text.contains('}') {
            match connection.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(length) => text += &String::from_utf8_lossy(&buffer[..length]),
            }
        }
    };
    timeout(SOON, reading).await.expect("an answer or an end");
    text
}

/// A legitimate sender that keeps sending, on a new connection for each event.
pub(crate) struct GoodSender {
    sending: JoinHandle<Vec<Duration>>,
    stop: CancellationToken,
}

impl GoodSender {
    /// Every answer must be a 202.
    pub(crate) fn start(url: &str) -> Self {
        let url = url.to_owned();
        let stop = CancellationToken::new();
        let sending = tokio::spawn({
            let stop = stop.clone();
            async move {
                let mut latencies = Vec::new();
                while !stop.is_cancelled() {
                    let started = Instant::now();
                    let id = sample::new_webhook_id();
                    let answer = post(&url, &id, VENDOR).await;
                    assert_eq!(answer.outcome, Outcome::Accepted, "shut out: {answer:?}");
                    latencies.push(started.elapsed());
                    sleep(Duration::from_millis(50)).await;
                }
                latencies
            }
        });
        Self { sending, stop }
    }

    /// Returns its results.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        let mut latencies = self.sending.await.expect("never shut out");
        latencies.sort();
        println!(
            "good sender: {} events, median {:?}, slowest {:?}",
            latencies.len(),
            latencies[latencies.len() / 2],
            latencies.last().expect("some")
        );
    }
}

/// The highest memory use of a process so far, in MiB.
pub(crate) fn peak_memory(process: &Process) -> u64 {
    let path = format!("/proc/{}/status", process.pid());
    let status = std::fs::read_to_string(path).expect("a running process");
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .expect("linux");
    let kib: u64 = line
        .split_whitespace()
        .nth(1)
        .and_then(|number| number.parse().ok())
        .expect("a number");
    kib / 1_024
}
