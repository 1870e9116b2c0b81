//! From single verified events to batches and back: requests that arrive together share one
//! transaction and one round of confirms.
//!
//! No timer keeps a batch open. It starts as soon as a slot is free, with all events that came while
//! the slots were taken. So a lone request does not wait, and batches grow with the load.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use shared::AcceptedEvent;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{Instant, timeout_at},
};
use tracing::warn;

use crate::{recent::Recent, settlement::Settlement};

/// What became of a verified event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A quorum queue confirmed it, or its spool row is on disk.
    Accepted,
    /// It is safe since an earlier delivery.
    Duplicate(Layer),
    /// It is safe, and its id was accepted with another body before: it becomes a dead letter.
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
    reply: Reply,
}

/// The way back to a request.
struct Reply {
    request: oneshot::Sender<Outcome>,
    thread: mpsc::UnboundedSender<Replies>,
}

/// Replies to requests of one thread.
type Replies = Vec<(oneshot::Sender<Outcome>, Outcome)>;

/// The way to the batcher, for every thread of the server.
#[derive(Clone)]
pub struct Entrance {
    queue: mpsc::Sender<Waiting>,
    recent: Recent,
    deadline: Duration,
}

/// The handlers' side, of one thread.
pub struct Acceptor {
    entrance: Entrance,
    thread: mpsc::UnboundedSender<Replies>,
}

/// The side that forms batches; it ends when every [`Entrance`] and [`Acceptor`] is gone and all is
/// answered.
pub struct Batcher {
    queue: mpsc::Receiver<Waiting>,
    recent: Recent,
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
) -> (Entrance, Batcher) {
    let (sender, receiver) = mpsc::channel(batch_size * batches_in_flight);
    let recent = Recent::default();
    let entrance = Entrance {
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
    (entrance, batcher)
}

impl Entrance {
    /// An acceptor for the requests of this thread, which has to run a `LocalSet`, as those of actix
    /// do.
    ///
    /// A batch's replies come to the thread together, and only here each to its request: waking a
    /// thread up for every single one is a system call.
    pub fn acceptor(&self) -> Acceptor {
        let (thread, mut replies) = mpsc::unbounded_channel::<Replies>();
        tokio::task::spawn_local(async move {
            while let Some(replies) = replies.recv().await {
                for (request, outcome) in replies {
                    // The request may have been dropped by now.
                    request.send(outcome).ok();
                }
            }
        });
        Acceptor {
            entrance: self.clone(),
            thread,
        }
    }
}

impl Acceptor {
    /// Brings one event to safety, within the deadline.
    pub async fn accept(&self, event: AcceptedEvent) -> Outcome {
        let Entrance {
            queue,
            recent,
            deadline,
        } = &self.entrance;
        if recent.get(&event.webhook_id) == Some(event.body_sha256) {
            return Outcome::Duplicate(Layer::Memory);
        }
        let deadline = Instant::now() + *deadline;
        let (request, answer) = oneshot::channel();
        let thread = self.thread.clone();
        let reply = Reply { request, thread };
        let wait = async {
            queue.send(Waiting { event, reply }).await.ok()?;
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
    /// Forms batches until all senders are gone, then waits for the batches under way.
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
}

async fn settle(
    settlement: Arc<Settlement>,
    recent: Recent,
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
                "becomes a dead letter: the id was accepted before with another body"
            ),
            Outcome::Unavailable => {}
        }
    }
    let mut answered: Vec<(Reply, Outcome)> = Vec::with_capacity(replies.len());
    for (follower, leader) in followers {
        let outcome = match outcomes[leader] {
            Outcome::Accepted | Outcome::Duplicate(_) => Outcome::Duplicate(Layer::Batch),
            Outcome::Conflict => Outcome::Conflict,
            // The leader settled nothing, so the follower's own next try has to.
            Outcome::Unavailable => Outcome::Unavailable,
        };
        answered.push((follower, outcome));
    }
    answered.extend(replies.into_iter().zip(outcomes));
    send(answered);
    settlement.keep(receipts).await;
}

/// Sends the replies, one time for each thread.
fn send(answered: Vec<(Reply, Outcome)>) {
    let mut threads: Vec<(mpsc::UnboundedSender<Replies>, Replies)> = Vec::new();
    for (Reply { request, thread }, outcome) in answered {
        match threads.iter_mut().find(|(t, _)| t.same_channel(&thread)) {
            Some((_, replies)) => replies.push((request, outcome)),
            None => threads.push((thread, vec![(request, outcome)])),
        }
    }
    for (thread, replies) in threads {
        // A thread that is gone has no requests any more.
        thread.send(replies).ok();
    }
}

/// The first of each event, and the replies to the others with the position of the first. Another body
/// is another event.
fn split_repetitions(batch: Vec<Waiting>) -> (Vec<Waiting>, Vec<(Reply, usize)>) {
    let mut positions: HashMap<(String, [u8; 32]), usize> = HashMap::with_capacity(batch.len());
    let mut leaders: Vec<Waiting> = Vec::with_capacity(batch.len());
    let mut followers = Vec::new();
    for waiting in batch {
        let event = (waiting.event.webhook_id.clone(), waiting.event.body_sha256);
        match positions.entry(event) {
            Entry::Occupied(leader) => followers.push((waiting.reply, *leader.get())),
            Entry::Vacant(first) => {
                first.insert(leaders.len());
                leaders.push(waiting);
            }
        }
    }
    (leaders, followers)
}
