//! All events of a view as a file, streamed: the newest first, each with its body.

use std::sync::Arc;

use actix_web::{HttpResponse, http::header, web};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use chrono::Utc;
use futures_util::stream;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::Semaphore;
use tracing::warn;

use super::events;
use crate::{
    error::PageError,
    search::{Summary, Walk},
    store::{STATEMENT_TIMEOUT, Store, StoreError},
    time,
};

/// Events of one look. Each body may be as large as ingest accepts, and all are in memory together.
const TOGETHER: usize = 100;

/// How often a look that took too long is tried again, each time at fewer events.
const TRIES: usize = 4;

/// Looks of all exports at once, so that they leave connections to the pages.
const LOOKS: usize = 2;

/// What exports share.
#[derive(Clone, Debug)]
pub struct Exports(Arc<Semaphore>);

impl Default for Exports {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(LOOKS)))
    }
}

/// How a file is written.
#[derive(Clone, Copy, Debug, Deserialize)]
enum Format {
    #[serde(rename = "csv")]
    Csv,
    #[serde(rename = "jsonl")]
    JsonLines,
}

#[derive(Deserialize)]
pub(crate) struct FormatQuery {
    format: Format,
}

/// An event as a line of the file.
#[derive(Debug, Serialize)]
struct Line {
    webhook_id: String,
    event_type: String,
    company_id: Option<String>,
    resource_id: Option<String>,
    secret_name: Option<String>,
    problem: Option<String>,
    is_dismissed: bool,
    received_at: String,
    stored_at: String,
    /// The body where it is JSON that Postgres could read.
    payload: Option<Box<RawValue>>,
    /// The body as it was received, of a dead letter.
    raw_base64: Option<String>,
}

const COLUMNS: [&str; 11] = [
    "webhook_id",
    "event_type",
    "company_id",
    "resource_id",
    "secret_name",
    "problem",
    "is_dismissed",
    "received_at",
    "stored_at",
    "payload",
    "raw_base64",
];

/// `GET /events/export?format=csv` or `jsonl`, with the filters of the list.
///
/// An export that cannot go on breaks off its connection, so that no part of a file looks whole.
pub(crate) async fn export(
    query: web::Query<events::Query>,
    format: web::Query<FormatQuery>,
    store: web::Data<Store>,
    exports: web::Data<Exports>,
) -> Result<HttpResponse, PageError> {
    let filter = query.filter().map_err(PageError::BadAddress)?;
    let format = format.format;
    let length = i64::try_from(TOGETHER).unwrap_or(i64::MAX);
    let mut export = Export {
        walk: Walk::new(filter, None, length),
        store: store.get_ref().clone(),
        exports: exports.get_ref().clone(),
        format,
    };
    // What fails at once is an error page and no file. Even if the first look finds nothing, the file begins,
    // because the next hit may be far back. This look is short, so it does not wait for those of other exports.
    let first = [format.head(), format.write(&export.look().await?)].concat();
    let rest = stream::try_unfold(export, async |mut export| {
        let next = export.next().await;
        if let Err(error) = &next {
            warn!(%error, "an export broke off");
        }
        Ok::<_, StoreError>(next?.map(|lines| (Bytes::from(lines), export)))
    });
    let first = stream::iter((!first.is_empty()).then(|| Ok(Bytes::from(first))));
    let name = format!(
        "events-{}.{}",
        Utc::now().format("%Y%m%dT%H%M%SZ"),
        format.extension()
    );
    Ok(HttpResponse::Ok()
        .content_type(format.content_type())
        .insert_header((
            header::CONTENT_DISPOSITION,
            format!("attachment; filename=\"{name}\""),
        ))
        .streaming(futures_util::StreamExt::chain(first, rest)))
}

/// A file that is being written.
struct Export {
    walk: Walk,
    store: Store,
    exports: Exports,
    format: Format,
}

impl Export {
    /// The next lines, which are some; `None` at the end.
    async fn next(&mut self) -> Result<Option<Vec<u8>>, StoreError> {
        while !self.walk.is_over() {
            let found = self.look_in_turn().await?;
            if !found.is_empty() {
                return Ok(Some(self.format.write(&found)));
            }
        }
        Ok(None)
    }

    /// Looks when few other exports do.
    async fn look_in_turn(&mut self) -> Result<Vec<Line>, StoreError> {
        let exports = self.exports.clone();
        let _turn = exports.0.acquire().await;
        self.look().await
    }

    async fn look(&mut self) -> Result<Vec<Line>, StoreError> {
        let mut tries = 0;
        let found = loop {
            tries += 1;
            match self
                .walk
                .slice(&self.store, TOGETHER, STATEMENT_TIMEOUT)
                .await
            {
                Err(StoreError::TooSlow) if tries < TRIES => {}
                found => break found?,
            }
        };
        with_bodies(&self.store, found).await
    }
}

