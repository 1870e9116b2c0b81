//! Writes to `webhook_spool`: events that a worker defers, and changes to the claims on rows.

use std::time::Duration;

use shared::{
    Family,
    database::{DeadlineTransaction, Durability, Pool, TransactionError, TransactionMode},
    spool::{self, SpoolEntry},
};
use sqlx::PgConnection;
use tokio::time::Instant;
use tracing::warn;

use crate::{
    due_rows::{ISOLATE_AFTER, LEASE, free_spooled},
    work::{Source, Work},
};

const DEADLINE: Duration = Duration::from_secs(10);

/// A spool row may be an event's only copy.
const SPOOL: TransactionMode = TransactionMode::write(Durability::Replicated)
    .lock_timeout(Duration::from_secs(5))
    .statement_timeout(Duration::from_secs(10));

/// A lost claim costs nothing, and claiming must not hang while the standby is down.
const CLAIM: TransactionMode = TransactionMode::write(Durability::Local)
    .lock_timeout(Duration::from_secs(5))
    .statement_timeout(Duration::from_secs(10));

/// An event that is deferred.
#[derive(Clone, Copy, Debug)]
pub struct Deferral<'w> {
    /// The event.
    pub work: &'w Work,
    /// Why it was not stored.
    pub reason: &'w str,
    /// How long from now until a worker may take it.
    pub delay: Duration,
    /// Failed attempts to store it, including this one if it counts.
    pub attempts: i32,
}

/// Spools events for the family's worker without parsing them. Each is then handled alone.
pub async fn isolate(pool: &Pool, family: Family, works: &[&Work]) -> Result<(), TransactionError> {
    let entries: Vec<_> = works
        .iter()
        .map(|work| SpoolEntry {
            event: &work.event,
            family,
            receipt: work.receipt,
            attempts: work.attempts,
            claims: ISOLATE_AFTER,
            delay: Duration::ZERO,
            reason: "was redelivered more than once",
        })
        .collect();
    write(pool, &SPOOL, async |connection| {
        spool::insert(connection, &entries).await
    })
    .await
}

/// Defers events: spools them, or moves the due time of those that are in the spool.
pub async fn defer(
    pool: &Pool,
    family: Family,
    deferrals: &[Deferral<'_>],
) -> Result<(), TransactionError> {
    let (spooled, new): (Vec<&Deferral<'_>>, Vec<&Deferral<'_>>) = deferrals
        .iter()
        .partition(|deferral| deferral.work.source == Source::Spool);
    let entries: Vec<_> = new
        .iter()
        .map(|deferral| SpoolEntry {
            event: &deferral.work.event,
            family,
            receipt: deferral.work.receipt,
            attempts: deferral.attempts,
            claims: 0,
            delay: deferral.delay,
            reason: deferral.reason,
        })
        .collect();
    write(pool, &SPOOL, async |connection| {
        if !entries.is_empty() {
            spool::insert(connection, &entries).await?;
        }
        if !spooled.is_empty() {
            update_spooled(connection, &spooled).await?;
        }
        Ok(())
    })
    .await
}

async fn update_spooled(
    connection: &mut PgConnection,
    deferrals: &[&Deferral<'_>],
) -> Result<(), sqlx::Error> {
    fn column<'p, T>(
        deferrals: &[&'p Deferral<'p>],
        pick: impl Fn(&'p Deferral<'p>) -> T,
    ) -> Vec<T> {
        deferrals.iter().map(|p| pick(p)).collect()
    }
    sqlx::query(concat!(
        "update webhook_spool s
            set (attempts, claims, last_error, due_at) = (
                    select attempts, 0, reason, now() + make_interval(secs => delay)
                      from unnest($1::text[], $2::bytea[], $3::int[], $4::text[], $5::float8[])
                        as later (webhook_id, body_sha256, attempts, reason, delay)
                     where s.webhook_id = later.webhook_id and s.body_sha256 = later.body_sha256
                     limit 1)
          where ",
        free_spooled!()
    ))
    .bind(column(deferrals, |p| p.work.event.webhook_id.as_str()))
    .bind(column(deferrals, |p| &p.work.event.body_sha256[..]))
    .bind(column(deferrals, |p| p.attempts))
    .bind(column(deferrals, |p| p.reason))
    .bind(column(deferrals, |p| p.delay.as_secs_f64()))
    .execute(connection)
    .await?;
    Ok(())
}

/// Fails unless a row of the family could be spooled now. It does everything that spooling does,
/// including a commit, and leaves nothing behind.
pub async fn rehearse(pool: &Pool, family: Family) -> Result<(), TransactionError> {
    write(pool, &SPOOL, async |connection| {
        sqlx::raw_sql("savepoint rehearsal")
            .execute(&mut *connection)
            .await?;
        sqlx::query(
            "insert into webhook_spool (webhook_id, body_sha256, family, event_type, body,
                                        received_at, has_receipt, due_at)
             values ('rehearsal', '', $1, '', '', now(), true, now())",
        )
        .bind(family.name())
        .execute(&mut *connection)
        .await?;
        sqlx::raw_sql("rollback to savepoint rehearsal")
            .execute(connection)
            .await
            .map(drop)
    })
    .await
}

/// The claims on the spool rows of a batch.
///
/// Changing them is best effort: otherwise they expire.
pub struct Claims<'b> {
    pool: &'b Pool,
    ids: Vec<&'b str>,
    hashes: Vec<&'b [u8]>,
}

impl<'b> Claims<'b> {
    /// The claims of those `works` that came from the spool.
    pub fn of(pool: &'b Pool, works: impl IntoIterator<Item = &'b Work>) -> Self {
        let (ids, hashes) = works
            .into_iter()
            .filter(|work| work.source == Source::Spool)
            .map(|work| (work.event.webhook_id.as_str(), &work.event.body_sha256[..]))
            .unzip();
        Self { pool, ids, hashes }
    }

    /// Renews the lease, so that the rows are not claimed again while they are held: an expired
    /// claim counts as a stopped worker. If Postgres is down, no other worker can claim them
    /// either. Rows that were deferred meanwhile have no claim and keep their due time.
    pub async fn renew(&self) {
        self.update(
            concat!(
                "update webhook_spool s set due_at = now() + make_interval(secs => $3)
                  where s.claims > 0 and ",
                free_spooled!()
            ),
            LEASE,
        )
        .await;
    }

    /// Releases the claims immediately, and does not count them.
    pub async fn release(&self) {
        self.update(
            concat!(
                "update webhook_spool s
                    set due_at = now() + make_interval(secs => $3), claims = s.claims - 1
                  where s.claims > 0 and ",
                free_spooled!()
            ),
            Duration::ZERO,
        )
        .await;
    }

    async fn update(&self, sql: &'static str, due_in: Duration) {
        if self.ids.is_empty() {
            return;
        }
        let updated = write(self.pool, &CLAIM, async |connection| {
            sqlx::query(sql)
                .bind(&self.ids)
                .bind(&self.hashes)
                .bind(due_in.as_secs_f64())
                .execute(connection)
                .await
                .map(|_| ())
        });
        if let Err(error) = updated.await {
            warn!(%error, "cannot note the state of spool rows");
        }
    }
}

/// Runs one transaction, which is on disk when this returns.
async fn write(
    pool: &Pool,
    mode: &TransactionMode,
    statements: impl AsyncFnOnce(&mut PgConnection) -> Result<(), sqlx::Error>,
) -> Result<(), TransactionError> {
    let mut transaction = DeadlineTransaction::begin(pool, mode, Instant::now() + DEADLINE).await?;
    transaction.run(statements).await?;
    transaction.commit().await
}
