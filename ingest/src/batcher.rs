//! Collects verified events into batches and returns the outcomes to their requests. The events of
//! a batch share one database transaction and one round of confirms.
//!
//! No timer keeps a batch open. A batch starts as soon as a slot is free, with all events that
//! arrived while the slots were taken. So a lone request does not wait, and batches grow with the
//! load.

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

use crate::{
    batch_processor::BatchProcessor,
    outcome::{Layer, Outcome},
    recent_ids::RecentIds,
};

struct Submission {
    event: AcceptedEvent,
    reply_to: ReplyTo,
}

/// The first occurrence of an event in a batch.
struct Leader {
    event: AcceptedEvent,
    reply_to: ReplyTo,
    /// Where the same event's further requests wait.
    repetitions: Vec<ReplyTo>,
}

/// Where a request waits for its outcome.
struct ReplyTo {
    request: oneshot::Sender<Outcome>,
    thread: mpsc::UnboundedSender<Replies>,
}

/// Replies for requests of one thread.
type Replies = Vec<(oneshot::Sender<Outcome>, Outcome)>;

/// A handle to the batcher that all server threads share.
#[derive(Clone)]
pub struct BatcherHandle {
    queue: mpsc::Sender<Submission>,
    recent_ids: RecentIds,
    deadline: Duration,
}

/// Submits the events of one server thread.
pub struct Submitter {
    batcher: BatcherHandle,
    thread: mpsc::UnboundedSender<Replies>,
}

/// Forms the batches. It ends when every [`BatcherHandle`] and [`Submitter`] is dropped and every
/// event is answered.
pub struct Batcher {
    queue: mpsc::Receiver<Submission>,
    recent_ids: RecentIds,
    processor: Arc<BatchProcessor>,
    batch_size: usize,
    slots: Arc<Semaphore>,
    slot_count: usize,
}

/// Creates a handle and its batcher. A batch has at most `batch_size` events, and at most
/// `batches_in_flight` batches are processed at once.
pub fn new(
    processor: BatchProcessor,
    batch_size: usize,
    batches_in_flight: usize,
) -> (BatcherHandle, Batcher) {
    let (sender, receiver) = mpsc::channel(batch_size * batches_in_flight);
    let recent_ids = RecentIds::default();
    let handle = BatcherHandle {
        queue: sender,
        recent_ids: recent_ids.clone(),
        deadline: processor.deadline(),
    };
    let batcher = Batcher {
        queue: receiver,
        recent_ids,
        processor: Arc::new(processor),
        batch_size,
        slots: Arc::new(Semaphore::new(batches_in_flight)),
        slot_count: batches_in_flight,
    };
    (handle, batcher)
}

impl BatcherHandle {
    /// A submitter for this thread, which must run a `LocalSet`, as actix's threads do.
    ///
    /// All replies of a batch to this thread come in one message, and a local task passes them on
    /// to the requests. A wake-up of the thread for each reply would be one system call each.
    pub fn submitter(&self) -> Submitter {
        let (thread, mut replies) = mpsc::unbounded_channel::<Replies>();
        tokio::task::spawn_local(async move {
            while let Some(replies) = replies.recv().await {
                for (request, outcome) in replies {
                    // The request may have been dropped by now.
                    request.send(outcome).ok();
                }
            }
        });
        Submitter {
            batcher: self.clone(),
            thread,
        }
    }
}

impl Submitter {
    /// Submits an event and waits for its outcome until the deadline.
    pub async fn submit(&self, event: AcceptedEvent) -> Outcome {
        let BatcherHandle {
            queue,
            recent_ids,
            deadline,
        } = &self.batcher;
        if recent_ids.get(&event.webhook_id) == Some(event.body_sha256) {
            return Outcome::Duplicate(Layer::Memory);
        }
        let deadline = Instant::now() + *deadline;
        let (request, answer) = oneshot::channel();
        let thread = self.thread.clone();
        let reply_to = ReplyTo { request, thread };
        let wait = async {
            queue.send(Submission { event, reply_to }).await.ok()?;
            answer.await.ok()
        };
        // After the deadline the event may still become safe; the sender's retry is then a
        // duplicate.
        timeout_at(deadline, wait)
            .await
            .ok()
            .flatten()
            .unwrap_or(Outcome::Unavailable)
    }
}

impl Batcher {
    /// Runs until all senders are dropped, then waits for the batches in progress.
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
            tokio::spawn(process(
                Arc::clone(&self.processor),
                self.recent_ids.clone(),
                batch,
                slot,
            ));
        }
        let all = u32::try_from(self.slot_count).unwrap_or(u32::MAX);
        drop(self.slots.acquire_many(all).await);
    }
}

async fn process(
    processor: Arc<BatchProcessor>,
    recent_ids: RecentIds,
    batch: Vec<Submission>,
    _slot: OwnedSemaphorePermit,
) {
    let submissions = batch.len();
    let leaders = group_repetitions(batch);
    let events: Vec<&AcceptedEvent> = leaders.iter().map(|leader| &leader.event).collect();
    let (outcomes, receipts) = processor.process(&events).await;
    debug_assert_eq!(outcomes.len(), leaders.len(), "each event has one outcome");
    let mut answered: Vec<(ReplyTo, Outcome)> = Vec::with_capacity(submissions);
    for (leader, outcome) in leaders.into_iter().zip(outcomes) {
        let Leader {
            event, reply_to, ..
        } = leader;
        let of_repetitions = match outcome {
            Outcome::Accepted | Outcome::Duplicate(_) => {
                recent_ids.insert(event.webhook_id, event.body_sha256);
                Outcome::Duplicate(Layer::Batch)
            }
            Outcome::Conflict => {
                warn!(
                    webhook_id = event.webhook_id,
                    "becomes a dead letter: the id was accepted before with another body"
                );
                Outcome::Conflict
            }
            // Nothing is safe, so the sender must retry the repetition as well.
            Outcome::Unavailable => Outcome::Unavailable,
        };
        answered.push((reply_to, outcome));
        let repetitions = leader.repetitions.into_iter();
        answered.extend(repetitions.map(|reply_to| (reply_to, of_repetitions)));
    }
    send(answered);
    processor.commit_receipts(receipts).await;
}

/// Sends the replies, in one message for each thread.
fn send(answered: Vec<(ReplyTo, Outcome)>) {
    let mut threads: Vec<(mpsc::UnboundedSender<Replies>, Replies)> = Vec::new();
    for (ReplyTo { request, thread }, outcome) in answered {
        match threads.iter_mut().find(|(t, _)| t.same_channel(&thread)) {
            Some((_, replies)) => replies.push((request, outcome)),
            None => threads.push((thread, vec![(request, outcome)])),
        }
    }
    for (thread, replies) in threads {
        // If the thread has ended, none of its requests waits any more.
        thread.send(replies).ok();
    }
}

/// Groups the repetitions of each event. Two bodies under one id are two events.
fn group_repetitions(batch: Vec<Submission>) -> Vec<Leader> {
    let mut positions: HashMap<(String, [u8; 32]), usize> = HashMap::with_capacity(batch.len());
    let mut leaders: Vec<Leader> = Vec::with_capacity(batch.len());
    for Submission { event, reply_to } in batch {
        match positions.entry((event.webhook_id.clone(), event.body_sha256)) {
            Entry::Occupied(leader) => leaders[*leader.get()].repetitions.push(reply_to),
            Entry::Vacant(first) => {
                first.insert(leaders.len());
                leaders.push(Leader {
                    event,
                    reply_to,
                    repetitions: Vec::new(),
                });
            }
        }
    }
    leaders
}
