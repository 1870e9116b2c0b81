//! A dead letter as lists show it.

use chrono::{DateTime, Utc};
use serde::Serialize;
use shared::Family;
use sqlx::{Row as _, postgres::PgRow};
use worker::problem::Kind;

/// What [`Letter::read`] wants to be selected from `events`.
pub const COLUMNS: &str = "webhook_id, event_type, company_id, resource_id, problem, problem_kind,
    attempts, received_at, stored_at, dismissed_at, dismissed_by, dismissal_note,
    extract(epoch from now() - stored_at)::float8 as age";

/// A dead letter without its body: the columns of `events`, and what follows from them.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Letter {
    pub webhook_id: String,
    pub family: &'static str,
    pub event_type: String,
    pub company_id: Option<String>,
    pub resource_id: Option<String>,
    pub kind: &'static str,
    pub problem: String,
    pub attempts: i32,
    pub received_at: DateTime<Utc>,
    pub stored_at: DateTime<Utc>,
    /// Since it was stored, in seconds.
    pub age_s: f64,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub dismissal: Option<Dismissal>,
}

/// That somebody decided that it needs nothing more.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Dismissal {
    pub dismissed_at: DateTime<Utc>,
    pub dismissed_by: Option<String>,
    pub dismissal_note: Option<String>,
}

impl Letter {
    /// Reads a row with [`COLUMNS`].
    pub fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        let event_type: String = row.try_get("event_type")?;
        Ok(Self {
            webhook_id: row.try_get("webhook_id")?,
            family: family(&event_type),
            event_type,
            company_id: row.try_get("company_id")?,
            resource_id: row.try_get("resource_id")?,
            kind: Kind::shown(row.try_get("problem_kind")?).name(),
            problem: row.try_get("problem")?,
            attempts: row.try_get("attempts")?,
            received_at: row.try_get("received_at")?,
            stored_at: row.try_get("stored_at")?,
            age_s: row.try_get("age")?,
            dismissal: Dismissal::read(row)?,
        })
    }
}

impl Dismissal {
    /// Reads a row with the columns of that name; `None` for an open dead letter.
    pub fn read(row: &PgRow) -> Result<Option<Self>, sqlx::Error> {
        let dismissed_at: Option<DateTime<Utc>> = row.try_get("dismissed_at")?;
        dismissed_at
            .map(|dismissed_at| {
                Ok(Self {
                    dismissed_at,
                    dismissed_by: row.try_get("dismissed_by")?,
                    dismissal_note: row.try_get("dismissal_note")?,
                })
            })
            .transpose()
    }
}

/// The family of a stored type.
pub fn family(event_type: &str) -> &'static str {
    Family::of(event_type).name()
}
