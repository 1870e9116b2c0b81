//! The schema's migrations, embedded: one SQL file per step in this crate's folder, applied in
//! order.
//!
//! Within a major version migrations only expand the schema, and a service accepts a database with
//! newer migrations, so that replicas of two versions can run at the same time.
//!
//! A migration that changes a table needs an exclusive lock. While it waits for that lock, all
//! later statements on the table wait too. So it waits only half a second, gives up, and tries
//! again later. Such a short wait also ends by itself if the migrating process was killed.
//!
//! Each migration and its advisory lock are one transaction, and no setting or lock outlives it. So
//! migrations work behind a transaction-mode pooler such as PgBouncer.

pub mod blocker;

use std::time::Duration;

pub use blocker::Blocker;
use sqlx::{
    AssertSqlSafe, Connection, PgConnection, Postgres, Transaction,
    migrate::{Migrate, MigrateError, Migrator},
};
use thiserror::Error;
use tokio::time::{Instant, sleep};

/// The migrations that this build knows.
pub static MIGRATOR: Migrator = {
    let mut migrator = sqlx::migrate!("../migrations");
    migrator.ignore_missing = true;
    // sqlx's lock belongs to a session; `LOCK` belongs to the transaction.
    migrator.locking = false;
    migrator
};

/// Limits each wait for a lock, and ends the transaction of a process that froze or died. A
/// statement may take as long as it needs. Defaults of the database or the role do not matter. The
/// settings in the query do not exist in all versions: Postgres 13 cannot check whether its client
/// is still there, and versions before 17 have no `transaction_timeout`. The commit does not wait
/// for a synchronous standby, because it would hold the locks meanwhile; a migration that a
/// failover loses is applied again.
const LIMITS: &str = "
    set transaction isolation level read committed, read write;
    set local synchronous_commit = local;
    set local lock_timeout = '500ms';
    set local statement_timeout = 0;
    set local idle_in_transaction_session_timeout = '30s';
    select set_config(name, case name when 'transaction_timeout' then '0' else '2s' end, true)
      from pg_settings
     where name in ('client_connection_check_interval', 'transaction_timeout')";

/// Only one process migrates a database at a time. The number is arbitrary.
const LOCK: &str = "select pg_advisory_xact_lock(7236839910422)";

/// The pauses between two attempts; the last one is repeated.
const DELAYS: [Duration; 5] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(15),
];

/// Why the schema is not up to date.
#[derive(Debug, Error)]
pub enum Error {
    /// A lock was not available until the deadline.
    #[error("a migration waits for a lock{}", blocker::list(.0))]
    Blocked(Vec<Blocker>),
    /// The tables are in another schema, where earlier versions found them by the session's search
    /// path.
    #[error(
        "the tables are in the schema `{0}`, which the search path names: set DATABASE_SCHEMA to it"
    )]
    Elsewhere(String),
    /// The schema does not exist, or the session's role may not use it.
    #[error("there is no schema of that name that we may use: create it, or set DATABASE_SCHEMA")]
    NoSchema,
    /// A migration failed, or differs from the one that was applied.
    #[error(transparent)]
    Failed(#[from] MigrateError),
}

/// Applies the missing migrations. Any number of services may do this at the same time.
///
/// `search` is the statement that sets the search path of a transaction; tables are created in its
/// first schema.
///
/// An attempt that does not get its locks is repeated until `deadline`. Each time, `on_wait` is
/// called with the sessions that hold them; the connection `observer` finds these.
pub async fn run(
    connection: &mut PgConnection,
    observer: &mut PgConnection,
    search: &str,
    deadline: Instant,
    mut on_wait: impl FnMut(&Error),
) -> Result<(), Error> {
    if let Some(schema) = elsewhere(connection, search).await? {
        return Err(Error::Elsewhere(schema));
    }
    if !has_schema(connection, search).await? {
        return Err(Error::NoSchema);
    }
    let mut failures = 0;
    loop {
        match attempt(connection, observer, search).await {
            Ok(Attempt::UpToDate) => return Ok(()),
            Ok(Attempt::Applied) => failures = 0,
            Err(error @ Error::Blocked(_)) => {
                let delay = DELAYS[failures.min(DELAYS.len() - 1)];
                failures += 1;
                if Instant::now() + delay > deadline {
                    return Err(error);
                }
                on_wait(&error);
                sleep(delay).await;
            }
            Err(error) => return Err(error),
        }
    }
}

