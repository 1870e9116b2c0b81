//! Events with the rows that they would set.

use shared::{AcceptedEvent, Companies, EventType, message::Receipt};
use sqlx::{Row as _, postgres::PgRow};
use worker::{
    families::Typed,
    record::Record,
    work::{Source, Work},
};

use crate::stored_type;

/// An event, and the row that this version makes of it.
pub(crate) struct Candidate {
    pub(crate) webhook_id: String,
    /// An error says why there is none.
    pub(crate) typed: Result<Typed, String>,
}

impl Candidate {
    /// The columns to select from `events e`.
    pub(crate) const COLUMNS: &str = "e.webhook_id, e.event_type, e.raw, e.payload::text as json,
        e.body_sha256, e.received_at, array_to_string(e.secret_companies, ' ') as companies";

    /// Reads a row with [`Candidate::COLUMNS`].
    pub(crate) fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        let raw: Option<Vec<u8>> = row.try_get("raw")?;
        let json: Option<String> = row.try_get("json")?;
        let hash: Vec<u8> = row.try_get("body_sha256")?;
        let event_type: &str = row.try_get("event_type")?;
        let companies: Option<&str> = row.try_get("companies")?;
        let webhook_id: String = row.try_get("webhook_id")?;
        let record = Record::new(&Work {
            event: AcceptedEvent {
                webhook_id: webhook_id.clone(),
                event_type: EventType::parse(event_type).unwrap_or_else(EventType::unknown),
                body_sha256: hash.try_into().unwrap_or_default(),
                body: raw
                    .unwrap_or_else(|| json.unwrap_or_default().into_bytes())
                    .into(),
                received_at: row.try_get("received_at")?,
                attempted_at: None,
                secret_name: None,
                secret_companies: companies.map(Companies::read),
            },
            receipt: Receipt::Recorded,
            attempts: 0,
            problem: None,
            source: Source::Queue,
        });
        let disagreement = stored_type::disagreement(event_type, &record);
        let typed = match (disagreement, record.typed, record.problem) {
            (None, Some(typed), _) => Ok(typed),
            (Some(reason), _, _) => Err(reason),
            (None, None, Some(problem)) => Err(problem.text),
            (None, None, None) => Err("its type has no table".to_owned()),
        };
        Ok(Self { webhook_id, typed })
    }
}
