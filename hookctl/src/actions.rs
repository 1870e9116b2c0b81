//! `hookctl actions`: who changed what. Every command that changes something in Postgres writes a row
//! of `operator_actions` in the transaction of the change.

mod list;
mod run;

pub use list::{Args, run};
pub use run::Run;