async fn begin<'c>(
    connection: &'c mut PgConnection,
    search: &str,
) -> Result<Transaction<'c, Postgres>, MigrateError> {
    // In one message, because the session's own limits apply until these are set.
    let begin = AssertSqlSafe(format!("begin; {LIMITS}; {search}"));
    Ok(connection.begin_with(begin).await?)
}

/// The schema of the tables that the session's own search path finds, if `search` finds none. New
/// tables would hide them.
async fn elsewhere(connection: &mut PgConnection, search: &str) -> Result<Option<String>, Error> {
    // Also checks a column, because another application may have a table with this name.
    // The name is unquoted, as `DATABASE_SCHEMA` takes it.
    const FOUND: &str = "select n.nspname::text
           from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attname = 'body_sha256'
                join pg_namespace n on n.oid = c.relnamespace
          where c.oid = to_regclass('webhook_receipts')";
    let by_session: Option<String> = sqlx::query_scalar(FOUND)
        .fetch_optional(&mut *connection)
        .await
        .map_err(MigrateError::from)?;
    if by_session.is_none() {
        return Ok(None);
    }
    let mut transaction = begin(connection, search).await?;
    let by_search: Option<String> = sqlx::query_scalar(FOUND)
        .fetch_optional(&mut *transaction)
        .await
        .map_err(MigrateError::from)?;
    transaction.rollback().await.map_err(MigrateError::from)?;
    Ok(by_session.filter(|_| by_search.is_none()))
}

/// Whether `search` finds a schema that is not that of temporary tables, which would take the tables otherwise.
async fn has_schema(connection: &mut PgConnection, search: &str) -> Result<bool, Error> {
    let mut transaction = begin(connection, search).await?;
    let has_schema = "select coalesce(current_schema() !~ '^pg_temp_', false)";
    let has_schema = sqlx::query_scalar(has_schema)
        .fetch_one(&mut *transaction)
        .await
        .map_err(MigrateError::from)?;
    transaction.rollback().await.map_err(MigrateError::from)?;
    Ok(has_schema)
}

enum Attempt {
    /// One migration was applied; there may be more.
    Applied,
    /// No migration was missing.
    UpToDate,
}

/// Applies the next migration, and watches the sessions that hold its locks.
async fn attempt(
    connection: &mut PgConnection,
    observer: &mut PgConnection,
    search: &str,
) -> Result<Attempt, Error> {
    let mut blockers = Vec::new();
    let mut transaction = begin(connection, search).await?;
    let outcome = async {
        let backend: i32 = sqlx::query_scalar("select pg_backend_pid()")
            .fetch_one(&mut *transaction)
            .await
            .map_err(MigrateError::from)?;
        tokio::select! {
            biased;
            outcome = apply_next(&mut transaction) => outcome,
            never = blocker::watch(observer, backend, &mut blockers) => match never {},
        }
    }
    .await;
    let outcome = match outcome {
        Ok(applied) => transaction
            .commit()
            .await
            .map(|()| applied)
            .map_err(MigrateError::from),
        // The error is more useful than that of a failed rollback, which the next `begin` would
        // report again.
        Err(error) => {
            transaction.rollback().await.ok();
            Err(error)
        }
    };
    outcome.map_err(|error| match lacks_a_lock(&error) {
        true => Error::Blocked(blockers),
        false => Error::Failed(error),
    })
}

/// Applies the first missing migration, and checks the applied ones.
async fn apply_next(connection: &mut PgConnection) -> Result<Attempt, MigrateError> {
    sqlx::raw_sql(LOCK).execute(&mut *connection).await?;
    let table = &MIGRATOR.table_name;
    connection.ensure_migrations_table(table).await?;
    let applied = connection.list_applied_migrations(table).await?;
    let next = MIGRATOR
        .iter()
        .map(|migration| migration.version)
        .find(|version| applied.iter().all(|applied| applied.version != *version));
    MIGRATOR.run_direct(next, connection, false).await?;
    Ok(match next {
        Some(_) => Attempt::Applied,
        None => Attempt::UpToDate,
    })
}

/// Whether the migration only did not get a lock: a timeout or a deadlock.
fn lacks_a_lock(error: &MigrateError) -> bool {
    const LOCK_NOT_AVAILABLE: &str = "55P03";
    const DEADLOCK_DETECTED: &str = "40P01";
    let (MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) = error else {
        return false;
    };
    let code = error.as_database_error().and_then(|error| error.code());
    matches!(
        code.as_deref(),
        Some(LOCK_NOT_AVAILABLE | DEADLOCK_DETECTED)
    )
}
