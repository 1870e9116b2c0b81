//! Some resources in one transaction: their events become dead letters, and their rows are computed
//! again.

use std::collections::HashSet;

use anyhow::ensure;
use serde::Serialize;
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgConnection, QueryBuilder};
use worker::{
    families::{self, Typed},
    problem::DISTRUSTED,
};

use super::{Which, set::Group, survivors::Survivors};
use crate::{
    actions::Run,
    database::{CHANGING, Connection},
    typed_table::{self, Candidate, Table},
};

/// How much was done.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Done {
    /// Events that are dead letters of this kind now.
    pub(super) distrusted: usize,
    /// Rows that show another event's state now.
    pub(super) recomputed: usize,
    /// Rows that no healthy event explained any more.
    pub(super) removed: usize,
}

impl Done {
    pub(super) fn add(&mut self, other: Self) {
        self.distrusted += other.distrusted;
        self.recomputed += other.recomputed;
        self.removed += other.removed;
    }
}

/// What changes in one transaction.
pub(super) struct Batch<'a> {
    pub(super) which: &'a Which,
    pub(super) tables: &'a [Table],
    pub(super) survivors: &'a Survivors,
    pub(super) run: &'a Run,
    pub(super) groups: &'a [Group],
}

impl Batch<'_> {
    /// The rows of `events` are locked first, as a replay does, then the typed rows as workers do.
    pub(super) async fn apply(&self, connection: &mut Connection) -> anyhow::Result<Done> {
        let mut transaction = connection.begin(&CHANGING).await?;
        let mut changes = self.mark(&mut transaction).await?;
        let mut done = Done {
            distrusted: changes.len(),
            ..Done::default()
        };
        for place in 0..self.tables.len() {
            let rows = self.recompute(&mut transaction, place).await?;
            done.recomputed += rows.recomputed;
            done.removed += rows.removed;
            changes.extend(rows.changes);
        }
        self.run.record(&mut transaction, changes).await?;
        transaction.commit().await?;
        Ok(done)
    }

    fn ids(&self) -> impl Iterator<Item = &str> {
        self.groups
            .iter()
            .flat_map(|group| group.ids.iter().map(String::as_str))
    }

    /// Makes the events dead letters. A problem that one had before stays in its words.
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
        query.push(
            " || coalesce('; before that: ' || was, '') from chosen where webhook_id = id
              returning jsonb_build_object(
                  'webhook_id', webhook_id,
                  'before', jsonb_build_object('problem', was),
                  'after', jsonb_build_object('problem', problem))",
        );
        query.build_query_scalar().fetch_all(connection).await
    }

    /// Computes the rows of a table again that these events had set.
    async fn recompute(
        &self,
        connection: &mut PgConnection,
        place: usize,
    ) -> anyhow::Result<Recomputed> {
        let table = &self.tables[place];
        let resources: Vec<&str> = self
            .groups
            .iter()
            .filter_map(|group| group.resource.as_ref())
            .filter(|(of, _)| *of == place)
            .map(|(_, id)| id.as_str())
            .collect();
        if resources.is_empty() {
            return Ok(Recomputed::default());
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
        let candidates = self.candidates(connection, place, &rows).await?;
        let newest = typed_table::newest(candidates.iter().filter_map(|c| c.typed.as_ref().ok()));
        for id in &rows {
            let expected = self
                .survivors
                .of(place, id)
                .and_then(|known| known.newest());
            ensure!(
                expected.is_none_or(|id| candidates.iter().any(|c| c.webhook_id == id)),
                "events of {} {id} changed meanwhile; run it again",
                table.name()
            );
        }
        let typed: Vec<&Typed> = newest.values().copied().collect();
        let (kept, companies): (Vec<&str>, Vec<&str>) = (newest.iter())
            .map(|(id, typed)| (*id, typed.company_id()))
            .unzip();
        let removed: Vec<&str> = (rows.iter().copied())
            .filter(|id| !newest.contains_key(id))
            .collect();
        // Any state of the same company replaces one with the least of all keys.
        let least = format!(
            "update {} t set sort_key = '', company_id = kept.company_id
               from unnest($1::text[], $2::text[]) as kept (id, company_id) where t.id = kept.id",
            table.qualified()
        );
        sqlx::query(AssertSqlSafe(least))
            .bind(&kept)
            .bind(companies)
            .execute(&mut *connection)
            .await?;
        let delete = format!("delete from {} where id = any($1)", table.qualified());
        sqlx::query(AssertSqlSafe(delete))
            .bind(&removed)
            .execute(&mut *connection)
            .await?;
        families::upsert(connection, &typed).await?;
        table.date(connection, &typed).await?;
        Ok(Recomputed {
            recomputed: kept.len(),
            removed: removed.len(),
            changes: typed_table::describe(connection, table, &current, &rows).await?,
        })
    }

    /// The healthy events that can set these rows. The rows are locked, so what is not stored yet
    /// comes after this and compares with the row that this leaves.
    async fn candidates(
        &self,
        connection: &mut PgConnection,
        place: usize,
        rows: &[&str],
    ) -> Result<Vec<Candidate>, sqlx::Error> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let known: Vec<&str> = rows
            .iter()
            .filter_map(|id| self.survivors.of(place, id))
            .flat_map(|known| known.ids())
            .collect();
        let select = format!("select {} from events e where ", Candidate::COLUMNS);
        let mut query = QueryBuilder::new(&select);
        query.push("e.webhook_id = any(").push_bind(known);
        query.push(") and e.problem is null");
        self.which.push_others(&mut query);
        query.push(" union all ").push(&select);
        // Transactions that began before the look and committed after it are not minutes long.
        query.push("e.stored_at > ").push_bind(self.survivors.as_of);
        query.push(" - interval '5 minutes' and e.problem is null and e.resource_id = any(");
        query.push_bind(rows).push(") and e.event_type ~ ");
        query.push_bind(self.tables[place].pattern());
        self.which.push_others(&mut query);
        let found = query.build().fetch_all(connection).await?;
        found.iter().map(Candidate::read).collect()
    }
}

/// What became of one table's rows.
#[derive(Default)]
struct Recomputed {
    recomputed: usize,
    removed: usize,
    changes: Vec<Value>,
}
