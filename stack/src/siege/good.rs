//! Legitimate senders: real events at a steady rate, each on a connection of its own.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::time::Duration;

use anyhow::Result;
use chrono::Utc;
use hdrhistogram::Histogram;
use hookctl::sample::{self, VENDOR};
use ingest::secrets::DEVELOPMENT_SECRET;
use ingest::signature::Key;
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::client::{Client, Target};

/// Senders wait this long for an answer.
const PATIENCE: Duration = Duration::from_secs(15);
/// Milliseconds.
const LONGEST_MS: u64 = 20_000;

/// What the senders saw.
#[derive(Debug, Clone, Serialize)]
pub struct Seen {
    /// Events.
    pub sent: u64,
    /// Events that were answered 2xx.
    pub accepted: u64,
    /// The other outcomes, and how often each occurred.
    pub refused: BTreeMap<String, u64>,
    /// Milliseconds from the time when an event was due to its answer, median. Without an answer, until the
    /// sender gave up.
    pub p50_ms: u64,
    /// The same, 99th percentile.
    pub p99_ms: u64,
}

impl Seen {
    /// The share of events that were answered 2xx; 0 to 1.
    pub fn share(&self) -> f64 {
        self.accepted as f64 / self.sent.max(1) as f64
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {} events accepted, p50 {} ms, p99 {} ms",
            self.accepted, self.sent, self.p50_ms, self.p99_ms
        )?;
        for (what, count) in &self.refused {
            write!(f, ", {count} × {what}")?;
        }
        Ok(())
    }
}

/// Sends events at a fixed rate for this time, and waits for the last answer.
pub(super) async fn observe(target: Target, rate: f64, during: Duration) -> Result<Seen> {
    let key = Key::parse(DEVELOPMENT_SECRET)?;
    let start = Instant::now();
    let mut answers = JoinSet::new();
    for number in 0_u32.. {
        let due = start + Duration::from_secs_f64(f64::from(number) / rate);
        if due >= start + during {
            break;
        }
        sleep_until(due).await;
        let request = request(&key)?;
        answers.spawn(async move {
            let answer = timeout(PATIENCE, send(target, &request)).await;
            (answer, due.elapsed())
        });
    }
    let mut latencies = Histogram::<u64>::new_with_bounds(1, LONGEST_MS, 3)?;
    let mut seen = Seen {
        sent: 0,
        accepted: 0,
        refused: BTreeMap::new(),
        p50_ms: 0,
        p99_ms: 0,
    };
    while let Some(answer) = answers.join_next().await {
        let (answer, took) = answer?;
        latencies.saturating_record(u64::try_from(took.as_millis()).unwrap_or(LONGEST_MS));
        seen.sent += 1;
        let refusal = match answer {
            Ok(Ok(status)) if (200..300).contains(&status) => {
                seen.accepted += 1;
                continue;
            }
            Ok(Ok(status)) => status.to_string(),
            Ok(Err(error)) => error.kind().to_string(),
            Err(_patience) => "no answer".to_owned(),
        };
        *seen.refused.entry(refusal).or_default() += 1;
    }
    seen.p50_ms = latencies.value_at_quantile(0.5);
    seen.p99_ms = latencies.value_at_quantile(0.99);
    Ok(seen)
}

fn request(key: &Key) -> Result<Vec<u8>> {
    let (id, timestamp) = (sample::new_webhook_id(), Utc::now().timestamp());
    let body = VENDOR.body_with(&id, &id);
    let signature = key.sign(&id, timestamp, body.as_bytes())?;
    let request = format!(
        "POST /webhooks/pleo HTTP/1.1\r\nhost: x\r\nwebhook-id: {id}\r\n\
         webhook-timestamp: {timestamp}\r\nwebhook-signature: {signature}\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    Ok(request.into_bytes())
}

/// The status of the answer.
async fn send(target: Target, request: &[u8]) -> io::Result<u16> {
    let mut stream = Client::Good.connect(target).await?;
    stream.write_all(request).await?;
    let mut answer = Vec::new();
    while !answer.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
        if stream.read_buf(&mut answer).await? == 0 {
            break;
        }
    }
    let status = str::from_utf8(&answer)
        .ok()
        .and_then(|text| text.get(9..12));
    status
        .and_then(|status| status.parse().ok())
        .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}
