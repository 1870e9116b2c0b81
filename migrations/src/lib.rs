//! The schema, embedded: one SQL file beside this crate's manifest per step, applied in order.
//!
//! Within a major version migrations only expand, and a service accepts a database that newer ones
//! were already applied to, so that replicas of two versions can run side by side.

use sqlx::{
    PgConnection,
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
/// The lock belongs to the connection and outlives an error, so close it in every case.
pub async fn run(connection: &mut PgConnection) -> Result<(), MigrateError> {
    MIGRATOR.run_direct(None, connection, false).await
}
