//! Finding events by what no index knows, the newest first, in a bounded time.
//!
//! `events` has indexes on the time of receipt, also one of only the events with a problem. It has none on
//! companies, types or resources, because they would slow down the storing of every event. So a search
//! walks back in time until it has a full page, has come to the end, or its time is over. Then the page
//! says how far back it looked, and the next page continues from there. If somebody has created an index
//! on resources, a search for one uses it.

mod of_resource;
mod walk;

use std::{fmt, str::FromStr, time::Duration};

use chrono::{DateTime, Utc};
use serde::Deserialize;
use sqlx::{PgConnection, Postgres, QueryBuilder};
use tokio::time::Instant;
use worker::problem::Kind;

pub use self::{of_resource::is_found_at_once, walk::Walk};
use crate::{
    store::{STATEMENT_TIMEOUT, Store, StoreError},
    time,
};

/// How long a page searches, as its address says it.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
pub enum Patience {
    /// It is answered at once.
    #[default]
    #[serde(rename = "")]
    Short,
    /// Somebody asked it to look further back.
    #[serde(rename = "longer")]
    Longer,
}

impl Patience {
    /// The parameter of the address, if the next page is to search for longer.
    pub const LONGER: (&str, &str) = ("search", "longer");

    /// The time for the search.
    pub const fn budget(self) -> Duration {
        match self {
            Self::Short => Duration::from_millis(40),
            Self::Longer => Duration::from_millis(1_500),
        }
    }
}

/// How much longer a slice may take that was expected to be in time. Otherwise a small delay would waste
/// what it has read.
const GRACE: Duration = Duration::from_millis(15);

/// With less time left, no further slice is begun.
const TOO_SHORT: Duration = Duration::from_millis(5);

/// Events of the first slice: few, as the newest are often enough.
const FIRST_SLICE: i64 = 2_000;
/// Bodies may be large.
const FIRST_SLICE_OF_BODIES: i64 = 500;

/// A place in the order of events, by which the next page begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The event's time, in lists of events that of its receipt.
    pub at: DateTime<Utc>,
    /// Its id, among those of the same time.
    pub webhook_id: String,
}

impl Key {
    /// Before it are all events before this time.
    pub fn before(at: DateTime<Utc>) -> Self {
        Self {
            at,
            webhook_id: String::new(),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}~{}", time::machine(&self.at), self.webhook_id)
    }
}

impl FromStr for Key {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split_once('~')
            .and_then(|(at, id)| Some((time::parse(at)?, id)))
            .map(|(at, id)| Self {
                at,
                webhook_id: id.to_owned(),
            })
            .ok_or_else(|| "`before` is no place in the list".to_owned())
    }
}

/// Whether and what is wrong with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Nothing is.
    None,
    /// Anything, dismissed or not.
    Any,
    /// A problem of this kind.
    Of(Kind),
}

/// What an event has to be; all of it together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Its type.
    pub event_type: Option<String>,
    /// Its company's id.
    pub company: Option<String>,
    /// Its resource's id.
    pub resource: Option<String>,
    /// The name of the secret that verified it.
    pub secret: Option<String>,
    /// Its problem.
    pub problem: Option<Problem>,
    /// A field of the body by its path, and its value as text.
    pub field: Option<(Vec<String>, String)>,
    /// Received at this time or later.
    pub from: Option<DateTime<Utc>>,
    /// Received before this time.
    pub to: Option<DateTime<Utc>>,
}

impl Filter {
    /// Appends the conditions, each with its `and`.
    fn push(&self, query: &mut QueryBuilder<Postgres>) {
        let columns = [
            (" and event_type = ", &self.event_type),
            (" and company_id = ", &self.company),
            (" and resource_id = ", &self.resource),
            (" and secret_name = ", &self.secret),
        ];
        for (condition, value) in columns {
            if let Some(value) = value {
                query.push(condition).push_bind(value.clone());
            }
        }
        if let Some((path, value)) = &self.field {
            query.push(" and payload #>> ").push_bind(path.clone());
            query.push(" = ").push_bind(value.clone());
        }
        match self.problem {
            None => {}
            Some(Problem::None) => {
                query.push(" and problem is null");
            }
            Some(Problem::Any) => {
                query.push(" and problem is not null");
            }
            Some(Problem::Of(kind)) => kind.push_condition(query),
        }
    }

    /// The condition of the index that the search follows, with its `and`.
    fn of_index(&self) -> &'static str {
        match self.problem {
            Some(Problem::Any | Problem::Of(_)) => " and problem is not null",
            Some(Problem::None) | None => "",
        }
    }

    fn first_slice(&self) -> i64 {
        match self.field {
            Some(_) => FIRST_SLICE_OF_BODIES,
            None => FIRST_SLICE,
        }
    }
}

