//! Stores events from a queue, and from due rows of the spool, in Postgres. Each batch is one
//! transaction, and a message is acknowledged only after its commit.
//!
//! The path of an event: [`consumer`] and [`subscription`], or [`spool_reader`] → [`record`] (pure:
//! bytes to rows, with [`families`]) → [`persistence`] and `groups` (retries, deferral), with
//! [`judge`] (pure) → [`store`] (the transaction).
//!
//! Each worker writes only its family's table. An event of another family that arrives on its queue
//! is kept as a dead letter.

pub mod acks;
pub mod config;
pub mod consumer;
pub mod due_rows;
pub mod families;
pub mod floor;
pub mod housekeeping;
pub mod jsonb;
pub mod judge;
pub mod ledger;
pub mod management;
pub mod metrics;
pub mod persistence;
pub mod problem;
pub mod queue_losses;
pub mod queue_watch;
pub mod record;
pub mod rehearsal;
pub mod service;
pub mod spool_reader;
pub mod spool_state;
pub mod spool_writer;
pub mod store;
pub mod subscription;
pub mod work;
