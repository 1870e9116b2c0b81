//! The healthy events that can set rows whose own event was erased or is a dead letter now.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgConnection, Postgres, QueryBuilder, Row as _};
use worker::families::{self, SortKey, Typed};

use super::{Candidate, Current, Table, describe, key, newest};

/// Appends the condition for which healthy events `e` may set a row.
pub(crate) type Trust<'a> = &'a (dyn Fn(&mut QueryBuilder<Postgres>) + Sync);

/// For each resource of one table the events that may set its row. They are read once, before anything is
/// locked: without an index on resources this reads all of `events`.
#[derive(Debug)]
pub(crate) struct Survivors {
    known: HashMap<String, Known>,
    /// By Postgres' clock. Events that are stored later are not among the known ones.
    as_of: DateTime<Utc>,
}

/// The events of one resource.
#[derive(Debug, Default)]
struct Known {
    /// The healthy event with the newest state, for each company that events name.
    newest: HashMap<String, (SortKey, String)>,
    /// Dead letters that a replay may make healthy meanwhile.
    dead_letters: Vec<String>,
}

impl Known {
    /// The event that was the newest when they were read, for a row of this company.
    fn expected(&self, company: &str) -> Option<&str> {
        let any = || self.newest.values().max();
        let found = self.newest.get(company).or_else(any);
        found.map(|(_, webhook_id)| &**webhook_id)
    }

    /// All events that may be the newest by now.
    fn ids(&self) -> impl Iterator<Item = &str> {
        let newest = self.newest.values().map(|(_, webhook_id)| &**webhook_id);
        newest.chain(self.dead_letters.iter().map(String::as_str))
    }
}

impl Survivors {
    pub(crate) async fn find(
        connection: &mut PgConnection,
        table: &Table,
        resources: &[&str],
        trust: Trust<'_>,
    ) -> Result<Self, sqlx::Error> {
        let as_of = sqlx::query_scalar("select now()")
            .fetch_one(&mut *connection)
            .await?;
        let mut known: HashMap<String, Known> = HashMap::new();
        if resources.is_empty() {
            return Ok(Self { known, as_of });
        }
        let mut query = QueryBuilder::<Postgres>::new(format!(
            "select {}, e.problem is null as is_healthy from events e join unnest(",
            Candidate::COLUMNS
        ));
        query.push_bind(resources);
        query.push(
            "::text[]) as concerned (id) on concerned.id = e.resource_id where e.event_type ~ ",
        );
        query.push_bind(table.pattern());
        trust(&mut query);
        let mut rows = query.build().fetch(connection);
        while let Some(row) = rows.try_next().await? {
            let candidate = Candidate::read(&row)?;
            let Ok(typed) = &candidate.typed else {
                continue;
            };
            let (id, sort_key, webhook_id) = key(typed);
            let known = known.entry(id.to_owned()).or_default();
            if !row.try_get::<bool, _>("is_healthy")? {
                known.dead_letters.push(webhook_id.to_owned());
                continue;
            }
            let state = (sort_key.clone(), webhook_id.to_owned());
            let newest = known.newest.entry(typed.company_id().to_owned());
            let newest = newest.or_insert_with(|| state.clone());
            if *newest < state {
                *newest = state;
            }
        }
        Ok(Self { known, as_of })
    }

    /// The events of a resource.
    pub(crate) fn ids(&self, resource: &str) -> impl Iterator<Item = &str> {
        self.known.get(resource).into_iter().flat_map(Known::ids)
    }
}

/// Locks events, before any typed row and in the order in which replays and rebuilds lock them. So their
/// state stays true until the transaction ends. A command that reverts one of them waits, and then finds
/// the row that it has set.
pub(crate) async fn lock_events(
    connection: &mut PgConnection,
    ids: &[&str],
) -> Result<(), sqlx::Error> {
    sqlx::query("select from events where webhook_id = any($1) order by webhook_id for update")
        .bind(ids)
        .execute(connection)
        .await?;
    Ok(())
}

/// The result of computing rows again.
pub(crate) enum Ended {
    Done(Recomputed),
    /// These events have arrived meanwhile and are the newest ones. They have to be locked first.
    NotLocked(Vec<String>),
    /// The newest event of this resource is not healthy any more, and older ones are not known.
    Outdated(String),
}

/// What happened to the rows.
#[derive(Default)]
pub(crate) struct Recomputed {
    /// Rows that now have another event's state.
    pub(crate) recomputed: usize,
    /// Rows that were removed because no healthy event was left for them.
    pub(crate) removed: usize,
    /// The changes for the audit record.
    pub(crate) changes: Vec<Value>,
}

