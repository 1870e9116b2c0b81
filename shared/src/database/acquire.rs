//! Connections from the pool, also where connecting takes longer than a caller can wait.

use std::time::Duration;

use sqlx::{PgPool, Postgres, pool::PoolConnection};
use tokio::time::{Instant, timeout, timeout_at};

use super::TransactionError;

/// How long a connection that was not ready in time goes on being made.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// A connection of the pool by `deadline`.
///
/// One that is still being made then goes on being made, and is ready in the pool for a later
/// caller. Over a long way, TCP, TLS and the login take longer than a batch can wait. If each
/// attempt ended with its caller, no connection would ever come about.
pub(super) async fn acquire(
    pool: &PgPool,
    deadline: Instant,
) -> Result<PoolConnection<Postgres>, TransactionError> {
    let mut acquiring = Box::pin(pool.acquire());
    match timeout_at(deadline, &mut acquiring).await {
        Ok(acquired) => Ok(acquired?),
        Err(_elapsed) => {
            tokio::spawn(timeout(CONNECT_DEADLINE, acquiring));
            Err(TransactionError::Deadline)
        }
    }
}
