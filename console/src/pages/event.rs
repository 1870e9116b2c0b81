//! One event: what was received, when, and what became of it.

use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, http::header, web};
use askama::Template;
use chrono::{DateTime, TimeDelta, Utc};
use serde::Deserialize;
use sqlx::PgConnection;
use worker::problem::Kind;

use crate::{
    error::PageError,
    frame::{Frame, Section, html},
    json,
    operations::{Operations, Standing},
    pages::{self, act::Action, replay},
    search::{self, Filter, Key, Summary},
    store::Store,
    text, time,
};

/// The most of a body that a page shows; the download has all of it.
const MOST_SHOWN: usize = 100_000;

/// Other events of the resource, and for how long they are looked for.
const OTHERS: usize = 10;
const OTHERS_BUDGET: Duration = Duration::from_millis(30);

/// The next states of a resource often come soon. With many events it takes long to look at more of them.
pub(super) const AFTER: TimeDelta = TimeDelta::hours(1);
/// Older states are looked for as far back as this, if there is time.
const BEFORE: TimeDelta = TimeDelta::days(1);

#[derive(Deserialize)]
pub(crate) struct Query {
    #[serde(default)]
    id: String,
}

#[derive(sqlx::FromRow)]
struct Event {
    webhook_id: String,
    event_id: Option<String>,
    event_type: String,
    company_id: Option<String>,
    resource_id: Option<String>,
    attempted_at: Option<DateTime<Utc>>,
    received_at: DateTime<Utc>,
    stored_at: DateTime<Utc>,
    payload: Option<String>,
    raw: Option<Vec<u8>>,
    body_sha256: Vec<u8>,
    secret_name: Option<String>,
    problem: Option<String>,
    problem_kind: Option<String>,
    attempts: i32,
    dismissed_at: Option<DateTime<Utc>>,
    dismissed_by: Option<String>,
    dismissal_note: Option<String>,
    replayed_at: Option<DateTime<Utc>>,
    replayed_problem: Option<String>,
}

const EVENT: &str =
    "select webhook_id, event_id, event_type, company_id, resource_id, attempted_at,
        received_at, stored_at, payload::text as payload, raw, body_sha256, secret_name, problem,
        problem_kind, attempts, dismissed_at, dismissed_by, dismissal_note, replayed_at, replayed_problem
   from events where webhook_id = $1";

#[derive(Template)]
#[template(path = "event.html")]
struct EventPage {
    frame: Frame,
    event: Event,
    body: Body,
    kind: Option<Kind>,
    commands: Vec<(&'static str, String)>,
    download: String,
    others: Option<Others>,
    standing: Standing,
    act: String,
    replay: Option<String>,
}

/// Other events of the resource.
struct Others {
    rows: Vec<Summary>,
    /// All that were received between these times were looked at.
    from: DateTime<Utc>,
    to: DateTime<Utc>,
}

/// A body as a page shows it.
struct Body {
    text: String,
    is_json: bool,
    is_cut: bool,
    /// The bytes are those that were received.
    is_exact: bool,
    bytes: usize,
}

/// `GET /event?id=…`
pub(crate) async fn page(
    request: HttpRequest,
    query: web::Query<Query>,
    store: web::Data<Store>,
    operations: web::Data<Operations>,
) -> Result<HttpResponse, PageError> {
    let Some(event) = read(&store, &query.id).await? else {
        return waiting(&request, &query.id, &store).await;
    };
    let others = others(&store, &event).await?;
    let problem = event.problem.as_ref();
    let kind = problem.map(|_| Kind::shown(event.problem_kind.as_deref()));
    html(&EventPage {
        frame: Frame::new(
            &request,
            &format!("Event {}", event.webhook_id),
            Section::Events,
        ),
        standing: operations.standing(&request),
        act: act(&event),
        replay: kind
            .filter(|kind| event.dismissed_at.is_none() && pages::is_replayed_here(kind))
            .map(|_| text::href(replay::PATH, &[("id", &event.webhook_id)])),
        body: event.body(),
        commands: commands(&event, kind),
        download: text::href("/event/body", &[("id", &event.webhook_id)]),
        kind,
        event,
        others,
    })
}

/// `GET /event/body?id=…`: the bytes, for keeping and never for showing.
pub(crate) async fn body(
    query: web::Query<Query>,
    store: web::Data<Store>,
) -> Result<HttpResponse, PageError> {
    let event = read(&store, &query.id).await?;
    let event = event.ok_or(PageError::NotFound("There is no event of this id."))?;
    let name: String = event
        .webhook_id
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') {
                c
            } else {
                '_'
            }
        })
        .take(80)
        .collect();
    let is_json = event.body().is_json;
    let extension = if is_json { "json" } else { "bin" };
    let bytes = match (event.raw, event.payload) {
        (Some(raw), _) => raw,
        (None, payload) => payload.unwrap_or_default().into_bytes(),
    };
    Ok(HttpResponse::Ok()
        .content_type("application/octet-stream")
        .insert_header((
            header::CONTENT_DISPOSITION,
            format!("attachment; filename=\"{name}.{extension}\""),
        ))
        .body(bytes))
}

