//! The everyday commands of `hookctl`, as the real program on a real RabbitMQ (`AMQP_URL`,
//! `RABBITMQ_MANAGEMENT_URL`) and Postgres (`DATABASE_URL`), with a real ingest service.

mod completions;
mod doctor;
mod load;
mod management;
mod place;
mod send;
mod settings;
mod tail;
mod terminal;
