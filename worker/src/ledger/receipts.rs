//! Which receipts have no event yet, found at a cost that does not grow with the tables.
//!
//! What was stored once stays stored. So a look reads the receipts of the last minute, those that it
//! found without an event before, and a bounded number of slices of all others. The slices go back from
//! the newest receipts, round after round. The first round after a start reads more of them in a look;
//! until it is through, the figures say "at least". Later rounds find what showed up late with an older
//! time, such as a commit that waited long for a standby, or a receipt of an older ingest that dated it
//! by its own clock.

use std::{collections::HashMap, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use shared::database::{DeadlineTransaction, Pool, TransactionError, TransactionMode};
use sqlx::PgConnection;
use tokio::time::Instant;

/// For one statement; Postgres' own limit ends it earlier, so that none goes on unseen.
const DEADLINE: Duration = Duration::from_secs(40);

/// With wrong statistics a plan could read all of `events` for each slice.
const MODE: TransactionMode = TransactionMode::read()
    .by_index()
    .statement_timeout(Duration::from_secs(30));

/// A receipt has the time at which its transaction began, and shows up when that commits.
const SHOWS_UP_WITHIN: TimeDelta = TimeDelta::seconds(60);

/// The most receipts of one statement.
const SLICE: i64 = 2_000;

/// The most slices that a look reads forward, and as many back in the first round. Forward it keeps up
/// with 6,000 events a second for hours.
const MOST_SLICES: usize = 50;

/// The most receipts without an event that are remembered by their ids and looked at again with each
/// look. Reading stops before the next one.
const MOST_STRAGGLERS: usize = 20_000;

/// In the order of `received_at`, which has an index, the next receipts beyond ($1, $2): those without
/// an event, and the last one of the slice.
///
/// The view is asked as it has its owner's rights: this account sees no spool row of another family.
/// `offset 0` keeps the planner from joining with the whole of `events` for a slice.
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

/// Those of the ids $1 that are still without an event.
const STILL_UNSTORED: &str = "
    select webhook_id, received_at
      from webhook_receipts r
     where webhook_id = any($1)
       and exists (select from unstored_receipts u where u.webhook_id = r.webhook_id offset 0)";

/// A place in the order of the receipts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Cursor {
    received_at: DateTime<Utc>,
    webhook_id: String,
}

impl Cursor {
    /// Before all receipts of this time.
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

/// What one look found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unstored {
    /// How many there are.
    pub count: usize,
    /// The age of the oldest one, by the clock of the database.
    pub oldest_age: TimeDelta,
    /// Whether the figures are about all receipts; else there may be more, and older ones.
    pub of_all: bool,
}

/// What is known from the looks before.
#[derive(Debug)]
pub struct Receipts {
    /// How far the receipts were read forward. Each one before it that a round has read is stored, but
    /// for the stragglers. `None` before the first look.
    frontier: Option<Cursor>,
    /// Receipts before the frontier that have no event.
    stragglers: HashMap<String, DateTime<Utc>>,
    /// How far back the round has come; `None` at the frontier.
    round: Option<Cursor>,
    /// Whether a round has come to the oldest receipt.
    is_first_round_through: bool,
}

impl Receipts {
    /// Knows nothing: the first round begins.
    pub fn unknown() -> Self {
        Self {
            frontier: None,
            stragglers: HashMap::new(),
            round: None,
            is_first_round_through: false,
        }
    }

    /// Looks once. After an error it goes on where it was.
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
            // A receipt that another clock dated may be of the future.
            oldest_age: oldest.map_or(TimeDelta::zero(), |oldest| {
                (now - oldest).max(TimeDelta::zero())
            }),
            of_all: self.is_first_round_through
                && recent.is_whole
                && self.stragglers.len() < MOST_STRAGGLERS,
        })
    }

    /// The ids of those that showed up more than a minute ago, the oldest first.
    pub fn oldest(&self, most: usize) -> Vec<String> {
        let mut stragglers: Vec<_> = self.stragglers.iter().collect();
        stragglers.sort_by_key(|(_, received_at)| **received_at);
        let ids = stragglers.into_iter().take(most);
        ids.map(|(webhook_id, _)| webhook_id.clone()).collect()
    }

    /// Drops the stragglers that have an event by now.
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

    /// Reads from the frontier on, and moves it as far as it may go: up to what was received since
    /// `settled`, where a receipt may still show up.
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

    /// The clock of another server, after a failover, may be behind: the frontier never goes back.
    fn move_to(&mut self, place: Cursor) {
        if self.frontier.as_ref().is_none_or(|old| *old < place) {
            self.frontier = Some(place);
        }
    }

    /// Goes on with the round of the receipts before the frontier. After the first one nothing should be
    /// new there.
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

    /// Whether there was room for it.
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

/// Receipts without an event that the next look reads again.
#[derive(Debug, Default)]
struct Recent {
    count: usize,
    oldest: Option<DateTime<Utc>>,
    /// Whether all receipts up to the newest one were read.
    is_whole: bool,
}

/// The place after a slice, if there may be more.
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

/// A transaction for each statement, so that none keeps vacuum from its work.
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
