//! Detects whether a pooler mixes up the prepared statements of its clients.
//!
//! sqlx names its statements by number. A pooler in transaction mode gives a backend to one client
//! after the other. If it supports prepared statements, it renames them and prepares them on each
//! backend that needs them. If it does not, it passes the names on, and a client may run a
//! statement that another client prepared under the same name. The result is then wrong, perhaps
//! without an error.
//!
//! So each connection first prepares the statement [`MARK`]. Its name in the backend shows which
//! kind of pooler this is; the error for a name that already exists shows the same. If names are
//! passed on, the connection is used only on the backend that has its mark. Without a pooler, that
//! is always the case.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Executor, PgConnection, Row, SqlSafeStr};
use tokio::time::timeout;

use super::{
    mode::TransactionMode,
    schema::Schema,
    server::{Role, cause as cause_of, role_of},
};
use crate::reach::{Cause, Unreached};

/// The first statement that a connection prepares.
const MARK: &str = "select 'the mark of a client'";

/// The name that sqlx gives to the first statement.
const FIRST_NAME: &str = "sqlx_s_1";

/// Shown if a pooler mixes up statements.
const MIXES_UP: &str = "a pooler mixes up the prepared statements of its clients: PgBouncer in \
    transaction mode has to be 1.21 or newer, with max_prepared_statements above 0";

/// Shown if the pooler has no transactions.
const STATEMENT_MODE: &str = "PgBouncer is in statement mode, which has no transactions: set \
    pool_mode to transaction, with PgBouncer 1.21 or newer and max_prepared_statements above 0";

/// Shorter than any caller's deadline: a user may hold a lock on a table of a statement.
const LIMIT: Duration = Duration::from_secs(1);

/// The time for an answer that Postgres gives within [`LIMIT`].
const STATEMENT_DEADLINE: Duration = Duration::from_secs(3);

/// A new connection and where its prepared statements are.
pub(super) struct Opened {
    pub(super) connection: PgConnection,
    pub(super) prepared: PreparedStatements,
}

/// Where the prepared statements of a connection are.
pub(super) struct PreparedStatements {
    scope: Scope,
    /// The server's name for messages.
    label: String,
}

/// The backends that have the prepared statements of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// In the backend with this process id.
    Backend(i32),
    /// Wherever the pooler prepares them.
    Pooler,
}

impl PreparedStatements {
    pub(super) fn new(scope: Scope, label: String) -> Self {
        Self { scope, label }
    }

    /// Whether only one backend may be used.
    pub(super) fn is_one_backend(&self) -> bool {
        matches!(self.scope, Scope::Backend(_))
    }

    /// The query for the backend of a transaction, whose one row goes to [`check`](Self::check).
    pub(super) fn backend_query(&self) -> String {
        match self.scope {
            Scope::Backend(_) => "select pg_backend_pid()".to_owned(),
            Scope::Pooler => format!(
                "select pg_backend_pid(),
                        exists (select from pg_prepared_statements where name = '{FIRST_NAME}')"
            ),
        }
    }

    /// Whether the connection may prepare and run statements on this backend.
    pub(super) fn check(&self, backend: i32, has_first_name: bool) -> Result<(), Unreached> {
        let is_well = match self.scope {
            Scope::Backend(own) => backend == own,
            // If the name exists, the pooler was reconfigured to pass names on since this
            // connection was opened.
            Scope::Pooler => !has_first_name,
        };
        if is_well {
            return Ok(());
        }
        let cause = Cause::Pooler(MIXES_UP);
        Err(Unreached::new(
            "Postgres",
            vec![(self.label.clone(), cause)],
        ))
    }
}

/// Whether an error means that a prepared statement is missing, or belongs to another client.
pub(super) fn is_mixed_up(sqlstate: &str) -> bool {
    const INVALID_SQL_STATEMENT_NAME: &str = "26000";
    const DUPLICATE_PREPARED_STATEMENT: &str = "42P05";
    matches!(
        sqlstate,
        INVALID_SQL_STATEMENT_NAME | DUPLICATE_PREPARED_STATEMENT
    )
}

/// The cause behind an error message of a pooler, if it is known.
pub(super) fn cause(sqlstate: Option<&str>, message: &str) -> Option<Cause> {
    if sqlstate.is_some_and(is_mixed_up) {
        Some(Cause::Pooler(MIXES_UP))
    } else if message.contains("statement pooling mode") {
        Some(Cause::Pooler(STATEMENT_MODE))
    } else {
        None
    }
}

/// Begins a transaction with short time limits and detects the server's role and where prepared
/// statements are. [`prepare`] ends the transaction.
pub(super) async fn examine(
    connection: &mut PgConnection,
    schema: &Schema,
) -> Result<(Role, Scope), sqlx::Error> {
    let mode = TransactionMode::read()
        .lock_timeout(LIMIT)
        .statement_timeout(LIMIT);
    let begin = mode.begin(schema, connection.server_version_num());
    let role = role_of(connection, format!("{begin}; ")).await?;
    (&mut *connection).prepare(MARK.into_sql_str()).await?;
    let sql = format!(
        "select pg_backend_pid(), max(name) from pg_prepared_statements
          where statement = '{}'",
        MARK.replace('\'', "''")
    );
    let row = sqlx::raw_sql(AssertSqlSafe(sql))
        .fetch_one(connection)
        .await?;
    let (backend, name): (i32, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
    let scope = match name.as_deref() {
        Some(FIRST_NAME) => Scope::Backend(backend),
        _ => Scope::Pooler,
    };
    Ok((role, scope))
}

/// Prepares statements and ends the transaction. It waits only briefly for locks on their tables,
/// because the connection is usable without the prepared statements.
pub(super) async fn prepare(
    connection: &mut PgConnection,
    statements: &[&'static str],
) -> Result<(), Cause> {
    for statement in statements {
        let prepare = (&mut *connection).prepare(statement.into_sql_str());
        match timeout(STATEMENT_DEADLINE, prepare).await {
            Ok(Ok(_)) => {}
            // Another session holds a lock, or the schema does not exist yet. The transaction has
            // failed, so the other statements would fail too.
            Ok(Err(sqlx::Error::Database(_))) => break,
            Ok(Err(error)) => return Err(cause_of(error)),
            Err(_elapsed) => return Err(Cause::Silent),
        }
    }
    let rollback = sqlx::raw_sql("rollback").execute(connection);
    match timeout(STATEMENT_DEADLINE, rollback).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(cause_of(error)),
        Err(_elapsed) => Err(Cause::Silent),
    }
}