async fn with_bodies(store: &Store, found: Vec<Summary>) -> Result<Vec<Line>, StoreError> {
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<&str> = found
        .iter()
        .map(|event| event.webhook_id.as_str())
        .collect();
    let bodies: Vec<(String, Option<String>, Option<Vec<u8>>)> = store
        .look(async |connection| {
            sqlx::query_as(
                "select webhook_id, payload::text, raw
                   from unnest($1::text[]) with ordinality as wanted (webhook_id, place)
                   join events using (webhook_id)
                  order by place",
            )
            .bind(ids)
            .fetch_all(connection)
            .await
        })
        .await?;
    let mut found = found.into_iter();
    Ok(bodies
        .into_iter()
        .filter_map(|(id, payload, raw)| {
            // One that was swept meanwhile has no body any more, and is left out.
            let event = found.find(|event| event.webhook_id == id)?;
            Some(Line::new(event, payload, raw))
        })
        .collect())
}

impl Line {
    fn new(event: Summary, payload: Option<String>, raw: Option<Vec<u8>>) -> Self {
        Self {
            received_at: time::machine(&event.received_at),
            stored_at: time::machine(&event.stored_at),
            webhook_id: event.webhook_id,
            event_type: event.event_type,
            company_id: event.company_id,
            resource_id: event.resource_id,
            secret_name: event.secret_name,
            problem: event.problem,
            is_dismissed: event.is_dismissed,
            payload: payload.and_then(|text| RawValue::from_string(text).ok()),
            raw_base64: raw.map(|bytes| BASE64_STANDARD.encode(bytes)),
        }
    }

    /// In the order of [`COLUMNS`].
    fn cells(&self) -> [String; COLUMNS.len()] {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let payload = self.payload.as_ref().map(|json| json.get().to_owned());
        [
            self.webhook_id.clone(),
            self.event_type.clone(),
            text(&self.company_id),
            text(&self.resource_id),
            text(&self.secret_name),
            text(&self.problem),
            self.is_dismissed.to_string(),
            self.received_at.clone(),
            self.stored_at.clone(),
            payload.unwrap_or_default(),
            text(&self.raw_base64),
        ]
        .map(inert)
    }
}

/// A cell that a spreadsheet takes as text. It would compute what begins like a formula
/// (<https://owasp.org/www-community/attacks/CSV_Injection>).
fn inert(cell: String) -> String {
    const BEGINNINGS: [char; 11] = ['=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠'];
    match cell.starts_with(BEGINNINGS) {
        true => format!("'{cell}"),
        false => cell,
    }
}

impl Format {
    const fn content_type(self) -> &'static str {
        match self {
            Self::Csv => "text/csv; charset=utf-8",
            Self::JsonLines => "application/jsonl; charset=utf-8",
        }
    }

    const fn extension(self) -> &'static str {
        match self {
            Self::Csv => "csv",
            Self::JsonLines => "jsonl",
        }
    }

    fn head(self) -> Vec<u8> {
        match self {
            Self::Csv => csv([COLUMNS]),
            Self::JsonLines => Vec::new(),
        }
    }

    fn write(self, lines: &[Line]) -> Vec<u8> {
        match self {
            Self::Csv => csv(lines.iter().map(Line::cells)),
            Self::JsonLines => {
                let mut text = Vec::new();
                for line in lines {
                    serde_json::to_writer(&mut text, line).expect("a vector takes everything");
                    text.push(b'\n');
                }
                text
            }
        }
    }
}

/// Rows as RFC 4180 has them, with every cell in quotes.
fn csv<T: AsRef<str>>(rows: impl IntoIterator<Item = [T; COLUMNS.len()]>) -> Vec<u8> {
    let mut text = String::new();
    for row in rows {
        for (place, cell) in row.iter().enumerate() {
            let separator = if place == 0 { "" } else { "," };
            let doubled = cell.as_ref().replace('"', "\"\"");
            text.extend([separator, "\"", &doubled, "\""]);
        }
        text.push_str("\r\n");
    }
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spreadsheet_computes_nothing() {
        for formula in [
            "=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1+1",
        ] {
            assert!(inert(formula.to_owned()).starts_with('\''), "{formula}");
        }
        assert_eq!(inert("msg_1".to_owned()), "msg_1");
    }

    #[test]
    fn a_row_keeps_quotes_commas_and_lines() {
        let mut row = COLUMNS.map(|_| "");
        row[0] = "a,\"b\"\nc";
        let text = String::from_utf8(csv([row])).expect("text");
        let others = ",\"\"".repeat(COLUMNS.len() - 1);
        assert_eq!(text, format!("\"a,\"\"b\"\"\nc\"{others}\r\n"));
    }
}
