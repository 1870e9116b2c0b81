//! Postgres, as its owner or as anybody who may read the tables.

use std::time::Duration;

use anyhow::Context;
use shared::database::{Durability, TransactionMode};
use sqlx::{ConnectOptions, PgConnection, postgres::PgConnectOptions};
use tokio::time::timeout;

const CONNECT_DEADLINE: Duration = Duration::from_secs(20);

/// As a worker's transaction: on disk once it is committed, and no wait without an end.
pub const STORING: TransactionMode = TransactionMode::write(Durability::Replicated)
    .lock_timeout(Duration::from_secs(10))
    .statement_timeout(Duration::from_secs(20));

/// Opens a connection that shows as `hookctl` in Postgres' own views.
pub async fn connect(options: &PgConnectOptions) -> anyhow::Result<PgConnection> {
    let options = options.clone().application_name("hookctl");
    timeout(CONNECT_DEADLINE, options.connect())
        .await
        .context("postgres did not answer in time")?
        .context("cannot connect to postgres (DATABASE_URL)")
}
