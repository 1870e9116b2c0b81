//! The family of the type that an event is stored under, which is the only one that commands take it for.
//!
//! A worker's account adds events of its own family only, told by the column `event_type`
//! (`setup/policies.rs`). The body is as that account gave it. So a body of another family is none that the
//! account could have stored, and sets no row.

use shared::{EventType, Family};
use worker::record::Record;

/// Why an event is not taken for what its body says; `None` where column and body name one family.
pub fn disagreement(stored: &str, record: &Record) -> Option<String> {
    let (stored, own) = (Family::of(stored), record.event_type.family());
    (stored != own)
        .then(|| format!("it is stored as one of {stored}, and its body is one of {own}"))
}

/// Whether the event was stored without a type, because nobody could read one then.
pub fn is_unknown(stored: &str) -> bool {
    stored == EventType::unknown().as_str()
}
