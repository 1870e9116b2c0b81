//! Finding events by what no index knows, the newest first, at a bounded cost.
//!
//! `events` has an index on the time of receipt and none on companies, types or resources, which
//! would cost every event that is stored. So a search walks back in time along that index, some
//! thousand events at a time, until it has a page full, has come to the end, or has spent its time.
//! Then it says how far it came, and the next page goes on from there.

use std::{fmt, str::FromStr, time::Duration};

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, Postgres, QueryBuilder, Row as _, postgres::PgRow};
use tokio::time::Instant;
use worker::problem::Kind;

use crate::{
    store::{Store, StoreError},
    time,
};

/// For how long a search looks for more.
pub const BUDGET: Duration = Duration::from_millis(1_500);

/// Events looked at together: few at first, as the newest are often enough.
const FIRST_STRIDE: i64 = 2_000;
const LONGEST_STRIDE: i64 = 50_000;
/// Bodies take longer.
const LONGEST_STRIDE_OF_BODIES: i64 = 5_000;

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

    fn longest_stride(&self) -> i64 {
        match self.field {
            Some(_) => LONGEST_STRIDE_OF_BODIES,
            None => LONGEST_STRIDE,
        }
    }
}

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
    pub is_dismissed: bool,
    pub received_at: DateTime<Utc>,
    pub stored_at: DateTime<Utc>,
}

impl Summary {
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

/// Finds at most `limit` events before a place, the newest first.
pub async fn find(
    store: &Store,
    filter: &Filter,
    before: Option<Key>,
    limit: usize,
    budget: Duration,
) -> Result<Found, StoreError> {
    let deadline = Instant::now() + budget;
    let mut walk = Walk::new(filter.clone(), before, FIRST_STRIDE);
    let mut rows: Vec<Summary> = Vec::new();
    for stride in 0.. {
        let wanted = limit + 1 - rows.len();
        match walk.stride(store, wanted).await {
            Err(StoreError::TooSlow) if stride > 0 => break,
            found => rows.extend(found?),
        }
        if rows.len() > limit {
            rows.truncate(limit);
            let last = rows.last().map_or(walk.at, Summary::key);
            return Ok(Found {
                rows,
                end: End::Full(last),
            });
        }
        if walk.is_over {
            return Ok(Found {
                rows,
                end: End::All,
            });
        }
        if Instant::now() >= deadline {
            break;
        }
    }
    Ok(Found {
        rows,
        end: End::Spent(walk.at),
    })
}

/// A walk back in time.
#[derive(Debug)]
pub struct Walk {
    filter: Filter,
    /// Everything from here on was looked at.
    at: Key,
    /// How many events the next stride looks at.
    length: i64,
    is_over: bool,
}

impl Walk {
    /// Begins before a place, or at the end of the filter's times. `length` is that of the first stride.
    pub fn new(filter: Filter, before: Option<Key>, length: i64) -> Self {
        let end = Key::before(filter.to.unwrap_or(DateTime::<Utc>::MAX_UTC));
        Self {
            at: match before {
                Some(before) if before.at < end.at => before,
                _ => end,
            },
            length: length.min(filter.longest_stride()),
            is_over: false,
            filter,
        }
    }

    /// Whether there is nothing before.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Finds at most `wanted` events on the next stretch, the newest first. It goes on behind the last of
    /// them, or behind the stretch if it has no more. One that was too slow may be tried again: the
    /// next one is shorter.
    pub async fn stride(
        &mut self,
        store: &Store,
        wanted: usize,
    ) -> Result<Vec<Summary>, StoreError> {
        let looked = store
            .look(async |connection| {
                look(connection, &self.filter, &self.at, self.length, wanted).await
            })
            .await;
        if matches!(looked, Err(StoreError::TooSlow)) {
            self.length = (self.length / 4).max(1);
        }
        let looked = looked?;
        match (looked.rows.last(), looked.reach) {
            (Some(last), _) if looked.rows.len() == wanted => self.at = last.key(),
            (_, Some(reach)) if looked.count == self.length => {
                self.at = reach;
                self.length = (self.length * 4).min(self.filter.longest_stride());
            }
            _ => self.is_over = true,
        }
        Ok(looked.rows)
    }
}

/// One stretch of a walk.
struct Looked {
    rows: Vec<Summary>,
    count: i64,
    /// The oldest event that was looked at.
    reach: Option<Key>,
}

async fn look(
    connection: &mut PgConnection,
    filter: &Filter,
    before: &Key,
    length: i64,
    wanted: usize,
) -> Result<Looked, sqlx::Error> {
    let mut query = QueryBuilder::<Postgres>::new(
        "with looked as materialized (
             select webhook_id, event_type, company_id, resource_id, secret_name, problem,
                    dismissed_at is not null as is_dismissed, received_at, stored_at, (true",
    );
    filter.push(&mut query);
    query.push(") as hit from (select * from events where received_at <= ");
    query.push_bind(before.at);
    query.push(" and (received_at, webhook_id) < (");
    query.push_bind(before.at).push(", ");
    query.push_bind(before.webhook_id.clone());
    query.push(") and received_at >= ");
    query.push_bind(filter.from.unwrap_or(DateTime::UNIX_EPOCH));
    query.push(" order by received_at desc, webhook_id desc limit ");
    query.push_bind(length);
    query.push(
        ") newest),
         reach as (select received_at as reached_at, webhook_id as reached_id,
                          (select count(*) from looked) as looked_at
                     from looked order by received_at, webhook_id limit 1),
         found as (select * from looked where hit order by received_at desc, webhook_id desc limit ",
    );
    query.push_bind(i64::try_from(wanted).unwrap_or(i64::MAX));
    query.push(
        ") select reach.*, found.* from reach left join found on true
            order by found.received_at desc, found.webhook_id desc",
    );
    let rows = query.build().fetch_all(connection).await?;
    let Some(first) = rows.first() else {
        return Ok(Looked {
            rows: Vec::new(),
            count: 0,
            reach: None,
        });
    };
    Ok(Looked {
        count: first.try_get("looked_at")?,
        reach: Some(Key {
            at: first.try_get("reached_at")?,
            webhook_id: first.try_get("reached_id")?,
        }),
        rows: rows
            .iter()
            .filter(|row| is_found(row))
            .map(sqlx::FromRow::from_row)
            .collect::<Result<_, _>>()?,
    })
}

/// A stretch without a hit gives one row that says only how far it came.
fn is_found(row: &PgRow) -> bool {
    row.try_get::<Option<bool>, _>("hit")
        .is_ok_and(|hit| hit.is_some())
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
