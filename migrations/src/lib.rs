//! The schema, embedded: one SQL file beside this crate's manifest per step, applied in order.
//!
//! Within a major version migrations only expand, and a service accepts a database that newer ones
//! were already applied to, so that replicas of two versions can run side by side.
//!
//! A migration that changes a table needs an exclusive lock. While it waits for the lock, all later
//! statements on the table wait as well. So it waits for half a second, gives up, and tries again later.
//! So short a wait also ends by itself when the migrating process was killed.
//!
//! Each migration and its lock are one transaction, with no setting and no lock that outlives it. So
//! migrations work behind a pool of connections that is shared by transaction, such as PgBouncer's.

pub mod blocker;

use std::time::Duration;

pub use blocker::Blocker;
use sqlx::{
    AssertSqlSafe, Connection, PgConnection,
    migrate::{Migrate, MigrateError, Migrator},
};
use thiserror::Error;
use tokio::time::{Instant, sleep};

/// The migrations that this build knows.
pub static MIGRATOR: Migrator = {
    let mut migrator = sqlx::migrate!("../migrations");
    migrator.ignore_missing = true;
    // sqlx's lock belongs to a session; `LOCK` belongs to a transaction.
    migrator.locking = false;
    migrator
};

/// Ends each wait for a lock, and what a process that froze or died has left behind. A statement may
/// take as long as it needs. Defaults of the database or the role do not count. Postgres 13 cannot look
/// whether its client is still there, and older ones than 17 have no `transaction_timeout`. A commit that waited for a synchronous standby would hold the locks
/// meanwhile; what a failover undoes is applied again.
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

/// The waits between two attempts; the last one is repeated.
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
    /// A lock was not to be had until the deadline.
    #[error("a migration waits for a lock{}", blocker::list(.0))]
    Blocked(Vec<Blocker>),
    /// Earlier versions found their tables in this schema, by the search path of the session.
    #[error(
        "the tables are in the schema {0}, which the search path names: set DATABASE_SCHEMA to it"
    )]
    Elsewhere(String),
    /// A migration failed, or differs from the one that was applied.
    #[error(transparent)]
    Failed(#[from] MigrateError),
}

/// Applies what is missing. Any number of services may do this at once.
///
/// `search` is the statement that sets the search path of a transaction, so that the tables are made in
/// its first schema.
///
/// An attempt that does not get its locks in time is repeated until `deadline`; `on_wait` is told each
/// time who holds them, which the connection `observer` finds out.
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

/// The schema whose tables the session's own search path finds, where `search` finds none. New tables
/// would hide these.
async fn elsewhere(connection: &mut PgConnection, search: &str) -> Result<Option<String>, Error> {
    // By a column as well, as others may have a table of this name.
    const FOUND: &str = "select c.relnamespace::regnamespace::text
           from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attname = 'body_sha256'
          where c.oid = to_regclass('webhook_receipts')";
    let by_session: Option<String> = sqlx::query_scalar(FOUND)
        .fetch_optional(&mut *connection)
        .await
        .map_err(MigrateError::from)?;
    if by_session.is_none() {
        return Ok(None);
    }
    let begin = AssertSqlSafe(format!("begin; {search}"));
    let begun = connection.begin_with(begin).await;
    let mut transaction = begun.map_err(MigrateError::from)?;
    let by_search: Option<String> = sqlx::query_scalar(FOUND)
        .fetch_optional(&mut *transaction)
        .await
        .map_err(MigrateError::from)?;
    transaction.rollback().await.map_err(MigrateError::from)?;
    Ok(by_session.filter(|_| by_search.is_none()))
}

/// How one attempt ended.
enum Attempt {
    /// One migration was applied; there may be more.
    Applied,
    /// There was none to apply.
    UpToDate,
}

/// Applies the next migration, and watches who holds the locks that it waits for.
async fn attempt(
    connection: &mut PgConnection,
    observer: &mut PgConnection,
    search: &str,
) -> Result<Attempt, Error> {
    let mut blockers = Vec::new();
    // In one message, as the session's own limits count until these are set.
    let begin = AssertSqlSafe(format!("begin; {LIMITS}; {search}"));
    let begun = connection.begin_with(begin).await;
    let mut transaction = begun.map_err(MigrateError::from)?;
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
        // The error says more than a rollback that fails; the next `begin` would say that again.
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

/// Applies the first migration that is missing, and checks those that are not.
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

/// Whether it is only a lock that the migration did not get: in time, or because of a deadlock.
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
