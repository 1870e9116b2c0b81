//! `hookctl dead-letters show`

use std::{
    fmt::Write as _,
    io::{self, Write as _},
};

use anyhow::bail;
use chrono::{DateTime, SecondsFormat, Utc};
use operations::dead_letters::{Dismissal, family};
use serde::Serialize;
use serde_json::{Value, value::RawValue};
use shared::{EventType, config::DatabaseArgs};
use sqlx::{AssertSqlSafe, PgConnection, Row as _, postgres::PgRow};
use worker::problem::Kind;

use super::connect;
use crate::{
    database::READING, output::OutputArgs, printable::printable, typed_table, verdict::Verdict,
};

/// Show everything about one event: its problem, what happened to it, its body, and the typed row of
/// the same resource.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Whose; also of an event without a problem
    webhook_id: String,

    #[command(flatten)]
    database: DatabaseArgs,

    #[command(flatten)]
    output: OutputArgs,

    /// Write the body and nothing else, byte for byte
    #[arg(long, conflicts_with = "json")]
    raw: bool,
}

pub(super) async fn run(args: &Args) -> anyhow::Result<Verdict> {
    let mut connection = connect(&args.database).await?;
    let mut transaction = connection.begin(&READING).await?;
    let Some(event) = Event::find(&mut transaction, &args.webhook_id).await? else {
        bail!(
            "{} is not in events: {}",
            printable(&args.webhook_id, false),
            whereabouts(&mut transaction, &args.webhook_id).await?
        );
    };
    if args.raw {
        io::stdout().lock().write_all(&event.body()?)?;
    } else {
        args.output.print(&event, Event::text)?;
    }
    Ok(Verdict::Fine)
}

/// Says where an event is that is not stored.
async fn whereabouts(
    connection: &mut PgConnection,
    webhook_id: &str,
) -> Result<&'static str, sqlx::Error> {
    let (spooled, accepted): (bool, bool) = sqlx::query_as(
        "select exists (select from webhook_spool where webhook_id = $1),
                exists (select from webhook_receipts where webhook_id = $1)",
    )
    .bind(webhook_id)
    .fetch_one(connection)
    .await?;
    Ok(match (spooled, accepted) {
        (true, _) => "it waits in webhook_spool",
        (false, true) => {
            "it was accepted, and is neither stored nor spooled: it should still be in RabbitMQ's queue; see \
             hookctl reconcile"
        }
        (false, false) => "nobody has accepted it, unless Postgres was away at that time",
    })
}

/// One row of `events`, with related rows.
#[derive(Debug, Serialize)]
struct Event {
    webhook_id: String,
    family: &'static str,
    event_type: String,
    event_id: Option<String>,
    company_id: Option<String>,
    resource_id: Option<String>,
    secret_name: Option<String>,
    /// The companies that the secret is tied to.
    secret_companies: Option<Vec<String>>,
    kind: Option<&'static str>,
    problem: Option<String>,
    attempts: i32,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    dismissal: Option<Dismissal>,
    replayed_problem: Option<String>,
    history: Vec<Moment>,
    /// The event that has the id under which this second body arrived.
    conflicts_with: Option<String>,
    /// Whether the two bodies are the same JSON in another spelling.
    same_json: Option<bool>,
    payload: Option<Box<RawValue>>,
    /// The original body, if it is text.
    raw_text: Option<String>,
    /// The original body, if it is not text.
    raw_hex: Option<String>,
    body_sha256: String,
    /// The newest state of the event's resource, set by this event or another one.
    typed_row: Option<Box<RawValue>>,
    #[serde(skip)]
    pretty_payload: Option<String>,
}

/// A step in the event's history.
#[derive(Debug, Serialize)]
struct Moment {
    at: DateTime<Utc>,
    what: String,
}

