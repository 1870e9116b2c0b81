//! Dismissing dead letters and restoring them: a page that shows which, and the form on it that does it.

use actix_web::{HttpRequest, HttpResponse, http::header, web};
use askama::Template;
use chrono::{DateTime, SecondsFormat, Utc};
use operations::dead_letters::{Change, Filter, State};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sqlx::{PgConnection, Postgres, QueryBuilder};

use super::events;
use crate::{
    error::PageError,
    frame::{Frame, Section, html},
    operations::{Operations, person},
    store::Store,
    text, time,
};

/// The most that one action takes.
const MOST: usize = 10_000;

/// Those that are shown before.
const SHOWN: usize = 20;

const MAX_NOTE: usize = 1_000;

/// Which ones, in the address and in the form.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Choice {
    kind: String,
    #[serde(rename = "type")]
    event_type: String,
    company: String,
    id: String,
}

/// What is posted: `note` where they are dismissed, when the page with the form was made, and the digest of
/// what it showed.
#[derive(Deserialize)]
pub(crate) struct Form {
    #[serde(flatten)]
    choice: Choice,
    #[serde(default)]
    note: String,
    until: DateTime<Utc>,
    #[serde(default)]
    shown: String,
}

/// What is done, by the last part of the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Action {
    Dismiss,
    Restore,
}

#[derive(sqlx::FromRow)]
struct Letter {
    webhook_id: String,
    event_type: String,
    problem: String,
    stored_at: DateTime<Utc>,
}

#[derive(Template)]
#[template(path = "act.html")]
struct ActPage {
    frame: Frame,
    choice: Choice,
    dismisses: bool,
    path: &'static str,
    back: String,
    count: usize,
    is_cut: bool,
    letters: Vec<Letter>,
    until: String,
    shown: String,
}

/// What an action would change.
struct Preview {
    now: DateTime<Utc>,
    ids: Vec<String>,
    is_cut: bool,
    newest: Vec<Letter>,
}

/// `GET /dead-letters/dismiss` and `/dead-letters/restore`: shows which they are. Nothing is changed.
pub(crate) async fn page(
    request: HttpRequest,
    action: web::Path<Action>,
    choice: web::Query<Choice>,
    store: web::Data<Store>,
    operations: web::Data<Operations>,
) -> Result<HttpResponse, PageError> {
    let (action, choice) = (action.into_inner(), choice.into_inner());
    operations.check(&request)?;
    let filter = choice.filter()?;
    let preview = store
        .look(async |connection| preview(connection, action, &filter).await)
        .await?;
    html(&ActPage {
        frame: Frame::new(&request, action.title(), Section::DeadLetters),
        dismisses: action == Action::Dismiss,
        path: action.path(),
        back: choice.back(action, None),
        is_cut: preview.is_cut,
        count: preview.ids.len(),
        letters: preview.newest,
        until: preview.now.to_rfc3339_opts(SecondsFormat::Micros, true),
        shown: digest(&preview.ids),
        choice,
    })
}

/// `POST /dead-letters/dismiss` and `/dead-letters/restore`
pub(crate) async fn act(
    request: HttpRequest,
    action: web::Path<Action>,
    form: web::Form<Form>,
    store: web::Data<Store>,
    operations: web::Data<Operations>,
) -> Result<HttpResponse, PageError> {
    operations.check(&request)?;
    let action = action.into_inner();
    let Form {
        choice,
        note,
        until,
        shown,
    } = form.into_inner();
    if until < DateTime::UNIX_EPOCH {
        return Err(PageError::BadAddress("`until` is before 1970.".to_owned()));
    }
    let note = action.note(&note)?;
    let filter = choice.filter()?;
    let ids = store
        .look(async |connection| chosen(connection, action, &filter, until, MOST).await)
        .await?;
    // One may have come by a transaction that began before the page, or been changed since.
    if digest(&ids) != shown {
        return Err(PageError::Changed);
    }
    let (operations, person) = (operations.as_ref().clone(), person(&request));
    let record = choice.describe(until);
    // On its own, so that somebody who closes the page does not end it half done.
    let done = actix_web::rt::spawn(async move {
        let change = match action {
            Action::Dismiss => Change::Dismiss { note: &note },
            Action::Restore => Change::Restore,
        };
        let changed = operations
            .change(change, &ids, record, person.as_deref())
            .await;
        tracing::info!(
            person,
            action = change.action(),
            changed = changed.rows,
            "an operator acted"
        );
        changed
    });
    let changed = done
        .await
        .map_err(|_ended| PageError::NotDone("The console was stopped meanwhile.".to_owned()))?;
    if let Some(error) = changed.error {
        let error = shared::reason::one_line(&error);
        tracing::warn!(error, changed = changed.rows, "an operator's action failed");
        let (rows, verb) = (changed.rows, action.verb());
        return Err(PageError::NotDone(format!(
            "{rows} {verb}, and none of the others: {error}"
        )));
    }
    Ok(HttpResponse::SeeOther()
        .insert_header((header::LOCATION, choice.back(action, Some(changed.rows))))
        .finish())
}

