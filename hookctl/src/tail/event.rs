//! One stored event, as a line.

use std::fmt;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;

use crate::printable::printable;

/// The columns that are shown of an event.
#[derive(Debug, Serialize, sqlx::FromRow)]
pub(super) struct Event {
    pub(super) webhook_id: String,
    event_type: String,
    company_id: Option<String>,
    resource_id: Option<String>,
    received_at: DateTime<Utc>,
    pub(super) stored_at: DateTime<Utc>,
    attempts: i32,
    problem: Option<String>,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stored_at = self.stored_at.to_rfc3339_opts(SecondsFormat::Millis, true);
        let lag_ms = (self.stored_at - self.received_at).num_milliseconds();
        // These texts come from senders.
        let shown = |text: &str| printable(text, false);
        let or_none = |text: &Option<String>| text.as_deref().map_or("-".to_owned(), shown);
        write!(
            f,
            "{stored_at} {lag_ms:>5} ms  {:<22} {}  company {} resource {}",
            shown(&self.event_type),
            shown(&self.webhook_id),
            or_none(&self.company_id),
            or_none(&self.resource_id),
        )?;
        match &self.problem {
            Some(problem) => write!(
                f,
                "  PROBLEM after {} attempt(s): {}",
                self.attempts,
                shown(problem)
            ),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_an_event_can_break_its_line_or_steer_a_terminal() {
        let time = DateTime::from_timestamp(1_800_000_000, 0).expect("a time");
        let line = Event {
            webhook_id: "msg_1".into(),
            event_type: "v1.vendor.created".into(),
            company_id: Some("\u{1b}[2Jc".into()),
            resource_id: None,
            received_at: time,
            stored_at: time + chrono::TimeDelta::milliseconds(12),
            attempts: 1,
            problem: Some("two\nlines".into()),
        }
        .to_string();
        assert!(!line.contains(char::is_control), "{line}");
        assert!(line.contains("   12 ms  v1.vendor.created ") && line.contains("two\\nlines"));
    }
}
