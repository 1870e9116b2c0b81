//! Postgres, as its owner or as anybody who may read the tables.

use std::time::Duration;

use shared::{
    database::{Access, DatabaseUrl, Durability, Schema, TransactionMode},
    reach::Unreached,
};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgTransaction};

/// As a worker's transaction: on disk once it is committed, and no wait without an end.
pub const STORING: TransactionMode = TransactionMode::write(Durability::Replicated)
    .lock_timeout(Duration::from_secs(10))
    .statement_timeout(Duration::from_secs(20));

/// Reads what may be many rows.
pub const READING: TransactionMode = TransactionMode::read()
    .lock_timeout(Duration::from_secs(10))
    .statement_timeout(Duration::from_secs(300))
    .idle_timeout(Duration::from_secs(300));

/// Changes what may be many rows.
pub const CHANGING: TransactionMode = STORING.statement_timeout(Duration::from_secs(300));

/// A connection on which everything is done in transactions that say what they need, so that settings
/// of the database or the role do not count.
#[derive(Debug)]
pub struct Connection {
    postgres: PgConnection,
    schema: Schema,
}

/// Opens a connection that shows as `hookctl` in Postgres' own views.
pub async fn connect(url: &DatabaseUrl) -> Result<Connection, Unreached> {
    Ok(Connection {
        postgres: url.connect("hookctl", Access::AsTheAddressSays).await?,
        schema: url.schema().clone(),
    })
}

impl Connection {
    /// Begins as `mode` says. Dropped, the transaction is rolled back.
    pub async fn begin(
        &mut self,
        mode: &TransactionMode,
    ) -> Result<PgTransaction<'_>, sqlx::Error> {
        let begin = mode.begin(&self.schema, self.postgres.server_version_num());
        self.postgres.begin_with(AssertSqlSafe(begin)).await
    }

    /// The connection itself, for transactions that say by themselves what they need.
    pub fn bare(&mut self) -> &mut PgConnection {
        &mut self.postgres
    }

    /// Ends the session in order. Nothing depends on it.
    pub async fn close(self) {
        self.postgres.close().await.ok();
    }
}
