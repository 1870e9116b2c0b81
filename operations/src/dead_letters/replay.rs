//! The worker's code of today on what older code, or an older table, could not store.

mod attempt;
pub mod job;
pub mod lease;
mod letter;
mod mended;
mod outcome;
mod rounds;
mod trial;

pub use self::{
    attempt::Attempt,
    outcome::{Outcome, Replayed, Total, Totals},
    rounds::{Host, Letters, Replay},
};

/// The action in `operator_actions`.
pub const ACTION: &str = "dead-letters replay";

/// The most events in one transaction: few enough to hold no lock for long.
pub const BATCH: usize = 100;
