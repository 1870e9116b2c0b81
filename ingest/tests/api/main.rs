//! The ingest service over HTTP, on a real RabbitMQ (`AMQP_URL`) and Postgres (`DATABASE_URL`).

mod answers;
mod app;
mod dedup;
mod hostile;
mod misconfiguration;
mod outages;
mod permissions;
mod policies;
mod properties;
mod protocol;
mod publishing;
mod raw;
mod rotation;
mod standard_webhooks;
mod standby;
mod tenants;
mod unauthenticated;
mod webhook;
