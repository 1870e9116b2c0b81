//! Measures a family's backlog in the spool, at a cost that does not grow with the number of its
//! rows.

use std::time::Duration;

use chrono::{DateTime, Utc};
use shared::{
    Family,
    database::{DeadlineTransaction, Pool, TransactionError, TransactionMode},
};
use tokio::time::Instant;

use crate::{
    floor::Floor,
    metrics::{MOST_COUNTED, Metrics},
};

/// The interval between two measurements.
const EVERY: Duration = Duration::from_secs(10);

/// How often the count also includes rows that became visible late.
const FROM_THE_BEGINNING_EVERY: Duration = Duration::from_secs(60);

/// The deadline of a measurement. Postgres' own limit is shorter, so that no query runs on
/// unnoticed.
const DEADLINE: Duration = Duration::from_secs(40);

const MODE: TransactionMode = TransactionMode::read()
    .by_index()
    .statement_timeout(Duration::from_secs(30));

/// The backlog.
#[derive(Clone, Copy, Debug, PartialEq, sqlx::FromRow)]
pub struct SpoolState {
    /// The number of rows; at most [`MOST_COUNTED`] are counted.
    pub depth: i64,
    /// Seconds since the oldest row became due.
    pub oldest_due_seconds: f64,
    /// No earlier row is due, except rows that become visible late.
    reached: DateTime<Utc>,
}

/// Updates the metrics until it is cancelled.
pub async fn measure(pool: Pool, metrics: Metrics, family: Family) {
    let mut floor = Floor::new(FROM_THE_BEGINNING_EVERY);
    loop {
        // While Postgres is down, the last values stay; readiness shows the outage.
        if let Ok(state) = look(&pool, family, &mut floor).await {
            metrics.spool_depth.set(state.depth);
            metrics
                .spool_oldest_due_seconds
                .set(state.oldest_due_seconds);
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Measures once. Rows are counted from the oldest one's last position, and now and then from the
/// beginning.
pub async fn look(
    pool: &Pool,
    family: Family,
    floor: &mut Floor,
) -> Result<SpoolState, TransactionError> {
    let deadline = Instant::now() + DEADLINE;
    let start = floor.start(Instant::now());
    let mut transaction = DeadlineTransaction::begin(pool, &MODE, deadline).await?;
    let state: SpoolState = transaction
        .run(async |connection| {
            sqlx::query_as(
                "select count(*) as depth,
                        coalesce(greatest(extract(epoch from now() - min(due_at)), 0), 0)::float8
                        as oldest_due_seconds,
                        least(min(due_at), now()) as reached
                   from (select due_at from webhook_spool
                          where family = $1 and due_at >= coalesce($2, '-infinity')
                          order by due_at
                          limit $3) counted",
            )
            .bind(family.name())
            .bind(start)
            .bind(MOST_COUNTED)
            .fetch_one(connection)
            .await
        })
        .await?;
    transaction.rollback().await?;
    floor.advance(state.reached);
    Ok(state)
}
