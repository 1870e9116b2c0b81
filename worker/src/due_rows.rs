//! Claims due rows of `webhook_spool`.
//!
//! Processed rows leave entries in the index until vacuum removes them, and vacuum cannot do that
//! while an older transaction is open (an old snapshot). A claim that started at the oldest entry
//! would read all of them, which takes seconds for a million. So each claim starts where the last
//! one ended. Rows that became due before that point are searched for separately, read-only, and
//! claimed by their keys. Such rows are left by a long outage when the worker starts, or were
//! written by a slow transaction.

use std::{collections::HashSet, sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use shared::{
    AcceptedEvent, Companies, EventType, Family,
    database::{DeadlineTransaction, Durability, Pool, TransactionError, TransactionMode},
    message::Receipt,
};
use sqlx::{Row, postgres::PgRow};
use tokio::{
    sync::{Mutex, Notify},
    time::Instant,
};
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use crate::{
    problem::{self, Problem, STOPPED_WORKER},
    work::{Source, Work},
};

/// The lease of a claim: how long a claimed row belongs to its worker.
pub const LEASE: Duration = Duration::from_secs(60);

/// After this many unfinished claims, a row is handled alone, so that it no longer affects the rows
/// claimed with it.
pub const ISOLATE_AFTER: i32 = 2;

/// After this many unfinished claims alone, a row is considered to stop the workers.
const TRIES_ALONE: i32 = 3;

/// The deadline of a claim. Postgres' own limit is shorter, because a claim that commits after we
/// gave up would count against its events.
const CLAIM_DEADLINE: Duration = Duration::from_secs(10);

/// The deadline of a search, which may read millions of index entries.
const SEARCH_DEADLINE: Duration = Duration::from_secs(70);

/// The count of claims must survive a crash of this process, but not the loss of the server.
const CLAIM: TransactionMode = TransactionMode::write(Durability::Local).by_index();

const SEARCH: TransactionMode = TransactionMode::read()
    .by_index()
    .statement_timeout(Duration::from_secs(60));

/// The pause between two rounds of searching.
const SEARCH_EVERY: Duration = Duration::from_secs(60);

/// The pause after a search that failed, and the first one after a round that missed rows.
const SEARCH_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// A row's due time is the start of the transaction that writes it, and the row becomes visible at
/// the commit. Rows of transactions that take longer than this are found by the search.
const SHOWS_UP_WITHIN: TimeDelta = TimeDelta::seconds(5);

/// The same if nothing was due. Then only rows of that time are read again, so it may be longer.
const SHOWS_UP_WITHIN_IDLE: TimeDelta = TimeDelta::seconds(20);

/// The condition for the rows of `webhook_spool` with these ids and hashes. Each key is looked up
/// separately, because a join may read the whole index with its dead entries.
macro_rules! with_keys {
    ($ids:literal, $hashes:literal) => {
        concat!(
            "ctid = any (array(
                 select (select spooled.ctid from webhook_spool spooled
                          where spooled.webhook_id = key.webhook_id
                            and spooled.body_sha256 = key.body_sha256)
                   from unnest(",
            $ids,
            "::text[], ",
            $hashes,
            "::bytea[]) as key (webhook_id, body_sha256)))"
        )
    };
}
pub(crate) use with_keys;

/// The condition for the rows with the ids `$1` and the hashes `$2` that no other session has
/// locked. Skipping a locked row costs little: its claim expires, and its event is found stored.
macro_rules! free_spooled {
    () => {
        concat!(
            "ctid = any (array(select ctid from webhook_spool where ",
            $crate::due_rows::with_keys!("$1", "$2"),
            " for update skip locked))"
        )
    };
}
pub(crate) use free_spooled;

/// A kind of rows that is claimed separately, with its statements.
pub struct Kind {
    claim: &'static str,
    claim_found: &'static str,
    search: &'static str,
}

/// Claims at most `$2` rows that match `$due`. They are chosen once, with any plan: a nested loop
/// could run a subquery for each row it compares, and choose other rows each time.
macro_rules! claim {
    ($which:literal, $due:expr, $order:literal) => {
        concat!(
            "with due as materialized (
                 select ctid as place, due_at from webhook_spool
                  where family = $1 and due_at <= now() and ",
            $which,
            " and ",
            $due,
            $order,
            "     limit $2
                    for update skip locked)
             update webhook_spool s
                set claims = s.claims + 1, due_at = now() + make_interval(secs => $3)
              where s.ctid = any (array(select place from due))
             returning s.*, array_to_string(s.secret_companies, ' ') as companies,
                       (select max(due_at) from due) as reached"
        )
    };
}

macro_rules! kind {
    ($which:literal) => {
        Kind {
            claim: claim!($which, "due_at >= $4", " order by due_at"),
            claim_found: claim!($which, with_keys!("$4", "$5"), ""),
            search: concat!(
                "select webhook_id, body_sha256, due_at from webhook_spool
                  where family = $1 and due_at <= now() and ",
                $which,
                "   and due_at >= coalesce($3, '-infinity')
                  order by due_at
                  limit $2 offset $4"
            ),
        }
    };
}

// The bound 2 is `ISOLATE_AFTER`, as a literal to match the partial indexes.

/// Rows that have had no failure.
pub const FRESH: Kind = kind!("attempts = 0 and claims < 2");
/// Rows that Postgres has refused before.
pub const REFUSED: Kind = kind!("attempts > 0 and claims < 2");
/// Rows that are handled alone.
pub const ALONE: Kind = kind!("claims >= 2");

/// The spool of a family.
#[derive(Clone)]
pub struct Spool {
    /// The database.
    pub pool: Pool,
    /// The family whose rows are claimed.
    pub family: Family,
    /// Notified when a search has ended.
    pub searched: Arc<Notify>,
    /// Allows one search at a time, because a search may hold a connection for a minute.
    pub searching: Arc<Mutex<()>>,
}

/// The key and due time of a row.
#[derive(sqlx::FromRow)]
struct RowKey {
    webhook_id: String,
    body_sha256: Vec<u8>,
    due_at: DateTime<Utc>,
}

/// The search for rows that became due before the start of claims.
enum Search {
    /// It starts at this time.
    Planned {
        at: Instant,
    },
    Running(AbortOnDropHandle<Result<Vec<RowKey>, TransactionError>>),
}

/// How far a round of searches has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Round {
    /// The next search starts at rows with this due time; `None` is the oldest.
    due_from: Option<DateTime<Utc>>,
    /// It skips this many rows of that time, which were found before and could not be claimed.
    skip: i64,
    /// Whether a row that was found could not be claimed. It may be free soon; and if it is deleted
    /// in the middle of the round, `skip` passes over a row that was never found.
    misses_rows: bool,
}

