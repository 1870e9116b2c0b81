//! One subscription to a family's queue, from its first delivery to its end.
//!
//! It collects deliveries into batches and stores several batches at the same time. It acknowledges
//! only the contiguous prefix of finished deliveries, on the channel that delivered them. `Phase`
//! is the subscription's state.

use std::{future, ops::ControlFlow, sync::Arc, time::Duration};

use chrono::Utc;
use futures_util::{FutureExt, StreamExt};
use lapin::{
    Channel, Consumer as Deliveries,
    message::Delivery,
    options::{BasicAckOptions, BasicCancelOptions},
};
use shared::message::Delivered;
use tokio::{
    task::{JoinError, JoinSet},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    acks::Acks,
    persistence::{Abandoned, Persistence},
    work::Work,
};

/// A message that was redelivered this often may be a poison message, which stops its consumers.
const SUSPICIOUS_REDELIVERIES: u64 = 2;

/// If a queue is deleted and immediately declared again, RabbitMQ 3.10 may silently deliver nothing
/// more to its consumer. Subscribing again costs an idle worker nothing.
const RESUBSCRIBE_AFTER: Duration = Duration::from_secs(60);

/// The time to cancel the subscription at a stop; it must leave time to store what was delivered.
const CANCEL_DEADLINE: Duration = Duration::from_secs(5);

/// How deliveries are collected into batches.
#[derive(Clone, Copy, Debug)]
pub struct Batching {
    /// A batch is full with this many events; its last message may bring more. Also the prefetch,
    /// in messages.
    pub size: usize,
    /// The most transactions at once.
    pub in_flight: usize,
    /// How long a batch that is not full waits for more.
    pub linger: Duration,
}

/// Why a subscription ended.
pub enum Ended {
    /// It was stopped, and everything delivered is finished and acknowledged.
    Stopped,
    /// The connection, the channel or the subscription was lost.
    Lost(String),
    /// Postgres was down for long; the messages are back in the queue.
    Unstorable,
    /// Nothing was delivered for a while.
    Idle,
}

/// The state of a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// RabbitMQ sends deliveries.
    Consuming,
    /// The subscription was cancelled at RabbitMQ because of a stop. Deliveries already sent still
    /// arrive.
    Cancelled,
    /// Every delivery has arrived. The subscription ends when all are stored and acknowledged.
    Drained,
}

/// Messages to be stored together.
#[derive(Default)]
struct Batch {
    deliveries: Vec<Delivery>,
    /// The number of events that their headers announce.
    events: usize,
}

impl Batch {
    fn push(&mut self, delivery: Delivery) {
        self.events += Delivered::announced_by(&delivery.properties);
        self.deliveries.push(delivery);
    }

    fn is_empty(&self) -> bool {
        self.deliveries.is_empty()
    }

    fn tags(&self) -> Vec<u64> {
        self.deliveries.iter().map(|d| d.delivery_tag).collect()
    }
}

/// The deliveries of a batch, and whether they were stored.
type Finished = (Vec<u64>, Result<(), Abandoned>);

/// A subscription with its collected and running batches.
pub struct Subscription<'a> {
    channel: &'a Channel,
    deliveries: Deliveries,
    persistence: &'a Arc<Persistence>,
    batching: Batching,
    /// Cancels running batches. They are useless to the next subscription, because RabbitMQ
    /// delivers their messages again.
    abandon: CancellationToken,
    phase: Phase,
    batch: Batch,
    /// When a batch is stored although it is not full.
    flush_at: Instant,
    last_delivery: Instant,
    running: JoinSet<Finished>,
    acks: Acks,
}

impl<'a> Subscription<'a> {
    /// A subscription for the deliveries of `channel`.
    pub fn new(
        channel: &'a Channel,
        deliveries: Deliveries,
        persistence: &'a Arc<Persistence>,
        batching: Batching,
        abandon: &CancellationToken,
    ) -> Self {
        Self {
            channel,
            deliveries,
            persistence,
            batching,
            abandon: abandon.child_token(),
            phase: Phase::Consuming,
            batch: Batch::default(),
            flush_at: Instant::now(),
            last_delivery: Instant::now(),
            running: JoinSet::new(),
            acks: Acks::default(),
        }
    }

    /// Stores and acknowledges deliveries until `stop`, and then those already sent. It may be
    /// cancelled at any point, but [`Self::abandon`] must follow.
    pub async fn run(&mut self, stop: &CancellationToken) -> Ended {
        loop {
            let step = self.step(stop).await;
            if let ControlFlow::Break(ended) = step {
                return ended;
            }
        }
    }

    /// Abandons what is not stored yet. A commit that is running may still succeed; the event is
    /// then found stored when it is redelivered.
    pub async fn abandon(mut self) {
        self.abandon.cancel();
        while self.running.join_next().await.is_some() {}
    }

