//! The looks themselves. Each statement reads a bounded number of rows by an index.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use shared::{EventType, Family};
use sqlx::PgConnection;
use worker::{ledger::receipts::Receipts, problem::Kind};

use super::{Counts, DAY, Delays, Ledger, MOST_RECEIPTS, Spooled, Traffic};
use crate::store::{Store, StoreError};

/// Minutes that are counted together.
const STRETCH: i64 = 10;

/// Events whose delays are compared.
const SAMPLE: i64 = 10_000;

/// Rows of the spool and dead letters that are counted; more are "more than".
pub const MOST_COUNTED: i64 = 10_000;

/// Which stretch of the day is counted next. The last hour comes up every other time.
#[derive(Debug, Default)]
pub(super) struct Stretches {
    round: i64,
}

impl Stretches {
    const OF_HOUR: i64 = 60 / STRETCH;
    const OF_DAY: i64 = DAY / STRETCH;

    /// Whether each stretch was counted once.
    pub(super) fn is_first_round_through(&self) -> bool {
        self.round >= Self::OF_DAY
    }

    /// How many stretches before the newest one.
    fn next(&self) -> i64 {
        if !self.is_first_round_through() {
            self.round
        } else if self.round % 2 == 0 {
            (self.round / 2) % Self::OF_HOUR
        } else {
            (self.round / 2) % Self::OF_DAY
        }
    }
}

/// Counts the newest minutes and one older stretch.
pub(super) async fn traffic(
    store: &Store,
    traffic: &mut Traffic,
    stretches: &mut Stretches,
) -> Result<(), StoreError> {
    let (now, last_event): (DateTime<Utc>, Option<DateTime<Utc>>) = store
        .look(async |connection| {
            sqlx::query_as("select now(), (select max(received_at) from events)")
                .fetch_one(connection)
                .await
        })
        .await?;
    let minute = now.timestamp() / 60;
    let back = stretches.next();
    // Two minutes, as an event is stored a little later than it was received.
    let newest = (minute - 1, minute + 1);
    let older = (minute - (back + 1) * STRETCH, minute - back * STRETCH);
    for (from, to) in [older, newest] {
        let counted = store
            .look(async |connection| count(connection, from, to).await)
            .await?;
        for minute in from..to {
            let counts = counted.get(&minute).copied().unwrap_or_default();
            traffic.minutes.insert(minute, counts);
        }
    }
    traffic.minutes = traffic.minutes.split_off(&(minute - DAY));
    traffic.delays = store
        .look(async |connection| delays(connection).await)
        .await?;
    traffic.last_event = last_event;
    traffic.now = now;
    stretches.round += 1;
    Ok(())
}

async fn count(
    connection: &mut PgConnection,
    from: i64,
    to: i64,
) -> Result<BTreeMap<i64, Counts>, sqlx::Error> {
    let rows: Vec<(i64, String, i64)> = sqlx::query_as(
        "select floor(extract(epoch from received_at) / 60)::bigint, event_type, count(*)
           from events
          where received_at >= to_timestamp($1 * 60) and received_at < to_timestamp($2 * 60)
          group by 1, 2",
    )
    .bind(from)
    .bind(to)
    .fetch_all(connection)
    .await?;
    let mut counted: BTreeMap<i64, Counts> = BTreeMap::new();
    for (minute, event_type, events) in rows {
        let family = EventType::parse(&event_type).map_or(Family::Other, |t| t.family());
        let position = Family::ALL.iter().position(|other| *other == family);
        let counts = counted.entry(minute).or_default();
        counts[position.unwrap_or_default()] += u64::try_from(events).unwrap_or_default();
    }
    Ok(counted)
}

/// Ingest dates the receipt and Postgres the row, by clocks that may disagree a little.
async fn delays(connection: &mut PgConnection) -> Result<Option<Delays>, sqlx::Error> {
    let (values, events): (Option<Vec<f64>>, i64) = sqlx::query_as(
        "select percentile_disc(array[0.5, 0.99]) within group (order by delay), count(*)
           from (select greatest(extract(epoch from stored_at - received_at), 0)::float8 as delay
                   from events
                  where received_at > now() - interval '1 hour'
                  order by received_at desc
                  limit $1) newest",
    )
    .bind(SAMPLE)
    .fetch_one(connection)
    .await?;
    Ok(match values.as_deref() {
        Some(&[p50, p99]) => Some(Delays { p50, p99, events }),
        _ => None,
    })
}

/// Receipts, spool and dead letters.
pub(super) async fn ledger(store: &Store, receipts: &mut Receipts) -> Result<Ledger, StoreError> {
    let unstored = receipts.look(store.pool()).await?;
    let spooled = store
        .look(async |connection| spooled(connection).await)
        .await?;
    let dead_letters = store
        .look(async |connection| dead_letters(connection).await)
        .await?;
    Ok(Ledger {
        unstored: unstored.count,
        oldest_unstored: unstored.oldest_age.as_seconds_f64(),
        of_all: unstored.of_all,
        receipts: receipts.oldest(MOST_RECEIPTS),
        spooled,
        dead_letters,
    })
}

async fn spooled(connection: &mut PgConnection) -> Result<Option<Spooled>, sqlx::Error> {
    let (events, oldest): (i64, Option<f64>) = sqlx::query_as(
        "select count(*), extract(epoch from now() - min(received_at))::float8
           from (select received_at from webhook_spool order by family, due_at limit $1) waiting",
    )
    .bind(MOST_COUNTED + 1)
    .fetch_one(connection)
    .await?;
    Ok(oldest.map(|oldest| Spooled { events, oldest }))
}

async fn dead_letters(connection: &mut PgConnection) -> Result<BTreeMap<Kind, i64>, sqlx::Error> {
    let rows: Vec<(Option<String>, i64)> = sqlx::query_as(
        "select problem_kind, count(*)
           from (select problem_kind from events
                  where problem is not null and dismissed_at is null
                  limit $1) open
          group by 1",
    )
    .bind(MOST_COUNTED + 1)
    .fetch_all(connection)
    .await?;
    let mut kinds = BTreeMap::new();
    for (kind, events) in rows {
        *kinds.entry(Kind::shown(kind.as_deref())).or_default() += events;
    }
    Ok(kinds)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_stretch_of_the_day_comes_up_again() {
        let mut stretches = Stretches::default();
        let mut seen = BTreeSet::new();
        while !stretches.is_first_round_through() {
            seen.insert(stretches.next());
            stretches.round += 1;
        }
        let whole_day: BTreeSet<_> = (0..Stretches::OF_DAY).collect();
        assert_eq!(seen, whole_day);
        let mut later = BTreeSet::new();
        for _ in 0..2 * Stretches::OF_DAY {
            later.insert(stretches.next());
            stretches.round += 1;
        }
        assert_eq!(later, whole_day);
    }
}
