//! Runs the whole pipeline on one machine: private RabbitMQ and Postgres, the services, sample events.
//!
//! The binary is the `cargo stack` command. The library is for integration tests and fault drills: it
//! starts, kills, freezes and restarts real processes. It has no logic of the pipeline.

pub mod accounts;
pub mod bench;
pub mod chromium;
pub mod cluster;
pub mod compose;
pub mod data_folder;
pub mod debian_root;
pub mod drill;
pub mod haproxy;
pub mod packages;
pub mod pgbouncer;
pub mod ports;
pub mod postgres;
pub mod process;
pub mod programs;
pub mod progress;
pub mod prometheus;
pub mod proxy;
pub mod rabbitmq;
pub mod service;
pub mod siege;
pub mod small_disk;
pub mod stores;
