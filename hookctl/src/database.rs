//! Postgres, as its owner or as anybody who may read the tables.

use std::time::Duration;

use shared::{
    database::{Access, DatabaseUrl, Durability, TransactionMode},
    reach::Unreached,
};
use sqlx::PgConnection;

/// As a worker's transaction: on disk once it is committed, and no wait without an end.
pub const STORING: TransactionMode = TransactionMode::write(Durability::Replicated)
    .lock_timeout(Duration::from_secs(10))
    .statement_timeout(Duration::from_secs(20));

/// Opens a connection that shows as `hookctl` in Postgres' own views.
pub async fn connect(url: &DatabaseUrl) -> Result<PgConnection, Unreached> {
    url.connect("hookctl", Access::AsTheAddressSays).await
}
