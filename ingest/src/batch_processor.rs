//! Makes one batch of events safe: claim the ids, publish, wait for the confirms, spool unconfirmed
//! events, commit. It works as long as one of the two stores does.

mod item;
mod last_resort;

use std::{iter::repeat_n, sync::Arc, time::Duration};

use shared::{
    AcceptedEvent,
    database::{self, DeadlineTransaction, Durability, Pool, TransactionError, TransactionMode},
    message::Receipt,
    spool::{self, SpoolEntry},
};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};
use tracing::{debug, error, warn};

use self::item::Item;
use crate::{
    breaker::Permit,
    metrics::Metrics,
    outcome::{Layer, Outcome},
    publisher::{PublishError, Publisher},
    receipts::{self, Claim},
    watch::Breakers,
};

/// The time for the first step of a trial, when a store failed before. It is short so that the
/// other store still has time to take the batch. It is enough for four round trips over a long
/// distance.
const TRIAL_TIMEOUT: Duration = Duration::from_secs(1);

/// The transaction of [`BatchProcessor::is_replicated`].
const REPLICATION_CHECK: TransactionMode = TransactionMode::write(Durability::Replicated);

/// How long a check waits for an earlier one. If that one hangs, publishing again is faster.
const REPLICATION_CHECK_WAIT: Duration = Duration::from_millis(50);

/// The time for a commit of receipts alone. Its events are already safe and answered.
const RECEIPTS_COMMIT_TIMEOUT: Duration = Duration::from_secs(1);

/// Decides the outcome of each event of a batch.
pub struct BatchProcessor {
    pool: Pool,
    publisher: Publisher,
    breakers: Breakers,
    /// One check at a time, because each may wait for a standby that is down.
    replication_checks: Arc<Semaphore>,
    metrics: Metrics,
    deadline: Duration,
    receipt_trust: Duration,
}

/// The deadlines of a batch's phases. They leave time for the second store if the first one fails.
struct Deadlines {
    claimed: Instant,
    confirmed: Instant,
    /// Waiting for a connection ends here, because later there is no time to publish.
    connected: Instant,
    committed: Instant,
}

/// The batch's transaction, and the breaker's permit, which is told whether Postgres worked.
struct ClaimTransaction<'s> {
    transaction: DeadlineTransaction,
    permit: Permit<'s>,
}

/// The uncommitted receipts of a batch.
#[must_use = "dropped, they are taken back"]
pub struct Receipts<'s>(Option<ClaimTransaction<'s>>);

impl BatchProcessor {
    /// `deadline` is the time for a whole batch; `receipt_trust` is explained at
    /// [`receipts::claim`].
    pub fn new(
        pool: Pool,
        publisher: Publisher,
        metrics: Metrics,
        deadline: Duration,
        receipt_trust: Duration,
    ) -> Self {
        Self {
            pool,
            publisher,
            breakers: Breakers::default(),
            replication_checks: Arc::new(Semaphore::new(1)),
            metrics,
            deadline,
            receipt_trust,
        }
    }

    /// The breakers that batches report to.
    pub fn breakers(&self) -> Breakers {
        self.breakers.clone()
    }

    /// The time for a whole batch.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Processes events that are distinct by id and body, and returns their outcomes in the same
    /// order. The answers can be sent at once. The returned receipts are then to be
    /// [committed](Self::commit_receipts); a sender does not wait for them.
    pub async fn process(&self, events: &[&AcceptedEvent]) -> (Vec<Outcome>, Receipts<'_>) {
        debug_assert!(receipts::are_distinct(events));
        self.metrics.batch_size.observe(events.len() as f64);
        let deadlines = Deadlines::of_a_batch(self.deadline);
        let (claimed, mut items) = match self.claim(events, &deadlines).await {
            Some((claimed, claims)) => {
                let claims = self.republish_unreplicated(claims).await;
                (Some(claimed), item::items(events, claims.into_iter()))
            }
            None => {
                self.metrics.without_dedup.inc();
                let claims = repeat_n(Claim::Publish, events.len());
                (None, item::items(events, claims))
            }
        };
        let to_publish = item::to_publish(&items);
        let confirms = match claimed {
            _ if to_publish.is_empty() => Vec::new(),
            Some(_) => {
                self.publish(&to_publish, Receipt::Recorded, &deadlines)
                    .await
            }
            None => self.publish_or_spool(&to_publish, &deadlines).await,
        };
        item::note_confirms(&mut items, confirms);
        let (is_spooled, receipts) = self.spool_unconfirmed(claimed, &items, &deadlines).await;
        self.breakers.show(&self.metrics);
        let outcomes = items.iter().map(|item| item.outcome(is_spooled)).collect();
        (outcomes, Receipts(receipts))
    }

