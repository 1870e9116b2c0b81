//! Dead letters: rows of `events` with a problem, and what can be done with them.

mod change;
mod filter;
mod letter;
pub mod replay;

pub use self::{
    change::Change,
    filter::{Filter, State},
    letter::{COLUMNS, Dismissal, Letter, family},
};
