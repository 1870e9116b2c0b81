//! Load on an ingest service (or the minimal server), as a closed or open loop, with every answer checked.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use hdrhistogram::Histogram;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::connection::{Answer, Connection};
use super::request::Requests;

/// Microseconds; an answer counts as 60 s at most.
const LONGEST_US: u64 = 60_000_000;
/// Not measured: the time in which caches, connections and batches warm up.
const WARM_UP: Duration = Duration::from_secs(1);
/// A duplicate repeats one of the connection's last events.
const REMEMBERED: usize = 4_096;

/// When requests are sent.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pace {
    /// Each connection sends its next request as soon as it has an answer.
    Closed,
    /// A fixed number of requests per second, independent of the answers. Latency counts from the time when
    /// a request was due, which avoids coordinated omission.
    Open(f64),
}

/// The kind of a load.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) connections: usize,
    pub(super) pace: Pace,
    /// Share of duplicates, 0 to 1.
    pub(super) duplicates: f64,
    pub(super) during: Duration,
}

/// The result.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// Answers per second, without the warm-up.
    pub rate: f64,
    /// Milliseconds, median.
    pub p50_ms: f64,
    /// Milliseconds, 99th percentile.
    pub p99_ms: f64,
    /// Milliseconds, 99.9th percentile.
    pub p999_ms: f64,
    /// New events accepted, with the warm-up.
    pub accepted: u64,
    /// Duplicates recognised, with the warm-up.
    pub duplicates: u64,
}

#[derive(Debug)]
struct Part {
    latency_us: Histogram<u64>,
    accepted: u64,
    duplicates: u64,
}

impl Load {
    /// Puts the load on `address`.
    ///
    /// # Errors
    /// When any answer is not the right 202: refusals make the figures useless.
    pub(super) async fn put_on(
        self,
        address: SocketAddr,
        requests: &Arc<Requests>,
    ) -> Result<Outcome> {
        let start = Instant::now();
        let mut parts = JoinSet::new();
        for index in 0..self.connections {
            parts.spawn(self.on_one(address, Arc::clone(requests), index, start));
        }
        let mut latency_us = histogram();
        let (mut accepted, mut duplicates) = (0, 0);
        while let Some(part) = parts.join_next().await {
            let part = part??;
            latency_us.add(&part.latency_us)?;
            accepted += part.accepted;
            duplicates += part.duplicates;
        }
        let measured = self.during.saturating_sub(WARM_UP).as_secs_f64();
        let ms = |quantile| latency_us.value_at_quantile(quantile) as f64 / 1_000.0;
        Ok(Outcome {
            rate: latency_us.len() as f64 / measured,
            p50_ms: ms(0.5),
            p99_ms: ms(0.99),
            p999_ms: ms(0.999),
            accepted,
            duplicates,
        })
    }

    async fn on_one(
        self,
        address: SocketAddr,
        requests: Arc<Requests>,
        index: usize,
        start: Instant,
    ) -> Result<Part> {
        let mut connection = Connection::open(address).await?;
        let mut rng = SmallRng::seed_from_u64(index as u64);
        let mut sent: Vec<u64> = Vec::new();
        let mut buffer = Vec::with_capacity(1_024);
        let mut part = Part {
            latency_us: histogram(),
            accepted: 0,
            duplicates: 0,
        };
        let (measured_from, end) = (start + WARM_UP, start + self.during);
        for turn in 0_u64.. {
            let due = match self.pace {
                Pace::Closed => Instant::now(),
                Pace::Open(rate) => {
                    let position = turn as f64 * self.connections as f64 + index as f64;
                    let due = start + Duration::from_secs_f64(position / rate);
                    sleep_until(due.min(end)).await;
                    due
                }
            };
            if due >= end {
                break;
            }
            let repeats = !sent.is_empty() && rng.random_bool(self.duplicates);
            let number = if repeats {
                sent[rng.random_range(0..sent.len())]
            } else {
                requests.next()
            };
            requests.write(number, &mut buffer)?;
            // Signing is the sender's work, so in a closed loop the clock starts after it.
            let from = match self.pace {
                Pace::Closed => Instant::now(),
                Pace::Open(_) => due,
            };
            let answer = connection.exchange(&buffer).await?;
            let answered = Instant::now();
            match answer {
                Answer::Accepted if !repeats => {
                    part.accepted += 1;
                    if sent.len() < REMEMBERED {
                        sent.push(number);
                    } else {
                        sent[rng.random_range(0..REMEMBERED)] = number;
                    }
                }
                Answer::Duplicate if repeats => part.duplicates += 1,
                wrong => ensure!(false, "a request was answered {wrong:?}"),
            }
            if due >= measured_from {
                let us = u64::try_from((answered - from).as_micros()).unwrap_or(LONGEST_US);
                part.latency_us.saturating_record(us);
            }
        }
        Ok(part)
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_US, 3).expect("the bounds are valid")
}