async fn read(store: &Store, id: &str) -> Result<Option<Event>, PageError> {
    let event = store
        .look(async |connection| {
            sqlx::query_as(EVENT)
                .bind(id)
                .fetch_optional(connection)
                .await
        })
        .await?;
    Ok(event)
}

/// The events around it that have the same resource.
async fn others(store: &Store, event: &Event) -> Result<Option<Others>, PageError> {
    let Some(resource) = &event.resource_id else {
        return Ok(None);
    };
    let from = event.received_at - BEFORE;
    let to = event.received_at + AFTER;
    let filter = Filter {
        resource: Some(resource.clone()),
        from: Some(from),
        ..Filter::default()
    };
    let start = Key::before(to);
    let found = search::find(store, &filter, Some(start), OTHERS + 1, OTHERS_BUDGET).await?;
    let (next, _) = found.end.next();
    let from = next.map_or(from, |key| key.at);
    let others = found
        .rows
        .into_iter()
        .filter(|other| other.webhook_id != event.webhook_id);
    Ok(Some(Others {
        rows: others.take(OTHERS).collect(),
        from,
        to,
    }))
}

/// Where it is dismissed, or restored.
fn act(event: &Event) -> String {
    let action = Action::of(event.dismissed_at.is_some());
    text::href(action.path(), &[("id", &event.webhook_id)])
}

/// What does something about a problem.
fn commands(event: &Event, kind: Option<Kind>) -> Vec<(&'static str, String)> {
    let id = text::shell(&event.webhook_id);
    let withheld = match kind {
        None => return Vec::new(),
        Some(kind) if kind.is_withheld() => " --include-withheld",
        Some(_) => "",
    };
    if event.dismissed_at.is_some() {
        return vec![(
            "Make it an open one again",
            format!("hookctl dead-letters restore --id {id} --yes"),
        )];
    }
    vec![
        (
            "Try what a replay would do",
            format!("hookctl dead-letters replay --id {id}{withheld}"),
        ),
        (
            "Replay it",
            format!("hookctl dead-letters replay --id {id}{withheld} --yes"),
        ),
        (
            "Dismiss it",
            format!("hookctl dead-letters dismiss --id {id} --note 'WHY' --yes"),
        ),
    ]
}

impl Event {
    fn body(&self) -> Body {
        let (bytes, is_exact) = match (&self.raw, &self.payload) {
            (Some(raw), _) => (&raw[..], true),
            (None, Some(payload)) => (payload.as_bytes(), false),
            (None, None) => (&b""[..], true),
        };
        let (text, is_json, is_cut) = match json::as_json(bytes) {
            Some(json) => {
                let (text, is_cut) = json::pretty(json, MOST_SHOWN);
                (text, true, is_cut)
            }
            None => {
                let shown = &bytes[..bytes.len().min(MOST_SHOWN)];
                let text = String::from_utf8_lossy(shown).into_owned();
                (text, false, bytes.len() > MOST_SHOWN)
            }
        };
        Body {
            text,
            is_json,
            is_cut,
            is_exact,
            bytes: bytes.len(),
        }
    }

    /// From the attempt, by the sender's clock, to the receipt.
    fn to_receipt(&self) -> Option<String> {
        Some(time::words(self.received_at - self.attempted_at?))
    }

    fn to_row(&self) -> String {
        time::words(self.stored_at - self.received_at)
    }

    fn sha256(&self) -> String {
        hex::encode(&self.body_sha256)
    }
}

/// An event that is on its way to its row.
#[derive(Template)]
#[template(path = "waiting.html")]
struct WaitingPage {
    frame: Frame,
    id: String,
    waiting: Waiting,
}

#[derive(Default)]
struct Waiting {
    receipt: Option<Receipt>,
    spooled: Option<Spooled>,
}

#[derive(sqlx::FromRow)]
struct Receipt {
    received_at: DateTime<Utc>,
    published_at: Option<DateTime<Utc>>,
    written_off_at: Option<DateTime<Utc>>,
}

#[derive(sqlx::FromRow)]
struct Spooled {
    event_type: String,
    received_at: DateTime<Utc>,
    due_at: DateTime<Utc>,
    attempts: i32,
    last_error: Option<String>,
}

async fn waiting(
    request: &HttpRequest,
    id: &str,
    store: &Store,
) -> Result<HttpResponse, PageError> {
    let waiting = store
        .look(async |connection| find_waiting(connection, id).await)
        .await?;
    if waiting.receipt.is_none() && waiting.spooled.is_none() {
        return Err(PageError::NotFound(
            "There is no event, no receipt and no resource of this id.",
        ));
    }
    html(&WaitingPage {
        frame: Frame::new(request, &format!("Waiting {id}"), Section::Receipts),
        id: id.to_owned(),
        waiting,
    })
}

async fn find_waiting(connection: &mut PgConnection, id: &str) -> Result<Waiting, sqlx::Error> {
    Ok(Waiting {
        receipt: sqlx::query_as(
            "select received_at, published_at, written_off_at
               from webhook_receipts where webhook_id = $1",
        )
        .bind(id)
        .fetch_optional(&mut *connection)
        .await?,
        spooled: sqlx::query_as(
            "select event_type, received_at, due_at, attempts, last_error
               from webhook_spool where webhook_id = $1 limit 1",
        )
        .bind(id)
        .fetch_optional(connection)
        .await?,
    })
}
