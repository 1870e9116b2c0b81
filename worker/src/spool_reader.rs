//! The second way in: due rows of `webhook_spool`.
//!
//! A row is claimed (counted and made due later) in a transaction of its own, before anything is
//! done with it. If the process dies in the middle, the row comes back when the claim runs out, and
//! its count shows which event keeps killing workers.

use std::{sync::Arc, time::Duration};

use shared::{Family, database::Pool};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    due_rows::{self, DueRows, Spool},
    persistence::{Abandoned, Persistence},
};

/// How often an empty spool is looked at.
const IDLE_POLL: Duration = Duration::from_secs(1);

/// Refused events are retried so many together. Each may take as long as [`Patience::Long`] lets it.
///
/// [`Patience::Long`]: crate::groups::Patience::Long
const REFUSED_TOGETHER: i64 = 32;

/// Reads one family's part of the spool.
pub struct SpoolReader {
    /// Where the spool is.
    pub pool: Pool,
    /// Stores what is due.
    pub persistence: Arc<Persistence>,
    /// Whose rows.
    pub family: Family,
    /// The most events stored in one transaction.
    pub batch_size: usize,
}

impl SpoolReader {
    /// Takes due rows until `stop`; what is not stored by the time of `abandon` is given back. Rows that
    /// have been in trouble are taken apart: one that is slow holds up only those.
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

    /// Stores one claim of each kind; answers with the number of its rows.
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
            // In a task of its own, so that an event that makes it panic is counted like one that
            // stops the process, and the next is taken all the same.
            tokio::spawn(async move { persistence.persist(due, &abandon).await })
                .await
                .map_err(|panic| panic.to_string())?
                .map_err(|Abandoned| "gave up for now".to_owned())?;
        }
        Ok(stored)
    }
}