/// Computes rows of one table again.
pub(crate) struct Recomputing<'a> {
    pub(crate) table: &'a Table,
    pub(crate) survivors: &'a Survivors,
    pub(crate) trust: Trust<'a>,
    /// The events that this transaction has locked.
    pub(crate) locked: &'a HashSet<String>,
}

impl Recomputing<'_> {
    /// Gives these rows, which are locked and given in `current`, the newest state of the healthy events,
    /// or removes them if there is none. A row keeps its company if an event of that company is left.
    pub(crate) async fn apply(
        &self,
        connection: &mut PgConnection,
        current: &HashMap<String, Current>,
        rows: &[&str],
    ) -> Result<Ended, sqlx::Error> {
        let candidates = self.candidates(connection, rows).await?;
        for id in rows {
            let known = self.survivors.known.get(*id);
            let expected = known.and_then(|known| known.expected(&current[*id].company_id));
            if expected.is_some_and(|id| candidates.iter().all(|c| c.webhook_id != id)) {
                return Ok(Ended::Outdated((*id).to_owned()));
            }
        }
        let states: Vec<&Typed> = (candidates.iter())
            .filter_map(|candidate| candidate.typed.as_ref().ok())
            .collect();
        let mut newest = newest(states.iter().copied());
        newest.extend(super::newest(states.into_iter().filter(|state| {
            let row = current.get(key(state).0);
            row.is_some_and(|row| row.company_id == state.company_id())
        })));
        let typed: Vec<&Typed> = newest.values().copied().collect();
        let webhook_ids = typed.iter().map(|typed| key(typed).2);
        let not_locked: Vec<String> = webhook_ids
            .filter(|id| !self.locked.contains(*id))
            .map(str::to_owned)
            .collect();
        if !not_locked.is_empty() {
            return Ok(Ended::NotLocked(not_locked));
        }
        let removed: Vec<&str> = (rows.iter().copied())
            .filter(|id| !newest.contains_key(id))
            .collect();
        self.write(connection, &typed, &removed).await?;
        Ok(Ended::Done(Recomputed {
            recomputed: typed.len(),
            removed: removed.len(),
            changes: describe(connection, self.table, current, rows).await?,
        }))
    }

    async fn write(
        &self,
        connection: &mut PgConnection,
        typed: &[&Typed],
        removed: &[&str],
    ) -> Result<(), sqlx::Error> {
        let (kept, companies): (Vec<&str>, Vec<&str>) = (typed.iter())
            .map(|typed| (typed.id(), typed.company_id()))
            .unzip();
        // With the lowest of all keys, any state of the same company replaces it.
        let least = format!(
            "update {} t set sort_key = '', company_id = kept.company_id
               from unnest($1::text[], $2::text[]) as kept (id, company_id) where t.id = kept.id",
            self.table.qualified()
        );
        sqlx::query(AssertSqlSafe(least))
            .bind(kept)
            .bind(companies)
            .execute(&mut *connection)
            .await?;
        let delete = format!("delete from {} where id = any($1)", self.table.qualified());
        sqlx::query(AssertSqlSafe(delete))
            .bind(removed)
            .execute(&mut *connection)
            .await?;
        families::upsert(connection, typed).await?;
        self.table.date(connection, typed).await
    }

    /// The healthy events that can set these rows. The rows are locked, so an event that is not stored yet
    /// comes later and is compared with the row that this leaves.
    async fn candidates(
        &self,
        connection: &mut PgConnection,
        rows: &[&str],
    ) -> Result<Vec<Candidate>, sqlx::Error> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let known: Vec<&str> = rows.iter().flat_map(|id| self.survivors.ids(id)).collect();
        let select = format!("select {} from events e where ", Candidate::COLUMNS);
        let mut query = QueryBuilder::new(&select);
        query.push("e.webhook_id = any(").push_bind(known);
        query.push(") and e.problem is null");
        (self.trust)(&mut query);
        query.push(" union all ").push(&select);
        // A transaction that began before the events were read and committed afterwards does not last for
        // minutes.
        query.push("e.stored_at > ").push_bind(self.survivors.as_of);
        query.push(" - interval '5 minutes' and e.problem is null and e.resource_id = any(");
        query.push_bind(rows).push(") and e.event_type ~ ");
        query.push_bind(self.table.pattern());
        (self.trust)(&mut query);
        let found = query.build().fetch_all(connection).await?;
        found.iter().map(Candidate::read).collect()
    }
}