const FIND: &str = "
    select e.*, r.published_at, o.webhook_id as other, o.payload = e.payload as same_json,
           array_to_string(e.secret_companies, ' ') as companies,
           e.payload::text as json, jsonb_pretty(e.payload) as pretty
      from events e
      left join webhook_receipts r on r.webhook_id = e.webhook_id
      left join events o on o.webhook_id <> e.webhook_id
                        and o.webhook_id = regexp_replace(e.webhook_id, '#conflict-[0-9a-f]+$', '')
     where e.webhook_id = $1";

impl Event {
    async fn find(connection: &mut PgConnection, webhook_id: &str) -> anyhow::Result<Option<Self>> {
        let row = sqlx::query(FIND)
            .bind(webhook_id)
            .fetch_optional(&mut *connection)
            .await?;
        let Some(row) = row else { return Ok(None) };
        let mut event = Self::read(&row)?;
        let table = EventType::parse(&event.event_type).and_then(|t| typed_table::name(t.family()));
        if let (Some(table), Some(resource)) = (table, &event.resource_id) {
            let sql =
                format!("select (to_jsonb(t) - 'sort_key')::text from {table} t where id = $1");
            let typed: Option<String> = sqlx::query_scalar(AssertSqlSafe(sql))
                .bind(resource)
                .fetch_optional(connection)
                .await?;
            event.typed_row = typed.map(RawValue::from_string).transpose()?;
        }
        Ok(Some(event))
    }

    fn read(row: &PgRow) -> anyhow::Result<Self> {
        let event_type: String = row.try_get("event_type")?;
        let problem: Option<String> = row.try_get("problem")?;
        let raw: Option<Vec<u8>> = row.try_get("raw")?;
        let (raw_text, raw_hex) = match raw.map(String::from_utf8) {
            None => (None, None),
            Some(Ok(text)) => (Some(text), None),
            Some(Err(bytes)) => (None, Some(hex::encode(bytes.as_bytes()))),
        };
        let stored_kind: Option<&str> = row.try_get("problem_kind")?;
        // Also after a replay.
        let is_conflict = stored_kind == Some(Kind::Conflict.name());
        Ok(Self {
            webhook_id: row.try_get("webhook_id")?,
            family: family(&event_type),
            event_type,
            event_id: row.try_get("event_id")?,
            company_id: row.try_get("company_id")?,
            resource_id: row.try_get("resource_id")?,
            secret_name: row.try_get("secret_name")?,
            secret_companies: row
                .try_get::<Option<String>, _>("companies")?
                .map(|companies| companies.split_whitespace().map(str::to_owned).collect()),
            kind: problem.as_ref().map(|_| Kind::shown(stored_kind).name()),
            problem,
            attempts: row.try_get("attempts")?,
            dismissal: Dismissal::read(row)?,
            replayed_problem: row.try_get("replayed_problem")?,
            history: history(row)?,
            conflicts_with: row
                .try_get::<Option<_>, _>("other")?
                .filter(|_| is_conflict),
            same_json: row
                .try_get::<Option<_>, _>("same_json")?
                .filter(|_| is_conflict),
            payload: row
                .try_get::<Option<String>, _>("json")?
                .map(RawValue::from_string)
                .transpose()?,
            raw_text,
            raw_hex,
            body_sha256: hex::encode(row.try_get::<Vec<u8>, _>("body_sha256")?),
            typed_row: None,
            pretty_payload: row.try_get("pretty")?,
        })
    }

