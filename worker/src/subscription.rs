//! One subscription to a family's queue, from its first delivery to its end.
//!
//! Deliveries are collected in a batch. Batches are stored side by side. What is acknowledged is only
//! ever the contiguous prefix of finished deliveries, on the channel that delivered them. `Phase`
//! says how far a subscription is.

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

/// A message that was given to a consumer this often without being acknowledged may be what stops
/// the consumers.
const SUSPICIOUS_REDELIVERIES: u64 = 2;

/// RabbitMQ 3.10 can leave a consumer without deliveries, and without a word, whose queue was deleted
/// and declared again at once. Subscribing anew costs an idle worker nothing.
const RESUBSCRIBE_AFTER: Duration = Duration::from_secs(60);

/// Ending the subscription at a stop, which must leave time for what was delivered.
const CANCEL_DEADLINE: Duration = Duration::from_secs(5);

/// How deliveries become batches.
#[derive(Clone, Copy, Debug)]
pub struct Batching {
    /// A batch is full with so many events, of which the last message may bring more; also the most
    /// messages in hand.
    pub size: usize,
    /// The most transactions at once.
    pub in_flight: usize,
    /// How long a batch that is not full waits for more.
    pub linger: Duration,
}

/// Why a subscription ended.
pub enum Ended {
    /// As asked: everything delivered is finished and acknowledged.
    Stopped,
    /// The connection, the channel or the subscription is gone.
    Lost(String),
    /// Postgres is away for long; the messages are back in the queue.
    Unstorable,
    /// Nothing came for a while.
    Idle,
}

/// How far a subscription is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// RabbitMQ sends deliveries.
    Consuming,
    /// A stop was asked for and RabbitMQ told to send no more. What is on its way still arrives.
    Cancelled,
    /// Every delivery has arrived. The subscription ends when all are stored and acknowledged.
    Drained,
}

/// Messages to be stored together.
#[derive(Default)]
struct Batch {
    deliveries: Vec<Delivery>,
    /// How many events they announce.
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

/// A subscription and what it has in hand.
pub struct Subscription<'a> {
    channel: &'a Channel,
    deliveries: Deliveries,
    persistence: &'a Arc<Persistence>,
    batching: Batching,
    /// Ends what is being stored. The next subscription has no use for it, as RabbitMQ delivers its
    /// messages again.
    abandon: CancellationToken,
    phase: Phase,
    batch: Batch,
    /// When the batch is stored even if it is not full.
    flush_at: Instant,
    last_delivery: Instant,
    running: JoinSet<Finished>,
    acks: Acks,
}

impl<'a> Subscription<'a> {
    /// Takes over what `channel` delivers.
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

    /// Stores and acknowledges deliveries until `stop`, and then those that have been sent. It may be
    /// cancelled anywhere; [`Self::abandon`] has to follow.
    pub async fn run(&mut self, stop: &CancellationToken) -> Ended {
        loop {
            let step = self.step(stop).await;
            if let ControlFlow::Break(ended) = step {
                return ended;
            }
        }
    }

    /// Gives up what is not stored yet. What is being committed may finish; it is then known when it
    /// comes again.
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
            // Its message comes again, is counted, and in the end set aside.
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
        // What has arrived by now is taken in the same step.
        while !self.is_full()
            && self.phase != Phase::Drained
            && let Some(delivery) = self.deliveries.next().now_or_never()
        {
            self.take(delivery)?;
        }
        ControlFlow::Continue(())
    }

    /// `None` is the end of the subscription, which arrives once.
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
            // What is not being stored yet is better off in the queue by then.
            Err(_elapsed) => lost("RabbitMQ did not end the subscription"),
        }
    }

    /// Starts to store the batch. Messages that may be what stops consumers are stored one by one.
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
