//! Finds the events of a resource by an index on `events (resource_id)`.
//!
//! The schema has no such index, because it slows down the storing of every event. Somebody may have created
//! one, and `hookctl setup` creates one where typed rows are swept.

use sqlx::{PgConnection, Postgres, QueryBuilder};

use super::{Filter, Key, SUMMARY, Summary};
use crate::store::{STATEMENT_TIMEOUT, Store, StoreError};

/// Of a resource with more events, each page would have to read and sort too many. It is searched like all
/// others.
const MOST: i64 = 2_000;

const IS_INDEXED: &str = "
    select exists (
        select from pg_index i
          join pg_class own on own.oid = i.indexrelid
          join pg_am am on am.oid = own.relam
          join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
         where i.indrelid = to_regclass('events') and a.attname = 'resource_id'
           and am.amname in ('btree', 'hash') and i.indisvalid and i.indpred is null)";

/// Whether all events of a resource are found at once: there is such an index, and they are not too many.
pub async fn is_found_at_once(store: &Store, resource: &str) -> Result<bool, StoreError> {
    let counted = store
        .look_by_index(STATEMENT_TIMEOUT, async |connection| {
            if !sqlx::query_scalar(IS_INDEXED)
                .fetch_one(&mut *connection)
                .await?
            {
                return Ok(None);
            }
            let count =
                "select count(*) from (select from events where resource_id = $1 limit $2) e";
            sqlx::query_scalar::<_, i64>(count)
                .bind(resource)
                .bind(MOST + 1)
                .fetch_one(connection)
                .await
                .map(Some)
        })
        .await?;
    Ok(counted.is_some_and(|events| events <= MOST))
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
