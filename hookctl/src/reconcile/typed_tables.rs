//! Whether the typed tables agree with `events`.

use std::time::Duration;

use serde::Serialize;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};
use worker::config::Retention;

use super::typed_rows::{self, Differing};
use crate::typed_table::{NAMED, Table};

/// How a typed table and its family's events agree.
#[derive(Debug, Serialize)]
pub(super) struct Agreement {
    pub(super) table: &'static str,
    /// Healthy events whose resource has no row.
    pub(super) events_without_row: i64,
    /// The first ids of those.
    pub(super) such_events: Vec<String>,
    /// Rows whose event is not among the healthy ones.
    pub(super) rows_without_event: i64,
    /// The first ids of those resources.
    pub(super) such_rows: Vec<String>,
    /// Rows that differ from their event.
    pub(super) differing_rows: i64,
    /// The first of those.
    pub(super) such_differing_rows: Vec<Differing>,
    /// Rows that have an older state than a healthy event.
    pub(super) outdated_rows: i64,
    /// The first ids of those resources.
    pub(super) such_outdated_rows: Vec<String>,
}

impl Agreement {
    pub(super) fn is_complete(&self) -> bool {
        self.events_without_row == 0
            && self.rows_without_event == 0
            && self.differing_rows == 0
            && self.outdated_rows == 0
    }
}

/// Compares every typed table, and returns at most `limit` ids of each finding.
///
/// With a retention of events, only rows of its younger half are expected to have an event. Retention
/// counts from the receipt of an event, and the event may have been stored much later. A row whose event
/// exists but is not healthy is always reported.
pub(super) async fn compare(
    connection: &mut PgConnection,
    event_retention: Retention,
    newer_within: Option<Duration>,
    limit: u32,
) -> anyhow::Result<Vec<Agreement>> {
    let retention_seconds = match event_retention {
        Retention::Forever => None,
        Retention::For(retention) => Some(retention.as_secs_f64()),
    };
    let mut agreements = Vec::new();
    for typed_table in Table::find_all(connection).await? {
        let table = typed_table.name();
        let events = format!(
            "select count(*) as count, (array_agg(webhook_id order by stored_at))[1:$2] as ids
               from events e
              where problem is null and event_type ~ $1
                and not exists (select from {table} t where t.id = e.resource_id)"
        );
        let events = sqlx::query(AssertSqlSafe(events))
            .bind(typed_table.pattern())
            .bind(i32::try_from(limit).unwrap_or(i32::MAX))
            .fetch_one(&mut *connection)
            .await?;
        let rows = format!(
            "select count(*) as count, (array_agg(id order by stored_at))[1:$2] as ids
               from (select t.id, t.stored_at
                       from {table} t left join events e on {NAMED}
                      where {}
                         or (e.webhook_id is null
                             and ($1::float8 is null
                                  or t.stored_at > now() - make_interval(secs => $1 / 2)))) as found",
            typed_table.not_set_by()
        );
        let rows = sqlx::query(AssertSqlSafe(rows))
            .bind(retention_seconds)
            .bind(i32::try_from(limit).unwrap_or(i32::MAX))
            .fetch_one(&mut *connection)
            .await?;
        let ids = |ids: Option<Vec<String>>| ids.unwrap_or_default();
        let most = usize::try_from(limit).unwrap_or(usize::MAX);
        let findings = typed_rows::compare(connection, &typed_table, newer_within, most).await?;
        agreements.push(Agreement {
            table,
            events_without_row: events.try_get("count")?,
            such_events: ids(events.try_get("ids")?),
            rows_without_event: rows.try_get("count")?,
            such_rows: ids(rows.try_get("ids")?),
            differing_rows: findings.differing,
            such_differing_rows: findings.such_differing,
            outdated_rows: findings.outdated,
            such_outdated_rows: findings.such_outdated,
        });
    }
    Ok(agreements)
}
