//! Storing batches in a real Postgres (`DATABASE_URL`), and consuming from a real RabbitMQ
//! (`AMQP_URL`).

mod claims;
mod consuming;
mod crashes;
mod delays;
mod events;
mod failures;
mod foreign;
mod ledger;
mod migrating;
mod offenders;
mod order;
mod policies;
mod properties;
mod retention;
mod sample;
mod settings;
mod spool;
mod standby;
mod tenants;
