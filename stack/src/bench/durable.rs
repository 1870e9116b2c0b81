//! Both stores, as durable as in production.

use anyhow::Result;
use sqlx::PgPool;

use crate::data_folder::DataFolder;
use crate::packages::Packages;
use crate::postgres::Durability;
use crate::stores::{Addresses, Stores};

/// For a server with enough memory, as every tuning guide of Postgres recommends. The defaults are for
/// small machines.
const POSTGRES: [&str; 3] = [
    "alter system set shared_buffers = '2GB'",
    "alter system set max_wal_size = '8GB'",
    "alter system set checkpoint_timeout = '15min'",
];

/// Starts both with their data in `base`, with a pool for their owner.
pub(super) async fn start(packages: &Packages, base: &DataFolder) -> Result<(Stores, PgPool)> {
    let mut stores = Stores::start(packages, base, Addresses::free()?, Durability::Full).await?;
    let pool = PgPool::connect_lazy(&stores.database_url())?;
    for sql in POSTGRES {
        sqlx::raw_sql(sql).execute(&pool).await?;
    }
    stores.postgres.stop().await?;
    stores.postgres.restart().await?;
    Ok((stores, pool))
}
