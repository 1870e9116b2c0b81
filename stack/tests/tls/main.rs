//! TLS to both stores and to RabbitMQ's management API, with real certificates of an authority that only
//! the test knows.

mod authority;
mod pipeline;
mod postgres;
mod rabbitmq;
mod stores;
