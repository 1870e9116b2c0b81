//! The sweeps of what is old: receipts, and events where the operator asks for that. One worker does
//! it for all, that of the `other` family; several replicas of it leave each other's rows alone.

use std::time::Duration;

use prometheus::{IntCounterVec, Opts};
use shared::{
    database::{DeadlineTransaction, Durability, TransactionError, TransactionMode},
    metrics::ServiceMetrics,
};
use sqlx::PgPool;
use tokio::time::{Instant, sleep};
use tracing::warn;

use crate::config::EventRetention;

const INTERVAL: Duration = Duration::from_secs(15);

/// Between two batches, so that a long backlog takes no more than its share of the disk.
const PAUSE: Duration = Duration::from_millis(100);

/// For one batch; Postgres' own limit ends a statement earlier, so that none goes on unseen.
const DEADLINE: Duration = Duration::from_secs(70);

/// A swept row may come back after a crash, to be swept again.
const MODE: TransactionMode =
    TransactionMode::write(Durability::Relaxed).statement_timeout(Duration::from_secs(60));

/// Rows of one transaction: small enough to hold no lock for long.
const BATCH: i32 = 1_000;

/// What is swept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// Receipts of stored events.
    Receipts,
    /// Events that are no dead letters.
    Events,
}

impl Table {
    const ALL: [Self; 2] = [Self::Receipts, Self::Events];

    const fn name(self) -> &'static str {
        match self {
            Self::Receipts => "webhook_receipts",
            Self::Events => "events",
        }
    }

    /// Deletes at most `$2` rows that are older than `$1` seconds, the oldest ones, and answers with
    /// their number. Rows that somebody else has locked are left for later.
    const fn statement(self) -> &'static str {
        match self {
            // Only where the event is stored: any other receipt may be all that is left of it.
            Self::Receipts => {
                "with old as (
                     select webhook_id from webhook_receipts r
                      where received_at < now() - make_interval(secs => $1)
                        and exists (select from events e where e.webhook_id = r.webhook_id)
                      order by received_at
                      limit $2
                        for update skip locked),
                 swept as (
                     delete from webhook_receipts r using old
                      where r.webhook_id = old.webhook_id
                     returning 1)
                 select count(*) from swept"
            }
            // A function with its owner's rights, as no account may delete events as it likes.
            Self::Events => "select sweep_events(now() - make_interval(secs => $1), $2)",
        }
    }
}

/// Sweeps both tables.
pub struct Housekeeping {
    pool: PgPool,
    receipts: Duration,
    events: EventRetention,
    swept: IntCounterVec,
}

impl Housekeeping {
    /// Registers its metric. `receipts` is how long those of stored events are kept.
    pub fn new(
        pool: PgPool,
        metrics: &ServiceMetrics,
        receipts: Duration,
        events: EventRetention,
    ) -> Self {
        let swept = IntCounterVec::new(
            Opts::new(
                "pleo_housekeeping_swept_total",
                "Rows that were deleted because they were old",
            ),
            &["table"],
        )
        .expect("a valid name");
        metrics.register(swept.clone());
        for table in Table::ALL {
            swept.with_label_values(&[table.name()]);
        }
        Self {
            pool,
            receipts,
            events,
            swept,
        }
    }

    /// Sweeps again and again, for ever. It may be cancelled anywhere.
    pub async fn run(self) {
        loop {
            for table in Table::ALL {
                if let Err(error) = self.sweep(table).await {
                    warn!(%error, table = table.name(), "cannot sweep");
                }
            }
            sleep(INTERVAL).await;
        }
    }

    /// Deletes whatever is older than its retention, batch by batch.
    pub async fn sweep(&self, table: Table) -> Result<(), TransactionError> {
        let retention = match (table, self.events) {
            (Table::Receipts, _) => self.receipts,
            (Table::Events, EventRetention::For(retention)) => retention,
            (Table::Events, EventRetention::Forever) => return Ok(()),
        };
        loop {
            let swept = self.sweep_batch(table, retention).await?;
            self.swept
                .with_label_values(&[table.name()])
                .inc_by(u64::try_from(swept).unwrap_or(0));
            if swept < i64::from(BATCH) {
                return Ok(());
            }
            sleep(PAUSE).await;
        }
    }

    async fn sweep_batch(
        &self,
        table: Table,
        retention: Duration,
    ) -> Result<i64, TransactionError> {
        let deadline = Instant::now() + DEADLINE;
        let mut transaction = DeadlineTransaction::begin(&self.pool, &MODE, deadline).await?;
        let swept = transaction
            .run(async |connection| {
                sqlx::query_scalar(table.statement())
                    .bind(retention.as_secs_f64())
                    .bind(BATCH)
                    .fetch_one(connection)
                    .await
            })
            .await?;
        transaction.commit().await?;
        Ok(swept)
    }
}
