//! Vendors: `*.vendor.*` events, table `vendors`.

use chrono::{DateTime, Utc};
use serde::Deserialize;
use sqlx::PgConnection;

use super::{SortKey, Text};

/// A row of `vendors`. Fields as in Pleo's API for vendors (OpenAPI v34.17).
#[derive(Clone, Debug, PartialEq)]
pub struct Vendor {
    /// The vendor's id.
    pub id: Text,
    /// Which event is newer.
    pub sort_key: SortKey,
    webhook_id: String,
    data: Data,
}

/// `data` as Pleo sends it. Only what makes it a vendor is required; a state that Pleo adds later is
/// kept as it is. `null` and `""` stay different.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
struct Data {
    id: Text,
    company_id: Text,
    name: Text,
    state: Text,
    country: Option<Text>,
    code: Option<Text>,
    external_id: Option<Text>,
    accounting_system: Option<Text>,
    registration_number: Option<Text>,
    tax_registration_number: Option<Text>,
    default_currency: Option<Text>,
    created_by: Option<Text>,
    created_at: Option<DateTime<Utc>>,
    updated_at: Option<DateTime<Utc>>,
    deleted_at: Option<DateTime<Utc>>,
}

impl Vendor {
    /// Reads `data`.
    pub fn parse(data: &str, webhook_id: &str) -> Result<Self, serde_json::Error> {
        let data: Data = serde_json::from_str(data)?;
        Ok(Self {
            id: data.id.clone(),
            sort_key: SortKey::new(
                data.updated_at.or(data.created_at),
                rank(data.state.as_str()),
                webhook_id,
            ),
            webhook_id: webhook_id.to_owned(),
            data,
        })
    }

    /// Writes the rows, whose ids must be distinct and sorted, where they are newer.
    pub async fn upsert(connection: &mut PgConnection, rows: &[&Self]) -> Result<(), sqlx::Error> {
        fn column<'r, T>(rows: &[&'r Vendor], pick: impl Fn(&'r Data) -> T) -> Vec<T> {
            rows.iter().map(|row| pick(&row.data)).collect()
        }
        fn text(text: &Option<Text>) -> Option<&str> {
            text.as_ref().map(Text::as_str)
        }
        sqlx::query(
            "insert into vendors as current
                 (id, company_id, name, state, country, code, external_id, accounting_system,
                  registration_number, tax_registration_number, default_currency, created_by,
                  created_at, updated_at, deleted_at, sort_key, webhook_id)
             select * from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[],
                  $6::text[], $7::text[], $8::text[], $9::text[], $10::text[], $11::text[],
                  $12::text[], $13::timestamptz[], $14::timestamptz[], $15::timestamptz[],
                  $16::bytea[], $17::text[])
             on conflict (id) do update set
                 company_id = excluded.company_id,
                 name = excluded.name,
                 state = excluded.state,
                 country = excluded.country,
                 code = excluded.code,
                 external_id = excluded.external_id,
                 accounting_system = excluded.accounting_system,
                 registration_number = excluded.registration_number,
                 tax_registration_number = excluded.tax_registration_number,
                 default_currency = excluded.default_currency,
                 created_by = excluded.created_by,
                 created_at = excluded.created_at,
                 updated_at = excluded.updated_at,
                 deleted_at = excluded.deleted_at,
                 sort_key = excluded.sort_key,
                 webhook_id = excluded.webhook_id,
                 stored_at = now()
             where current.sort_key < excluded.sort_key",
        )
        .bind(column(rows, |d| d.id.as_str()))
        .bind(column(rows, |d| d.company_id.as_str()))
        .bind(column(rows, |d| d.name.as_str()))
        .bind(column(rows, |d| d.state.as_str()))
        .bind(column(rows, |d| text(&d.country)))
        .bind(column(rows, |d| text(&d.code)))
        .bind(column(rows, |d| text(&d.external_id)))
        .bind(column(rows, |d| text(&d.accounting_system)))
        .bind(column(rows, |d| text(&d.registration_number)))
        .bind(column(rows, |d| text(&d.tax_registration_number)))
        .bind(column(rows, |d| text(&d.default_currency)))
        .bind(column(rows, |d| text(&d.created_by)))
        .bind(column(rows, |d| d.created_at))
        .bind(column(rows, |d| d.updated_at))
        .bind(column(rows, |d| d.deleted_at))
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

/// How far along a state is, for two events that name the same time. A state that is new to us is
/// somewhere on the way.
fn rank(state: &str) -> u8 {
    match state {
        "DRAFT" => 0,
        "ACTIVE" => 2,
        "ARCHIVED" => 3,
        _ => 1,
    }
}
