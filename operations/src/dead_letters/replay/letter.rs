//! A dead letter while it is replayed.

use chrono::{DateTime, Utc};
use shared::{AcceptedEvent, Companies, EventType};
use sqlx::{Row as _, postgres::PgRow};
use worker::problem::Kind;

/// Whoever comes second waits, and then finds the row changed and no dead letter any more. One order
/// for all keeps two replays from deadlocking; a worker changes no row of `events`, and takes those
/// of the typed tables in the order in which `families::upsert` takes them here.
pub(super) const LOCK: &str = "
    select webhook_id, event_type, problem, problem_kind, raw, payload::text as json, body_sha256,
           received_at, attempted_at, secret_name,
           array_to_string(secret_companies, ' ') as companies
      from events
     where webhook_id = any($1) and problem is not null and dismissed_at is null
     order by webhook_id
       for update";

/// An open dead letter that is locked.
pub(super) struct Letter {
    pub(super) problem: String,
    /// `None` if an older version has stored the problem.
    pub(super) kind: Option<Kind>,
    /// Its type as it is stored, which may be spelled in a way that no worker writes.
    pub(super) stored_type: String,
    pub(super) event: AcceptedEvent,
    /// `payload` is there already.
    pub(super) has_json: bool,
    /// `raw` is there: the body is what was sent.
    pub(super) has_bytes: bool,
}

impl Letter {
    /// Reads a row of [`LOCK`].
    pub(super) fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        let raw: Option<Vec<u8>> = row.try_get("raw")?;
        let json: Option<String> = row.try_get("json")?;
        let event_type: &str = row.try_get("event_type")?;
        let hash: Vec<u8> = row.try_get("body_sha256")?;
        let companies: Option<&str> = row.try_get("companies")?;
        let (has_bytes, has_json) = (raw.is_some(), json.is_some());
        let body = raw.unwrap_or_else(|| json.unwrap_or_default().into_bytes());
        Ok(Self {
            problem: row.try_get("problem")?,
            kind: row
                .try_get::<Option<&str>, _>("problem_kind")?
                .and_then(Kind::named),
            stored_type: event_type.to_owned(),
            event: AcceptedEvent {
                webhook_id: row.try_get("webhook_id")?,
                event_type: EventType::parse(event_type).unwrap_or_else(EventType::unknown),
                body_sha256: hash.try_into().unwrap_or_default(),
                body: body.into(),
                received_at: row.try_get::<DateTime<Utc>, _>("received_at")?,
                attempted_at: row.try_get("attempted_at")?,
                secret_name: row.try_get("secret_name")?,
                secret_companies: companies.map(Companies::read),
            },
            has_json,
            has_bytes,
        })
    }
}
