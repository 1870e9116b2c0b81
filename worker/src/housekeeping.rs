//! What one worker does for all: the ledger of receipts without an event, and the sweep of old
//! receipts. It belongs to the worker of the `other` family, which every deployment runs.

use std::time::Duration;

use chrono::{DateTime, Utc};
use prometheus::{Gauge, IntGauge};
use shared::{
    database::{DeadlineTransaction, TransactionError},
    metrics::ServiceMetrics,
};
use sqlx::PgPool;
use tokio::time::Instant;
use tracing::warn;

const INTERVAL: Duration = Duration::from_secs(15);

/// For one statement; Postgres' own limit ends it earlier, so that none goes on unseen.
const DEADLINE: Duration = Duration::from_secs(70);

const BEGIN: &str = "begin;
    set local synchronous_commit = off;
    set local lock_timeout = '2s';
    set local statement_timeout = '60s'";

/// Receipts deleted in one statement: small enough to hold no lock for long.
const SWEEP_BATCH: u64 = 5_000;

/// The ledger in figures.
struct Ledger {
    unstored: IntGauge,
    oldest_seconds: Gauge,
}

impl Ledger {
    fn register(metrics: &ServiceMetrics) -> Self {
        let unstored = IntGauge::new(
            "pleo_ledger_unstored_receipts",
            "Accepted events that are neither stored nor spooled, so they must be in RabbitMQ",
        )
        .expect("a valid name");
        let oldest_seconds = Gauge::new(
            "pleo_ledger_oldest_unstored_seconds",
            "The age of the oldest of them; 0 if there is none",
        )
        .expect("a valid name");
        metrics.register(unstored.clone());
        metrics.register(oldest_seconds.clone());
        Self {
            unstored,
            oldest_seconds,
        }
    }
}

/// Looks at the ledger and sweeps receipts older than `retention`, for ever. It may be cancelled
/// anywhere.
pub async fn run(pool: PgPool, metrics: ServiceMetrics, retention: Duration) {
    let ledger = Ledger::register(&metrics);
    // Stored receipts stay stored, so each look starts at the oldest one that was not.
    let mut since = DateTime::UNIX_EPOCH;
    loop {
        match look_at_ledger(&pool, &ledger, since).await {
            Ok(next) => since = next,
            Err(error) => warn!(%error, "cannot look at the ledger"),
        }
        loop {
            match sweep(&pool, retention).await {
                Ok(SWEEP_BATCH) => {}
                Ok(_) => break,
                Err(error) => {
                    warn!(%error, "cannot sweep receipts");
                    break;
                }
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Counts receipts without an event, in the spool or elsewhere; answers with where the next look
/// has to start.
async fn look_at_ledger(
    pool: &PgPool,
    ledger: &Ledger,
    since: DateTime<Utc>,
) -> Result<DateTime<Utc>, TransactionError> {
    /// A receipt shows up only when its transaction commits, some time after its `received_at`.
    const SHOWS_UP_WITHIN: Duration = Duration::from_secs(60);
    let now = Utc::now();
    let mut transaction =
        DeadlineTransaction::begin(pool, BEGIN, Instant::now() + DEADLINE).await?;
    let (count, oldest): (i64, Option<DateTime<Utc>>) = transaction
        .run(async |connection| {
            sqlx::query_as(
                "select count(*), min(received_at) from unstored_receipts where received_at >= $1",
            )
            .bind(since)
            .fetch_one(connection)
            .await
        })
        .await?;
    transaction.rollback().await?;
    ledger.unstored.set(count);
    ledger
        .oldest_seconds
        .set(oldest.map_or(0.0, |oldest| (now - oldest).as_seconds_f64()));
    // Spooled events have left the view, yet their receipts may be swept only with the event; the
    // sweep looks for itself.
    Ok(oldest.unwrap_or(now).min(now - SHOWS_UP_WITHIN))
}

/// Deletes a batch of receipts that are old and whose event is stored.
async fn sweep(pool: &PgPool, retention: Duration) -> Result<u64, TransactionError> {
    let mut transaction =
        DeadlineTransaction::begin(pool, BEGIN, Instant::now() + DEADLINE).await?;
    let swept = transaction
        .run(async |connection| {
            let deleted = sqlx::query(
                "delete from webhook_receipts
                  where webhook_id in (
                        select r.webhook_id from webhook_receipts r
                         where r.received_at < now() - make_interval(secs => $1)
                           and exists (select from events e where e.webhook_id = r.webhook_id)
                         limit $2
                           for update skip locked)",
            )
            .bind(retention.as_secs_f64())
            .bind(i64::try_from(SWEEP_BATCH).unwrap_or(i64::MAX))
            .execute(connection)
            .await?;
            Ok(deleted.rows_affected())
        })
        .await?;
    transaction.commit().await?;
    Ok(swept)
}
