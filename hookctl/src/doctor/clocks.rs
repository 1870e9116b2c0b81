//! Clocks. Timestamps of senders, receipts and rows are compared with one another, so clocks must agree.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgConnection;

use super::finding::Finding;

/// Ages and lags in metrics and views are wrong by the same amount.
const WORTH_A_LOOK: TimeDelta = TimeDelta::seconds(5);
/// A sender's clock may be wrong as well, and ingest accepts five minutes in total.
const TOO_MUCH: TimeDelta = TimeDelta::minutes(2);

/// A clock that was read between two readings of ours.
pub(super) struct Reading {
    pub(super) before: DateTime<Utc>,
    pub(super) theirs: DateTime<Utc>,
    pub(super) after: DateTime<Utc>,
    /// The resolution of the other clock.
    pub(super) resolution: TimeDelta,
}

impl Reading {
    /// The minimum difference between the other clock and ours; positive if it is ahead.
    fn skew(&self) -> TimeDelta {
        if self.theirs > self.after {
            self.theirs - self.after
        } else if self.theirs + self.resolution < self.before {
            self.theirs + self.resolution - self.before
        } else {
            TimeDelta::zero()
        }
    }

    pub(super) fn judge(&self, whose: &str) -> Finding {
        let check = format!("clock of {whose}");
        let skew = self.skew();
        let found = match skew {
            skew if skew.is_zero() => "agrees with this host's".to_owned(),
            skew if skew > TimeDelta::zero() => format!("{} ahead of this host's", text(skew)),
            skew => format!("{} behind this host's", text(skew)),
        };
        let remedy = "synchronise the clocks of all hosts (chrony or systemd-timesyncd)";
        match skew.abs() {
            skew if skew > TOO_MUCH => Finding::problem(check, found, remedy),
            skew if skew > WORTH_A_LOOK => Finding::warning(check, found, remedy),
            _ => Finding::ok(check, found),
        }
    }
}

fn text(skew: TimeDelta) -> String {
    let ms = skew.num_milliseconds().unsigned_abs();
    format!("{}.{:03} s", ms / 1_000, ms % 1_000)
}

pub(super) async fn postgres(postgres: &mut PgConnection) -> Result<Vec<Finding>, sqlx::Error> {
    let before = Utc::now();
    let theirs = sqlx::query_scalar("select clock_timestamp()")
        .fetch_one(postgres)
        .await?;
    let reading = Reading {
        before,
        theirs,
        after: Utc::now(),
        resolution: TimeDelta::zero(),
    };
    Ok(vec![reading.judge("postgres")])
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(0, false, "agrees")]
    #[case(150, false, "agrees")]
    #[case(-900, false, "agrees")]
    #[case(-3_000, false, "2.000 s behind")]
    #[case(6_200, false, "6.000 s ahead")]
    #[case(130_000, true, "129.800 s ahead")]
    #[case(-130_000, true, "129.000 s behind")]
    fn a_clock_is_off_only_by_what_the_round_trip_does_not_explain(
        #[case] theirs_ms: i64,
        #[case] problem: bool,
        #[case] found: &str,
    ) {
        let before = DateTime::from_timestamp(1_800_000_000, 0).expect("a time");
        let finding = Reading {
            before,
            theirs: before + TimeDelta::milliseconds(theirs_ms),
            after: before + TimeDelta::milliseconds(200),
            resolution: TimeDelta::seconds(1),
        }
        .judge("x");
        assert_eq!(finding.is_problem(), problem, "{finding:?}");
        assert!(format!("{finding:?}").contains(found), "{finding:?}");
    }
}
