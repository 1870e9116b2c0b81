//! The typed tables by their families, for statements about them.

mod candidate;
mod change;
mod survivors;

use std::collections::{BTreeMap, HashMap};

use anyhow::Context;
pub(crate) use operations::typed_row::key;
use serde_json::Value;
use shared::Family;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};
use worker::families::Typed;
pub(crate) use worker::families::table as name;

pub(crate) use self::{
    candidate::Candidate,
    change::describe,
    survivors::{Ended, Recomputed, Recomputing, Survivors, lock_events},
};

/// The newest state of each resource, by its id.
pub(crate) fn newest<'t>(
    states: impl IntoIterator<Item = &'t Typed>,
) -> BTreeMap<&'t str, &'t Typed> {
    let mut newest: BTreeMap<&str, &Typed> = BTreeMap::new();
    for state in states {
        let (id, sort_key, _) = key(state);
        let known = newest.entry(id).or_insert(state);
        if key(known).1 < sort_key {
            *known = state;
        }
    }
    newest
}

/// For a row `t` and an event `e`: the row names this event. If that event was swept, another event may
/// have got its id since; that one was stored later than the row.
pub(crate) const NAMED: &str = "(e.webhook_id = t.webhook_id and e.stored_at <= t.stored_at)";

/// The typed table of a family.
#[derive(Debug)]
pub(crate) struct Table {
    family: Family,
    name: &'static str,
    /// The name in SQL.
    schema: String,
    /// Which types are the family's.
    pattern: String,
}

/// A row in its present state.
#[derive(Debug)]
pub(crate) struct Current {
    pub(crate) webhook_id: String,
    pub(crate) company_id: String,
    pub(crate) sort_key: Vec<u8>,
    /// All of its columns.
    row: Value,
}

impl Table {
    pub(crate) async fn find(
        connection: &mut PgConnection,
        family: Family,
    ) -> anyhow::Result<Self> {
        let name = name(family).context("the family has a table")?;
        let pattern = family.pattern().context("the family has a resource")?;
        let schema: Option<String> = sqlx::query_scalar(
            "select quote_ident(n.nspname)
               from pg_class c join pg_namespace n on n.oid = c.relnamespace
              where c.oid = to_regclass($1)",
        )
        .bind(name)
        .fetch_optional(connection)
        .await
        .context("cannot look for the typed tables")?;
        Ok(Self {
            family,
            name,
            schema: schema
                .with_context(|| format!("there is no table {name}: run `hookctl setup` first"))?,
            pattern,
        })
    }

    /// All typed tables, in the order in which workers write them.
    pub(crate) async fn find_all(connection: &mut PgConnection) -> anyhow::Result<Vec<Self>> {
        let mut tables = Vec::new();
        for family in Family::ALL {
            if name(family).is_some() {
                tables.push(Self::find(&mut *connection, family).await?);
            }
        }
        Ok(tables)
    }

    pub(crate) fn family(&self) -> Family {
        self.family
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) fn schema(&self) -> &str {
        &self.schema
    }

    /// A regular expression of the family's types.
    pub(crate) fn pattern(&self) -> &str {
        &self.pattern
    }

    /// For an event `e`: it sets no row of this table. That holds for a dead letter, and for an event that
    /// is stored under another family or was erased.
    pub(crate) fn not_set_by(&self) -> String {
        format!(
            "(e.problem is not null or e.event_type !~ '{}')",
            self.pattern
        )
    }

    pub(crate) fn qualified(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// Locks the rows in the order in which workers lock them.
    pub(crate) async fn lock(
        &self,
        connection: &mut PgConnection,
        ids: &[&str],
    ) -> Result<HashMap<String, Current>, sqlx::Error> {
        let rows = sqlx::query(AssertSqlSafe(format!(
            "select id, webhook_id, company_id, sort_key, to_jsonb(t) as row
               from {} t where id = any($1) order by id for update",
            self.qualified()
        )))
        .bind(ids)
        .fetch_all(connection)
        .await?;
        rows.iter()
            .map(|row| {
                let current = Current {
                    webhook_id: row.try_get("webhook_id")?,
                    company_id: row.try_get("company_id")?,
                    sort_key: row.try_get("sort_key")?,
                    row: row.try_get("row")?,
                };
                Ok((row.try_get("id")?, current))
            })
            .collect()
    }

    /// Gives the rows the time at which a worker would have stored them, because retention uses it.
    pub(crate) async fn date(
        &self,
        connection: &mut PgConnection,
        written: &[&Typed],
    ) -> Result<(), sqlx::Error> {
        let (ids, webhook_ids): (Vec<&str>, Vec<&str>) = written
            .iter()
            .map(|typed| {
                let (id, _, webhook_id) = key(typed);
                (id, webhook_id)
            })
            .unzip();
        sqlx::query(AssertSqlSafe(format!(
            "update {} t set stored_at = greatest(e.stored_at, e.replayed_at)
               from {}.events e
              where t.id = any($1) and t.webhook_id = any($2) and e.webhook_id = t.webhook_id",
            self.qualified(),
            self.schema
        )))
        .bind(ids)
        .bind(webhook_ids)
        .execute(connection)
        .await?;
        Ok(())
    }
}
