//! The operators' tool, one file for each subcommand.
//!
//! It acts as the stores' owner or administrator. No event passes through it.

pub mod account;
mod account_settings;
pub mod actions;
pub mod age;
pub mod completions;
pub mod dead_letters;
pub mod delivery;
pub mod distrust;
pub mod doctor;
pub mod erase;
pub mod health;
mod http;
pub mod load;
pub mod output;
pub mod passwords;
pub mod printable;
pub mod progress;
pub mod rebuild;
pub mod receipts;
pub mod reconcile;
pub mod sample;
pub mod secrets;
pub mod send;
pub mod setup;
pub mod tail;
mod time;
pub mod typed_table;
pub mod verdict;

pub use operations::database;
use operations::{duration, family, lock_holders, stored_type};
pub use worker::management;
