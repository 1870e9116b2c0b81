//! The settings of a worker.

use std::time::Duration;

use anyhow::ensure;
use clap::Parser;
use shared::config::{DAY, ProcessArgs, SECOND, StoreArgs, parse_duration_in, parse_in_range};

/// Stores one family's events in Postgres, from its queue and from the spool.
#[derive(Clone, Debug, Parser)]
#[command(version)]
pub struct Config {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub stores: StoreArgs,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub process: ProcessArgs,

    /// RabbitMQ's management, as http://host:15672, with the user of AMQP_URL: every minute the worker
    /// looks there whether a policy lets its queue drop messages. Without it nobody looks
    #[arg(long, env = "RABBITMQ_MANAGEMENT_URL")]
    pub rabbitmq_management_url: Option<String>,

    /// Bring the schema up to date at start; false expects that somebody else did
    #[arg(long, env = "MIGRATE", default_value_t = true, action = clap::ArgAction::Set)]
    pub migrate: bool,

    /// Events stored in one transaction, and up to 31 more, as a message is not divided; also the most
    /// messages in hand
    #[arg(long, env = "BATCH_SIZE", default_value = "500", value_parser = parse_in_range::<1, 1_000>)]
    pub batch_size: usize,

    /// The most transactions at once
    #[arg(long, env = "BATCHES_IN_FLIGHT", default_value = "4", value_parser = parse_in_range::<1, 10>)]
    pub batches_in_flight: usize,

    /// How long a batch that is not full waits for more events (1ms to 1s)
    #[arg(long, env = "BATCH_LINGER", default_value = "5ms", value_parser = parse_duration_in::<1, SECOND>)]
    pub batch_linger: Duration,

    /// How long receipts of stored events are kept to recognise repetitions, 4d to 3650d
    /// (other-worker)
    #[arg(long, env = "RECEIPT_RETENTION", default_value = "7d", value_parser = parse_receipt_retention)]
    pub receipt_retention: Duration,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub retention: RetentionArgs,
}

/// How long rows are kept that hold what was sent. `hookctl setup` and `hookctl doctor` take them too, as
/// other-worker has a right to sweep only where they are set.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct RetentionArgs {
    /// How long events are kept that are no dead letters: forever, or 30d to 36500d. Only then may
    /// other-worker sweep them, so the workers, setup and doctor need the same
    #[arg(long, env = "EVENT_RETENTION", default_value = "forever", value_parser = parse_retention)]
    pub event_retention: Retention,

    /// How long rows of export_jobs and vendors are kept after their last change, if no event of their
    /// resource is left: forever, or 30d to 36500d. Needs EVENT_RETENTION, and is set in the same places
    #[arg(long, env = "TYPED_ROW_RETENTION", default_value = "forever", value_parser = parse_retention)]
    pub typed_row_retention: Retention,
}

impl RetentionArgs {
    /// Refuses a retention that can never take effect.
    pub fn check(self) -> anyhow::Result<()> {
        ensure!(
            self.typed_row_retention == Retention::Forever
                || self.event_retention != Retention::Forever,
            "TYPED_ROW_RETENTION needs EVENT_RETENTION: a typed row is swept only once the events of its \
             resource are"
        );
        Ok(())
    }
}

/// How long rows of a kind are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// Until an operator deletes them.
    Forever,
    /// For at least this time after they were received.
    For(Duration),
}

impl Retention {
    /// The duration, or `None` for `forever`.
    pub const fn duration(self) -> Option<Duration> {
        match self {
            Self::Forever => None,
            Self::For(retention) => Some(retention),
        }
    }
}

/// Senders retry a webhook for up to 75 hours. The database's function that deletes receipts also
/// refuses less than 4 days.
fn parse_receipt_retention(text: &str) -> Result<Duration, String> {
    parse_duration_in::<{ 4 * DAY }, { 3_650 * DAY }>(text)
        .map_err(|error| format!("{error}; senders repeat a webhook for days"))
}

/// Parses `forever` or a duration of 30 days to 100 years. The database's functions that delete
/// rows also refuse less.
pub fn parse_retention(text: &str) -> Result<Retention, String> {
    if text == "forever" {
        return Ok(Retention::Forever);
    }
    parse_duration_in::<{ 30 * DAY }, { 36_500 * DAY }>(text)
        .map(Retention::For)
        .map_err(|error| format!("{error}, or `forever`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_kept_for_a_month_at_least() {
        assert_eq!(parse_retention("forever"), Ok(Retention::Forever));
        assert_eq!(
            parse_retention("30d"),
            Ok(Retention::For(Duration::from_secs(2_592_000)))
        );
        for bad in ["", "29d", "0s", "never", "30", "101years"] {
            assert!(parse_retention(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn typed_rows_are_not_swept_before_their_events() {
        let month = Retention::For(Duration::from_secs(2_592_000));
        for (event_retention, typed_row_retention, expected) in [
            (Retention::Forever, Retention::Forever, true),
            (month, Retention::Forever, true),
            (month, month, true),
            (Retention::Forever, month, false),
        ] {
            let retention = RetentionArgs {
                event_retention,
                typed_row_retention,
            };
            assert_eq!(retention.check().is_ok(), expected, "{retention:?}");
        }
    }
}
