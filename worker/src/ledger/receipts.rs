//! Finds the receipts without an event, at a cost that does not grow with the tables.
//!
//! An event that was stored stays stored. So each measurement reads the receipts of the last
//! minute, those that were without an event before (stragglers), and a limited number of slices of
//! all others. The slices go back from the newest receipts to the oldest, in rounds. In the first
//! round after a start, a measurement reads more slices, and until that round is complete, the
//! numbers are lower bounds. Later rounds find receipts that became visible late with an older
//! time, such as that of a commit that waited long for a standby, or that of an older ingest, which
//! used its own clock.

use std::{collections::HashMap, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use shared::database::{DeadlineTransaction, Pool, TransactionError, TransactionMode};
use sqlx::PgConnection;
use tokio::time::Instant;

/// The deadline of a statement. Postgres' own limit is shorter, so that no statement runs on
/// unnoticed.
const DEADLINE: Duration = Duration::from_secs(40);

/// With wrong statistics, a plan could read all of `events` for each slice.
const MODE: TransactionMode = TransactionMode::read()
    .by_index()
    .statement_timeout(Duration::from_secs(30));

/// A receipt's time is the start of its transaction, and it becomes visible at the commit.
const SHOWS_UP_WITHIN: TimeDelta = TimeDelta::seconds(60);

/// The most receipts read by one statement.
const SLICE: i64 = 2_000;

/// The most slices that a measurement reads forward, and in the first round also backward. This
/// keeps up with 6,000 events per second for hours.
const MOST_SLICES: usize = 50;

/// The most stragglers that are remembered by id and checked in each measurement. At this number,
/// reading stops.
const MOST_STRAGGLERS: usize = 20_000;

/// Reads the next receipts after ($1, $2) in the order of `received_at`, which has an index.
/// Returns those without an event, and the last one of the slice.
///
/// It uses the view because the view has its owner's rights: this account cannot see spool rows of
/// another family. `offset 0` keeps the planner from joining a slice with all of `events`.
macro_rules! next_slice {
    ($beyond:literal, $order:literal) => {
        concat!(
            "
    with slice as materialized (
        select webhook_id, received_at, row_number() over () as position, count(*) over () as size
          from (select webhook_id, received_at from webhook_receipts
                 where (received_at, webhook_id) ",
            $beyond,
            " ($1, $2)
                 order by received_at ",
            $order,
            ", webhook_id ",
            $order,
            "
                 limit $3) next)
    select webhook_id, received_at, is_unstored, size
      from (select slice.*,
                   exists (select from unstored_receipts u
                            where u.webhook_id = slice.webhook_id offset 0)
                   as is_unstored
              from slice) judged
     where is_unstored or position = size
     order by position"
        )
    };
}

const FORWARD: &str = next_slice!(">", "asc");
const BACK: &str = next_slice!("<", "desc");

/// Those of the ids `$1` that are still without an event.
const STILL_UNSTORED: &str = "
    select webhook_id, received_at
      from webhook_receipts r
     where webhook_id = any($1)
       and exists (select from unstored_receipts u where u.webhook_id = r.webhook_id offset 0)";

/// A position in the order of the receipts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Cursor {
    received_at: DateTime<Utc>,
    webhook_id: String,
}

impl Cursor {
    /// The position before all receipts of this time.
    fn before(received_at: DateTime<Utc>) -> Self {
        Self {
            received_at,
            webhook_id: String::new(),
        }
    }
}

#[derive(sqlx::FromRow)]
struct SliceRow {
    webhook_id: String,
    received_at: DateTime<Utc>,
    is_unstored: bool,
    size: i64,
}

/// The result of one measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unstored {
    /// The number of receipts without an event.
    pub count: usize,
    /// The age of the oldest one, by the clock of the database.
    pub oldest_age: TimeDelta,
    /// Whether all receipts were counted. Otherwise there may be more and older ones.
    pub of_all: bool,
}

/// What is known from earlier measurements.
#[derive(Debug)]
pub struct Receipts {
    /// How far receipts were read forward. Every earlier receipt that a round has read is stored,
    /// except the stragglers. `None` before the first measurement.
    frontier: Option<Cursor>,
    /// Receipts before the frontier that have no event.
    stragglers: HashMap<String, DateTime<Utc>>,
    /// How far back the round has read; `None` at the frontier.
    round: Option<Cursor>,
    /// Whether a round has reached the oldest receipt.
    is_first_round_through: bool,
}

impl Receipts {
    /// The initial state, before the first round.
    pub fn unknown() -> Self {
        Self {
            frontier: None,
            stragglers: HashMap::new(),
            round: None,
            is_first_round_through: false,
        }
    }

    /// Measures once. After an error, the next measurement continues from the same point.
    pub async fn look(&mut self, pool: &Pool) -> Result<Unstored, TransactionError> {
        let now: DateTime<Utc> = in_transaction(pool, async |connection| {
            sqlx::query_scalar("select now()")
                .fetch_one(connection)
                .await
        })
        .await?;
        self.forget_stored(pool).await?;
        let recent = self.look_forward(pool, now - SHOWS_UP_WITHIN).await?;
        self.look_back(pool).await?;
        let stragglers = self.stragglers.values().min().copied();
        let oldest = stragglers.into_iter().chain(recent.oldest).min();
        Ok(Unstored {
            count: self.stragglers.len() + recent.count,
            // A receipt that was dated by another clock may be in the future.
            oldest_age: oldest.map_or(TimeDelta::zero(), |oldest| {
                (now - oldest).max(TimeDelta::zero())
            }),
            of_all: self.is_first_round_through
                && recent.is_whole
                && self.stragglers.len() < MOST_STRAGGLERS,
        })
    }

