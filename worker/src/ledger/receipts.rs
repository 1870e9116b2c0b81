//! Which receipts have no event yet, found at a cost that does not grow with the tables.
//!
//! What was stored once stays stored. So a look reads only the receipts of the last minute, those that
//! it found without an event before, and one slice of all others. The slices go round: they find what
//! showed up late with an older time, such as a commit that waited long for a standby, or a receipt of
//! an older ingest that dated it by its own clock.

use std::{collections::HashMap, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use shared::database::{DeadlineTransaction, Pool, TransactionError, TransactionMode};
use sqlx::PgConnection;
use tokio::time::Instant;

/// For one statement; Postgres' own limit ends it earlier, so that none goes on unseen.
const DEADLINE: Duration = Duration::from_secs(40);

const MODE: TransactionMode = TransactionMode::read().statement_timeout(Duration::from_secs(30));

/// A receipt has the time at which its transaction began, and shows up when that commits.
const SHOWS_UP_WITHIN: TimeDelta = TimeDelta::seconds(60);

/// The most receipts of one statement.
const SLICE: i64 = 2_000;

/// The most receipts without an event that are remembered by their ids. Beyond, their whole range is
/// read again with each look.
const MOST_STRAGGLERS: usize = 10_000;

/// In the order of `received_at`, which has an index, the next receipts after ($1, $2) and before $3:
/// those without an event, and the last one of the slice.
///
/// The view is asked as it has its owner's rights: this account sees no spool row of another family.
/// `offset 0` keeps the planner from joining with the whole of `events` for a slice.
const NEXT_SLICE: &str = "
    with slice as materialized (
        select webhook_id, received_at, row_number() over () as position, count(*) over () as size
          from (select webhook_id, received_at from webhook_receipts
                 where (received_at, webhook_id) > ($1, $2) and received_at < $3
                 order by received_at, webhook_id
                 limit $4) next)
    select webhook_id, received_at, is_unstored, size
      from (select slice.*,
                   exists (select from unstored_receipts u
                            where u.webhook_id = slice.webhook_id offset 0)
                   as is_unstored
              from slice) judged
     where is_unstored or position = size
     order by position";

/// Those of the ids $1 that are still without an event.
const STILL_UNSTORED: &str = "
    select webhook_id, received_at
      from webhook_receipts r
     where webhook_id = any($1)
       and exists (select from unstored_receipts u where u.webhook_id = r.webhook_id offset 0)";

/// A place in the order of the receipts.
#[derive(Clone, Debug)]
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
}

/// What is known from the looks before.
#[derive(Debug)]
pub struct Receipts {
    /// Each receipt that showed up before this time is stored, but for the stragglers.
    watermark: DateTime<Utc>,
    /// Receipts of a time before the watermark that have no event.
    stragglers: HashMap<String, DateTime<Utc>>,
    /// How far the slices of the receipts before the watermark have come.
    round: Cursor,
}

impl Receipts {
    /// Knows nothing: the first look reads all receipts, in slices.
    pub fn unknown() -> Self {
        Self {
            watermark: DateTime::UNIX_EPOCH,
            stragglers: HashMap::new(),
            round: Cursor::before(DateTime::UNIX_EPOCH),
        }
    }

    /// Looks once. After an error it goes on where it was.
    pub async fn look(&mut self, pool: &Pool) -> Result<Unstored, TransactionError> {
        let now = in_transaction(pool, async |connection| {
            sqlx::query_scalar("select now()")
                .fetch_one(connection)
                .await
        })
        .await?;
        self.forget_stored(pool).await?;
        self.look_at_older(pool).await?;
        let recent = self.look_at_recent(pool, now).await?;
        let stragglers = self.stragglers.values().min().copied();
        let oldest = stragglers.into_iter().chain(recent.oldest).min();
        Ok(Unstored {
            count: self.stragglers.len() + recent.count,
            // A receipt that another clock dated may be of the future.
            oldest_age: oldest.map_or(TimeDelta::zero(), |oldest| {
                (now - oldest).max(TimeDelta::zero())
            }),
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

    /// Reads one slice of the receipts before the watermark, where nothing should be new.
    async fn look_at_older(&mut self, pool: &Pool) -> Result<(), TransactionError> {
        let slice = slice(pool, &self.round, self.watermark).await?;
        for row in slice.iter().filter(|row| row.is_unstored) {
            if self.stragglers.len() < MOST_STRAGGLERS {
                self.stragglers
                    .insert(row.webhook_id.clone(), row.received_at);
            }
        }
        self.round = after(&slice).unwrap_or(Cursor::before(DateTime::UNIX_EPOCH));
        Ok(())
    }

    /// Reads all receipts from the watermark on, and moves it as far as it may go.
    async fn look_at_recent(
        &mut self,
        pool: &Pool,
        now: DateTime<Utc>,
    ) -> Result<Recent, TransactionError> {
        let settled = now - SHOWS_UP_WITHIN;
        let mut recent = Recent::default();
        let mut cursor = Cursor::before(self.watermark);
        loop {
            let slice = slice(pool, &cursor, DateTime::<Utc>::MAX_UTC).await?;
            for row in &slice {
                if row.is_unstored {
                    self.note(row, settled, &mut recent);
                }
                if recent.oldest.is_none() && row.received_at < settled {
                    self.watermark = row.received_at;
                }
            }
            match after(&slice) {
                Some(next) => cursor = next,
                None => break,
            }
        }
        if recent.oldest.is_none_or(|oldest| oldest >= settled) {
            self.watermark = self.watermark.max(settled);
        }
        Ok(recent)
    }

    /// Remembers an unstored receipt: by its id, or by the watermark that stays before it.
    fn note(&mut self, row: &SliceRow, settled: DateTime<Utc>, recent: &mut Recent) {
        if self.stragglers.contains_key(&row.webhook_id) {
            return;
        }
        let is_straggler = recent.count == 0
            && row.received_at < settled
            && self.stragglers.len() < MOST_STRAGGLERS;
        if is_straggler {
            self.stragglers
                .insert(row.webhook_id.clone(), row.received_at);
        } else {
            recent.count += 1;
            recent.oldest = recent.oldest.or(Some(row.received_at));
        }
    }
}

/// Receipts without an event that the next look reads again.
#[derive(Debug, Default)]
struct Recent {
    count: usize,
    oldest: Option<DateTime<Utc>>,
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
    after: &Cursor,
    before: DateTime<Utc>,
) -> Result<Vec<SliceRow>, TransactionError> {
    in_transaction(pool, async |connection| {
        sqlx::query_as(NEXT_SLICE)
            .bind(after.received_at)
            .bind(&after.webhook_id)
            .bind(before)
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
