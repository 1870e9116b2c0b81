//! One resource: its row today, and its states with what changed from one to the next.

use actix_web::{HttpRequest, HttpResponse, web};
use askama::Template;
use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::value::RawValue;
use shared::{EventType, envelope::Envelope};
use sqlx::PgConnection;
use worker::families::{SortKey, Typed};

use super::event::AFTER;
use crate::{
    error::PageError,
    frame::{Frame, Section, html},
    json,
    search::{self, End, Filter, Key, Patience, Summary},
    store::Store,
    text, time,
};

/// States on a page.
const PAGE: usize = 50;

/// Larger bodies are not compared.
const MOST_COMPARED: i64 = 64 * 1024;

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Query {
    id: String,
    before: String,
    /// `now`: look at the newest events first, instead of those around the known state.
    from: String,
    search: Patience,
}

/// A row of a typed table, column by column.
struct Row {
    table: &'static str,
    columns: Vec<(String, Option<String>)>,
    webhook_id: String,
}

/// A state as one event gave it.
struct State {
    event: Summary,
    /// By the resource's own time, where `data` has any.
    at: Option<DateTime<Utc>>,
    is_current: bool,
    /// It came after a newer one.
    is_late: bool,
    changes: Vec<Change>,
    /// There is no older state to compare it with.
    is_first: bool,
    too_large: bool,
}

/// A field that differs from the state before; `None` where it is not there.
struct Change {
    field: String,
    before: Option<String>,
    after: Option<String>,
}

#[derive(Template)]
#[template(path = "resource.html")]
struct ResourcePage {
    frame: Frame,
    id: String,
    row: Option<Row>,
    states: Vec<State>,
    /// Looks further back.
    older: Option<String>,
    looked_back_to: Option<DateTime<Utc>>,
    /// What was received later was not looked at.
    looked_up_to: Option<DateTime<Utc>>,
    newer: String,
}

/// `GET /resource?id=…`
pub(crate) async fn page(
    request: HttpRequest,
    query: web::Query<Query>,
    store: web::Data<Store>,
) -> Result<HttpResponse, PageError> {
    let query = query.into_inner();
    let (row, known) = store
        .look(async |connection| row(connection, &query.id).await)
        .await?;
    // All of them are found at once, so there is no reason to begin at the known one.
    let begin = match search::is_found_at_once(&store, &query.id).await? {
        true => None,
        false => known.as_ref().map(|known| known.received_at),
    };
    let before = query.before(begin)?;
    let filter = Filter {
        resource: Some(query.id.clone()),
        ..Filter::default()
    };
    let budget = query.search.budget();
    let mut found = search::find(&store, &filter, before.clone(), PAGE, budget).await?;
    // The first page has the row's state, even if the search did not get so far.
    let is_apart = query.before.is_empty() && found.add(known);
    if row.is_none() && found.rows.is_empty() && found.end == End::All {
        return Err(PageError::NotFound(
            "No event that is stored has this resource.",
        ));
    }
    let (next, looked_back_to) = found.end.next();
    let older = next.map(|key| match looked_back_to {
        Some(_) => query.further_before(key),
        None => query.page_before(key),
    });
    let bodies = store
        .look(async |connection| bodies(connection, &found.rows).await)
        .await?;
    let current = row.as_ref().map(|row| row.webhook_id.as_str());
    let title = format!(
        "{} {}",
        row.as_ref().map_or("Resource", |row| row.name()),
        query.id
    );
    html(&ResourcePage {
        frame: Frame::new(&request, &title, Section::Events),
        states: states(found.rows, bodies, current, is_apart),
        older,
        looked_back_to,
        looked_up_to: before.map(|before| before.at).filter(|at| *at < Utc::now()),
        newer: query.newest(),
        row,
        id: query.id,
    })
}

impl Query {
    /// Where the search begins: where the address says, or around the event of the known state.
    fn before(&self, known_at: Option<DateTime<Utc>>) -> Result<Option<Key>, PageError> {
        match (self.before.as_str(), self.from.as_str()) {
            ("", "now") => Ok(None),
            ("", _) => Ok(known_at.map(|at| Key::before(at + AFTER))),
            (text, _) => text.parse().map(Some).map_err(PageError::BadAddress),
        }
    }

    fn page_before(&self, key: &Key) -> String {
        let before = key.to_string();
        text::href("/resource", &[("id", &self.id), ("before", &before)])
    }

    fn further_before(&self, key: &Key) -> String {
        let before = ("before", &*key.to_string());
        text::href("/resource", &[("id", &self.id), before, Patience::LONGER])
    }

    fn newest(&self) -> String {
        let from = ("from", "now");
        text::href("/resource", &[("id", &self.id), from, Patience::LONGER])
    }
}

impl Row {
    fn name(&self) -> &'static str {
        match self.table {
            "vendors" => "Vendor",
            _ => "Export job",
        }
    }
}

