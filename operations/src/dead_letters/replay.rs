//! The worker's code of today on what older code, or an older table, could not store.

mod attempt;
mod letter;
mod mended;
mod outcome;
mod trial;

pub use self::{
    attempt::Attempt,
    outcome::{Outcome, Replayed, Total, Totals},
};

/// The most events in one transaction: few enough to hold no lock for long.
pub const BATCH: usize = 100;
