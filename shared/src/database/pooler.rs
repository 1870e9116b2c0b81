//! Whether prepared statements stay with the client that prepared them.
//!
//! sqlx names its statements by number. A pooler in transaction mode hands a backend to one client
//! after the other. One that knows about prepared statements gives them names of its own, and
//! prepares them on each backend that needs them. One that does not passes the names on. A client
//! then runs what another one has prepared under the same name, with any result, silently at worst.
//!
//! So the first statement of every connection is a [`MARK`]. The name that it has in the backend
//! tells which of the two it is, and a name that is taken tells the same. A connection whose names
//! are passed on is used only on the backend that has its mark; Postgres without a pooler gives it
//! no other one.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Executor, PgConnection, Row, SqlSafeStr};
use tokio::time::timeout;

use super::{
    mode::TransactionMode,
    schema::Schema,
    url::{Role, cause as cause_of, role_of},
};
use crate::reach::{Cause, Unreached};

/// The first statement that a connection prepares.
const MARK: &str = "select 'the mark of a client'";

/// The name that sqlx gives to the first statement.
const FIRST_NAME: &str = "sqlx_s_1";

/// What has to be set where statements get mixed up.
const MIXES_UP: &str = "a pooler mixes up the prepared statements of its clients: PgBouncer in \
    transaction mode has to be 1.21 or newer, with max_prepared_statements above 0";

/// What has to be set where there are no transactions.
const STATEMENT_MODE: &str = "PgBouncer is in statement mode, which has no transactions: set \
    pool_mode to transaction, with PgBouncer 1.21 or newer and max_prepared_statements above 0";

/// Shorter than what anybody waits for. A user may hold a lock on a table that a statement names.
const LIMIT: Duration = Duration::from_secs(1);

/// How long an answer may take that Postgres gives after [`LIMIT`] at the latest.
const STATEMENT_DEADLINE: Duration = Duration::from_secs(3);

/// A connection, and what is known of it.
pub(super) struct Opened {
    pub(super) connection: PgConnection,
    pub(super) home: Home,
}

/// Where the statements of a connection are.
pub(super) struct Home {
    place: Place,
    /// The server's name in messages.
    label: String,
}

/// As [`Home`], before the server has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In this backend.
    Backend(i32),
    /// As the pooler needs them.
    Pooler,
}

impl Home {
    pub(super) fn new(place: Place, label: String) -> Self {
        Self { place, label }
    }

    /// Whether no other backend may be used.
    pub(super) fn is_one_backend(&self) -> bool {
        matches!(self.place, Place::Backend(_))
    }

    /// Asks in one row which backend a transaction has, for [`check`](Self::check).
    pub(super) fn question(&self) -> String {
        match self.place {
            Place::Backend(_) => "select pg_backend_pid()".to_owned(),
            Place::Pooler => format!(
                "select pg_backend_pid(),
                        exists (select from pg_prepared_statements where name = '{FIRST_NAME}')"
            ),
        }
    }

    /// Whether the connection may prepare and run statements on the backend that answered so.
    pub(super) fn check(&self, backend: i32, has_first_name: bool) -> Result<(), Unreached> {
        let is_well = match self.place {
            Place::Backend(home) => backend == home,
            // Since the connection was made, somebody has told the pooler to pass names on.
            Place::Pooler => !has_first_name,
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

/// Whether an error means that a statement is not there, or that another client's is.
pub(super) fn is_mixed_up(sqlstate: &str) -> bool {
    const INVALID_SQL_STATEMENT_NAME: &str = "26000";
    const DUPLICATE_PREPARED_STATEMENT: &str = "42P05";
    matches!(
        sqlstate,
        INVALID_SQL_STATEMENT_NAME | DUPLICATE_PREPARED_STATEMENT
    )
}

/// What the words of a pooler mean, if these are known.
pub(super) fn cause(sqlstate: Option<&str>, message: &str) -> Option<Cause> {
    if sqlstate.is_some_and(is_mixed_up) {
        Some(Cause::Pooler(MIXES_UP))
    } else if message.contains("statement pooling mode") {
        Some(Cause::Pooler(STATEMENT_MODE))
    } else {
        None
    }
}

/// Begins a transaction with little patience, and finds out what the server does with writes and
/// with statements. [`prepare`] ends the transaction.
pub(super) async fn examine(
    connection: &mut PgConnection,
    schema: &Schema,
) -> Result<(Role, Place), sqlx::Error> {
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
    let place = match name.as_deref() {
        Some(FIRST_NAME) => Place::Backend(backend),
        _ => Place::Pooler,
    };
    Ok((role, place))
}

/// Prepares statements, and ends the transaction. The locks on their tables are waited for only for
/// a moment: a connection is good without them as well.
pub(super) async fn prepare(
    connection: &mut PgConnection,
    statements: &[&'static str],
) -> Result<(), Cause> {
    for statement in statements {
        let prepare = (&mut *connection).prepare(statement.into_sql_str());
        match timeout(STATEMENT_DEADLINE, prepare).await {
            Ok(Ok(_)) => {}
            // Another session holds the lock, or the schema is not there yet. The transaction has
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
