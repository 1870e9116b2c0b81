//! Postgres, as its owner or as anybody who may read the tables.

use std::time::Duration;

use anyhow::bail;
use shared::{
    database::{Access, DatabaseUrl, Durability, Schema, TransactionMode},
    reach::Unreached,
};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgTransaction};

use crate::lock_holders::{Held, Watch};

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
    watch: Watch,
}

/// Opens a connection that shows as `hookctl` in Postgres' own views.
pub async fn connect(url: &DatabaseUrl) -> Result<Connection, Unreached> {
    connect_as(url, "hookctl").await
}

/// As [`connect`], for another program than hookctl.
pub async fn connect_as(url: &DatabaseUrl, program: &'static str) -> Result<Connection, Unreached> {
    Ok(Connection {
        postgres: url.connect(program, Access::AsTheAddressSays).await?,
        schema: url.schema().clone(),
        watch: Watch::of(url, program),
    })
}

/// As [`connect`], for what needs the pipeline's tables: fails where the schema has none of them.
pub async fn connect_to_tables(url: &DatabaseUrl) -> anyhow::Result<Connection> {
    let mut connection = connect(url).await?;
    match connection.lacks_tables().await? {
        Some(lacking) => {
            connection.close().await;
            bail!("{lacking}: {TABLES_REMEDY}")
        }
        None => Ok(connection),
    }
}

/// Of a schema without the pipeline's tables.
pub const TABLES_REMEDY: &str = "set DATABASE_SCHEMA to the schema that has them, or make them with \
                                 `hookctl setup`";

impl Connection {
    /// Says so if the schema has no table of the pipeline, or is not there. Each statement would fail
    /// otherwise, with words that do not name it.
    pub async fn lacks_tables(&mut self) -> Result<Option<String>, sqlx::Error> {
        let schema = self.schema.clone();
        let mut transaction = self.begin(&READING).await?;
        let (exists, has_tables): (bool, bool) = sqlx::query_as(
            "select exists (select from pg_namespace where nspname = $1),
                    exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace
                             where n.nspname = $1
                               and c.relname in ('webhook_receipts', 'webhook_spool', 'events'))",
        )
        .bind(schema.name())
        .fetch_one(&mut *transaction)
        .await?;
        transaction.rollback().await?;
        Ok(match (exists, has_tables) {
            (_, true) => None,
            (true, false) => Some(format!("the schema {schema} has no tables of the pipeline")),
            (false, false) => Some(format!("there is no schema {schema}")),
        })
    }

    /// Begins as `mode` says. Dropped, the transaction is rolled back.
    pub async fn begin(
        &mut self,
        mode: &TransactionMode,
    ) -> Result<PgTransaction<'_>, sqlx::Error> {
        let begin = mode.begin(&self.schema, self.postgres.server_version_num());
        self.postgres.begin_with(AssertSqlSafe(begin)).await
    }

    /// Changes something in a transaction, all of it or nothing. Where it does not get a lock in time, the
    /// error says who holds it.
    pub async fn change<T>(
        &mut self,
        mode: &TransactionMode,
        work: impl AsyncFnOnce(&mut PgConnection) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let begin = mode.begin(&self.schema, self.postgres.server_version_num());
        let mut transaction = self.postgres.begin_with(AssertSqlSafe(begin)).await?;
        let mut holders = Vec::new();
        let done = (self.watch)
            .during(&mut transaction, &mut holders, work)
            .await;
        match done {
            Ok(done) => {
                transaction.commit().await?;
                Ok(done)
            }
            Err(error) => {
                // The error says more than a rollback that fails.
                transaction.rollback().await.ok();
                Err(Held::explain(error, holders))
            }
        }
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
