//! The subject whose data is to be erased.

use serde_json::{Value, json};
use worker::{families::Text, record::Record};

/// The kind of subject.
#[derive(Clone, Debug)]
pub(super) enum Subject {
    /// By `data.companyId`.
    Company(String),
    /// By `data.id`.
    Resource(String),
    /// By its webhook id, which includes second bodies that arrived under it.
    Event(String),
}

impl Subject {
    /// The id.
    pub(super) fn id(&self) -> &str {
        match self {
            Self::Company(id) | Self::Resource(id) | Self::Event(id) => id,
        }
    }

    /// As the audit record shows it.
    pub(super) fn describe(&self) -> Value {
        match self {
            Self::Company(id) => json!({"company": id}),
            Self::Resource(id) => json!({"resource": id}),
            Self::Event(id) => json!({"event": id}),
        }
    }

    /// Whether the webhook id alone tells that an event is about the subject.
    pub(super) fn is_named_by(&self, webhook_id: &str) -> bool {
        match self {
            Self::Company(_) | Self::Resource(_) => false,
            Self::Event(id) => {
                let rest = webhook_id.strip_prefix(&**id);
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("#conflict-"))
            }
        }
    }

    /// Whether an event that is not stored yet is about the subject.
    pub(super) fn includes(&self, record: &Record) -> bool {
        match self {
            Self::Company(id) => Text::as_optional(&record.company_id) == Some(id),
            Self::Resource(id) => Text::as_optional(&record.resource_id) == Some(id),
            Self::Event(_) => self.is_named_by(&record.webhook_id),
        }
    }
}