    /// Spools the events without a confirm, if there are any, and commits. Returns whether they are
    /// safe, and the transaction if it is not used up.
    async fn spool_unconfirmed<'s>(
        &'s self,
        claimed: Option<ClaimTransaction<'s>>,
        items: &[Item<'_>],
        deadlines: &Deadlines,
    ) -> (bool, Option<ClaimTransaction<'s>>) {
        let unconfirmed: Vec<&AcceptedEvent> = items
            .iter()
            .filter(|item| item.unconfirmed().is_some())
            .map(Item::published)
            .collect();
        if unconfirmed.is_empty() {
            return (false, claimed);
        }
        let is_spooled = match claimed {
            Some(claimed) => {
                self.spool_or_publish(claimed, &unconfirmed, deadlines)
                    .await
            }
            None => {
                self.spool(None, &unconfirmed, Receipt::Missing, deadlines)
                    .await
            }
        };
        report_unconfirmed(items, is_spooled);
        (is_spooled, None)
    }

    /// Commits the receipts of a batch. If that fails, no event is lost, because the broker has
    /// them all.
    pub async fn commit_receipts(&self, receipts: Receipts<'_>) {
        if let Receipts(Some(mut claimed)) = receipts {
            claimed
                .transaction
                .set_deadline(Instant::now() + RECEIPTS_COMMIT_TIMEOUT);
            claimed.commit().await;
            self.breakers.show(&self.metrics);
        }
    }

    /// Claims the events in a new transaction. Returns `None` if Postgres is not available; the
    /// events are then published without dedup.
    async fn claim(
        &self,
        events: &[&AcceptedEvent],
        deadlines: &Deadlines,
    ) -> Option<(ClaimTransaction<'_>, Vec<Claim>)> {
        let now = Instant::now();
        let permit = self.breakers.postgres.permit(now)?;
        let begun = if permit.is_trial {
            deadlines.claimed.min(now + TRIAL_TIMEOUT)
        } else {
            deadlines.claimed
        };
        let mut claimed = self.begin(permit, begun).await?;
        claimed.transaction.set_deadline(deadlines.claimed);
        let trust = self.receipt_trust;
        let claims = claimed
            .transaction
            .run(async |connection| receipts::claim(connection, events, trust).await)
            .await;
        match claims {
            Ok(claims) => Some((claimed, claims)),
            Err(error) => {
                claimed.failed(&error);
                None
            }
        }
    }

    /// A duplicate that was detected by a row in `events` or the spool is safe only if that row is.
    /// If it may not be, the duplicate is published again; the workers absorb it.
    async fn republish_unreplicated(&self, mut claims: Vec<Claim>) -> Vec<Claim> {
        let found = Claim::Duplicate(Layer::Stored);
        if claims.contains(&found) && !self.is_replicated().await {
            for claim in claims.iter_mut().filter(|claim| **claim == found) {
                *claim = Claim::Publish;
            }
        }
        claims
    }

    /// Whether everything that Postgres shows now is on the synchronous standby too, if there is
    /// one. After a restart of the primary, commits that were still waiting for the standby are
    /// visible.
    async fn is_replicated(&self) -> bool {
        let permit = Arc::clone(&self.replication_checks).acquire_owned();
        let Ok(Ok(permit)) = timeout(REPLICATION_CHECK_WAIT, permit).await else {
            return false;
        };
        let deadline = Instant::now() + TRIAL_TIMEOUT;
        let check = async {
            let mut transaction =
                DeadlineTransaction::begin(&self.pool, &REPLICATION_CHECK, deadline).await?;
            transaction.keep(permit);
            transaction
                .run(async |connection| database::make_commit_wait(connection).await)
                .await?;
            transaction.commit().await
        };
        match check.await {
            Ok(()) => true,
            Err(error) => {
                warn!(%error, "duplicates are published again: a failover might lose what is stored");
                false
            }
        }
    }

