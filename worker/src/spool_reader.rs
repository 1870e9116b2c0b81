//! Stores the due rows of `webhook_spool`.
//!
//! A row is claimed (its claims are counted and its due time is moved) in a separate transaction,
//! before it is processed. If the process dies, the row becomes due again when the claim expires,
//! and the count of claims shows which event stops workers.

use std::{sync::Arc, time::Duration};

use shared::{Family, database::Pool};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    due_rows::{self, DueRows, Spool},
    persistence::{Abandoned, Persistence},
};

const IDLE_POLL: Duration = Duration::from_secs(1);

/// How many refused events are retried together. Each may take as long as `Timeouts::Long` allows.
const REFUSED_TOGETHER: i64 = 32;

/// Reads one family's part of the spool.
pub struct SpoolReader {
    /// The database.
    pub pool: Pool,
    /// Stores the events.
    pub persistence: Arc<Persistence>,
    /// Whose rows.
    pub family: Family,
    /// The most events stored in one transaction.
    pub batch_size: usize,
}

impl SpoolReader {
    /// Stores due rows until `stop`. Events that are not stored at `abandon` are returned. Rows
    /// with earlier failures are processed separately, so that a slow one delays only those.
    pub async fn run(self, stop: CancellationToken, abandon: CancellationToken) {
        let limit = i64::try_from(self.batch_size).unwrap_or(i64::MAX);
        let fresh = self.spool();
        let troubled = Spool {
            searched: Arc::default(),
            ..fresh.clone()
        };
        let refused = limit.min(REFUSED_TOGETHER);
        let mut fresh_rows = [DueRows::new(due_rows::FRESH, limit, fresh.clone())];
        let mut troubled_rows = [
            DueRows::new(due_rows::REFUSED, refused, troubled.clone()),
            DueRows::new(due_rows::ALONE, 1, troubled.clone()),
        ];
        tokio::join!(
            self.read(&mut fresh_rows, &fresh.searched, &stop, &abandon),
            self.read(&mut troubled_rows, &troubled.searched, &stop, &abandon)
        );
    }

    fn spool(&self) -> Spool {
        Spool {
            pool: self.pool.clone(),
            family: self.family,
            searched: Arc::default(),
            searching: Arc::default(),
        }
    }

    async fn read(
        &self,
        kinds: &mut [DueRows],
        searched: &Notify,
        stop: &CancellationToken,
        abandon: &CancellationToken,
    ) {
        let mut delays = shared::broker::reconnect_delays();
        while !stop.is_cancelled() {
            let pause = match self.store_due(kinds, abandon).await {
                Ok(0) => IDLE_POLL,
                Ok(_) => {
                    delays = shared::broker::reconnect_delays();
                    Duration::ZERO
                }
                Err(error) => {
                    warn!(family = %self.family, error, "cannot store from the spool");
                    delays.next().unwrap_or(IDLE_POLL)
                }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                () = searched.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Stores one claim of each kind and returns the number of rows.
    async fn store_due(
        &self,
        kinds: &mut [DueRows],
        abandon: &CancellationToken,
    ) -> Result<usize, String> {
        let mut stored = 0;
        for kind in kinds {
            let due = kind.claim().await.map_err(|error| error.to_string())?;
            if due.is_empty() {
                continue;
            }
            stored += due.len();
            let (persistence, abandon) = (Arc::clone(&self.persistence), abandon.clone());
            // Runs in a separate task, so that an event that causes a panic is counted like one
            // that stops the process, and later events are still processed.
            tokio::spawn(async move { persistence.persist(due, &abandon).await })
                .await
                .map_err(|panic| panic.to_string())?
                .map_err(|Abandoned| "gave up for now".to_owned())?;
        }
        Ok(stored)
    }
}
