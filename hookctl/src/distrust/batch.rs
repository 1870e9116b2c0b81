//! Some resources in one transaction: their events become dead letters, and their rows are computed again.

use std::collections::HashSet;

use anyhow::bail;
use serde::Serialize;
use serde_json::Value;
use sqlx::{PgConnection, QueryBuilder};
use thiserror::Error;
use worker::problem::{DISTRUSTED, Kind};

use super::{Which, set::Group};
use crate::{
    actions::Run,
    database::{CHANGING, Connection},
    typed_table::{Ended, Recomputed, Recomputing, Survivors, Table, lock_events},
};

/// How many events and rows were changed.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Done {
    /// Events that became dead letters of this kind.
    pub(super) distrusted: usize,
    /// Rows that now have another event's state.
    pub(super) recomputed: usize,
    /// Rows that were removed because no healthy event was left for them.
    pub(super) removed: usize,
}

impl Done {
    pub(super) fn add(&mut self, other: Self) {
        self.distrusted += other.distrusted;
        self.recomputed += other.recomputed;
        self.removed += other.removed;
    }
}

/// If one more is needed, events of these resources arrive faster than they can be locked.
const TRIES: usize = 10;

/// The changes of one transaction.
pub(super) struct Batch<'a> {
    pub(super) which: &'a Which,
    pub(super) tables: &'a [Table],
    /// By the index of the table.
    pub(super) survivors: &'a [Survivors],
    pub(super) run: &'a Run,
    pub(super) groups: &'a [Group],
}

impl Batch<'_> {
    pub(super) async fn apply(&self, connection: &mut Connection) -> anyhow::Result<Done> {
        let mut locked: HashSet<String> = self.ids().map(str::to_owned).collect();
        for (place, id) in self.groups.iter().filter_map(|g| g.resource.as_ref()) {
            locked.extend(self.survivors[*place].ids(id).map(str::to_owned));
        }
        for _ in 0..TRIES {
            match self.attempt(connection, &locked).await? {
                Attempt::Done(done) => return Ok(done),
                Attempt::NotLocked(ids) => locked.extend(ids),
            }
        }
        bail!("more events of the same resources come all the time; run it again")
    }

    /// First locks all rows of `events` that the result depends on, as a replay does, then the typed rows
    /// as workers do.
    async fn attempt(
        &self,
        connection: &mut Connection,
        locked: &HashSet<String>,
    ) -> anyhow::Result<Attempt> {
        let done = connection
            .change(&CHANGING, async |connection| {
                self.attempt_on(connection, locked).await
            })
            .await;
        match done {
            Ok(done) => Ok(Attempt::Done(done)),
            Err(error) => error
                .downcast()
                .map(|NotLocked(ids)| Attempt::NotLocked(ids)),
        }
    }

    async fn attempt_on(
        &self,
        connection: &mut PgConnection,
        locked: &HashSet<String>,
    ) -> anyhow::Result<Done> {
        let ids: Vec<&str> = locked.iter().map(String::as_str).collect();
        lock_events(connection, &ids).await?;
        let mut changes = self.mark(connection).await?;
        let mut done = Done {
            distrusted: changes.len(),
            ..Done::default()
        };
        for place in 0..self.tables.len() {
            let rows = match self.recompute(connection, place, locked).await? {
                Ended::Done(rows) => rows,
                Ended::NotLocked(ids) => return Err(NotLocked(ids).into()),
                Ended::Outdated(id) => bail!(
                    "events of {} {id} changed meanwhile; run it again",
                    self.tables[place].name()
                ),
            };
            done.recomputed += rows.recomputed;
            done.removed += rows.removed;
            changes.extend(rows.changes);
        }
        self.run.record(connection, changes).await?;
        Ok(done)
    }

    fn ids(&self) -> impl Iterator<Item = &str> {
        self.groups
            .iter()
            .flat_map(|group| group.ids.iter().map(String::as_str))
    }

    /// Makes the events dead letters. A problem that one had before stays in the text.
    async fn mark(&self, connection: &mut PgConnection) -> Result<Vec<Value>, sqlx::Error> {
        let mut query = QueryBuilder::new(
            "with chosen as materialized (
                 select e.webhook_id as id, e.problem as was from events e where e.webhook_id = any(",
        );
        query
            .push_bind(self.ids().collect::<Vec<_>>())
            .push(") and ");
        self.which.push_trusted(&mut query);
        query.push(" order by e.webhook_id for update) update events set problem = ");
        query.push_bind(format!("{DISTRUSTED}: {}", self.which.secret));
        query.push(" || coalesce('; before that: ' || was, ''), problem_kind = ");
        query.push_bind(Kind::Distrusted.name());
        query.push(
            " from chosen where webhook_id = id
              returning jsonb_build_object(
                  'webhook_id', webhook_id,
                  'before', jsonb_build_object('problem', was),
                  'after', jsonb_build_object('problem', problem))",
        );
        query.build_query_scalar().fetch_all(connection).await
    }

    /// Computes the rows of one table again that these events had set.
    async fn recompute(
        &self,
        connection: &mut PgConnection,
        place: usize,
        locked: &HashSet<String>,
    ) -> Result<Ended, sqlx::Error> {
        let table = &self.tables[place];
        let resources: Vec<&str> = self
            .groups
            .iter()
            .filter_map(|group| group.resource.as_ref())
            .filter(|(of, _)| *of == place)
            .map(|(_, id)| id.as_str())
            .collect();
        if resources.is_empty() {
            return Ok(Ended::Done(Recomputed::default()));
        }
        let current = table.lock(connection, &resources).await?;
        let events: HashSet<&str> = self.ids().collect();
        let rows: Vec<&str> = resources
            .into_iter()
            .filter(|id| {
                current
                    .get(*id)
                    .is_some_and(|row| events.contains(&*row.webhook_id))
            })
            .collect();
        let recomputing = Recomputing {
            table,
            survivors: &self.survivors[place],
            trust: &|query| self.which.push_others(query),
            locked,
        };
        recomputing.apply(connection, &current, &rows).await
    }
}

/// One attempt to change all resources of a batch.
enum Attempt {
    Done(Done),
    /// These events have to be locked as well. Nothing was changed.
    NotLocked(Vec<String>),
}

/// The error that rolls back an attempt that has not locked all events.
#[derive(Debug, Error)]
#[error("more events have come")]
struct NotLocked(Vec<String>);