async fn preview(
    connection: &mut PgConnection,
    action: Action,
    filter: &Filter,
) -> Result<Preview, sqlx::Error> {
    let now: DateTime<Utc> = sqlx::query_scalar("select now()")
        .fetch_one(&mut *connection)
        .await?;
    let mut ids = chosen(&mut *connection, action, filter, now, MOST + 1).await?;
    let is_cut = ids.len() > MOST;
    ids.truncate(MOST);
    let shown: Vec<&String> = ids.iter().take(SHOWN).collect();
    let newest = sqlx::query_as(
        "select webhook_id, event_type, problem, stored_at from events
          where webhook_id = any($1) and problem is not null
          order by stored_at desc, webhook_id desc",
    )
    .bind(shown)
    .fetch_all(connection)
    .await?;
    Ok(Preview {
        now,
        ids,
        is_cut,
        newest,
    })
}

/// What a list of ids is known by.
fn digest(ids: &[String]) -> String {
    hex::encode(Sha256::digest(ids.join("\n")))
}

/// The ids of those that were there at that time, the newest first.
async fn chosen(
    connection: &mut PgConnection,
    action: Action,
    filter: &Filter,
    until: DateTime<Utc>,
    most: usize,
) -> Result<Vec<String>, sqlx::Error> {
    let mut query = QueryBuilder::<Postgres>::new("select webhook_id from events");
    filter.push(action.takes(), &mut query);
    query.push(match action {
        Action::Dismiss => " and stored_at <= ",
        Action::Restore => " and dismissed_at <= ",
    });
    query.push_bind(until);
    query.push(format!(
        " order by stored_at desc, webhook_id desc limit {most}"
    ));
    query.build_query_scalar().fetch_all(connection).await
}

impl Action {
    /// What is done to letters that are dismissed, or are not.
    pub(crate) fn of(dismissed: bool) -> Self {
        match dismissed {
            true => Self::Restore,
            false => Self::Dismiss,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Dismiss => "Dismiss dead letters",
            Self::Restore => "Restore dead letters",
        }
    }

    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Dismiss => "/dead-letters/dismiss",
            Self::Restore => "/dead-letters/restore",
        }
    }

    fn verb(self) -> &'static str {
        match self {
            Self::Dismiss => "dismissed",
            Self::Restore => "restored",
        }
    }

    /// Which they are before.
    fn takes(self) -> State {
        match self {
            Self::Dismiss => State::Open,
            Self::Restore => State::Dismissed,
        }
    }

    /// Why they are dismissed, which has to be said.
    fn note(self, note: &str) -> Result<String, PageError> {
        let note = note.trim();
        let is_good = match self {
            Self::Dismiss => !note.is_empty() && note.len() <= MAX_NOTE && !note.contains('\0'),
            Self::Restore => note.is_empty(),
        };
        match is_good {
            true => Ok(note.to_owned()),
            false => Err(PageError::BadAddress(format!(
                "The note says why, in 1 to {MAX_NOTE} bytes of text."
            ))),
        }
    }
}

impl Choice {
    fn filter(&self) -> Result<Filter, PageError> {
        let Self {
            kind,
            event_type,
            company,
            id,
        } = self;
        if [kind, event_type, company, id]
            .iter()
            .any(|text| text.contains('\0'))
        {
            return Err(PageError::BadAddress("There is a NUL in it.".to_owned()));
        }
        if !kind.is_empty() {
            events::kind(kind).map_err(PageError::BadAddress)?;
        }
        let given = |text: &String| (!text.is_empty()).then(|| text.clone());
        Ok(Filter {
            problem: given(kind),
            event_type: given(event_type),
            company: given(company),
            ids: given(id).into_iter().collect(),
            ..Filter::default()
        })
    }

    /// For the record.
    fn describe(&self, until: DateTime<Utc>) -> Value {
        let given = |text: &String| (!text.is_empty()).then(|| text.clone());
        json!({
            "problem": given(&self.kind),
            "type": given(&self.event_type),
            "company": given(&self.company),
            "ids": given(&self.id).map(|id| [id]),
            "until": until,
        })
    }

    /// Where one came from, perhaps with how many were changed.
    fn back(&self, action: Action, changed: Option<usize>) -> String {
        if !self.id.is_empty() {
            return text::href("/event", &[("id", &self.id)]);
        }
        let state = match action {
            Action::Dismiss => "open",
            Action::Restore => "dismissed",
        };
        let changed = changed.map(|count| count.to_string()).unwrap_or_default();
        text::href(
            "/dead-letters",
            &[
                ("state", state),
                ("kind", &self.kind),
                ("type", &self.event_type),
                ("company", &self.company),
                ("changed", &changed),
            ],
        )
    }
}
