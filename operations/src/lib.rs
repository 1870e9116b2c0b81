//! What operators change of dead letters, for every program by which they do it: choosing them,
//! dismissing, restoring and replaying them, each with its row in `operator_actions`.
//!
//! It has no command line and no page. Whoever calls it decides who may.

pub mod database;
pub mod dead_letters;
pub mod duration;
pub mod family;
pub mod lock_holders;
mod run;
pub mod stored_type;
pub mod typed_row;

pub use run::Run;
