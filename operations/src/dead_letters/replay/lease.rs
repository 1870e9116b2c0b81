//! The lease of the process that runs replay jobs: a row of `replay_runner`.
//!
//! Each transaction of a job locks this row and checks the holder. So a process that was frozen and wakes after
//! another one has taken the lease changes nothing, and no lease is taken during such a transaction.

use std::time::Duration;

use shared::database::{DeadlineTransaction, Durability, Pool, TransactionError, TransactionMode};
use sqlx::PgConnection;
use thiserror::Error;
use tokio::time::Instant;

use crate::database::{Connection, STORING};

/// Renewing changes one row.
const RENEWING: TransactionMode = TransactionMode::write(Durability::Relaxed);
const RENEWING_DEADLINE: Duration = Duration::from_secs(10);

/// Another process has taken the lease. Nothing was changed.
#[derive(Debug, Error)]
#[error("another console runs the replays now")]
pub struct LeaseLost;

/// The lease of one process. It counts for 60 seconds by the clock of the database, unless it is renewed.
#[derive(Clone, Debug)]
pub struct Lease {
    holder: String,
}

impl Default for Lease {
    fn default() -> Self {
        Self {
            holder: format!("{:032x}", rand::random::<u128>()),
        }
    }
}

impl Lease {
    /// Takes the lease, unless it counts for another process or a transaction of that process is under way.
    pub async fn take(&self, connection: &mut Connection) -> anyhow::Result<bool> {
        let taken: Option<bool> = connection
            .change(&STORING, async |connection| {
                let taken = sqlx::query_scalar(
                    "update replay_runner set holder = $1::uuid
                      where is_only = (select is_only from replay_runner
                                        where holder = $1::uuid or until < clock_timestamp()
                                          for update skip locked)
                     returning true",
                );
                Ok(taken.bind(&self.holder).fetch_optional(connection).await?)
            })
            .await?;
        Ok(taken.is_some())
    }

    /// Gives the lease back, so that another process need not wait.
    pub async fn release(&self, connection: &mut Connection) -> anyhow::Result<()> {
        connection
            .change(&STORING, async |connection| {
                sqlx::query("update replay_runner set holder = null where holder = $1::uuid")
                    .bind(&self.holder)
                    .execute(connection)
                    .await?;
                Ok(())
            })
            .await
    }

    /// Renews the lease. Returns `false` if it is lost.
    pub(super) async fn renew(&self, pool: &Pool) -> Result<bool, TransactionError> {
        let deadline = Instant::now() + RENEWING_DEADLINE;
        let mut transaction = DeadlineTransaction::begin(pool, &RENEWING, deadline).await?;
        let renewed = transaction
            .run(async |connection| {
                sqlx::query("update replay_runner set holder = holder where holder = $1::uuid")
                    .bind(&self.holder)
                    .execute(connection)
                    .await
            })
            .await?;
        transaction.commit().await?;
        Ok(renewed.rows_affected() > 0)
    }

    /// Keeps the lease until the transaction ends. Returns `false` if it is lost.
    pub(super) async fn hold(&self, connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
        let held: Option<bool> =
            sqlx::query_scalar("select true from replay_runner where holder = $1::uuid for update")
                .bind(&self.holder)
                .fetch_optional(connection)
                .await?;
        Ok(held.is_some())
    }
}
