//! Postgres: where it is, a pool that connects when needed, and a transaction with one deadline over
//! all of it.

mod hung_commit;
mod mode;
mod pool;
mod pooler;
mod schema;
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

/// How long a probe of the database may take. It is four round trips, over a long way perhaps.
const PROBE_DEADLINE: Duration = Duration::from_secs(2);

/// A probe writes nothing. It is read-write, as some statements are refused otherwise.
const PROBE: TransactionMode = TransactionMode::write(Durability::Relaxed);

/// A pool of at most `connections` connections that show as `name` in `pg_stat_activity`.
pub fn pool(url: impl Into<DatabaseUrl>, name: &str, connections: u32) -> Pool {
    Pool::new(url.into(), name, connections, &[])
}

/// As [`pool`], and each connection prepares these statements while it is being made, so that its
/// first transaction needs no more round trips than those after it.
pub fn pool_preparing(
    url: impl Into<DatabaseUrl>,
    name: &str,
    connections: u32,
    statements: &'static [&'static str],
) -> Pool {
    Pool::new(url.into(), name, connections, statements)
}

/// Runs one statement and takes it back; an error says why Postgres cannot be used for it now.
pub async fn probe(pool: &Pool, statement: &'static str) -> Result<(), TransactionError> {
    let deadline = Instant::now() + PROBE_DEADLINE;
    let mut transaction = DeadlineTransaction::begin(pool, &PROBE, deadline).await?;
    transaction.execute(statement).await?;
    transaction.rollback().await
}
