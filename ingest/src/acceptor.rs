//! From single verified events to batches and back: requests that arrive together share one
//! transaction and one round of confirms.

use std::{collections::HashMap, sync::Arc, time::Duration};

use moka::sync::Cache;
use shared::AcceptedEvent;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{Instant, timeout_at},
};
use tracing::warn;

use crate::settlement::Settlement;

/// Under load a batch stays open this long for company. A lone request never waits.
const LINGER: Duration = Duration::from_millis(1);

/// Ids answered recently, so that a burst of repetitions costs no query. Short-lived, as it knows
/// nothing of a queue that was purged since.
const RECENT_IDS: u64 = 8_192;
const RECENT_LIFE: Duration = Duration::from_secs(30);

/// What became of a verified event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A quorum queue confirmed it, or its spool row is on disk.
    Accepted,
    /// It is safe since an earlier delivery.
    Duplicate(Layer),
    /// The id was accepted with another body.
    Conflict,
    /// Neither store took it in time.
    Unavailable,
}

/// Where a duplicate was recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// In this process's memory of recent ids.
    Memory,
    /// Beside its twin in one batch.
    Batch,
    /// By a fresh receipt.
    Receipt,
    /// In `events` or the spool.
    Stored,
}

impl Layer {
    /// Every layer.
    pub const ALL: [Self; 4] = [Self::Memory, Self::Batch, Self::Receipt, Self::Stored];

    /// The layer as a metric label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Batch => "batch",
            Self::Receipt => "receipt",
            Self::Stored => "stored",
        }
    }
}

struct Waiting {
    event: AcceptedEvent,
    reply: oneshot::Sender<Outcome>,
}

/// The handlers' side.
#[derive(Clone)]
pub struct Acceptor {
    queue: mpsc::Sender<Waiting>,
    recent: Cache<String, [u8; 32]>,
    deadline: Duration,
}

/// The side that forms batches; it ends when every [`Acceptor`] is gone and all is answered.
pub struct Batcher {
    queue: mpsc::Receiver<Waiting>,
    recent: Cache<String, [u8; 32]>,
    settlement: Arc<Settlement>,
    batch_size: usize,
    slots: Arc<Semaphore>,
    slot_count: usize,
}

/// Both sides. At most `batch_size` events form a batch, at most `batches_in_flight` are under way.
pub fn new(
    settlement: Settlement,
    batch_size: usize,
    batches_in_flight: usize,
) -> (Acceptor, Batcher) {
    let (sender, receiver) = mpsc::channel(batch_size * batches_in_flight);
    let recent = Cache::builder()
        .max_capacity(RECENT_IDS)
        .time_to_live(RECENT_LIFE)
        .build();
    let acceptor = Acceptor {
        queue: sender,
        recent: recent.clone(),
        deadline: settlement.deadline(),
    };
    let batcher = Batcher {
        queue: receiver,
        recent,
        settlement: Arc::new(settlement),
        batch_size,
        slots: Arc::new(Semaphore::new(batches_in_flight)),
        slot_count: batches_in_flight,
    };
    (acceptor, batcher)
}

impl Acceptor {
    /// Brings one event to safety, within the deadline.
    pub async fn accept(&self, event: AcceptedEvent) -> Outcome {
        if let Some(body_sha256) = self.recent.get(&event.webhook_id) {
            return if body_sha256 == event.body_sha256 {
                Outcome::Duplicate(Layer::Memory)
            } else {
                Outcome::Conflict
            };
        }
        let deadline = Instant::now() + self.deadline;
        let (reply, answer) = oneshot::channel();
        let wait = async {
            self.queue.send(Waiting { event, reply }).await.ok()?;
            answer.await.ok()
        };
        // The event may still be made safe after this; the sender's next try is then a duplicate.
        timeout_at(deadline, wait)
            .await
            .ok()
            .flatten()
            .unwrap_or(Outcome::Unavailable)
    }
}

impl Batcher {
    /// Forms batches until every [`Acceptor`] is gone, then waits for those under way.
    pub async fn run(mut self) {
        let mut batch = Vec::new();
        loop {
            let slot = Arc::clone(&self.slots)
                .acquire_owned()
                .await
                .expect("the semaphore is never closed");
            if self.queue.recv_many(&mut batch, self.batch_size).await == 0 {
                drop(slot);
                break;
            }
            let under_load = self.slots.available_permits() + 1 < self.slot_count;
            if under_load {
                self.linger(&mut batch).await;
            }
            let batch = std::mem::take(&mut batch);
            tokio::spawn(settle(
                Arc::clone(&self.settlement),
                self.recent.clone(),
                batch,
                slot,
            ));
        }
        let all = u32::try_from(self.slot_count).unwrap_or(u32::MAX);
        drop(self.slots.acquire_many(all).await);
    }

    async fn linger(&mut self, batch: &mut Vec<Waiting>) {
        let until = Instant::now() + LINGER;
        while batch.len() < self.batch_size {
            match timeout_at(until, self.queue.recv()).await {
                Ok(Some(waiting)) => batch.push(waiting),
                Ok(None) | Err(_) => break,
            }
        }
    }
}

async fn settle(
    settlement: Arc<Settlement>,
    recent: Cache<String, [u8; 32]>,
    batch: Vec<Waiting>,
    _slot: OwnedSemaphorePermit,
) {
    let (leaders, followers) = split_repetitions(batch);
    let (events, replies): (Vec<_>, Vec<_>) =
        leaders.into_iter().map(|w| (w.event, w.reply)).unzip();
    let (outcomes, receipts) = settlement.settle(&events).await;
    for (event, outcome) in events.iter().zip(&outcomes) {
        match outcome {
            Outcome::Accepted | Outcome::Duplicate(_) => {
                recent.insert(event.webhook_id.clone(), event.body_sha256);
            }
            Outcome::Conflict => warn!(
                webhook_id = event.webhook_id,
                "refused: the id was accepted before with another body"
            ),
            Outcome::Unavailable => {}
        }
    }
    for (follower, leader) in followers {
        let outcome = match outcomes[leader] {
            Outcome::Accepted | Outcome::Duplicate(_) => {
                if follower.event.body_sha256 == events[leader].body_sha256 {
                    Outcome::Duplicate(Layer::Batch)
                } else {
                    Outcome::Conflict
                }
            }
            // The leader settled nothing, so the follower's own next try has to.
            Outcome::Conflict | Outcome::Unavailable => Outcome::Unavailable,
        };
        // Whoever waited for it may be gone by now.
        follower.reply.send(outcome).ok();
    }
    for (reply, outcome) in replies.into_iter().zip(outcomes) {
        reply.send(outcome).ok();
    }
    settlement.keep(receipts).await;
}

/// The first of each id, and the others with the position of the first.
fn split_repetitions(batch: Vec<Waiting>) -> (Vec<Waiting>, Vec<(Waiting, usize)>) {
    let mut positions: HashMap<String, usize> = HashMap::with_capacity(batch.len());
    let mut leaders: Vec<Waiting> = Vec::with_capacity(batch.len());
    let mut followers = Vec::new();
    for waiting in batch {
        match positions.get(&waiting.event.webhook_id) {
            Some(&leader) => followers.push((waiting, leader)),
            None => {
                positions.insert(waiting.event.webhook_id.clone(), leaders.len());
                leaders.push(waiting);
            }
        }
    }
    (leaders, followers)
}