/// Claims the due rows of one kind.
pub struct DueRows {
    kind: Kind,
    limit: i64,
    spool: Spool,
    /// The due time at which the next claim starts, by Postgres' clock.
    start: Option<DateTime<Utc>>,
    search: Search,
    round: Round,
    /// The pause after a round that misses rows.
    search_again_after: Duration,
}

impl DueRows {
    /// A claim takes at most `limit` rows.
    pub fn new(kind: Kind, limit: i64, spool: Spool) -> Self {
        Self {
            kind,
            limit,
            spool,
            start: None,
            search: Search::Planned { at: Instant::now() },
            round: Round::default(),
            search_again_after: SEARCH_AGAIN_AFTER,
        }
    }

    /// Claims the oldest due rows, or those that a search has found.
    pub async fn claim(&mut self) -> Result<Vec<Work>, TransactionError> {
        match self.found().await {
            Some(found) => self.claim_found(found).await,
            None => self.claim_next().await,
        }
    }

    async fn claim_next(&mut self) -> Result<Vec<Work>, TransactionError> {
        let deadline = Instant::now() + CLAIM_DEADLINE;
        let mut transaction =
            DeadlineTransaction::begin(&self.spool.pool, &CLAIM, deadline).await?;
        let (rows, next) = transaction
            .run(async |connection| {
                let now: DateTime<Utc> = sqlx::query_scalar("select now()")
                    .fetch_one(&mut *connection)
                    .await?;
                let rows = sqlx::query(self.kind.claim)
                    .bind(self.spool.family.name())
                    .bind(self.limit)
                    .bind(LEASE.as_secs_f64())
                    .bind(self.start.unwrap_or(now - SHOWS_UP_WITHIN_IDLE))
                    .fetch_all(connection)
                    .await?;
                let next = match rows.first() {
                    Some(row) => row.try_get::<DateTime<Utc>, _>("reached")? - SHOWS_UP_WITHIN,
                    None => now - SHOWS_UP_WITHIN_IDLE,
                };
                Ok((as_works(&rows)?, next))
            })
            .await?;
        transaction.commit().await?;
        self.start = self.start.max(Some(next));
        Ok(rows)
    }

