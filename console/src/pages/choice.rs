//! The dead letters that an action is about: selecting them, showing them before the action, and checking
//! that the action gets exactly those that were shown.

use chrono::{DateTime, SecondsFormat, Utc};
use operations::dead_letters::{Filter, State};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sqlx::{PgConnection, Postgres, QueryBuilder};

use super::events;
use crate::{error::PageError, store::Store, text};

/// The maximum of one action.
const MAX: usize = 10_000;

/// How many the page shows.
const SHOWN: usize = 20;

/// The selection, in the query string and in the form.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Choice {
    pub(super) kind: String,
    #[serde(rename = "type")]
    pub(super) event_type: String,
    pub(super) company: String,
    pub(super) id: String,
}

/// What a form sends back: the selection, when the page was made, and a digest of what it showed.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Shown {
    #[serde(flatten)]
    pub(super) choice: Choice,
    until: DateTime<Utc>,
    #[serde(default)]
    shown: String,
}

/// What the page shows before the action.
pub(super) struct Preview {
    pub(super) until: String,
    pub(super) shown: String,
    pub(super) count: usize,
    /// There are more than one action takes.
    pub(super) is_cut: bool,
    pub(super) newest: Vec<Letter>,
}

#[derive(sqlx::FromRow)]
pub(super) struct Letter {
    pub(super) webhook_id: String,
    pub(super) event_type: String,
    pub(super) problem: String,
    pub(super) stored_at: DateTime<Utc>,
}

impl Choice {
    /// The dead letters in this state that an action would take now.
    pub(super) async fn preview(&self, store: &Store, state: State) -> Result<Preview, PageError> {
        let filter = self.filter()?;
        let preview = store.look(async |connection| preview(connection, state, &filter).await);
        Ok(preview.await?)
    }

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

    /// The page that the operator came from, perhaps with the number of changes.
    pub(super) fn back(&self, state: State, changed: Option<usize>) -> String {
        if !self.id.is_empty() {
            return text::href("/event", &[("id", &self.id)]);
        }
        let state = match state {
            State::Open => "open",
            State::Dismissed => "dismissed",
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

impl Shown {
    /// The ids of exactly those that were shown, the newest first.
    ///
    /// # Errors
    /// If others match now. One may have been changed meanwhile, or stored by a transaction that began
    /// before the page was made.
    pub(super) async fn ids(&self, store: &Store, state: State) -> Result<Vec<String>, PageError> {
        if self.until < DateTime::UNIX_EPOCH {
            return Err(PageError::BadAddress("`until` is before 1970.".to_owned()));
        }
        let filter = self.choice.filter()?;
        let ids = store
            .look(async |connection| chosen(connection, state, &filter, self.until, MAX).await)
            .await?;
        match digest(&ids) == self.shown {
            true => Ok(ids),
            false => Err(PageError::Changed),
        }
    }

    /// For `operator_actions`.
    pub(super) fn describe(&self) -> Value {
        let given = |text: &String| (!text.is_empty()).then(|| text.clone());
        json!({
            "problem": given(&self.choice.kind),
            "type": given(&self.choice.event_type),
            "company": given(&self.choice.company),
            "ids": given(&self.choice.id).map(|id| [id]),
            "until": self.until,
        })
    }

    /// The same selection for the form of another page.
    pub(super) fn preview(&self, ids: &[String]) -> Preview {
        Preview {
            until: machine(self.until),
            shown: self.shown.clone(),
            count: ids.len(),
            is_cut: false,
            newest: Vec::new(),
        }
    }
}

async fn preview(
    connection: &mut PgConnection,
    state: State,
    filter: &Filter,
) -> Result<Preview, sqlx::Error> {
    let now: DateTime<Utc> = sqlx::query_scalar("select now()")
        .fetch_one(&mut *connection)
        .await?;
    let mut ids = chosen(&mut *connection, state, filter, now, MAX + 1).await?;
    let is_cut = ids.len() > MAX;
    ids.truncate(MAX);
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
        until: machine(now),
        shown: digest(&ids),
        count: ids.len(),
        is_cut,
        newest,
    })
}

/// As precise as in Postgres.
fn machine(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// A digest of the ids.
fn digest(ids: &[String]) -> String {
    hex::encode(Sha256::digest(ids.join("\n")))
}

/// The ids of those that matched at that time, the newest first.
async fn chosen(
    connection: &mut PgConnection,
    state: State,
    filter: &Filter,
    until: DateTime<Utc>,
    most: usize,
) -> Result<Vec<String>, sqlx::Error> {
    let mut query = QueryBuilder::<Postgres>::new("select webhook_id from events");
    filter.push(state, &mut query);
    query.push(match state {
        State::Open => " and stored_at <= ",
        State::Dismissed => " and dismissed_at <= ",
    });
    query.push_bind(until);
    query.push(format!(
        " order by stored_at desc, webhook_id desc limit {most}"
    ));
    query.build_query_scalar().fetch_all(connection).await
}
