//! Export jobs: `*.export-job.*` events, table `export_jobs`.

use chrono::{DateTime, Utc};
use serde::Deserialize;
use sqlx::PgConnection;

use super::{SortKey, Text};

/// A row of `export_jobs`. Fields as in Pleo's API for export jobs (OpenAPI v32.1).
#[derive(Clone, Debug, PartialEq)]
pub struct ExportJob {
    /// The job's id.
    pub id: Text,
    /// Which event is newer.
    pub sort_key: SortKey,
    webhook_id: String,
    data: Data,
}

/// `data` as Pleo sends it. Only what makes it an export job is required; a status that Pleo adds
/// later is kept as it is.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
struct Data {
    id: Text,
    company_id: Text,
    status: Text,
    number_of_items: Option<i64>,
    expires_in: Option<i64>,
    is_interactive: Option<bool>,
    vendor_based_bookkeeping: Option<bool>,
    failure_reason: Option<Text>,
    failure_reason_type: Option<Text>,
    created_by: Option<Text>,
    created_at: Option<DateTime<Utc>>,
    started_at: Option<DateTime<Utc>>,
    completed_at: Option<DateTime<Utc>>,
    expired_at: Option<DateTime<Utc>>,
    last_updated_at: Option<DateTime<Utc>>,
}

impl ExportJob {
    /// Reads `data`.
    pub fn parse(data: &str, webhook_id: &str) -> Result<Self, serde_json::Error> {
        let data: Data = serde_json::from_str(data)?;
        Ok(Self {
            id: data.id.clone(),
            sort_key: SortKey::new(
                data.last_updated_at.or(data.created_at),
                rank(data.status.as_str()),
                webhook_id,
            ),
            webhook_id: webhook_id.to_owned(),
            data,
        })
    }

    /// Writes the rows, whose ids must be distinct and sorted, where they are newer.
    pub async fn upsert(connection: &mut PgConnection, rows: &[&Self]) -> Result<(), sqlx::Error> {
        fn column<'r, T>(rows: &[&'r ExportJob], pick: impl Fn(&'r Data) -> T) -> Vec<T> {
            rows.iter().map(|row| pick(&row.data)).collect()
        }
        fn text(text: &Option<Text>) -> Option<&str> {
            text.as_ref().map(Text::as_str)
        }
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
                 company_id = excluded.company_id,
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
             where current.sort_key < excluded.sort_key",
        )
        .bind(column(rows, |d| d.id.as_str()))
        .bind(column(rows, |d| d.company_id.as_str()))
        .bind(column(rows, |d| d.status.as_str()))
        .bind(column(rows, |d| d.number_of_items))
        .bind(column(rows, |d| d.expires_in))
        .bind(column(rows, |d| d.is_interactive))
        .bind(column(rows, |d| d.vendor_based_bookkeeping))
        .bind(column(rows, |d| text(&d.failure_reason)))
        .bind(column(rows, |d| text(&d.failure_reason_type)))
        .bind(column(rows, |d| text(&d.created_by)))
        .bind(column(rows, |d| d.created_at))
        .bind(column(rows, |d| d.started_at))
        .bind(column(rows, |d| d.completed_at))
        .bind(column(rows, |d| d.expired_at))
        .bind(column(rows, |d| d.last_updated_at))
        .bind(
            rows.iter()
                .map(|r| r.sort_key.as_bytes())
                .collect::<Vec<_>>(),
        )
        .bind(
            rows.iter()
                .map(|r| r.webhook_id.as_str())
                .collect::<Vec<_>>(),
        )
        .execute(connection)
        .await?;
        Ok(())
    }
}

/// How far along a status is, for two events that name the same time. A status that is new to us
/// is somewhere on the way.
fn rank(status: &str) -> u8 {
    match status {
        "pending" => 0,
        "in_progress" => 2,
        "failed" => 3,
        "completed_with_errors" => 4,
        "completed" => 5,
        _ => 1,
    }
}
