//! `hookctl setup` and the accounts that it makes, on a real RabbitMQ (`AMQP_URL`,
//! `RABBITMQ_MANAGEMENT_URL`) and Postgres (`DATABASE_URL`).

mod denied_in_postgres;
mod denied_in_rabbitmq;
mod place;
mod services;
mod setup;