/// The columns of a [`Summary`].
const SUMMARY: &str = "webhook_id, event_type, company_id, resource_id, secret_name, problem,
                       problem_kind, dismissed_at is not null as is_dismissed, received_at, stored_at";

/// An event without its body.
#[derive(Clone, Debug, sqlx::FromRow)]
#[allow(missing_docs)]
pub struct Summary {
    pub webhook_id: String,
    pub event_type: String,
    pub company_id: Option<String>,
    pub resource_id: Option<String>,
    pub secret_name: Option<String>,
    pub problem: Option<String>,
    pub problem_kind: Option<String>,
    pub is_dismissed: bool,
    pub received_at: DateTime<Utc>,
    pub stored_at: DateTime<Utc>,
}

impl Summary {
    /// That of an event with this webhook id.
    pub async fn get(
        connection: &mut PgConnection,
        webhook_id: &str,
    ) -> Result<Option<Self>, sqlx::Error> {
        let mut query = QueryBuilder::<Postgres>::new("select ");
        query.push(SUMMARY).push(" from events where webhook_id = ");
        query.push_bind(webhook_id);
        query.build_query_as().fetch_optional(connection).await
    }

    /// The kind of its problem.
    pub fn kind(&self) -> Option<Kind> {
        let problem = self.problem.as_ref();
        problem.map(|_| Kind::shown(self.problem_kind.as_deref()))
    }

    /// Its place in the order.
    pub fn key(&self) -> Key {
        Key {
            at: self.received_at,
            webhook_id: self.webhook_id.clone(),
        }
    }
}

/// Where a search ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// There is nothing before.
    All,
    /// The page is full; the next one begins here.
    Full(Key),
    /// Its time was over; it goes on from here.
    Spent(Key),
}

impl End {
    /// Where the next page begins, if there is one, and how far back a search came whose time was over.
    pub fn next(&self) -> (Option<&Key>, Option<DateTime<Utc>>) {
        match self {
            Self::All => (None, None),
            Self::Full(key) => (Some(key), None),
            Self::Spent(key) => (Some(key), Some(key.at)),
        }
    }
}

/// What a search found.
#[derive(Clone, Debug)]
pub struct Found {
    /// The newest first.
    pub rows: Vec<Summary>,
    /// Why there are no more.
    pub end: End,
}

impl Found {
    /// Adds an event that the search did not find, and says whether there was one to add.
    pub fn add(&mut self, event: Option<Summary>) -> bool {
        let missing = event.filter(|event| {
            let mut rows = self.rows.iter();
            rows.all(|row| row.webhook_id != event.webhook_id)
        });
        let is_missing = missing.is_some();
        self.rows.extend(missing);
        is_missing
    }
}

/// Finds at most `limit` events before a place, the newest first. It looks for as long as `budget`.
pub async fn find(
    store: &Store,
    filter: &Filter,
    before: Option<Key>,
    limit: usize,
    budget: Duration,
) -> Result<Found, StoreError> {
    let deadline = Instant::now() + budget;
    let mut walk = Walk::new(filter.clone(), before, filter.first_slice());
    let mut rows: Vec<Summary> = Vec::new();
    // The first slice is always read, so that each page gets further.
    let mut time_limit = STATEMENT_TIMEOUT;
    loop {
        let wanted = limit + 1 - rows.len();
        match walk.slice(store, wanted, time_limit).await {
            Err(StoreError::TooSlow) if time_limit < STATEMENT_TIMEOUT => break,
            found => rows.extend(found?),
        }
        if rows.len() > limit {
            rows.truncate(limit);
            let last = rows.last().map_or(walk.at().clone(), Summary::key);
            return Ok(Found {
                rows,
                end: End::Full(last),
            });
        }
        if walk.is_over() {
            return Ok(Found {
                rows,
                end: End::All,
            });
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left < TOO_SHORT {
            break;
        }
        time_limit = (left + GRACE).min(STATEMENT_TIMEOUT / 2);
    }
    Ok(Found {
        rows,
        end: End::Spent(walk.at().clone()),
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn a_key_keeps_every_character_of_an_id() {
        let key = Key {
            at: DateTime::from_timestamp_micros(1_750_000_000_123_456).expect("a time"),
            webhook_id: "a~b c%\u{202e}".to_owned(),
        };
        assert_eq!(key.to_string().parse(), Ok(key));
    }

    #[rstest]
    #[case("")]
    #[case("~")]
    #[case("msg_1")]
    #[case("2026-13-01T00:00:00Z~msg_1")]
    #[case("+99999-01-01T00:00:00Z~x")]
    fn an_edited_key_is_refused(#[case] text: &str) {
        assert!(text.parse::<Key>().is_err());
    }
}
