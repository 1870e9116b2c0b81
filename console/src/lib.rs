//! The console: the events, the dead letters and the ledger in a browser.
//!
//! It only looks. Its account in Postgres has no other right, and its pages have no button that
//! changes anything; they show the commands of `hookctl` that do.
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
pub mod pages;
pub mod search;
pub mod server;
pub mod service;
pub mod store;
pub mod text;
pub mod time;
pub mod watch;