    /// The original body, or its JSON if only that was kept.
    fn body(&self) -> anyhow::Result<Vec<u8>> {
        Ok(match (&self.raw_text, &self.raw_hex, &self.payload) {
            (Some(text), _, _) => text.clone().into_bytes(),
            (None, Some(hexadecimal), _) => hex::decode(hexadecimal)?,
            (None, None, Some(json)) => json.get().as_bytes().to_vec(),
            (None, None, None) => Vec::new(),
        })
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: Option<&str>| {
            if let Some(value) = value {
                let value = printable(value, false);
                writeln!(text, "{name:<15} {value}").expect("a string takes everything");
            }
        };
        line("webhook id", Some(&self.webhook_id));
        line("type", Some(&self.event_type));
        line("family", Some(self.family));
        line("event id", self.event_id.as_deref());
        line("company", self.company_id.as_deref());
        let companies = self.secret_companies.as_ref();
        line("secret is for", companies.map(|c| c.join(" ")).as_deref());
        line("resource", self.resource_id.as_deref());
        line("problem", Some(self.problem.as_deref().unwrap_or("none")));
        line("kind", self.kind);
        line("attempts", Some(&self.attempts.to_string()));
        line("conflicts with", self.conflicts_with.as_deref());
        line(
            "bodies",
            self.same_json.map(|same| match same {
                true => "the same JSON in another spelling",
                false => "different",
            }),
        );
        line("sha256", Some(&self.body_sha256));
        text.push_str("\nhistory\n");
        for Moment { at, what } in &self.history {
            let at = at.to_rfc3339_opts(SecondsFormat::Millis, true);
            text.push_str(&format!("  {at}  {}\n", printable(what, false)));
        }
        text.push_str(&self.body_text());
        match &self.typed_row {
            Some(row) => {
                text.push_str("\ntyped row of this resource\n");
                text.push_str(&indented(&pretty(row)));
            }
            None if self.resource_id.is_some() => {
                text.push_str("\nthere is no typed row of this resource\n");
            }
            None => {}
        }
        text.truncate(text.trim_end().len());
        text
    }

    fn body_text(&self) -> String {
        match (&self.pretty_payload, &self.raw_text, &self.raw_hex) {
            (Some(json), _, _) => format!("\nbody, as JSON\n{}", indented(json)),
            (None, Some(text), _) => format!("\nbody, as text\n{}", indented(text)),
            (None, None, Some(hexadecimal)) => {
                format!("\nbody, in hexadecimal\n{}", indented(hexadecimal))
            }
            (None, None, None) => String::new(),
        }
    }
}

/// Typed rows have no number that would lose precision here.
fn pretty(json: &RawValue) -> String {
    serde_json::from_str::<Value>(json.get())
        .and_then(|value| serde_json::to_string_pretty(&value))
        .unwrap_or_else(|_| json.get().to_owned())
}

fn indented(text: &str) -> String {
    let lines = printable(text, true);
    lines.lines().map(|line| format!("  {line}\n")).collect()
}

/// The known steps of the event's history, in order.
fn history(row: &PgRow) -> Result<Vec<Moment>, sqlx::Error> {
    let secret: Option<String> = row.try_get("secret_name")?;
    let verified = secret.map_or_else(String::new, |name| format!(", verified by secret {name}"));
    let attempts: i32 = row.try_get("attempts")?;
    let replayed_over: Option<String> = row.try_get("replayed_problem")?;
    let by: Option<String> = row.try_get("dismissed_by")?;
    let note: Option<String> = row.try_get("dismissal_note")?;
    let note = note.map_or_else(String::new, |note| format!(": {note}"));
    let moments = [
        ("attempted_at", "sent by Pleo".to_owned()),
        ("received_at", format!("received by ingest{verified}")),
        ("published_at", "confirmed by RabbitMQ".to_owned()),
        (
            "stored_at",
            format!("stored by a worker, at attempt {attempts}"),
        ),
        (
            "replayed_at",
            format!(
                "replayed; the problem was: {}",
                replayed_over.unwrap_or_default()
            ),
        ),
        (
            "erased_at",
            "erased; what is left recognises a repetition".to_owned(),
        ),
        (
            "dismissed_at",
            format!("dismissed by {}{note}", by.unwrap_or_default()),
        ),
    ];
    let mut history = Vec::new();
    for (column, what) in moments {
        if let Some(at) = row.try_get::<Option<DateTime<Utc>>, _>(column)? {
            history.push(Moment { at, what });
        }
    }
    history.sort_by_key(|moment| moment.at);
    Ok(history)
}
