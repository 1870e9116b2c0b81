//! Postgres: a pool that connects when needed, and a transaction with one deadline over all of it.

mod acquire;
mod hung_commit;
mod mode;
mod transaction;

use std::time::Duration;

use sqlx::{
    Executor, PgPool, SqlSafeStr,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::time::Instant;

pub use self::{
    mode::{Durability, TransactionMode},
    transaction::{DeadlineTransaction, TransactionError, make_commit_wait},
};

/// A pooled connection that was unused for longer than this is tried before it is handed out, so
/// that a restart of Postgres costs no request.
const TRUST_IDLE: Duration = Duration::from_secs(1);

/// How long a probe of the database may take. It is four round trips, over a long way perhaps.
const PROBE_DEADLINE: Duration = Duration::from_secs(2);

/// A probe writes nothing. It is read-write, as some statements are refused otherwise.
const PROBE: TransactionMode = TransactionMode::write(Durability::Relaxed);

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
    pool_preparing(options, name, connections, &[])
}

/// As [`pool`], and each connection prepares these statements while it is being made, so that its
/// first transaction needs no more round trips than those after it.
pub fn pool_preparing(
    options: PgConnectOptions,
    name: &str,
    connections: u32,
    statements: &'static [&'static str],
) -> PgPool {
    PgPoolOptions::new()
        .after_connect(move |connection, _meta| {
            Box::pin(async move {
                for statement in statements {
                    // Before the schema is there this fails, and the connection is good all the same.
                    let prepared = (&mut *connection).prepare(statement.into_sql_str()).await;
                    if let Err(error) = prepared
                        && error.as_database_error().is_none()
                    {
                        return Err(error);
                    }
                }
                Ok(())
            })
        })
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

/// Runs one statement and takes it back; an error says why Postgres cannot be used for it now.
pub async fn probe(pool: &PgPool, statement: &'static str) -> Result<(), TransactionError> {
    let deadline = Instant::now() + PROBE_DEADLINE;
    let mut transaction = DeadlineTransaction::begin(pool, &PROBE, deadline).await?;
    transaction.execute(statement).await?;
    transaction.rollback().await
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
