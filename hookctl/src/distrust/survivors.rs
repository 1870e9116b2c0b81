//! The events that can set the rows instead.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;
use sqlx::{Postgres, QueryBuilder, Row as _};
use worker::families::SortKey;

use super::{
    Which,
    set::{LONG, Set},
};
use crate::{
    database::Connection,
    typed_table::{Candidate, Table, key},
};

/// For each resource its other events that may set its row. They are looked for once, before anything
/// is locked: without an index of resources that reads all of `events`.
#[derive(Debug)]
pub(super) struct Survivors {
    /// By the place of the table and the id in it.
    known: HashMap<(usize, String), Known>,
    /// By Postgres' clock. What is stored later is not among the known ones.
    pub(super) as_of: DateTime<Utc>,
}

/// Of one resource.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// The healthy event with the newest state.
    newest: Option<(SortKey, String)>,
    /// Dead letters that a replay may make healthy meanwhile.
    dead_letters: Vec<String>,
}

impl Known {
    pub(super) fn newest(&self) -> Option<&str> {
        self.newest.as_ref().map(|(_, webhook_id)| &**webhook_id)
    }

    /// All that may be the newest by now.
    pub(super) fn ids(&self) -> impl Iterator<Item = &str> {
        let dead_letters = self.dead_letters.iter().map(String::as_str);
        self.newest().into_iter().chain(dead_letters)
    }
}

impl Which {
    /// Appends that an event `e` is not distrusted, neither by this run nor by one before.
    pub(super) fn push_others(&self, query: &mut QueryBuilder<Postgres>) {
        query.push(" and (");
        self.push(query);
        query.push(") is not true and (e.problem is null or not starts_with(e.problem, ");
        query.push_bind(worker::problem::DISTRUSTED).push("))");
    }
}

impl Survivors {
    pub(super) async fn find(
        connection: &mut Connection,
        which: &Which,
        tables: &[Table],
        set: &Set,
    ) -> anyhow::Result<Self> {
        let mut transaction = connection.begin(&LONG).await?;
        let as_of = sqlx::query_scalar("select now()")
            .fetch_one(&mut *transaction)
            .await?;
        let mut known: HashMap<(usize, String), Known> = HashMap::new();
        for (place, table) in tables.iter().enumerate() {
            let resources = set.resources(place);
            if resources.is_empty() {
                continue;
            }
            let mut query = QueryBuilder::<Postgres>::new(format!(
                "select {}, e.problem is null as is_healthy
                   from events e join unnest(",
                Candidate::COLUMNS
            ));
            query.push_bind(resources);
            query.push(
                "::text[]) as concerned (id) on concerned.id = e.resource_id where e.event_type ~ ",
            );
            query.push_bind(table.pattern());
            which.push_others(&mut query);
            let mut rows = query.build().fetch(&mut *transaction);
            while let Some(row) = rows.try_next().await? {
                let candidate = Candidate::read(&row)?;
                let Ok(typed) = &candidate.typed else {
                    continue;
                };
                let (id, sort_key, webhook_id) = key(typed);
                let known = known.entry((place, id.to_owned())).or_default();
                if !row.try_get::<bool, _>("is_healthy")? {
                    known.dead_letters.push(webhook_id.to_owned());
                } else if known
                    .newest
                    .as_ref()
                    .is_none_or(|(least, _)| least < sort_key)
                {
                    known.newest = Some((sort_key.clone(), webhook_id.to_owned()));
                }
            }
        }
        Ok(Self { known, as_of })
    }

    /// Those of a resource.
    pub(super) fn of(&self, table: usize, id: &str) -> Option<&Known> {
        self.known.get(&(table, id.to_owned()))
    }
}