    async fn begin<'s>(
        &'s self,
        permit: Permit<'s>,
        deadline: Instant,
    ) -> Option<ClaimTransaction<'s>> {
        match DeadlineTransaction::begin(&self.pool, &receipts::MODE, deadline).await {
            Ok(transaction) => Some(ClaimTransaction {
                transaction,
                permit,
            }),
            Err(error) => {
                warn!(%error, "postgres is away; publishing without dedup meanwhile");
                drop(permit);
                None
            }
        }
    }

    /// Publishes, with a deadline that leaves time to spool unconfirmed events in the claim's
    /// transaction.
    async fn publish(
        &self,
        events: &[&AcceptedEvent],
        receipt: Receipt,
        deadlines: &Deadlines,
    ) -> Vec<Result<(), PublishError>> {
        let now = Instant::now();
        let Some(permit) = self.breakers.rabbitmq.permit(now) else {
            return vec![Err(PublishError::BreakerOpen); events.len()];
        };
        let deadline = if permit.is_trial {
            deadlines.confirmed.min(now + TRIAL_TIMEOUT)
        } else {
            deadlines.confirmed
        };
        self.publish_by(deadline, permit, events, receipt).await
    }

    async fn publish_by(
        &self,
        deadline: Instant,
        permit: Permit<'_>,
        events: &[&AcceptedEvent],
        receipt: Receipt,
    ) -> Vec<Result<(), PublishError>> {
        let started = Instant::now();
        let confirms = self.publisher.publish(events, receipt, deadline).await;
        match confirms.iter().find_map(|confirm| confirm.as_ref().err()) {
            None => {
                permit.succeeded();
                self.metrics
                    .confirm_seconds
                    .observe(started.elapsed().as_secs_f64());
            }
            Some(error) => {
                match error {
                    // The broker works; only a queue for one type of event is missing.
                    PublishError::Unroutable => permit.succeeded(),
                    _ => drop(permit),
                }
            }
        }
        confirms
    }

    /// Spools unconfirmed events and commits. Returns true if they are safe in the spool.
    async fn spool(
        &self,
        claimed: Option<ClaimTransaction<'_>>,
        unconfirmed: &[&AcceptedEvent],
        receipt: Receipt,
        deadlines: &Deadlines,
    ) -> bool {
        let claimed = match claimed {
            Some(claimed) => Some(claimed),
            // The claim may have failed only because of a lock, so the spool may still work.
            None => {
                let permit = self.breakers.postgres.last_resort(Instant::now());
                self.begin(permit, deadlines.committed).await
            }
        };
        let Some(mut claimed) = claimed else {
            return false;
        };
        let transaction = &mut claimed.transaction;
        transaction.set_deadline(deadlines.committed);
        if let Err(error) = spool_events(&self.pool, transaction, unconfirmed, receipt).await {
            claimed.failed(&error);
            return false;
        }
        let spooled = claimed.commit().await;
        if spooled {
            self.metrics.spooled.inc_by(unconfirmed.len() as u64);
        }
        spooled
    }
}

impl Deadlines {
    /// The deadlines of a batch that begins now and may take `total`.
    fn of_a_batch(total: Duration) -> Self {
        let now = Instant::now();
        Self {
            claimed: now + total * 3 / 10,
            confirmed: now + total * 6 / 10,
            connected: now + total * 9 / 10,
            committed: now + total,
        }
    }
}

impl ClaimTransaction<'_> {
    async fn commit(self) -> bool {
        match self.transaction.commit().await {
            Ok(()) => {
                self.permit.succeeded();
                true
            }
            Err(error) => {
                warn!(%error, "postgres did not commit");
                drop(self.permit);
                false
            }
        }
    }

    /// Rolls back and reports to the breaker. A lock timeout or a deadlock is not a failure of
    /// Postgres.
    fn failed(self, error: &TransactionError) {
        const LOCK_NOT_AVAILABLE: &str = "55P03";
        const DEADLOCK_DETECTED: &str = "40P01";
        warn!(%error, "a batch goes without its transaction in postgres");
        match error.sqlstate().as_deref() {
            Some(LOCK_NOT_AVAILABLE | DEADLOCK_DETECTED) => self.permit.succeeded(),
            _ => drop(self.permit),
        }
    }
}

/// Logs why events have no confirm. While the breaker is open, spooling is not logged: the failure
/// that opened it was.
fn report_unconfirmed(items: &[Item<'_>], is_spooled: bool) {
    let mut events = 0;
    let mut first = None;
    for item in items {
        let Some(reason) = item.unconfirmed() else {
            continue;
        };
        events += 1;
        first = first.or(Some(reason));
        if !is_spooled {
            debug!(webhook_id = item.published().webhook_id, %reason, "not accepted");
        }
    }
    match first {
        Some(PublishError::BreakerOpen) if is_spooled => {}
        Some(error) if is_spooled => warn!(%error, events, "not confirmed, and spooled instead"),
        Some(error) => error!(%error, events, "neither confirmed nor spooled: answered 503"),
        None => {}
    }
}

async fn spool_events(
    pool: &Pool,
    transaction: &mut DeadlineTransaction,
    events: &[&AcceptedEvent],
    receipt: Receipt,
) -> Result<(), TransactionError> {
    let ids: Vec<&str> = events.iter().map(|e| e.webhook_id.as_str()).collect();
    let entries: Vec<_> = events
        .iter()
        .map(|&event| SpoolEntry {
            event,
            family: event.event_type.family(),
            receipt,
            attempts: 0,
            claims: 0,
            delay: Duration::ZERO,
            reason: "RabbitMQ did not confirm it",
        })
        .collect();
    // A spool row may be an event's only copy.
    transaction.raise_durability(pool).await?;
    transaction
        .run(async |connection| {
            spool::insert(connection, &entries).await?;
            receipts::mark_spooled(connection, &ids).await
        })
        .await
}
