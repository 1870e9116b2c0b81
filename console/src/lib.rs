//! The console: the events, the dead letters and the ledger in a browser.
//!
//! Its account in Postgres can only look. What operators change of dead letters goes by [`operations`],
//! under an account of its own; for everything else pages show the commands of `hookctl`.
//!
//! The way of a page: [`access`] (may they look?) → [`pages`] (one file each) → [`store`] or
//! [`search`] (bounded looks into Postgres) → a template. The overview shows what [`watch`] found last,
//! so that it has something to show while Postgres is away.

pub mod access;
pub mod assets;
pub mod chart;
pub mod config;
pub mod error;
pub mod frame;
pub mod json;
pub mod metrics;
pub mod operations;
pub mod pages;
pub mod search;
pub mod server;
pub mod service;
pub mod store;
pub mod text;
pub mod time;
pub mod watch;
