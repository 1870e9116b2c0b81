//! `hookctl actions`: who changed what. Every command that changes something in Postgres writes a row
//! of `operator_actions` in the transaction of the change.

mod list;

pub use list::{Args, run};
pub use operations::Run;
