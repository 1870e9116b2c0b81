//! The sender of a drill. It is an open loop: it does not slow down when answers do. It retries refused
//! events, as Pleo does.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use chrono::Utc;
use hookctl::delivery::{Answer, Client, Delivery, Outcome};
use hyper::Uri;
use ingest::{secrets::DEVELOPMENT_SECRET, signature::Key};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::event;

/// The backoff between requests with a refused event: doubled from the first to the longest, with jitter. A
/// sender without backoff would itself prolong an overload.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Duplicates of an accepted event are sent up to this much later.
const REPEATED_WITHIN: Duration = Duration::from_secs(20);
/// Events in a hundred that are sent to two replicas at the same time.
const TWINS: u32 = 10;
/// Events in a hundred that are sent again after they were accepted.
const REPEATED: u32 = 10;

/// A 503 or 408: legitimate only while neither store can be reached or ingest itself is frozen.
#[derive(Debug, Clone, Copy)]
pub struct Refusal {
    /// When the request was sent.
    pub sent: Instant,
    /// When the answer came.
    pub answered: Instant,
    /// Whether it was a 503 without `Retry-After`.
    pub lacks_retry_after: bool,
}

/// The sender's counts.
#[derive(Debug, Default)]
pub struct Sent {
    /// Events, each counted once.
    pub events: u64,
    /// Numbers of those that were answered 2xx at least once.
    pub accepted: HashSet<u64>,
    /// Requests by answer.
    pub answers: BTreeMap<Outcome, u64>,
    /// Every 503 and 408.
    pub refusals: Vec<Refusal>,
}

/// A running sender.
#[derive(Debug)]
pub struct Sender {
    shared: Arc<Shared>,
    stop: CancellationToken,
    deliveries: TaskTracker,
}

#[derive(Debug)]
struct Shared {
    seed: u64,
    key: Key,
    urls: Vec<Uri>,
    client: Client,
    next: AtomicU64,
    sent: Mutex<Sent>,
}

impl Sender {
    /// Sends `rate` new events per second to these addresses, which are several replicas of one service,
    /// until [`Sender::finish`].
    ///
    /// # Errors
    /// When one of them is not an address.
    pub fn start(seed: u64, rate: u32, urls: &[String]) -> Result<Self> {
        let urls: Result<_, _> = urls.iter().map(|url| url.parse::<Uri>()).collect();
        let sender = Self {
            shared: Arc::new(Shared {
                seed,
                key: Key::parse(DEVELOPMENT_SECRET).context("the development secret")?,
                urls: urls.context("an address of ingest")?,
                client: Client::default(),
                next: AtomicU64::new(0),
                sent: Mutex::default(),
            }),
            stop: CancellationToken::new(),
            deliveries: TaskTracker::new(),
        };
        let (shared, stop) = (Arc::clone(&sender.shared), sender.stop.clone());
        let deliveries = sender.deliveries.clone();
        sender.deliveries.spawn(async move {
            let mut ticks = interval(Duration::from_secs(1) / rate.max(1));
            // An open loop: an event that is late is still sent.
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            while stop.run_until_cancelled(ticks.tick()).await.is_some() {
                let number = shared.next_number();
                deliveries.spawn(Arc::clone(&shared).deliver(number));
            }
        });
        Ok(sender)
    }

    /// How many events were answered 2xx so far.
    pub fn accepted(&self) -> usize {
        self.shared.sent().accepted.len()
    }

    /// The numbers of the events that were answered 2xx.
    pub(super) fn accepted_numbers(&self) -> Vec<u64> {
        self.shared.sent().accepted.iter().copied().collect()
    }

    /// Sends these again, as Pleo's replay does.
    pub(super) async fn send_again(&self, numbers: &[u64]) {
        for number in numbers {
            self.shared.until_accepted(*number, 0).await;
        }
    }

    /// How many requests were answered 503 or 408 so far.
    pub fn refusals(&self) -> usize {
        self.shared.sent().refusals.len()
    }

    /// Sends a few more events, at least one of each kind through each replica, and returns their ids when
    /// all are accepted.
    pub async fn canaries(&self) -> Vec<String> {
        // Events of one kind come in runs; this many consecutive events cover every kind.
        const ALL_KINDS: u64 = 80;
        let mut canaries = JoinSet::new();
        let first = self.shared.next.fetch_add(ALL_KINDS, Ordering::Relaxed);
        for number in (first..first + ALL_KINDS).step_by(3) {
            let shared = Arc::clone(&self.shared);
            canaries.spawn(async move {
                shared.sent().events += 1;
                let replica = usize::try_from(number / 3).unwrap_or_default();
                shared.until_accepted(number, replica).await;
                event::event(shared.seed, number).webhook_id
            });
        }
        canaries.join_all().await
    }

    /// Sends no new events, keeps retrying those that are not accepted yet for at most `within`, and
    /// returns the counts.
    pub async fn finish(self, within: Duration) -> Sent {
        self.stop.cancel();
        self.deliveries.close();
        // Events that are still unanswered then count as not accepted.
        timeout(within, self.deliveries.wait()).await.ok();
        std::mem::take(&mut self.shared.sent())
    }
}

impl Shared {
    fn sent(&self) -> MutexGuard<'_, Sent> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    async fn deliver(self: Arc<Self>, number: u64) {
        let mut rng = StdRng::seed_from_u64(self.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let replica = rng.random_range(0..self.urls.len());
        self.sent().events += 1;
        if rng.random_ratio(TWINS, 100) {
            tokio::join!(
                self.until_accepted(number, replica),
                self.until_accepted(number, replica + 1)
            );
        } else {
            self.until_accepted(number, replica).await;
        }
        if rng.random_ratio(REPEATED, 100) {
            sleep(rng.random_range(Duration::ZERO..REPEATED_WITHIN)).await;
            self.until_accepted(number, rng.random_range(0..self.urls.len()))
                .await;
        }
    }

    /// The next request goes to the replica after the one that refused it.
    async fn until_accepted(&self, number: u64, first_replica: usize) {
        let event = event::event(self.seed, number);
        let mut pause = FIRST_PAUSE;
        for replica in first_replica.. {
            let url = &self.urls[replica % self.urls.len()];
            let sent = Instant::now();
            let Answer {
                outcome,
                retry_after,
                ..
            } = self.post(url, &event).await;
            {
                let mut ledger = self.sent();
                *ledger.answers.entry(outcome).or_default() += 1;
                if outcome.is_safe() {
                    ledger.accepted.insert(number);
                }
                if matches!(outcome, Outcome::Refused(503 | 408)) {
                    ledger.refusals.push(Refusal {
                        sent,
                        answered: Instant::now(),
                        lacks_retry_after: outcome == Outcome::Refused(503)
                            && retry_after.is_none(),
                    });
                }
            }
            if outcome.is_safe() {
                return;
            }
            sleep(rand::random_range(pause..pause * 2)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn post(&self, url: &Uri, event: &event::Event) -> Answer {
        let now = Utc::now().timestamp();
        let delivery = Delivery::sign(&self.key, url, &event.webhook_id, now, event.body.clone())
            .expect("the development secret can sign");
        self.client.post(delivery).await
    }
}
