//! A transaction with one deadline for all its steps.

use std::time::Duration;

use sqlx::{AssertSqlSafe, PgConnection, Row};
use thiserror::Error;
use tokio::{
    runtime::Handle,
    sync::OwnedSemaphorePermit,
    time::{Instant, timeout_at},
};

use super::{
    hung_commit::{self, Backend},
    mode::{Durability, TransactionMode},
    pool::{Pool, PooledConnection},
    pooler::is_mixed_up,
};
use crate::reach::Unreached;

/// The time to begin on an open connection. Beginning waits for no lock and no disk, so a
/// connection that needs longer is dead, and the deadline of the whole transaction need not pass.
const BEGIN_DEADLINE: Duration = Duration::from_secs(5);

/// The SQLSTATE of a server that is no longer the primary.
const READ_ONLY_SQL_TRANSACTION: &str = "25006";

/// Why a transaction failed.
#[derive(Debug, Error)]
pub enum TransactionError {
    /// The deadline passed, and the connection was closed.
    #[error("postgres did not answer in time")]
    Deadline,
    /// The deadline passed during the commit, so its outcome is unknown.
    #[error("postgres did not commit in time; is a synchronous standby away?")]
    CommitDeadline,
    /// No connection could be opened.
    #[error(transparent)]
    NotConnected(#[from] Unreached),
    /// The transaction could not begin.
    #[error(transparent)]
    NotBegun(sqlx::Error),
    /// Postgres or the connection to it reported an error.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

impl TransactionError {
    /// The SQLSTATE, if Postgres sent one.
    pub fn sqlstate(&self) -> Option<String> {
        match self {
            Self::NotBegun(sqlx::Error::Database(error))
            | Self::Database(sqlx::Error::Database(error)) => error.code().map(Into::into),
            Self::NotConnected(unreached) => unreached.sqlstate().map(Into::into),
            _ => None,
        }
    }

    fn before_the_beginning(self) -> Self {
        match self {
            Self::Database(error) => Self::NotBegun(error),
            other => other,
        }
    }

    fn of_the_commit(self) -> Self {
        match self {
            Self::Deadline => Self::CommitDeadline,
            other => other,
        }
    }
}

/// A transaction with one deadline for all its steps.
///
/// If it is dropped without [`commit`](Self::commit) or [`rollback`](Self::rollback), it closes its
/// connection and does not return it to the pool: a connection with a hanging statement would
/// block a place in the pool until TCP gives up.
///
/// A commit that waits for a synchronous standby is different. Its backend outlives the connection,
/// and no timeout of Postgres ends it. So it keeps its place in the pool until the backend has
/// finished. This limits the number of backends to the size of the pool.
pub struct DeadlineTransaction {
    connection: Option<PooledConnection>,
    deadline: Instant,
    /// Set if the commit may wait for a standby.
    backend: Option<Backend>,
    permit: Option<OwnedSemaphorePermit>,
    committing: bool,
}

impl DeadlineTransaction {
    /// Begins a transaction with this mode, in one round trip.
    pub async fn begin(
        pool: &Pool,
        mode: &TransactionMode,
        deadline: Instant,
    ) -> Result<Self, TransactionError> {
        Self::connect_and_begin(pool, mode, deadline)
            .await
            .map_err(TransactionError::before_the_beginning)
    }

    async fn connect_and_begin(
        pool: &Pool,
        mode: &TransactionMode,
        deadline: Instant,
    ) -> Result<Self, TransactionError> {
        let Ok(connected) = timeout_at(deadline, pool.acquire()).await else {
            return Err(TransactionError::Deadline);
        };
        let mut transaction = Self {
            connection: Some(connected?),
            deadline: deadline.min(Instant::now() + BEGIN_DEADLINE),
            backend: None,
            permit: None,
            committing: false,
        };
        let (backend, has_first_name) = transaction.begin_on_backend(pool, mode).await?;
        if let Err(error) = transaction
            .connection()
            .prepared()
            .check(backend, has_first_name)
        {
            transaction.connection().moved();
            return Err(error.into());
        }
        if mode.durability() == Durability::Replicated {
            transaction.backend = Some(Backend::new(pool, backend));
        }
        transaction.deadline = deadline;
        Ok(transaction)
    }

    fn server_version(&self) -> Option<u32> {
        let connection = self.connection.as_deref();
        connection.and_then(PgConnection::server_version_num)
    }

    /// Begins, and returns the result of the `backend_query` of the connection.
    async fn begin_on_backend(
        &mut self,
        pool: &Pool,
        mode: &TransactionMode,
    ) -> Result<(i32, bool), TransactionError> {
        let begin = mode.begin(pool.schema(), self.server_version());
        let sql = format!("{begin}; {}", self.connection().prepared().backend_query());
        self.run(async |connection| {
            let row = sqlx::raw_sql(AssertSqlSafe(sql))
                .fetch_one(connection)
                .await?;
            Ok((row.try_get(0)?, row.len() > 1 && row.try_get(1)?))
        })
        .await
    }

    fn connection(&mut self) -> &mut PooledConnection {
        self.connection
            .as_mut()
            .expect("the connection is taken only by commit, rollback and drop")
    }

    /// Sets the deadline of the following steps.
    pub fn set_deadline(&mut self, deadline: Instant) {
        self.deadline = deadline;
    }

    /// Holds `permit` until the transaction has ended in Postgres, which may be after this value is
    /// dropped.
    pub fn keep(&mut self, permit: OwnedSemaphorePermit) {
        self.permit = Some(permit);
    }

    /// Runs statements without parameters or results.
    pub async fn execute(&mut self, sql: &'static str) -> Result<(), TransactionError> {
        self.run(async |connection| {
            sqlx::raw_sql(sql).execute(connection).await?;
            Ok(())
        })
        .await
    }

    /// Runs one step on the connection, within the deadline.
    pub async fn run<T>(
        &mut self,
        step: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, TransactionError> {
        let deadline = self.deadline;
        let connection = self.connection();
        let outcome = within(deadline, step(connection)).await;
        let sqlstate = outcome.as_ref().err().and_then(TransactionError::sqlstate);
        if sqlstate.is_some_and(|code| code == READ_ONLY_SQL_TRANSACTION || is_mixed_up(&code)) {
            connection.moved();
        }
        outcome
    }

    /// Raises the durability of a transaction that began with a lower one: its commit waits for the
    /// disk and the standby.
    pub async fn raise_durability(&mut self, pool: &Pool) -> Result<(), TransactionError> {
        let (pid, _): (i32, String) = self
            .run(async |connection| {
                sqlx::query_as(
                    "select pg_backend_pid(), set_config('synchronous_commit', 'on', true)",
                )
                .fetch_one(connection)
                .await
            })
            .await?;
        self.backend = Some(Backend::new(pool, pid));
        Ok(())
    }

    /// Commits and returns the connection to the pool. After an error the outcome is unknown.
    pub async fn commit(mut self) -> Result<(), TransactionError> {
        self.committing = true;
        self.end("commit")
            .await
            .map_err(TransactionError::of_the_commit)
    }

    /// Rolls back and returns the connection to the pool.
    pub async fn rollback(self) -> Result<(), TransactionError> {
        self.end("rollback").await
    }

    async fn end(mut self, sql: &'static str) -> Result<(), TransactionError> {
        self.execute(sql).await?;
        // Only a connection without an open transaction may return to the pool.
        if let Some(connection) = self.connection.take() {
            connection.give_back();
        }
        Ok(())
    }
}

impl Drop for DeadlineTransaction {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else {
            return;
        };
        match (self.committing, self.backend.take(), Handle::try_current()) {
            (true, Some(backend), Ok(runtime)) => {
                let permit = self.permit.take();
                runtime.spawn(async move {
                    hung_commit::wait(connection, backend).await;
                    drop(permit);
                });
            }
            _ => drop(connection),
        }
    }
}

/// Makes the commit wait for the standby even if the transaction has written nothing.
///
/// A transaction may read rows of a commit that no standby has yet; they become visible after a
/// restart of the primary. The commit of a transaction that wrote nothing does not wait, so an
/// acknowledgement that depends on such rows could lose the event with the primary. The message is
/// an entry in the write-ahead log that nothing reads.
pub async fn make_commit_wait(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query("select pg_logical_emit_message(true, 'pleo', '')")
        .execute(connection)
        .await?;
    Ok(())
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
