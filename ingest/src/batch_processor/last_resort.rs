//! The last attempts before a batch is refused: if one store fails, the other one gets all the time
//! that is left, even if its breaker is open.

use std::pin::pin;

use shared::{AcceptedEvent, message::Receipt};
use tokio::time::{Instant, timeout};

use super::{BatchProcessor, ClaimTransaction, Deadlines, TRIAL_TIMEOUT};
use crate::publisher::PublishError;

impl BatchProcessor {
    /// Publishes without a claim. If the broker is slow, the events are spooled at the same time,
    /// because the claim may have failed over a lock although Postgres works.
    pub(super) async fn publish_or_spool(
        &self,
        events: &[&AcceptedEvent],
        deadlines: &Deadlines,
    ) -> Vec<Result<(), PublishError>> {
        let mut publishing = pin!(self.publish_as_last_resort(events, deadlines));
        if let Ok(confirms) = timeout(TRIAL_TIMEOUT, &mut publishing).await {
            return confirms;
        }
        tokio::select! {
            confirms = &mut publishing => confirms,
            // Confirms of an abandoned publish are ignored.
            true = self.spool(None, events, Receipt::Missing, deadlines) => {
                vec![Ok(()); events.len()]
            }
        }
    }

    /// Spools unconfirmed events in the claim's transaction. If Postgres fails or hangs after the
    /// claim, they are published again, because the broker may work although its breaker is still
    /// open. Returns true if all are safe. The workers absorb events that were both spooled and
    /// published.
    pub(super) async fn spool_or_publish(
        &self,
        claimed: ClaimTransaction<'_>,
        unconfirmed: &[&AcceptedEvent],
        deadlines: &Deadlines,
    ) -> bool {
        let spooling = self.spool(Some(claimed), unconfirmed, Receipt::Recorded, deadlines);
        let mut spooling = pin!(spooling);
        let publishing = async {
            let confirms = self.publish_as_last_resort(unconfirmed, deadlines).await;
            confirms.iter().all(Result::is_ok)
        };
        match timeout(TRIAL_TIMEOUT, &mut spooling).await {
            Ok(true) => true,
            Ok(false) => publishing.await,
            Err(_elapsed) => tokio::select! {
                true = &mut spooling => true,
                true = publishing => true,
                else => false,
            },
        }
    }

    async fn publish_as_last_resort(
        &self,
        events: &[&AcceptedEvent],
        deadlines: &Deadlines,
    ) -> Vec<Result<(), PublishError>> {
        // If a connection is still being opened, as after a start, waiting for it is better than a
        // refusal.
        self.publisher.connected(deadlines.connected).await;
        let permit = self.breakers.rabbitmq.last_resort(Instant::now());
        self.publish_by(deadlines.committed, permit, events, Receipt::Missing)
            .await
    }
}
