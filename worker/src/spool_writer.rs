//! What a worker writes to `webhook_spool`: events that go there, and the claims on rows that it
//! has taken from there.

use std::time::Duration;

use shared::{
    database::{DeadlineTransaction, Durability, TransactionError, TransactionMode},
    spool::{self, SpoolEntry},
};
use sqlx::{PgConnection, PgPool};
use tokio::time::Instant;
use tracing::warn;

use crate::{
    spool_reader::{ISOLATE_AFTER, LEASE},
    work::{Source, Work},
};

/// For one transaction.
const DEADLINE: Duration = Duration::from_secs(10);

/// What is spooled may be an event's only copy.
const SPOOL: TransactionMode = TransactionMode::write(Durability::Replicated)
    .lock_timeout(Duration::from_secs(5))
    .statement_timeout(Duration::from_secs(10));

/// A claim that a failover undoes costs nothing, and must not hang while the standby is away.
const CLAIM: TransactionMode = TransactionMode::write(Durability::Local)
    .lock_timeout(Duration::from_secs(5))
    .statement_timeout(Duration::from_secs(10));

/// Spools events unread, each to be handled alone.
pub async fn isolate(pool: &PgPool, works: &[Work]) -> Result<(), TransactionError> {
    let entries: Vec<_> = works
        .iter()
        .map(|work| SpoolEntry {
            event: &work.event,
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

/// Spools an event for its next attempt.
pub async fn defer(
    pool: &PgPool,
    work: &Work,
    reason: &str,
    delay: Duration,
) -> Result<(), TransactionError> {
    let attempts = work.attempts.saturating_add(1);
    write(pool, &SPOOL, async |connection| match work.source {
        Source::Queue => {
            let entry = SpoolEntry {
                event: &work.event,
                receipt: work.receipt,
                attempts,
                claims: 0,
                delay,
                reason,
            };
            spool::insert(connection, &[entry]).await
        }
        Source::Spool => {
            sqlx::query(
                "update webhook_spool
                    set attempts = $3, claims = 0, last_error = $4,
                        due_at = now() + make_interval(secs => $5)
                  where webhook_id = $1 and body_sha256 = $2",
            )
            .bind(&work.event.webhook_id)
            .bind(&work.event.body_sha256[..])
            .bind(attempts)
            .bind(reason)
            .bind(delay.as_secs_f64())
            .execute(connection)
            .await?;
            Ok(())
        }
    })
    .await
}

/// The claims on spool rows that a batch came with.
///
/// Noting what becomes of them is best effort: without it they run out by themselves.
pub struct Claims<'b> {
    pool: &'b PgPool,
    ids: Vec<&'b str>,
    hashes: Vec<&'b [u8]>,
}

impl<'b> Claims<'b> {
    /// Those of `works` that came from the spool.
    pub fn of(pool: &'b PgPool, works: impl IntoIterator<Item = &'b Work>) -> Self {
        let (ids, hashes) = works
            .into_iter()
            .filter(|work| work.source == Source::Spool)
            .map(|work| (work.event.webhook_id.as_str(), &work.event.body_sha256[..]))
            .unzip();
        Self { pool, ids, hashes }
    }

    /// Keeps the rows from being claimed again while they are held: a claim that runs out counts as
    /// a worker that was stopped. If Postgres is away nobody else can claim them either. Rows that
    /// were set aside meanwhile have no claim and keep their time.
    pub async fn renew(&self) {
        self.update(
            "update webhook_spool s set due_at = now() + make_interval(secs => $3)
               from unnest($1::text[], $2::bytea[]) as held (webhook_id, body_sha256)
              where s.webhook_id = held.webhook_id and s.body_sha256 = held.body_sha256
                and s.claims > 0",
            LEASE,
        )
        .await;
    }

    /// Gives the rows back at once, uncounted.
    pub async fn release(&self) {
        self.update(
            "update webhook_spool s
                set due_at = now() + make_interval(secs => $3), claims = s.claims - 1
               from unnest($1::text[], $2::bytea[]) as held (webhook_id, body_sha256)
              where s.webhook_id = held.webhook_id and s.body_sha256 = held.body_sha256
                and s.claims > 0",
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

/// One transaction, on disk when this returns.
async fn write(
    pool: &PgPool,
    mode: &TransactionMode,
    statements: impl AsyncFnOnce(&mut PgConnection) -> Result<(), sqlx::Error>,
) -> Result<(), TransactionError> {
    let mut transaction = DeadlineTransaction::begin(pool, mode, Instant::now() + DEADLINE).await?;
    transaction.run(statements).await?;
    transaction.commit().await
}
