//! Export jobs: `*.export-job.*` events, table `export_jobs`.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use super::{
    Text, Time,
    row::{Resource, Row, column, sort_keys, webhook_ids},
    text::{key, not_blank},
};

/// An export job as Pleo sends it, with the fields of its API (OpenAPI v32.1). Only the fields that
/// every export job has are required. An unknown status is kept as it is.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(rename_all(deserialize = "camelCase"))]
pub struct ExportJob {
    #[serde(deserialize_with = "key")]
    id: Text,
    #[serde(deserialize_with = "not_blank")]
    company_id: Text,
    status: Text,
    number_of_items: Option<i64>,
    expires_in: Option<i64>,
    is_interactive: Option<bool>,
    vendor_based_bookkeeping: Option<bool>,
    failure_reason: Option<Text>,
    failure_reason_type: Option<Text>,
    created_by: Option<Text>,
    created_at: Option<Time>,
    started_at: Option<Time>,
    completed_at: Option<Time>,
    expired_at: Option<Time>,
    last_updated_at: Option<Time>,
}

impl Resource for ExportJob {
    const HARMLESS: &'static str =
        r#"{"id":"rehearsal","companyId":"rehearsal","status":"pending"}"#;

    const COMPANIES: &'static str = "select id, company_id from export_jobs where id = any($1)";

    fn id(&self) -> &Text {
        &self.id
    }

    fn company_id(&self) -> &Text {
        &self.company_id
    }

    fn times(&self) -> impl IntoIterator<Item = (&'static str, Option<DateTime<Utc>>)> {
        [
            ("createdAt", self.created_at),
            ("startedAt", self.started_at),
            ("completedAt", self.completed_at),
            ("expiredAt", self.expired_at),
            ("lastUpdatedAt", self.last_updated_at),
        ]
        .map(|(field, time)| (field, Time::of(time)))
    }

    /// An unknown status counts as between `pending` and `in_progress`.
    fn rank(&self) -> u8 {
        match self.status.as_str() {
            "pending" => 0,
            "in_progress" => 2,
            "failed" => 3,
            "completed_with_errors" => 4,
            "completed" => 5,
            _ => 1,
        }
    }

    async fn upsert(
        connection: &mut PgConnection,
        rows: &[&Row<Self>],
    ) -> Result<u64, sqlx::Error> {
        sqlx::query(
            "insert into export_jobs as current
                 (id, company_id, status, number_of_items, expires_in, is_interactive,
                  vendor_based_bookkeeping, failure_reason, failure_reason_type, created_by,
                  created_at, started_at, completed_at, expired_at, last_updated_at, sort_key,
                  webhook_id)
             select * from unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[],
                  $6::boolean[], $7::boolean[], $8::text[], $9::text[], $10::text[],
                  $11::timestamptz[], $12::timestamptz[], $13::timestamptz[], $14::timestamptz[],
                  $15::timestamptz[], $16::bytea[], $17::text[])
             on conflict (id) do update set
                 status = excluded.status,
                 number_of_items = excluded.number_of_items,
                 expires_in = excluded.expires_in,
                 is_interactive = excluded.is_interactive,
                 vendor_based_bookkeeping = excluded.vendor_based_bookkeeping,
                 failure_reason = excluded.failure_reason,
                 failure_reason_type = excluded.failure_reason_type,
                 created_by = excluded.created_by,
                 created_at = excluded.created_at,
                 started_at = excluded.started_at,
                 completed_at = excluded.completed_at,
                 expired_at = excluded.expired_at,
                 last_updated_at = excluded.last_updated_at,
                 sort_key = excluded.sort_key,
                 webhook_id = excluded.webhook_id,
                 stored_at = now()
             where current.sort_key < excluded.sort_key
               and current.company_id = excluded.company_id",
        )
        .bind(column(rows, |r| r.id.as_str()))
        .bind(column(rows, |r| r.company_id.as_str()))
        .bind(column(rows, |r| r.status.as_str()))
        .bind(column(rows, |r| r.number_of_items))
        .bind(column(rows, |r| r.expires_in))
        .bind(column(rows, |r| r.is_interactive))
        .bind(column(rows, |r| r.vendor_based_bookkeeping))
        .bind(column(rows, |r| Text::as_optional(&r.failure_reason)))
        .bind(column(rows, |r| Text::as_optional(&r.failure_reason_type)))
        .bind(column(rows, |r| Text::as_optional(&r.created_by)))
        .bind(column(rows, |r| Time::of(r.created_at)))
        .bind(column(rows, |r| Time::of(r.started_at)))
        .bind(column(rows, |r| Time::of(r.completed_at)))
        .bind(column(rows, |r| Time::of(r.expired_at)))
        .bind(column(rows, |r| Time::of(r.last_updated_at)))
        .bind(sort_keys(rows))
        .bind(webhook_ids(rows))
        .execute(connection)
        .await
        .map(|done| done.rows_affected())
    }
}