    async fn claim_found(&mut self, found: Vec<RowKey>) -> Result<Vec<Work>, TransactionError> {
        let keys: (Vec<&str>, Vec<&[u8]>) = found
            .iter()
            .map(|row| (&*row.webhook_id, &*row.body_sha256))
            .unzip();
        let deadline = Instant::now() + CLAIM_DEADLINE;
        let mut transaction =
            DeadlineTransaction::begin(&self.spool.pool, &CLAIM, deadline).await?;
        let rows = transaction
            .run(async |connection| {
                let rows = sqlx::query(self.kind.claim_found)
                    .bind(self.spool.family.name())
                    .bind(self.limit)
                    .bind(LEASE.as_secs_f64())
                    .bind(keys.0)
                    .bind(keys.1)
                    .fetch_all(connection)
                    .await?;
                as_works(&rows)
            })
            .await?;
        transaction.commit().await?;
        self.plan(&found, &rows);
        Ok(rows)
    }

    /// Returns the rows of a finished search, and starts a planned one.
    async fn found(&mut self) -> Option<Vec<RowKey>> {
        let now = Instant::now();
        match &mut self.search {
            Search::Planned { at } => {
                if *at <= now {
                    let search =
                        search(self.spool.clone(), self.kind.search, self.limit, self.round);
                    self.search = Search::Running(AbortOnDropHandle::new(tokio::spawn(search)));
                }
                None
            }
            Search::Running(task) if task.is_finished() => {
                let found = task.await;
                self.search = Search::Planned {
                    at: now + SEARCH_AGAIN_AFTER,
                };
                match found {
                    Ok(Ok(found)) if found.is_empty() => {
                        self.plan(&found, &[]);
                        None
                    }
                    Ok(Ok(found)) => Some(found),
                    Ok(Err(error)) => {
                        warn!(family = %self.spool.family, %error, "cannot search the spool");
                        None
                    }
                    Err(panic) => {
                        warn!(family = %self.spool.family, %panic, "a search of the spool ended");
                        None
                    }
                }
            }
            Search::Running(_) => None,
        }
    }

    /// Plans the next search after one that found these rows, of which `claimed` could be claimed.
    fn plan(&mut self, found: &[RowKey], claimed: &[Work]) {
        let is_full = usize::try_from(self.limit).is_ok_and(|limit| found.len() >= limit);
        let round = self.round.after(found, claimed);
        let pause = if is_full {
            self.round = round;
            Duration::ZERO
        } else {
            self.round = Round::default();
            self.pause_after(round)
        };
        self.search = Search::Planned {
            at: Instant::now() + pause,
        };
    }

    /// The pause after a round that has ended. Rows may stay locked for hours, and a search may
    /// cost seconds, so rounds that miss rows become rarer.
    fn pause_after(&mut self, ended: Round) -> Duration {
        if !ended.misses_rows {
            self.search_again_after = SEARCH_AGAIN_AFTER;
            return SEARCH_EVERY;
        }
        let pause = self.search_again_after;
        self.search_again_after = (2 * pause).min(SEARCH_EVERY);
        pause
    }
}

