//! The events to distrust, and those whose rows are still to be reverted, grouped by resource.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use shared::{Family, database::TransactionMode};
use sqlx::{Postgres, QueryBuilder};
use worker::problem::Kind;

use super::Which;
use crate::{
    database::{Connection, READING},
    typed_table::{NAMED, Table},
};

/// The most events of one transaction, unless one resource has more.
const BATCH: usize = 200;

/// Time limit, as it may read all events of the range.
pub(super) const LONG: TransactionMode =
    READING.statement_timeout(std::time::Duration::from_secs(1_800));

/// Events that are changed together: all of one resource, or some without a resource.
#[derive(Debug)]
pub(super) struct Group {
    /// The index of the typed table, and the id in it.
    pub(super) resource: Option<(usize, String)>,
    pub(super) ids: Vec<String>,
}

/// All groups.
#[derive(Debug)]
pub(super) struct Set(Vec<Group>);

impl Which {
    /// Appends the condition that an event `e`, or a row of the spool, was signed with the secret in the
    /// time range.
    pub(super) fn push(&self, query: &mut QueryBuilder<Postgres>) {
        query
            .push("e.secret_name = ")
            .push_bind(self.secret.clone());
        query.push(" and e.received_at >= ").push_bind(self.since);
        if let Some(until) = self.until {
            query.push(" and e.received_at < ").push_bind(until);
        }
    }

    /// Appends the condition that an event `e` is one of those, and no run has distrusted it yet.
    pub(super) fn push_trusted(&self, query: &mut QueryBuilder<Postgres>) {
        self.push(query);
        push_not_distrusted(query);
    }

    /// Appends the condition that an event `e` is not distrusted, neither by this run nor by an earlier
    /// one.
    pub(super) fn push_others(&self, query: &mut QueryBuilder<Postgres>) {
        query.push(" and (");
        self.push(query);
        query.push(") is not true");
        push_not_distrusted(query);
    }
}

/// Appends the condition that no run has distrusted an event `e` yet.
fn push_not_distrusted(query: &mut QueryBuilder<Postgres>) {
    query.push(" and (e.problem is null or e.problem_kind is distinct from ");
    query.push_bind(Kind::Distrusted.name()).push(")");
}

impl Set {
    pub(super) async fn find(
        connection: &mut Connection,
        which: &Which,
        tables: &[Table],
    ) -> anyhow::Result<Self> {
        let mut transaction = connection.begin(&LONG.in_one_snapshot()).await?;
        let mut resources: BTreeMap<(usize, String), BTreeSet<String>> = BTreeMap::new();
        let mut named = HashSet::new();
        // A row that names such an event is reverted, also if the event's type is of another table, or the
        // event was distrusted before (such as after a restore of the table).
        for (place, table) in tables.iter().enumerate() {
            let mut query = QueryBuilder::new(format!(
                "select t.id, e.webhook_id from {} t join events e on {NAMED} where ",
                table.qualified()
            ));
            which.push(&mut query);
            let rows: Vec<(String, String)> =
                query.build_query_as().fetch_all(&mut *transaction).await?;
            for (id, webhook_id) in rows {
                named.insert(webhook_id.clone());
                resources.entry((place, id)).or_default().insert(webhook_id);
            }
        }
        let mut query = QueryBuilder::new(
            "select e.webhook_id, e.event_type, e.resource_id from events e where ",
        );
        which.push_trusted(&mut query);
        let events: Vec<(String, String, Option<String>)> =
            query.build_query_as().fetch_all(&mut *transaction).await?;
        let mut others = Vec::new();
        for (webhook_id, event_type, resource_id) in events {
            let family = Family::of(&event_type);
            let table = tables.iter().position(|t| t.family() == family);
            match table.zip(resource_id) {
                // It is reverted together with its row.
                _ if named.contains(&webhook_id) => {}
                Some(resource) => {
                    resources.entry(resource).or_default().insert(webhook_id);
                }
                None => others.push(webhook_id),
            }
        }
        let resources = resources.into_iter().map(|(resource, ids)| Group {
            resource: Some(resource),
            ids: ids.into_iter().collect(),
        });
        let others = others.chunks(BATCH).map(|ids| Group {
            resource: None,
            ids: ids.to_vec(),
        });
        Ok(Self(resources.chain(others).collect()))
    }

    /// The number of these events.
    pub(super) fn len(&self) -> usize {
        self.0.iter().map(|group| group.ids.len()).sum()
    }

    /// The ids of one table's resources.
    pub(super) fn resources(&self, table: usize) -> Vec<&str> {
        self.0
            .iter()
            .filter_map(|group| group.resource.as_ref())
            .filter(|(of, _)| *of == table)
            .map(|(_, id)| id.as_str())
            .collect()
    }

    /// The groups, in portions for one transaction each.
    pub(super) fn batches(&self) -> impl Iterator<Item = &[Group]> {
        let mut rest = &self.0[..];
        std::iter::from_fn(move || {
            let mut events = 0;
            let more = rest.iter().take_while(|group| {
                let is_first = events == 0;
                events += group.ids.len();
                is_first || events <= BATCH
            });
            let (batch, after) = rest.split_at(more.count());
            rest = after;
            (!batch.is_empty()).then_some(batch)
        })
    }
}
