//! Postgres: a pool that connects when needed, and a transaction with one deadline over all of it.

use std::time::Duration;

use sqlx::{
    PgConnection, PgPool, Postgres,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use thiserror::Error;
use tokio::time::{Instant, timeout_at};

/// A pooled connection that was unused for longer than this is tried before it is handed out, so
/// that a restart of Postgres costs no request.
const TRUST_IDLE: Duration = Duration::from_secs(1);

/// How long a probe of the database may take.
const PROBE_DEADLINE: Duration = Duration::from_secs(1);

/// Checks a `postgres://` address. The error does not repeat it, as it may hold a password.
pub fn parse_url(url: &str) -> Result<PgConnectOptions, String> {
    let reason = "not a Postgres address of the form postgres://user:password@host:5432/database";
    if !(url.starts_with("postgres://") || url.starts_with("postgresql://")) {
        return Err(reason.to_owned());
    }
    url.parse::<PgConnectOptions>()
        .map_err(|_| reason.to_owned())
}

/// A pool of at most `connections` connections that show as `name` in `pg_stat_activity`. It
/// connects lazily: services start before Postgres does.
pub fn pool(options: PgConnectOptions, name: &str, connections: u32) -> PgPool {
    PgPoolOptions::new()
        .max_connections(connections)
        .test_before_acquire(false)
        .before_acquire(|connection, meta| {
            Box::pin(async move {
                if meta.idle_for > TRUST_IDLE {
                    sqlx::Connection::ping(connection).await?;
                }
                Ok(true)
            })
        })
        .connect_lazy_with(options.application_name(name))
}

/// Why a transaction did not come to its end.
#[derive(Debug, Error)]
pub enum TransactionError {
    /// The deadline passed; the connection was thrown away.
    #[error("postgres did not answer in time")]
    Deadline,
    /// It did not even begin.
    #[error(transparent)]
    NotBegun(sqlx::Error),
    /// Postgres or the connection to it reported an error.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

impl TransactionError {
    /// The SQLSTATE, where Postgres gave one.
    pub fn sqlstate(&self) -> Option<String> {
        match self {
            Self::NotBegun(sqlx::Error::Database(error))
            | Self::Database(sqlx::Error::Database(error)) => error.code().map(Into::into),
            _ => None,
        }
    }

    fn before_the_beginning(self) -> Self {
        match self {
            Self::Database(error) => Self::NotBegun(error),
            other => other,
        }
    }
}

/// A transaction in which every step is held to one deadline.
///
/// Dropped before [`commit`](Self::commit) or [`rollback`](Self::rollback) it closes its connection
/// instead of returning it to the pool: a connection on which a statement hangs would otherwise
/// block a place in the pool until TCP gives up on it.
pub struct DeadlineTransaction {
    connection: Option<PoolConnection<Postgres>>,
    deadline: Instant,
}

impl DeadlineTransaction {
    /// Begins with `begin`, one or more statements such as
    /// `begin; set local synchronous_commit = off`, sent in one round trip.
    pub async fn begin(
        pool: &PgPool,
        begin: &'static str,
        deadline: Instant,
    ) -> Result<Self, TransactionError> {
        Self::connect_and_begin(pool, begin, deadline)
            .await
            .map_err(TransactionError::before_the_beginning)
    }

    async fn connect_and_begin(
        pool: &PgPool,
        begin: &'static str,
        deadline: Instant,
    ) -> Result<Self, TransactionError> {
        let connection = within(deadline, pool.acquire()).await?;
        let mut transaction = Self {
            connection: Some(connection),
            deadline,
        };
        transaction.execute(begin).await?;
        Ok(transaction)
    }

    /// Moves the deadline of the steps that follow.
    pub fn set_deadline(&mut self, deadline: Instant) {
        self.deadline = deadline;
    }

    /// Runs statements without parameters or results.
    pub async fn execute(&mut self, sql: &'static str) -> Result<(), TransactionError> {
        self.run(async |connection| {
            sqlx::raw_sql(sql).execute(connection).await?;
            Ok(())
        })
        .await
    }

    /// Runs one step on the connection, held to the deadline.
    pub async fn run<T>(
        &mut self,
        step: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, TransactionError> {
        let connection = self
            .connection
            .as_mut()
            .expect("the connection is taken only by commit, rollback and drop");
        within(self.deadline, step(connection)).await
    }

    /// Commits and gives the connection back. After an error the outcome is unknown.
    pub async fn commit(self) -> Result<(), TransactionError> {
        self.end("commit").await
    }

    /// Rolls back and gives the connection back.
    pub async fn rollback(self) -> Result<(), TransactionError> {
        self.end("rollback").await
    }

    async fn end(mut self, sql: &'static str) -> Result<(), TransactionError> {
        self.execute(sql).await?;
        // Only a connection with no transaction open on it may go back to the pool.
        drop(self.connection.take());
        Ok(())
    }
}

impl Drop for DeadlineTransaction {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            drop(connection.detach());
        }
    }
}

/// Runs one statement and takes it back; an error says why Postgres cannot be used for it now.
pub async fn probe(pool: &PgPool, statement: &'static str) -> Result<(), TransactionError> {
    let deadline = Instant::now() + PROBE_DEADLINE;
    let mut transaction = DeadlineTransaction::begin(pool, "begin", deadline).await?;
    transaction.execute(statement).await?;
    transaction.rollback().await
}

async fn within<T>(
    deadline: Instant,
    step: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, TransactionError> {
    match timeout_at(deadline, step).await {
        Ok(result) => Ok(result?),
        Err(_elapsed) => Err(TransactionError::Deadline),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_address_is_refused_without_repeating_it() {
        for bad in ["", "mysql://u:hunter2@h/d", "postgres://u:hunter2@h:port/d"] {
            let error = parse_url(bad).expect_err("refused");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
