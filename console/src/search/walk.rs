//! A walk back in time through the events, slice by slice.
//!
//! A slice is a number of events that follow each other in the order of an index: of all events by their
//! time of receipt, or of those with a problem. So each statement reads a bounded number of rows, whatever
//! the filter is and however few events match it.
//!
//! Events of one resource need no slices where somebody has created an index on resources
//! (`of_resource.rs`).

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, Postgres, QueryBuilder, Row as _, postgres::PgRow};
use tokio::time::Instant;

use super::{Filter, Key, SUMMARY, Summary, of_resource};
use crate::store::{Store, StoreError};

/// The longest slice.
const LONGEST: i64 = 50_000;

/// How much longer a slice is at most than the one before.
const GROWTH: f64 = 4.0;

/// The share of the time limit that a slice should take, by the rate of the slice before.
const SHARE: f64 = 0.7;

/// What a walk follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    /// The events' time of receipt.
    Time,
    /// The index on resources.
    Resource,
}

/// A walk back in time.
#[derive(Debug)]
pub struct Walk {
    filter: Filter,
    /// Not known before the first slice.
    path: Option<Path>,
    /// Everything from here on was looked at.
    at: Key,
    /// How many events the next slice has.
    length: i64,
    /// Events a second, as the last slice was read.
    rate: Option<f64>,
    is_over: bool,
}

impl Walk {
    /// Begins before a place, or at the end of the filter's times. `length` is that of the first slice.
    pub fn new(filter: Filter, before: Option<Key>, length: i64) -> Self {
        let end = Key::before(filter.to.unwrap_or(DateTime::<Utc>::MAX_UTC));
        Self {
            at: match before {
                Some(before) if before.at < end.at => before,
                _ => end,
            },
            path: None,
            length,
            rate: None,
            is_over: false,
            filter,
        }
    }

    /// The place from which on everything was looked at.
    pub fn at(&self) -> &Key {
        &self.at
    }

    /// Whether there is nothing before.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Finds at most `wanted` events of the next slice, the newest first. The walk continues behind the
    /// last of them, or behind the slice if it has no more. Postgres ends it after `limit`. It can then be
    /// tried again, with a shorter slice.
    pub async fn slice(
        &mut self,
        store: &Store,
        wanted: usize,
        limit: Duration,
    ) -> Result<Vec<Summary>, StoreError> {
        match self.path(store).await? {
            Path::Time => self.slice_of_time(store, wanted, limit).await,
            Path::Resource => self.rest_of_resource(store, wanted, limit).await,
        }
    }

    async fn path(&mut self, store: &Store) -> Result<Path, StoreError> {
        if let Some(path) = self.path {
            return Ok(path);
        }
        let path = match &self.filter.resource {
            Some(resource) if of_resource::is_found_at_once(store, resource).await? => {
                Path::Resource
            }
            Some(_) | None => Path::Time,
        };
        self.path = Some(path);
        Ok(path)
    }

    async fn rest_of_resource(
        &mut self,
        store: &Store,
        wanted: usize,
        limit: Duration,
    ) -> Result<Vec<Summary>, StoreError> {
        let rows = store
            .look_by_index(limit, async |connection| {
                of_resource::find(connection, &self.filter, &self.at, wanted).await
            })
            .await?;
        match rows.last() {
            Some(last) if rows.len() == wanted => self.at = last.key(),
            _ => self.is_over = true,
        }
        Ok(rows)
    }

    async fn slice_of_time(
        &mut self,
        store: &Store,
        wanted: usize,
        limit: Duration,
    ) -> Result<Vec<Summary>, StoreError> {
        let length = self.next_length(limit);
        let started = Instant::now();
        let looked = store
            .look_by_index(limit, async |connection| {
                look(connection, &self.filter, &self.at, length, wanted).await
            })
            .await;
        if matches!(looked, Err(StoreError::TooSlow)) {
            self.length = (length / 4).max(1);
            self.rate = None;
        }
        let looked = looked?;
        match (looked.rows.last(), looked.since) {
            (Some(last), _) if looked.rows.len() == wanted => self.at = last.key(),
            (_, Some(since)) => {
                self.at = Key::before(since);
                self.length = length;
                let took = started.elapsed().as_secs_f64().max(0.000_001);
                self.rate = Some(length as f64 / took);
            }
            (_, None) => self.is_over = true,
        }
        Ok(looked.rows)
    }

    fn next_length(&self, limit: Duration) -> i64 {
        let Some(rate) = self.rate else {
            return self.length;
        };
        let in_time = rate * limit.as_secs_f64() * SHARE;
        let next = in_time.min(self.length as f64 * GROWTH);
        (next as i64).clamp(1, LONGEST)
    }
}

/// What a slice has.
struct Looked {
    rows: Vec<Summary>,
    /// The time of its oldest event; `None` if there is nothing before it.
    since: Option<DateTime<Utc>>,
}

/// A slice contains all events of its oldest time, so that the next one can begin before that time.
async fn look(
    connection: &mut PgConnection,
    filter: &Filter,
    before: &Key,
    length: i64,
    wanted: usize,
) -> Result<Looked, sqlx::Error> {
    let from = filter.from.unwrap_or(DateTime::UNIX_EPOCH);
    let mut query = QueryBuilder::<Postgres>::new(
        "with slice as materialized (
             select (select received_at from events where received_at ",
    );
    // More events than a slice has may be of one time. An empty id means that these were looked at.
    query.push(match before.webhook_id.is_empty() {
        true => "< ",
        false => "<= ",
    });
    query.push_bind(before.at);
    query.push(" and received_at >= ").push_bind(from);
    query.push(filter.of_index());
    query.push(" order by received_at desc offset ");
    query.push_bind(length);
    query.push(
        " limit 1) as since)
         select slice.since, found.*
           from slice left join lateral (
                select ",
    );
    query.push(SUMMARY);
    query.push(" from events where received_at <= ");
    query.push_bind(before.at);
    query.push(" and (received_at, webhook_id) < (");
    query.push_bind(before.at).push(", ");
    query.push_bind(before.webhook_id.clone());
    query.push(") and received_at >= coalesce(slice.since, ");
    query.push_bind(from).push(")");
    query.push(filter.of_index());
    filter.push(&mut query);
    query.push(" order by received_at desc, webhook_id desc limit ");
    query.push_bind(i64::try_from(wanted).unwrap_or(i64::MAX));
    query.push(
        ") found on true
          order by found.received_at desc, found.webhook_id desc",
    );
    let rows = query.build().fetch_all(connection).await?;
    let since = rows.first().map(|row| row.try_get("since")).transpose()?;
    Ok(Looked {
        since: since.flatten(),
        rows: rows
            .iter()
            .filter(|row| is_found(row))
            .map(sqlx::FromRow::from_row)
            .collect::<Result<_, _>>()?,
    })
}

/// A slice without a hit gives one row that has only its oldest time.
fn is_found(row: &PgRow) -> bool {
    row.try_get::<Option<String>, _>("webhook_id")
        .is_ok_and(|id| id.is_some())
}
