//! What ingest and the workers must agree on: event types, the message and the spool row, the
//! topology, and how a service connects, logs and reports. Verifying signatures is `ingest`'s job,
//! and writing an event's final row is `worker`'s.

pub mod address;
pub mod broker;
pub mod bundle;
pub mod companies;
pub mod config;
pub mod database;
pub mod envelope;
pub mod event_type;
pub mod hidden_characters;
pub mod message;
pub mod metrics;
mod panics;
pub mod password_file;
mod port_protocol;
pub mod private_port;
pub mod program;
pub mod reach;
pub mod reason;
pub mod settings_file;
pub mod shutdown;
pub mod spool;
pub mod systemd;
pub mod telemetry;
pub mod text_file;
pub mod tls;
pub mod topology;

pub use companies::Companies;
pub use event_type::{EventType, Family};
pub use message::AcceptedEvent;
pub use program::Program;
