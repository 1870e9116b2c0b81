//! Sweeps old rows: receipts, and if retentions are set, events and then the typed rows without
//! events. The `other` worker does this for all families; several replicas of it skip each other's
//! locked rows.

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

/// The pause between two batches, so that a large backlog does not take all of the disk's
/// throughput.
const PAUSE: Duration = Duration::from_millis(100);

/// The deadline of a batch. Postgres' own limit is shorter, so that no statement runs on unnoticed.
const DEADLINE: Duration = Duration::from_secs(70);

/// A deletion may be lost in a crash; the row is then swept again.
const MODE: TransactionMode = TransactionMode::write(Durability::Relaxed)
    .by_index()
    .statement_timeout(Duration::from_secs(60));

/// The rows of one transaction: few enough to hold no lock for long.
const BATCH: i32 = 1_000;

/// How often rows are checked again that could not be deleted when they became old enough.
const FROM_THE_BEGINNING_EVERY: Duration = Duration::from_secs(3_600);

/// The tables that are swept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// Receipts of stored events.
    Receipts,
    /// Events that are no dead letters.
    Events,
    /// Rows of this typed table whose resource has no event any more.
    Typed(&'static str),
}

impl Table {
    /// Events come before typed tables, because a typed row stays until its events are gone.
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

    /// Examines the `$3` oldest rows received after `$1` and older than `$2` seconds, and deletes
    /// those that nothing needs. `$4` is the name of a typed table. Returns the number of examined
    /// rows, the number of deleted rows, and the time of the last examined one. Rows that another
    /// session has locked are left for later.
    const fn statement(self) -> &'static str {
        match self {
            // Functions with their owner's rights, because no account may delete these rows freely.
            // `sweep_receipts` itself checks that the event is stored.
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

/// Sweeps all these tables by age.
pub struct Housekeeping {
    pool: Pool,
    receipts: Duration,
    retention: RetentionArgs,
    swept: IntCounterVec,
}

impl Housekeeping {
    /// Registers the metric. `receipts` is the retention of receipts of stored events.
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

    /// Sweeps until it is cancelled, which is possible at any point.
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

    /// Deletes the rows that are older than their retention, batch by batch.
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
            // If all rows of a batch have the same time and none may be deleted, continue with the
            // rows after them.
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

/// The result of one statement.
struct Batch {
    looked_at: i64,
    swept: i64,
    reached: Option<DateTime<Utc>>,
}
