//! The sweeps of what is old: receipts, and where the operator asks for that events and the typed rows
//! that outlived theirs. One worker does it for all, that of the `other` family; several replicas of it leave each other's rows alone.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use prometheus::{IntCounterVec, Opts};
use shared::{
    Family,
    database::{DeadlineTransaction, Durability, Pool, TransactionError, TransactionMode},
    metrics::ServiceMetrics,
};
use tokio::time::{Instant, sleep};
use tracing::warn;

use crate::{config::RetentionArgs, families, floor::Floor};

const INTERVAL: Duration = Duration::from_secs(15);

/// Between two batches, so that a long backlog takes no more than its share of the disk.
const PAUSE: Duration = Duration::from_millis(100);

/// For one batch; Postgres' own limit ends a statement earlier, so that none goes on unseen.
const DEADLINE: Duration = Duration::from_secs(70);

/// A swept row may come back after a crash, to be swept again.
const MODE: TransactionMode = TransactionMode::write(Durability::Relaxed)
    .by_index()
    .statement_timeout(Duration::from_secs(60));

/// Rows of one transaction: small enough to hold no lock for long.
const BATCH: i32 = 1_000;

/// How often rows are looked at again that could not be deleted when they became old enough.
const FROM_THE_BEGINNING_EVERY: Duration = Duration::from_secs(3_600);

/// What is swept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// Receipts of stored events.
    Receipts,
    /// Events that are no dead letters.
    Events,
    /// Rows of the typed table of this name whose resource has no event any more.
    Typed(&'static str),
}

impl Table {
    /// Events before the typed tables, whose rows stay until theirs are gone.
    fn all() -> impl Iterator<Item = Self> {
        let typed = Family::ALL.into_iter().filter_map(families::table);
        [Self::Receipts, Self::Events]
            .into_iter()
            .chain(typed.map(Self::Typed))
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Receipts => "webhook_receipts",
            Self::Events => "events",
            Self::Typed(name) => name,
        }
    }

    /// Looks at the `$3` oldest rows that came after `$1` and are older than `$2` seconds, and deletes those
    /// that nothing needs. `$4` is the name of a typed table. Answers with the number of rows looked at, that of deleted
    /// ones, and the time up to which it looked. Rows that somebody else has locked are left for later.
    const fn statement(self) -> &'static str {
        match self {
            // Functions with their owner's rights, as no account may delete these rows as it likes. This one
            // looks by itself whether the event is stored.
            Self::Receipts => {
                "select looked_at, swept, reached
                   from sweep_receipts($1, now() - make_interval(secs => $2), $3)"
            }
            Self::Events => {
                "select looked_at, swept, reached
                   from sweep_events($1, now() - make_interval(secs => $2), $3)"
            }
            Self::Typed(_) => {
                "select looked_at, swept, reached
                   from sweep_typed_rows($4, $1, now() - make_interval(secs => $2), $3)"
            }
        }
    }
}

/// Sweeps all tables that are swept by age.
pub struct Housekeeping {
    pool: Pool,
    receipts: Duration,
    retention: RetentionArgs,
    swept: IntCounterVec,
}

impl Housekeeping {
    /// Registers its metric. `receipts` is how long those of stored events are kept.
    pub fn new(
        pool: impl Into<Pool>,
        metrics: &ServiceMetrics,
        receipts: Duration,
        retention: RetentionArgs,
    ) -> Self {
        let swept = metrics.counters(
            Opts::new(
                "pleo_housekeeping_swept_total",
                "Rows that were deleted because they were old",
            ),
            "table",
        );
        for table in Table::all() {
            swept.with_label_values(&[table.name()]);
        }
        Self {
            pool: pool.into(),
            receipts,
            retention,
            swept,
        }
    }

    /// Sweeps again and again, for ever. It may be cancelled anywhere.
    pub async fn run(self) {
        let mut floors: Vec<_> = Table::all()
            .map(|table| (table, Floor::new(FROM_THE_BEGINNING_EVERY)))
            .collect();
        loop {
            for (table, floor) in &mut floors {
                let table = *table;
                if let Err(error) = self.sweep_from(table, floor).await {
                    warn!(%error, table = table.name(), "cannot sweep");
                }
            }
            sleep(INTERVAL).await;
        }
    }

    /// Deletes whatever is older than its retention, batch by batch.
    pub async fn sweep(&self, table: Table) -> Result<(), TransactionError> {
        self.sweep_from(table, &mut Floor::new(FROM_THE_BEGINNING_EVERY))
            .await
    }

    async fn sweep_from(&self, table: Table, floor: &mut Floor) -> Result<(), TransactionError> {
        let retention = match table {
            Table::Receipts => Some(self.receipts),
            Table::Events => self.retention.event_retention.duration(),
            Table::Typed(_) => self.retention.typed_row_retention.duration(),
        };
        let Some(retention) = retention else {
            return Ok(());
        };
        let mut start = floor.start(Instant::now());
        loop {
            let batch = self.sweep_batch(table, retention, start).await?;
            self.swept
                .with_label_values(&[table.name()])
                .inc_by(u64::try_from(batch.swept).unwrap_or(0));
            let Some(reached) = batch.reached else {
                return Ok(());
            };
            floor.advance(reached);
            if batch.looked_at < i64::from(BATCH) {
                return Ok(());
            }
            // Where all of a batch have one time and none may be deleted, those after them are next.
            let is_stuck = batch.swept == 0 && start == Some(reached);
            start = Some(reached + TimeDelta::microseconds(is_stuck.into()));
            sleep(PAUSE).await;
        }
    }

    async fn sweep_batch(
        &self,
        table: Table,
        retention: Duration,
        start: Option<DateTime<Utc>>,
    ) -> Result<Batch, TransactionError> {
        let deadline = Instant::now() + DEADLINE;
        let mut transaction = DeadlineTransaction::begin(&self.pool, &MODE, deadline).await?;
        let (looked_at, swept, reached) = transaction
            .run(async |connection| {
                let query = sqlx::query_as(table.statement())
                    .bind(start)
                    .bind(retention.as_secs_f64())
                    .bind(BATCH);
                let query = match table {
                    Table::Typed(name) => query.bind(name),
                    Table::Receipts | Table::Events => query,
                };
                query.fetch_one(connection).await
            })
            .await?;
        transaction.commit().await?;
        Ok(Batch {
            looked_at,
            swept,
            reached,
        })
    }
}

/// What one statement did.
struct Batch {
    looked_at: i64,
    swept: i64,
    reached: Option<DateTime<Utc>>,
}