/// The row of either typed table, and the event of its state.
async fn row(
    connection: &mut PgConnection,
    id: &str,
) -> Result<(Option<Row>, Option<Summary>), sqlx::Error> {
    let statements = [
        (
            "export_jobs",
            "select key, value from export_jobs t, json_each_text(row_to_json(t))
              where t.id = $1 and key <> 'sort_key'",
        ),
        (
            "vendors",
            "select key, value from vendors t, json_each_text(row_to_json(t))
              where t.id = $1 and key <> 'sort_key'",
        ),
    ];
    for (table, statement) in statements {
        let columns: Vec<(String, Option<String>)> = sqlx::query_as(statement)
            .bind(id)
            .fetch_all(&mut *connection)
            .await?;
        let webhook_id = columns
            .iter()
            .find(|(name, _)| name == "webhook_id")
            .and_then(|(_, value)| value.clone());
        if let Some(webhook_id) = webhook_id {
            let event = Summary::get(connection, &webhook_id).await?;
            let row = Row {
                table,
                columns,
                webhook_id,
            };
            let event = event.filter(|event| event.resource_id.as_deref() == Some(id));
            return Ok((Some(row), event));
        }
    }
    Ok((None, None))
}

/// The bodies of these events, in their order; `None` for what is too large to be compared.
async fn bodies(
    connection: &mut PgConnection,
    rows: &[Summary],
) -> Result<Vec<Option<String>>, sqlx::Error> {
    let ids: Vec<&str> = rows.iter().map(|row| row.webhook_id.as_str()).collect();
    let bodies: Vec<(String, Option<String>)> = sqlx::query_as(
        "select webhook_id, case when octet_length(payload::text) <= $2 then payload::text end
           from events where webhook_id = any($1)",
    )
    .bind(&ids)
    .bind(MOST_COMPARED)
    .fetch_all(connection)
    .await?;
    Ok(ids
        .iter()
        .map(|id| bodies.iter().find(|(other, _)| other == id)?.1.clone())
        .collect())
}

/// The states by their own time, the newest first, each with what changed. If there may be others between
/// the row's state and the next one, the two are not compared.
fn states(
    rows: Vec<Summary>,
    bodies: Vec<Option<String>>,
    current: Option<&str>,
    current_is_apart: bool,
) -> Vec<State> {
    let mut read: Vec<_> = rows
        .into_iter()
        .zip(bodies)
        .map(|(event, body)| (key(&event, body.as_deref()), event, body))
        .collect();
    read.sort_by(|(a, ..), (b, ..)| b.cmp(a));
    let fields: Vec<_> = read
        .iter()
        .map(|(.., body)| body.as_deref().and_then(data_fields))
        .collect();
    let mut earliest: Option<DateTime<Utc>> = None;
    let mut states = Vec::new();
    for (n, (key, event, body)) in read.into_iter().enumerate() {
        let is_late = earliest.is_some_and(|earliest| event.received_at > earliest);
        earliest = Some(earliest.map_or(event.received_at, |at| at.min(event.received_at)));
        let is_current = current == Some(event.webhook_id.as_str());
        let older = match is_current && current_is_apart {
            true => None,
            false => fields.get(n + 1),
        };
        let changes = match (fields[n].as_ref(), older) {
            (Some(after), Some(Some(before))) => changes(before, after),
            _ => Vec::new(),
        };
        states.push(State {
            at: own_time(&key),
            is_current,
            is_late,
            changes,
            is_first: older.is_none(),
            too_large: body.is_none(),
            event,
        });
    }
    states
}

type Fields = std::collections::BTreeMap<String, String>;

fn data_fields(body: &str) -> Option<Fields> {
    Envelope::parse(body.as_bytes())
        .ok()?
        .data
        .map(json::fields)
}

fn changes(before: &Fields, after: &Fields) -> Vec<Change> {
    let mut names: Vec<&String> = before.keys().chain(after.keys()).collect();
    names.sort();
    names.dedup();
    names
        .into_iter()
        .filter(|name| before.get(*name) != after.get(*name))
        .map(|name| Change {
            field: name.clone(),
            before: before.get(name).cloned(),
            after: after.get(name).cloned(),
        })
        .collect()
}

/// The key by which the typed tables choose the newest state. An event that is no state of a typed
/// resource has the time of its receipt.
fn key(event: &Summary, body: Option<&str>) -> SortKey {
    let typed = body.and_then(|body| {
        let envelope = Envelope::parse(body.as_bytes()).ok()?;
        let family = EventType::parse(&event.event_type)?.family();
        let data: Option<&RawValue> = envelope.data;
        Typed::parse(family, data, &event.webhook_id, event.received_at).ok()?
    });
    match typed {
        Some(Typed::ExportJob(row)) => row.sort_key,
        Some(Typed::Vendor(row)) => row.sort_key,
        None => SortKey::new(Some(event.received_at), 0, &event.webhook_id),
    }
}

/// The time that a key begins with.
fn own_time(key: &SortKey) -> Option<DateTime<Utc>> {
    let bytes = key.as_bytes().first_chunk::<8>()?;
    let nanoseconds = i64::from_be_bytes(*bytes) ^ i64::MIN;
    (nanoseconds != i64::MIN).then(|| DateTime::from_timestamp_nanos(nanoseconds))
}