    /// The ids of the stragglers, which became visible more than a minute ago, the oldest first.
    pub fn oldest(&self, most: usize) -> Vec<String> {
        let mut stragglers: Vec<_> = self.stragglers.iter().collect();
        stragglers.sort_by_key(|(_, received_at)| **received_at);
        let ids = stragglers.into_iter().take(most);
        ids.map(|(webhook_id, _)| webhook_id.clone()).collect()
    }

    /// Removes the stragglers that now have an event.
    async fn forget_stored(&mut self, pool: &Pool) -> Result<(), TransactionError> {
        if self.stragglers.is_empty() {
            return Ok(());
        }
        let ids: Vec<String> = self.stragglers.keys().cloned().collect();
        let unstored: Vec<(String, DateTime<Utc>)> = in_transaction(pool, async |connection| {
            sqlx::query_as(STILL_UNSTORED)
                .bind(&ids)
                .fetch_all(connection)
                .await
        })
        .await?;
        self.stragglers = unstored.into_iter().collect();
        Ok(())
    }

    /// Reads forward from the frontier and moves it, at most to `settled`: receipts of a later time
    /// may still become visible.
    async fn look_forward(
        &mut self,
        pool: &Pool,
        settled: DateTime<Utc>,
    ) -> Result<Recent, TransactionError> {
        let mut recent = Recent::default();
        let frontier = self.frontier.get_or_insert(Cursor::before(settled));
        let mut cursor = frontier.clone();
        for _ in 0..MOST_SLICES {
            let slice = slice(pool, FORWARD, &cursor).await?;
            for row in slice.iter().filter(|row| row.is_unstored) {
                if row.received_at >= settled {
                    recent.count += 1;
                    recent.oldest = recent.oldest.or(Some(row.received_at));
                } else if !self.remember(row) {
                    return Ok(recent);
                }
            }
            let Some(next) = after(&slice) else {
                recent.is_whole = true;
                self.move_to(Cursor::before(settled));
                break;
            };
            if next.received_at < settled {
                self.move_to(next.clone());
            }
            cursor = next;
        }
        Ok(recent)
    }

    /// After a failover, the new server's clock may be behind; the frontier never moves back.
    fn move_to(&mut self, place: Cursor) {
        if self.frontier.as_ref().is_none_or(|old| *old < place) {
            self.frontier = Some(place);
        }
    }

    /// Continues the round of receipts before the frontier. After the first round, there should be
    /// nothing new.
    async fn look_back(&mut self, pool: &Pool) -> Result<(), TransactionError> {
        let most = if self.is_first_round_through {
            1
        } else {
            MOST_SLICES
        };
        for _ in 0..most {
            let Some(from) = self.round.as_ref().or(self.frontier.as_ref()) else {
                return Ok(());
            };
            let slice = slice(pool, BACK, from).await?;
            for row in slice.iter().filter(|row| row.is_unstored) {
                if !self.remember(row) {
                    return Ok(());
                }
            }
            self.round = after(&slice);
            if self.round.is_none() {
                self.is_first_round_through = true;
                break;
            }
        }
        Ok(())
    }

    /// Remembers a straggler. Returns false if there is no room.
    fn remember(&mut self, row: &SliceRow) -> bool {
        let has_room = self.stragglers.len() < MOST_STRAGGLERS
            || self.stragglers.contains_key(&row.webhook_id);
        if has_room {
            self.stragglers
                .insert(row.webhook_id.clone(), row.received_at);
        }
        has_room
    }
}

/// Receipts without an event that the next measurement reads again.
#[derive(Debug, Default)]
struct Recent {
    count: usize,
    oldest: Option<DateTime<Utc>>,
    /// Whether all receipts up to the newest one were read.
    is_whole: bool,
}

/// The position after a slice, if there may be more receipts.
fn after(slice: &[SliceRow]) -> Option<Cursor> {
    let last = slice.last().filter(|last| last.size == SLICE)?;
    Some(Cursor {
        received_at: last.received_at,
        webhook_id: last.webhook_id.clone(),
    })
}

async fn slice(
    pool: &Pool,
    sql: &'static str,
    beyond: &Cursor,
) -> Result<Vec<SliceRow>, TransactionError> {
    in_transaction(pool, async |connection| {
        sqlx::query_as(sql)
            .bind(beyond.received_at)
            .bind(&beyond.webhook_id)
            .bind(SLICE)
            .fetch_all(connection)
            .await
    })
    .await
}

/// Uses a transaction for each statement, so that none holds vacuum back for long.
async fn in_transaction<T>(
    pool: &Pool,
    statement: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
) -> Result<T, TransactionError> {
    let deadline = Instant::now() + DEADLINE;
    let mut transaction = DeadlineTransaction::begin(pool, &MODE, deadline).await?;
    let outcome = transaction.run(statement).await?;
    transaction.rollback().await?;
    Ok(outcome)
}
