//! Metrics that one worker shows for all families: the ledger, which counts receipts without an
//! event, and the dead letters. The `other` worker does this, because every deployment runs it.

pub mod receipts;

use std::{collections::HashMap, time::Duration};

use chrono::Utc;
use prometheus::{Gauge, IntGauge, IntGaugeVec, Opts};
use shared::{
    EventType, Family,
    database::{DeadlineTransaction, Pool, TransactionError, TransactionMode},
    metrics::ServiceMetrics,
};
use tokio::time::Instant;
use tracing::warn;

use self::receipts::Receipts;
use crate::metrics::MOST_COUNTED;

const INTERVAL: Duration = Duration::from_secs(15);

/// The deadline of the count of dead letters. Postgres' own limit is shorter, so that no statement
/// runs on unnoticed.
const DEADLINE: Duration = Duration::from_secs(70);

/// Uses the index of events with a problem: a plan that reads all events would cost more each day.
const MODE: TransactionMode = TransactionMode::read()
    .by_index()
    .statement_timeout(Duration::from_secs(60));

/// Queries the database and updates the metrics.
pub struct Ledger {
    pool: Pool,
    receipts: Receipts,
    unstored: IntGauge,
    oldest_seconds: Gauge,
    of_all: IntGauge,
    dead_letters: IntGaugeVec,
    looked_at: Gauge,
}

impl Ledger {
    /// Registers the metrics.
    pub fn new(pool: impl Into<Pool>, metrics: &ServiceMetrics) -> Self {
        let this = Self {
            pool: pool.into(),
            receipts: Receipts::unknown(),
            unstored: metrics.gauge(Opts::new(
                "pleo_ledger_unstored_receipts",
                "Accepted events that are neither stored nor spooled nor written off, so they should \
                 still be in RabbitMQ's queues; about 20,000 are counted",
            )),
            oldest_seconds: metrics.seconds(Opts::new(
                "pleo_ledger_oldest_unstored_seconds",
                "The age of the oldest of them; 0 if there is none",
            )),
            of_all: metrics.gauge(Opts::new(
                "pleo_ledger_counts_all_receipts",
                "1 while these two figures are about all receipts; 0 where there may be more and \
                 older ones",
            )),
            dead_letters: metrics.gauges(
                Opts::new(
                    "pleo_dead_letters",
                    "Events in dead_letters, which wait for an operator; at most 100,000 are counted",
                ),
                "family",
            ),
            looked_at: metrics.seconds(Opts::new(
                "pleo_ledger_looked_at_timestamp_seconds",
                "When the figures about receipts and dead letters were last computed, in unix \
                 seconds; 0 before the first time",
            )),
        };
        this.show_dead_letters(&HashMap::new());
        this
    }

    /// Measures until it is cancelled, which is possible at any point.
    pub async fn run(mut self) {
        loop {
            if let Err(error) = self.look().await {
                warn!(%error, "cannot look at the ledger");
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }

    /// Measures once. After an error the last values stay.
    pub async fn look(&mut self) -> Result<(), TransactionError> {
        let unstored = self.receipts.look(&self.pool).await?;
        let dead_letters = self.count_dead_letters().await?;
        self.unstored
            .set(i64::try_from(unstored.count).unwrap_or(i64::MAX));
        self.oldest_seconds
            .set(unstored.oldest_age.as_seconds_f64());
        self.of_all.set(i64::from(unstored.of_all));
        self.show_dead_letters(&dead_letters);
        self.looked_at
            .set(Utc::now().timestamp_millis() as f64 / 1_000.0);
        Ok(())
    }

    async fn count_dead_letters(&self) -> Result<HashMap<Family, i64>, TransactionError> {
        let deadline = Instant::now() + DEADLINE;
        let mut transaction = DeadlineTransaction::begin(&self.pool, &MODE, deadline).await?;
        let by_type: Vec<(String, i64)> = transaction
            .run(async |connection| {
                sqlx::query_as(
                    "select event_type, count(*)
                       from (select event_type from dead_letters limit $1) counted
                      group by event_type",
                )
                .bind(MOST_COUNTED)
                .fetch_all(connection)
                .await
            })
            .await?;
        transaction.rollback().await?;
        let mut by_family = HashMap::new();
        for (event_type, count) in by_type {
            let family = EventType::parse(&event_type).map_or(Family::Other, |t| t.family());
            *by_family.entry(family).or_default() += count;
        }
        Ok(by_family)
    }

    fn show_dead_letters(&self, by_family: &HashMap<Family, i64>) {
        for family in Family::ALL {
            self.dead_letters
                .with_label_values(&[family.name()])
                .set(by_family.get(&family).copied().unwrap_or(0));
        }
    }
}
