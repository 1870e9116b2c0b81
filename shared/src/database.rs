//! Access to Postgres: its address, a connection pool, and transactions with one deadline over all
//! steps.

mod certificates;
mod hung_commit;
mod mode;
mod pool;
mod pooler;
mod schema;
mod server;
mod transaction;
mod url;

use std::time::Duration;

use tokio::time::Instant;

pub use self::{
    mode::{Durability, TransactionMode},
    pool::{Pool, PooledConnection},
    schema::Schema,
    transaction::{DeadlineTransaction, TransactionError, make_commit_wait},
    url::{Access, DatabaseUrl},
};

/// The time for a probe: four round trips over a long distance.
const PROBE_DEADLINE: Duration = Duration::from_secs(2);

/// A probe writes nothing. It is read-write because Postgres refuses some statements otherwise.
const PROBE: TransactionMode = TransactionMode::write(Durability::Relaxed);

/// A pool of at most `connections` connections, which have the name `name` in `pg_stat_activity`.
pub fn pool(url: impl Into<DatabaseUrl>, name: &str, connections: u32) -> Pool {
    Pool::new(url.into(), name, connections, &[])
}

/// As [`pool`], but each new connection prepares these statements, so that its first transaction
/// needs no extra round trips.
pub fn pool_preparing(
    url: impl Into<DatabaseUrl>,
    name: &str,
    connections: u32,
    statements: &'static [&'static str],
) -> Pool {
    Pool::new(url.into(), name, connections, statements)
}

/// Runs one statement and rolls back. An error says why Postgres cannot run it now.
pub async fn probe(pool: &Pool, statement: &'static str) -> Result<(), TransactionError> {
    let deadline = Instant::now() + PROBE_DEADLINE;
    let mut transaction = DeadlineTransaction::begin(pool, &PROBE, deadline).await?;
    transaction.execute(statement).await?;
    transaction.rollback().await
}
