//! Whose data is to be erased.

use serde_json::{Value, json};
use worker::{families::Text, record::Record};

/// Of what everything is to be erased.
#[derive(Clone, Debug)]
pub(super) enum Subject {
    /// By `data.companyId`.
    Company(String),
    /// By `data.id`.
    Resource(String),
    /// By its webhook id.
    Event(String),
}

impl Subject {
    /// The id.
    pub(super) fn id(&self) -> &str {
        match self {
            Self::Company(id) | Self::Resource(id) | Self::Event(id) => id,
        }
    }

    /// As it is written down.
    pub(super) fn describe(&self) -> Value {
        match self {
            Self::Company(id) => json!({"company": id}),
            Self::Resource(id) => json!({"resource": id}),
            Self::Event(id) => json!({"event": id}),
        }
    }

    /// Whether an event that is not stored yet is about it.
    pub(super) fn includes(&self, record: &Record) -> bool {
        match self {
            Self::Company(id) => Text::as_optional(&record.company_id) == Some(id),
            Self::Resource(id) => Text::as_optional(&record.resource_id) == Some(id),
            Self::Event(id) => record.webhook_id == *id,
        }
    }
}
