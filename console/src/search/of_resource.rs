//! Finds the events of a resource by an index on `events (resource_id)`.
//!
//! The schema has no such index, because it slows down the storing of every event. Somebody may have created
//! one, and `hookctl setup` creates one where typed rows are swept.

use sqlx::{PgConnection, Postgres, QueryBuilder};

use super::{Filter, Key, SUMMARY, Summary};
use crate::store::{Store, StoreError};

/// Whether there is such an index.
pub async fn is_indexed(store: &Store) -> Result<bool, StoreError> {
    store
        .look(async |connection| {
            sqlx::query_scalar(
                "select exists (
                     select from pg_index i
                       join pg_class own on own.oid = i.indexrelid
                       join pg_am am on am.oid = own.relam
                       join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
                      where i.indrelid = to_regclass('events') and a.attname = 'resource_id'
                        and am.amname in ('btree', 'hash') and i.indisvalid and i.indpred is null)",
            )
            .fetch_one(connection)
            .await
        })
        .await
}

/// At most `wanted` events before a place that match a filter with a resource, the newest first.
pub(super) async fn find(
    connection: &mut PgConnection,
    filter: &Filter,
    before: &Key,
    wanted: usize,
) -> Result<Vec<Summary>, sqlx::Error> {
    // All of them are found before they are sorted. Otherwise Postgres might read all events in the order
    // of time until it has enough of them.
    let mut query = QueryBuilder::<Postgres>::new("with found as materialized (select ");
    query.push(SUMMARY);
    query.push(" from events where (received_at, webhook_id) < (");
    query.push_bind(before.at).push(", ");
    query.push_bind(before.webhook_id.clone()).push(")");
    if let Some(from) = filter.from {
        query.push(" and received_at >= ").push_bind(from);
    }
    filter.push(&mut query);
    query.push(") select * from found order by received_at desc, webhook_id desc limit ");
    query.push_bind(i64::try_from(wanted).unwrap_or(i64::MAX));
    query.build_query_as().fetch_all(connection).await
}
