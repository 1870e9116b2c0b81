//! The attacks. Each is a number of connections that send the same bytes, wait, and start again.

mod http2;

use std::sync::Arc;
use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use chrono::Utc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::client::{Client, Target};

/// The default of `BODY_LIMIT`.
const LARGEST_BODY: usize = 256 * 1024;
/// An attacker that wants to hold a connection and is cut off earlier waits for this time before it
/// reconnects. Otherwise the attack would measure how many connections the machine can open.
const ROUND: Duration = Duration::from_secs(6);
/// An attacker that got an answer continues after this pause, because it wanted the answer.
const SHORT_PAUSE: Duration = Duration::from_millis(5);
/// A connection that the server does not close is replaced after this time.
const HELD_FOR: Duration = Duration::from_secs(20);
/// More than ingest ever checks.
const TOKENS: u8 = 32;
/// A point of the curve, so that ingest has to compute a signature before it can see that it is wrong.
const POINT: [u8; 32] = [
    0x58, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66,
    0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66,
];

/// A way to shut out legitimate senders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attack {
    /// Bodies of which all but the last byte is sent: they use up memory.
    UnfinishedBodies,
    /// Bodies at one byte per second: they use up connections.
    SlowBodies,
    /// Large bodies with a malformed signature.
    MalformedSignatures,
    /// Large bodies with an HMAC of another secret, which every key has to be tried on.
    ForeignHmacs,
    /// Large bodies with many ed25519 signatures, all of which every key has to be tried on.
    ForeignEd25519,
    /// Connections that never send anything.
    SilentConnections,
    /// Connections that stay open after an answer.
    KeptConnections,
    /// HTTP/2 without TLS: many requests on each of a few connections.
    Http2Streams,
}

/// What to do once everything is sent.
#[derive(Debug, Clone, Copy)]
enum Then {
    /// Wait until the connection ends.
    Wait,
    /// Send a byte per second until it does.
    Drip,
    /// Read the answer, and start again.
    Repeat,
}

impl Attack {
    /// Every attack.
    pub const ALL: [Self; 8] = [
        Self::UnfinishedBodies,
        Self::SlowBodies,
        Self::MalformedSignatures,
        Self::ForeignHmacs,
        Self::ForeignEd25519,
        Self::SilentConnections,
        Self::KeptConnections,
        Self::Http2Streams,
    ];

    /// A few words for tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::UnfinishedBodies => "300 bodies without their last byte",
            Self::SlowBodies => "2,500 bodies, a byte a second",
            Self::MalformedSignatures => "256 times 256 KiB under `v1,x`",
            Self::ForeignHmacs => "256 times 256 KiB under a foreign HMAC",
            Self::ForeignEd25519 => "256 times 256 KiB under 32 foreign ed25519 signatures",
            Self::SilentConnections => "5,000 silent connections",
            Self::KeptConnections => "5,000 connections kept after an answer",
            Self::Http2Streams => "120 HTTP/2 connections with 100 streams",
        }
    }

    const fn connections(self) -> usize {
        match self {
            Self::UnfinishedBodies => 300,
            Self::SlowBodies => 2_500,
            Self::MalformedSignatures | Self::ForeignHmacs | Self::ForeignEd25519 => 256,
            Self::SilentConnections | Self::KeptConnections => 5_000,
            Self::Http2Streams => 120,
        }
    }

    const fn then(self) -> Then {
        match self {
            Self::SlowBodies => Then::Drip,
            Self::MalformedSignatures | Self::ForeignHmacs | Self::ForeignEd25519 => Then::Repeat,
            Self::UnfinishedBodies
            | Self::SilentConnections
            | Self::KeptConnections
            | Self::Http2Streams => Then::Wait,
        }
    }

    fn bytes(self) -> Vec<u8> {
        let hmac = format!("v1,{}", BASE64.encode([7; 32]));
        match self {
            Self::UnfinishedBodies => post(&hmac, LARGEST_BODY - 1),
            Self::SlowBodies => post(&hmac, 0),
            Self::MalformedSignatures => post("v1,x", LARGEST_BODY),
            Self::ForeignHmacs => post(&hmac, LARGEST_BODY),
            Self::ForeignEd25519 => post(&ed25519_signatures(), LARGEST_BODY),
            Self::SilentConnections => Vec::new(),
            Self::KeptConnections => b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
            Self::Http2Streams => http2::posts(&Utc::now().timestamp().to_string(), &hmac),
        }
    }

    /// Attacks until `stop`.
    pub(super) fn start(self, target: Target, stop: &CancellationToken, strangers: &TaskTracker) {
        // The timestamp is valid for longer than an attack lasts.
        let bytes: Arc<[u8]> = self.bytes().into();
        for _ in 0..self.connections() {
            let (bytes, stop) = (Arc::clone(&bytes), stop.clone());
            strangers.spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = attack(target, &bytes, self.then()) => {}
                }
            });
        }
    }
}

async fn attack(target: Target, bytes: &[u8], then: Then) {
    loop {
        let started = Instant::now();
        if let Ok(mut stream) = Client::Stranger.connect(target).await {
            // A connection that was cut off in the middle is replaced as well.
            timeout(HELD_FOR, once(&mut stream, bytes, then)).await.ok();
        }
        match then {
            Then::Repeat => sleep(SHORT_PAUSE).await,
            Then::Wait | Then::Drip => sleep_until(started + ROUND).await,
        }
    }
}

async fn once(stream: &mut TcpStream, bytes: &[u8], then: Then) {
    let (mut reader, mut writer) = stream.split();
    let mut answer = [0; 1_024];
    let ended = async {
        // An attacker that only wants the work done needs only the first bytes of an answer.
        while !matches!(reader.read(&mut answer).await, Ok(0) | Err(_)) {
            if matches!(then, Then::Repeat) {
                break;
            }
        }
    };
    let sending = async {
        writer.write_all(bytes).await?;
        if matches!(then, Then::Drip) {
            loop {
                sleep(Duration::from_secs(1)).await;
                writer.write_all(b"a").await?;
            }
        }
        std::io::Result::Ok(())
    };
    tokio::pin!(ended);
    tokio::select! {
        () = &mut ended => {}
        // A write error also shows when reading, after an answer if there is one.
        _sent = sending => ended.await,
    }
}

/// A request whose body has this many bytes of the allowed maximum.
fn post(signature: &str, sent: usize) -> Vec<u8> {
    let timestamp = Utc::now().timestamp();
    let head = format!(
        "POST /webhooks/pleo HTTP/1.1\r\nhost: x\r\nwebhook-id: stranger\r\n\
         webhook-timestamp: {timestamp}\r\nwebhook-signature: {signature}\r\n\
         content-length: {LARGEST_BODY}\r\n\r\n"
    );
    let mut bytes = head.into_bytes();
    bytes.resize(bytes.len() + sent, b'a');
    bytes
}

/// As many signatures as fit, each with its own scalar below the order of the curve.
fn ed25519_signatures() -> String {
    let one = |number: u8| {
        let scalar = [[number; 31].as_slice(), &[0]].concat();
        format!("v1a,{}", BASE64.encode([&POINT[..], &scalar].concat()))
    };
    (1..=TOKENS).map(one).collect::<Vec<_>>().join(" ")
}
