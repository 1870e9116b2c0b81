//! The thin service in front: it verifies a webhook's signature, dedups by `webhook-id`, publishes
//! to RabbitMQ (or spools to Postgres while RabbitMQ is away) and answers 2xx only when the event is
//! safe. It does not interpret an event beyond its type.

pub mod headers;
pub mod signature;
