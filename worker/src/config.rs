//! The settings of a worker.

use std::time::Duration;

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
    #[arg(long, env = "RECEIPT_RETENTION", default_value = "7d", value_parser = parse_retention)]
    pub receipt_retention: Duration,

    /// How long events are kept that are no dead letters: forever, or 30d to 36500d (other-worker)
    #[arg(long, env = "EVENT_RETENTION", default_value = "forever", value_parser = parse_event_retention)]
    pub event_retention: EventRetention,
}

/// How long events are kept that are no dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventRetention {
    /// Until somebody else deletes them.
    Forever,
    /// For at least this long after their receipt.
    For(Duration),
}

/// Senders repeat a webhook for up to 75 hours.
fn parse_retention(text: &str) -> Result<Duration, String> {
    parse_duration_in::<{ 4 * DAY }, { 3_650 * DAY }>(text)
        .map_err(|error| format!("{error}; senders repeat a webhook for days"))
}

/// Reads `forever` or a duration of 30 days to 100 years; the function in the database that deletes events
/// refuses less as well.
pub fn parse_event_retention(text: &str) -> Result<EventRetention, String> {
    if text == "forever" {
        return Ok(EventRetention::Forever);
    }
    parse_duration_in::<{ 30 * DAY }, { 36_500 * DAY }>(text)
        .map(EventRetention::For)
        .map_err(|error| format!("{error}, or `forever`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_kept_for_a_month_at_least() {
        assert_eq!(
            parse_event_retention("forever"),
            Ok(EventRetention::Forever)
        );
        assert_eq!(
            parse_event_retention("30d"),
            Ok(EventRetention::For(Duration::from_secs(2_592_000)))
        );
        for bad in ["", "29d", "0s", "never", "30", "101years"] {
            assert!(parse_event_retention(bad).is_err(), "{bad}");
        }
    }
}