impl Round {
    /// The position after these rows. Rows of the last due time that were not claimed, because
    /// another replica takes them or a session has locked them, are skipped, so that they do not
    /// hide other rows of the same time.
    fn after(self, found: &[RowKey], claimed: &[Work]) -> Self {
        let Some(due_from) = found.last().map(|row| row.due_at) else {
            return self;
        };
        let claimed: HashSet<_> = claimed
            .iter()
            .map(|work| (&*work.event.webhook_id, &work.event.body_sha256[..]))
            .collect();
        let left = found
            .iter()
            .filter(|row| row.due_at == due_from)
            .filter(|row| !claimed.contains(&(&*row.webhook_id, &*row.body_sha256)))
            .count();
        let skipped = if self.due_from == Some(due_from) {
            self.skip
        } else {
            0
        };
        Self {
            due_from: Some(due_from),
            skip: skipped + i64::try_from(left).unwrap_or(i64::MAX - skipped),
            misses_rows: self.misses_rows || claimed.len() < found.len(),
        }
    }
}

async fn search(
    spool: Spool,
    sql: &'static str,
    limit: i64,
    round: Round,
) -> Result<Vec<RowKey>, TransactionError> {
    let _one_at_a_time = spool.searching.lock().await;
    let deadline = Instant::now() + SEARCH_DEADLINE;
    let searched = async {
        let mut transaction = DeadlineTransaction::begin(&spool.pool, &SEARCH, deadline).await?;
        let found = transaction
            .run(async |connection| {
                sqlx::query_as(sql)
                    .bind(spool.family.name())
                    .bind(limit)
                    .bind(round.due_from)
                    .bind(round.skip)
                    .fetch_all(connection)
                    .await
            })
            .await?;
        transaction.rollback().await?;
        Ok(found)
    };
    let searched = searched.await;
    spool.searched.notify_one();
    searched
}

fn as_works(rows: &[PgRow]) -> Result<Vec<Work>, sqlx::Error> {
    rows.iter().map(as_work).collect()
}

fn as_work(row: &PgRow) -> Result<Work, sqlx::Error> {
    let body: Vec<u8> = row.try_get("body")?;
    let event_type: &str = row.try_get("event_type")?;
    let claims: i32 = row.try_get("claims")?;
    let companies: Option<&str> = row.try_get("companies")?;
    let event = AcceptedEvent {
        webhook_id: row.try_get("webhook_id")?,
        event_type: EventType::parse(event_type).unwrap_or_else(EventType::unknown),
        body_sha256: shared::message::body_sha256(&body),
        body: body.into(),
        received_at: row.try_get("received_at")?,
        attempted_at: row.try_get("attempted_at")?,
        secret_name: row.try_get("secret_name")?,
        secret_companies: companies.map(Companies::read),
    };
    let gives_up = claims > ISOLATE_AFTER + TRIES_ALONE;
    let problem = if gives_up {
        let text = format!("{STOPPED_WORKER} {TRIES_ALONE} times");
        Some(Problem::new(problem::Kind::StoppedWorker, text))
    } else {
        problem::known_of(&event)
    };
    Ok(Work {
        event,
        receipt: if row.try_get("has_receipt")? {
            Receipt::Recorded
        } else {
            Receipt::Missing
        },
        attempts: row.try_get("attempts")?,
        problem,
        source: Source::Spool,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(ids: &[&str], due_at: DateTime<Utc>) -> Vec<RowKey> {
        ids.iter()
            .map(|id| RowKey {
                webhook_id: (*id).to_owned(),
                body_sha256: Vec::new(),
                due_at,
            })
            .collect()
    }

    #[test]
    fn rows_that_cannot_be_claimed_hide_none_of_the_same_time() {
        let due_at = DateTime::UNIX_EPOCH;
        let first = Round::default().after(&found(&["a", "b"], due_at), &[]);
        assert_eq!((first.due_from, first.skip), (Some(due_at), 2));
        assert_eq!(first.after(&found(&["c"], due_at), &[]).skip, 3);
        let later = due_at + TimeDelta::seconds(1);
        let next = first.after(&found(&["d"], later), &[]);
        assert_eq!((next.due_from, next.skip), (Some(later), 1));
    }

    #[test]
    fn a_round_misses_rows_as_soon_as_one_could_not_be_claimed() {
        let missed = Round::default().after(&found(&["a"], DateTime::UNIX_EPOCH), &[]);
        assert!(missed.misses_rows);
        assert!(missed.after(&[], &[]).misses_rows);
        assert!(!Round::default().after(&[], &[]).misses_rows);
    }
}
