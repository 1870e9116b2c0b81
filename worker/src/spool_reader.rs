//! The second way in: due rows of `webhook_spool`.
//!
//! A row is claimed (counted and made due later) in a transaction of its own, before anything is
//! done with it. If the process dies in the middle, the row comes back when the claim runs out, and
//! its count shows which event keeps killing workers.

use std::{sync::Arc, time::Duration};

use shared::{
    AcceptedEvent, Companies, EventType, Family,
    database::{DeadlineTransaction, Durability, Pool, TransactionError, TransactionMode},
    message::Receipt,
};
use sqlx::{Row, postgres::PgRow};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    floor::Floor,
    persistence::{Abandoned, Persistence},
    problem::{self, STOPPED_WORKER},
    work::{Source, Work},
};

/// How long a claimed row is left to its worker.
pub const LEASE: Duration = Duration::from_secs(60);

/// After so many unfinished claims in company, a row is handled alone: its neighbours must not pay
/// for it.
pub const ISOLATE_AFTER: i32 = 2;

/// After so many unfinished claims alone, it is what stops the workers.
const TRIES_ALONE: i32 = 3;

/// How often an empty spool is looked at.
const IDLE_POLL: Duration = Duration::from_secs(1);

/// For one claim. Postgres' own limit ends it earlier: a claim that commits unseen would count
/// against its events.
const CLAIM_DEADLINE: Duration = Duration::from_secs(10);

/// For one claim from the beginning, which may have to pass millions of entries of rows that are gone. If
/// it never came to its end, a worker would take nothing until vacuum has removed them.
const LONG_CLAIM_DEADLINE: Duration = Duration::from_secs(70);

/// The count of claims has to outlive this process, and need not outlive the server.
const CLAIM: TransactionMode = TransactionMode::write(Durability::Local).by_index();
const LONG_CLAIM: TransactionMode = CLAIM.statement_timeout(Duration::from_secs(60));

/// How often rows that appeared late are searched for.
const FROM_THE_BEGINNING_EVERY: Duration = Duration::from_secs(60);

/// The claim of at most `$2` rows. They are chosen once, whatever the plan is: a subquery would be
/// chosen anew for each row that a nested loop compares it with, and each time choose other ones.
macro_rules! claim {
    ($which:literal) => {
        concat!(
            "with due as materialized (
                 select ctid as place, due_at from webhook_spool
                  where family = $1 and due_at <= now() and ",
            $which,
            "       and due_at >= coalesce($4, '-infinity')
                  order by due_at
                  limit $2
                    for update skip locked)
             update webhook_spool s
                set claims = s.claims + 1, due_at = now() + make_interval(secs => $3)
              where s.ctid = any (array(select place from due))
             returning s.*, array_to_string(s.secret_companies, ' ') as companies, (select max(due_at) from due) as reached"
        )
    };
}

// The bounds are ISOLATE_AFTER, written out as the indexes have them.
const CLAIM_FRESH: &str = claim!("attempts = 0 and claims < 2");
const CLAIM_REFUSED: &str = claim!("attempts > 0 and claims < 2");
const CLAIM_ALONE: &str = claim!("claims >= 2");

/// Refused events are retried so many together. Each may take as long as [`Patience::Long`] lets it.
///
/// [`Patience::Long`]: crate::groups::Patience::Long
const REFUSED_TOGETHER: i64 = 32;

/// Reads one family's part of the spool.
pub struct SpoolReader {
    /// Where the spool is.
    pub pool: Pool,
    /// Stores what is due.
    pub persistence: Arc<Persistence>,
    /// Whose rows.
    pub family: Family,
    /// The most events stored in one transaction.
    pub batch_size: usize,
}

impl SpoolReader {
    /// Takes due rows until `stop`; what is not stored by the time of `abandon` is given back. Rows that
    /// have been in trouble are taken apart: one that is slow holds up only those.
    pub async fn run(self, stop: CancellationToken, abandon: CancellationToken) {
        let limit = i64::try_from(self.batch_size).unwrap_or(i64::MAX);
        let mut fresh = [Claim::new(CLAIM_FRESH, limit)];
        let mut troubled = [
            Claim::new(CLAIM_REFUSED, limit.min(REFUSED_TOGETHER)),
            Claim::new(CLAIM_ALONE, 1),
        ];
        tokio::join!(
            self.read(&mut fresh, &stop, &abandon),
            self.read(&mut troubled, &stop, &abandon)
        );
    }

    async fn read(
        &self,
        kinds: &mut [Claim],
        stop: &CancellationToken,
        abandon: &CancellationToken,
    ) {
        let mut delays = shared::broker::reconnect_delays();
        while !stop.is_cancelled() {
            let pause = match self.store_due(kinds, abandon).await {
                Ok(0) => IDLE_POLL,
                Ok(_) => {
                    delays = shared::broker::reconnect_delays();
                    Duration::ZERO
                }
                Err(error) => {
                    warn!(family = %self.family, error, "cannot store from the spool");
                    delays.next().unwrap_or(IDLE_POLL)
                }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Stores one claim of each kind; answers with the number of its rows.
    async fn store_due(
        &self,
        kinds: &mut [Claim],
        abandon: &CancellationToken,
    ) -> Result<usize, String> {
        let mut stored = 0;
        for kind in kinds {
            let due = kind
                .claim(&self.pool, self.family)
                .await
                .map_err(|error| error.to_string())?;
            if due.is_empty() {
                continue;
            }
            stored += due.len();
            let (persistence, abandon) = (Arc::clone(&self.persistence), abandon.clone());
            // In a task of its own, so that an event that makes it panic is counted like one that
            // stops the process, and the next is taken all the same.
            tokio::spawn(async move { persistence.persist(due, &abandon).await })
                .await
                .map_err(|panic| panic.to_string())?
                .map_err(|Abandoned| "gave up for now".to_owned())?;
        }
        Ok(stored)
    }
}

/// Claims of one kind, one after the other.
struct Claim {
    sql: &'static str,
    limit: i64,
    floor: Floor,
}

impl Claim {
    fn new(sql: &'static str, limit: i64) -> Self {
        Self {
            sql,
            limit,
            floor: Floor::new(FROM_THE_BEGINNING_EVERY),
        }
    }

    /// Claims the oldest due rows.
    async fn claim(&mut self, pool: &Pool, family: Family) -> Result<Vec<Work>, TransactionError> {
        let start = self.floor.start(Instant::now());
        let (mode, patience) = match start {
            Some(_) => (CLAIM, CLAIM_DEADLINE),
            None => (LONG_CLAIM, LONG_CLAIM_DEADLINE),
        };
        let deadline = Instant::now() + patience;
        let (sql, limit) = (self.sql, self.limit);
        let mut transaction = DeadlineTransaction::begin(pool, &mode, deadline).await?;
        let (due, reached) = transaction
            .run(async |connection| {
                let rows = sqlx::query(sql)
                    .bind(family.name())
                    .bind(limit)
                    .bind(LEASE.as_secs_f64())
                    .bind(start)
                    .fetch_all(connection)
                    .await?;
                let due: Vec<Work> = rows.iter().map(as_work).collect::<Result<_, _>>()?;
                let reached = rows.first().map(|row| row.try_get("reached")).transpose()?;
                Ok((due, reached))
            })
            .await?;
        transaction.commit().await?;
        if let Some(reached) = reached {
            self.floor.advance(reached);
        }
        Ok(due)
    }
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
        Some(format!("{STOPPED_WORKER} {TRIES_ALONE} times"))
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
