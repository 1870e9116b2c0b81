//! The problem of an event whose secret an operator distrusts.

use worker::problem::Kind;

/// Stands between this problem of an event and the one that it had before.
pub const BEFORE: &str = "; before that: ";

/// Whether an event with this problem was a healthy one until it was distrusted.
pub fn was_healthy(problem: &str) -> bool {
    Kind::of(problem) == Kind::Distrusted && !problem.contains(BEFORE)
}
