//! A dead letter as lists show it.

use chrono::{DateTime, Utc};
use serde::Serialize;
use shared::Family;
use sqlx::{Row as _, postgres::PgRow};
use worker::problem::Kind;

use crate::{age, output::Row, printable::printable};

/// What [`Letter::read`] wants to be selected from `events`.
pub(super) const COLUMNS: &str = "webhook_id, event_type, company_id, resource_id, problem,
    attempts, received_at, stored_at, dismissed_at, dismissed_by, dismissal_note,
    extract(epoch from now() - stored_at)::float8 as age";

/// A dead letter without its body.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Letter {
    pub(super) webhook_id: String,
    pub(super) family: &'static str,
    pub(super) event_type: String,
    pub(super) company_id: Option<String>,
    pub(super) resource_id: Option<String>,
    pub(super) kind: &'static str,
    pub(super) problem: String,
    pub(super) attempts: i32,
    pub(super) received_at: DateTime<Utc>,
    pub(super) stored_at: DateTime<Utc>,
    /// Since it was stored, in seconds.
    pub(super) age_s: f64,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(super) dismissal: Option<Dismissal>,
}

/// That somebody decided that it needs nothing more.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Dismissal {
    pub(super) dismissed_at: DateTime<Utc>,
    pub(super) dismissed_by: Option<String>,
    pub(super) dismissal_note: Option<String>,
}

impl Letter {
    /// Reads a row with [`COLUMNS`].
    pub(super) fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        let event_type: String = row.try_get("event_type")?;
        let problem: String = row.try_get("problem")?;
        Ok(Self {
            webhook_id: row.try_get("webhook_id")?,
            family: family(&event_type),
            event_type,
            company_id: row.try_get("company_id")?,
            resource_id: row.try_get("resource_id")?,
            kind: Kind::of(&problem).name(),
            problem,
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
    pub(super) fn read(row: &PgRow) -> Result<Option<Self>, sqlx::Error> {
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
pub(super) fn family(event_type: &str) -> &'static str {
    Family::of(event_type).name()
}

impl Row for Letter {
    const HEADER: &'static [&'static str] = &[
        "webhook id",
        "type",
        "company",
        "resource",
        "problem",
        "attempts",
        "age",
    ];

    fn cells(&self) -> Vec<String> {
        let cell = |text: &str| printable(text, false);
        let optional = |text: &Option<String>| text.as_deref().map(cell).unwrap_or_default();
        let mut problem = cell(&self.problem);
        if let Some(dismissal) = &self.dismissal {
            let by = optional(&dismissal.dismissed_by);
            let at = dismissal.dismissed_at.format("%F %R");
            problem.push_str(&format!("\ndismissed {at} UTC by {by}"));
            if let Some(note) = &dismissal.dismissal_note {
                problem.push_str(&format!(": {}", cell(note)));
            }
        }
        vec![
            cell(&self.webhook_id),
            cell(&self.event_type),
            optional(&self.company_id),
            optional(&self.resource_id),
            problem,
            self.attempts.to_string(),
            age::words(self.age_s),
        ]
    }
}
