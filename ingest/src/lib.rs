//! The webhook receiver. It verifies a webhook's signature, deduplicates by `webhook-id`, publishes
//! to RabbitMQ (or spools to Postgres while RabbitMQ is down) and answers 2xx only when the event
//! is safe. It does not interpret an event beyond its type.
//!
//! The path of a request: [`client_stream`], [`server`] → [`endpoint`] → [`headers`], [`body`] →
//! [`verifier`], [`secrets`], [`signature`] → [`batcher`] → [`batch_processor`] → [`receipts`] and
//! [`publisher`] → [`answer`]. Two background tasks run beside it: [`rotation`] reloads the
//! secrets, and [`watch`] probes the stores while no events arrive.

pub mod answer;
pub mod batch_processor;
pub mod batcher;
pub mod body;
pub mod breaker;
pub mod client_stream;
pub mod config;
pub mod endpoint;
pub mod headers;
pub mod metrics;
pub mod outcome;
pub mod publisher;
pub mod receipts;
pub mod recent_ids;
pub mod rotation;
pub mod secrets;
pub mod server;
pub mod service;
pub mod signature;
pub mod unread_body;
pub mod verifier;
pub mod watch;
pub mod work_scheduler;
