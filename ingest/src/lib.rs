//! The thin service in front: it verifies a webhook's signature, dedups by `webhook-id`, publishes
//! to RabbitMQ (or spools to Postgres while RabbitMQ is away) and answers 2xx only when the event is
//! safe. It does not interpret an event beyond its type.
//!
//! The way of a request: [`wire`], [`server`] → [`endpoint`] → [`headers`], [`body`] →
//! [`verifier`], [`secrets`], [`signature`] → [`acceptor`] → [`settlement`] → [`receipts`] and [`publisher`] → [`answer`]. Beside it, [`rotation`] replaces
//! the secrets, and [`watch`] asks the stores how they fare while no event comes.

pub mod acceptor;
pub mod answer;
pub mod body;
pub mod breaker;
pub mod config;
pub mod endpoint;
pub mod headers;
pub mod metrics;
pub mod publisher;
pub mod receipts;
pub mod recent;
pub mod rotation;
pub mod secrets;
pub mod server;
pub mod service;
pub mod settlement;
pub mod signature;
pub mod turns;
pub mod unread;
pub mod verifier;
pub mod watch;
pub mod wire;
