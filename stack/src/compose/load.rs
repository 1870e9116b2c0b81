//! A steady load through the proxy, and a check that every accepted event is stored.

use std::collections::{BTreeSet, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chrono::Utc;
use hookctl::delivery::{Client, Delivery};
use hookctl::sample::{EXPORT_JOB, VENDOR};
use hyper::Uri;
use ingest::signature::Key;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::project::Project;

/// Events per second: enough that each kill hits some in flight.
const RATE: u32 = 20;
/// The pause between tries to send an event that was not accepted.
const PAUSE: Duration = Duration::from_millis(500);
/// An event that is not accepted by then is missing.
const FINISH_WITHIN: Duration = Duration::from_secs(120);
const STORED_WITHIN: Duration = Duration::from_secs(180);
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Sends events, each until it is accepted.
#[derive(Debug)]
pub(super) struct Load {
    sender: Arc<Sender>,
    stop: CancellationToken,
    deliveries: TaskTracker,
}

#[derive(Debug)]
struct Sender {
    url: Uri,
    key: Key,
    client: Client,
    prefix: String,
    sent: AtomicU64,
    accepted: Mutex<HashSet<String>>,
}

impl Load {
    /// Starts to send, signed with this secret.
    ///
    /// # Errors
    /// When the address or the secret is invalid.
    pub(super) fn start(webhooks: &str, secret: &str) -> Result<Self> {
        let load = Self {
            sender: Arc::new(Sender {
                url: format!("http://{webhooks}/webhooks/pleo").parse()?,
                key: Key::parse(secret).context("the secret")?,
                client: Client::default(),
                prefix: format!("msg_trial_{:016x}_", rand::random::<u64>()),
                sent: AtomicU64::new(0),
                accepted: Mutex::default(),
            }),
            stop: CancellationToken::new(),
            deliveries: TaskTracker::new(),
        };
        let (sender, stop) = (Arc::clone(&load.sender), load.stop.clone());
        let deliveries = load.deliveries.clone();
        load.deliveries.spawn(async move {
            let mut ticks = interval(Duration::from_secs(1) / RATE);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            while stop.run_until_cancelled(ticks.tick()).await.is_some() {
                deliveries.spawn(Arc::clone(&sender).deliver());
            }
        });
        Ok(load)
    }

    /// How many events were accepted so far.
    pub(super) fn accepted(&self) -> usize {
        self.sender.accepted().len()
    }

    /// Ends the load, waits until everything is stored, and compares.
    ///
    /// # Errors
    /// When an accepted event is missing or stored twice, or anything is left in the spool or a queue.
    pub(super) async fn settle(self, project: &Project) -> Result<usize> {
        self.stop.cancel();
        self.deliveries.close();
        let finished = timeout(FINISH_WITHIN, self.deliveries.wait()).await;
        ensure!(
            finished.is_ok(),
            "{} of {} events were not accepted",
            self.sender.sent.load(Ordering::Relaxed) - self.accepted() as u64,
            self.sender.sent.load(Ordering::Relaxed)
        );
        let accepted: BTreeSet<String> = self.sender.accepted().iter().cloned().collect();
        let prefix = &self.sender.prefix;
        let deadline = Instant::now() + STORED_WITHIN;
        loop {
            let query = format!("select webhook_id from events where webhook_id like '{prefix}%'");
            let rows = project.sql(&query).await?;
            let stored: BTreeSet<String> = rows.iter().cloned().collect();
            let left = project
                .count("select (select count(*) from unstored_receipts) + (select count(*) from webhook_spool)")
                .await?;
            if stored == accepted && rows.len() == accepted.len() && left == 0 {
                return Ok(accepted.len());
            }
            ensure!(
                Instant::now() < deadline,
                "{} accepted, of which {} are not in events; {} rows; {} unknown; {left} receipts or \
                 rows of the spool left",
                accepted.len(),
                accepted.difference(&stored).count(),
                rows.len(),
                stored.difference(&accepted).count(),
            );
            sleep(LOOK_EVERY).await;
        }
    }
}

impl Sender {
    fn accepted(&self) -> MutexGuard<'_, HashSet<String>> {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn deliver(self: Arc<Self>) {
        let number = self.sent.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}{number}", self.prefix);
        // Most are vendors, whose worker has several replicas.
        let body = if number.is_multiple_of(4) {
            EXPORT_JOB.body
        } else {
            VENDOR.body
        };
        loop {
            let now = Utc::now().timestamp();
            let delivery = Delivery::sign(&self.key, &self.url, &id, now, body)
                .expect("a parsed key can sign");
            if self.client.post(delivery).await.outcome.is_safe() {
                self.accepted().insert(id);
                return;
            }
            sleep(PAUSE).await;
        }
    }
}
