//! The schema, embedded: one SQL file beside this crate's manifest per step, applied in order.
//!
//! Within a major version migrations only expand, and a service accepts a database that newer ones
//! were already applied to, so that replicas of two versions can run side by side.

use sqlx::{
    PgPool,
    migrate::{MigrateError, Migrator},
};

/// The migrations that this build knows.
pub static MIGRATOR: Migrator = {
    let mut migrator = sqlx::migrate!("../migrations");
    migrator.ignore_missing = true;
    migrator
};

/// Applies what is missing, under a lock in the database, so that any number of services may do
/// this at once.
pub async fn run(pool: &PgPool) -> Result<(), MigrateError> {
    MIGRATOR.run(pool).await
}