    async fn step(&mut self, stop: &CancellationToken) -> ControlFlow<Ended> {
        let is_at_rest = self.batch.is_empty() && self.running.is_empty();
        let is_consuming = self.phase == Phase::Consuming;
        if self.phase == Phase::Drained && is_at_rest {
            return ControlFlow::Break(Ended::Stopped);
        }
        let is_full = self.is_full();
        let has_slot = self.running.len() < self.batching.in_flight;
        tokio::select! {
            Some(finished) = self.running.join_next(), if !self.running.is_empty() => {
                self.on_finished(finished).await
            }
            delivery = self.deliveries.next(), if !is_full && self.phase != Phase::Drained => {
                self.on_delivery(delivery)
            }
            () = sleep_until(self.flush_at), if has_slot && !self.batch.is_empty() && !is_full => {
                self.start_batch();
                ControlFlow::Continue(())
            }
            () = future::ready(()), if has_slot && is_full => {
                self.start_batch();
                ControlFlow::Continue(())
            }
            () = sleep_until(self.last_delivery + RESUBSCRIBE_AFTER), if is_at_rest && is_consuming => {
                ControlFlow::Break(Ended::Idle)
            }
            () = stop.cancelled(), if is_consuming => self.on_stop().await,
        }
    }

    fn is_full(&self) -> bool {
        self.batch.events >= self.batching.size
    }

    async fn on_finished(&mut self, finished: Result<Finished, JoinError>) -> ControlFlow<Ended> {
        let (tags, outcome) = match finished {
            Ok(finished) => finished,
            // Its messages are redelivered and counted, and in the end isolated.
            Err(panic) => return lost(panic),
        };
        if outcome == Err(Abandoned) {
            return if self.phase == Phase::Consuming {
                ControlFlow::Break(Ended::Unstorable)
            } else {
                lost("stopped before everything was stored")
            };
        }
        if let Some(tag) = self.acks.finish(tags)
            && let Err(error) = acknowledge(self.channel, tag).await
        {
            return lost(error);
        }
        ControlFlow::Continue(())
    }

    fn on_delivery(
        &mut self,
        delivery: Option<Result<Delivery, lapin::Error>>,
    ) -> ControlFlow<Ended> {
        self.last_delivery = Instant::now();
        if self.batch.is_empty() {
            self.flush_at = self.last_delivery + self.batching.linger;
        }
        self.take(delivery)?;
        // Take all deliveries that have already arrived.
        while !self.is_full()
            && self.phase != Phase::Drained
            && let Some(delivery) = self.deliveries.next().now_or_never()
        {
            self.take(delivery)?;
        }
        ControlFlow::Continue(())
    }

    /// `None` is the end of the subscription, and comes once.
    fn take(&mut self, delivery: Option<Result<Delivery, lapin::Error>>) -> ControlFlow<Ended> {
        match delivery {
            Some(Ok(delivery)) => self.batch.push(delivery),
            Some(Err(error)) => return lost(error),
            None if self.phase == Phase::Consuming => {
                return lost("the broker cancelled the subscription");
            }
            None => self.phase = Phase::Drained,
        }
        ControlFlow::Continue(())
    }

    async fn on_stop(&mut self) -> ControlFlow<Ended> {
        self.phase = Phase::Cancelled;
        let cancel = self
            .channel
            .basic_cancel(self.deliveries.tag(), BasicCancelOptions::default());
        match timeout(CANCEL_DEADLINE, cancel).await {
            Ok(Ok(())) => ControlFlow::Continue(()),
            Ok(Err(error)) => lost(error),
            // Messages that are not being stored yet should return to the queue now.
            Err(_elapsed) => lost("RabbitMQ did not end the subscription"),
        }
    }

    /// Starts to store the batch. Suspected poison messages are isolated: each is moved to the
    /// spool and handled alone.
    fn start_batch(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        let tags = batch.tags();
        let now = Utc::now();
        let (suspicious, ordinary): (Vec<Delivered>, Vec<Delivered>) = batch
            .deliveries
            .into_iter()
            .flat_map(|d| Delivered::from_message(&d.properties, d.redelivered, d.data, now))
            .partition(|delivered| delivered.redeliveries >= SUSPICIOUS_REDELIVERIES);
        let suspicious: Vec<Work> = suspicious.into_iter().map(Work::from).collect();
        let ordinary: Vec<Work> = ordinary.into_iter().map(Work::from).collect();
        let persistence = Arc::clone(self.persistence);
        let abandon = self.abandon.clone();
        self.running.spawn(async move {
            let outcome = async {
                if !ordinary.is_empty() {
                    persistence.persist(ordinary, &abandon).await?;
                }
                if !suspicious.is_empty() {
                    persistence.isolate(&suspicious, &abandon).await?;
                }
                Ok(())
            };
            (tags, outcome.await)
        });
    }
}

fn lost(reason: impl ToString) -> ControlFlow<Ended> {
    ControlFlow::Break(Ended::Lost(reason.to_string()))
}

#[expect(
    clippy::disallowed_methods,
    reason = "this is the one place that acknowledges"
)]
async fn acknowledge(channel: &Channel, tag: u64) -> Result<(), lapin::Error> {
    channel
        .basic_ack(tag, BasicAckOptions { multiple: true })
        .await
}
