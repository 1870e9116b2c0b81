//! Executes a plan as an open loop: requests are due at fixed times, so slow answers cannot hide behind
//! requests that were never sent.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::{sync::Semaphore, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{Plan, Report, report::Tally};
use crate::delivery::Client;

/// A duplicate repeats one of this many recent events.
const REPEATED_OF: u64 = 10_000;

/// The longest time until a stop is noticed between two requests.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The progress of a load.
#[derive(Debug, Default)]
pub struct Progress {
    answered: AtomicU64,
    refused: AtomicU64,
}

impl Progress {
    /// Finished requests, answered or not.
    pub fn answered(&self) -> u64 {
        self.answered.load(Relaxed)
    }

    /// Finished requests that were refused or not answered.
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }
}

struct Load {
    plan: Plan,
    started: Instant,
    client: Client,
    /// One permit for each request that is due.
    due: Semaphore,
    requests: AtomicU64,
    events: AtomicU64,
    progress: Arc<Progress>,
}

impl Plan {
    /// Sends all requests, or those that are due before `stop`, and waits for the answers to those that
    /// were sent.
    pub async fn run(self, progress: Arc<Progress>, stop: CancellationToken) -> Report {
        let load = Arc::new(Load {
            started: Instant::now(),
            client: Client::default(),
            due: Semaphore::new(0),
            requests: AtomicU64::new(0),
            events: AtomicU64::new(0),
            progress,
            plan: self,
        });
        let pacer = Arc::clone(&load);
        // A thread, because the runtime's own timer has a resolution of a millisecond.
        let pacing = tokio::task::spawn_blocking(move || pacer.pace(&stop));
        let mut senders = JoinSet::new();
        for _ in 0..load.plan.connections {
            senders.spawn(Arc::clone(&load).send());
        }
        let mut tally = Tally::default();
        for sender in senders.join_all().await {
            tally.add(sender);
        }
        let took = load.started.elapsed();
        pacing.await.ok();
        tally.report(&load.plan, took)
    }
}

impl Load {
    /// Releases requests, each at its time.
    fn pace(&self, stop: &CancellationToken) {
        let mut released = 0;
        while released < self.plan.requests {
            if stop.is_cancelled() {
                self.due.close();
                return;
            }
            let wait = self
                .plan
                .due(released)
                .saturating_sub(self.started.elapsed());
            if wait.is_zero() {
                self.due.add_permits(1);
                released += 1;
            } else {
                thread::sleep(wait.min(LOOK_EVERY));
            }
        }
        // After the last request, one permit for each sender, so that it notices the end.
        self.due.add_permits(self.plan.connections);
    }

    /// Sends due requests one after the other.
    async fn send(self: Arc<Self>) -> Tally {
        let mut tally = Tally::default();
        while let Ok(permit) = self.due.acquire().await {
            permit.forget();
            let request = self.requests.fetch_add(1, Relaxed);
            if request >= self.plan.requests {
                break;
            }
            let due = self.plan.due(request);
            let late = self.started.elapsed().saturating_sub(due);
            let Ok(delivery) = self.plan.delivery(self.event()) else {
                // It was checked when the plan was made, and is the same for every request.
                break;
            };
            let answer = self.client.post(delivery).await;
            if !answer.outcome.is_safe() {
                self.progress.refused.fetch_add(1, Relaxed);
            }
            self.progress.answered.fetch_add(1, Relaxed);
            let latency = self.started.elapsed().saturating_sub(due);
            tally.note(answer, late, latency);
        }
        tally
    }

    /// The number of the event to send, usually a new one.
    fn event(&self) -> u64 {
        let events = self.events.load(Relaxed);
        if events > 0 && rand::random_bool(self.plan.duplicates) {
            rand::random_range(events.saturating_sub(REPEATED_OF)..events)
        } else {
            self.events.fetch_add(1, Relaxed)
        }
    }
}
