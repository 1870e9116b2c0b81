//! Vendors: `*.vendor.*` events, table `vendors`.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use super::{
    Text, Time,
    row::{Resource, Row, column, sort_keys, webhook_ids},
    text::{key, not_blank},
};

/// A vendor as Pleo sends it, with the fields of its API (OpenAPI v34.17). Only the fields that
/// every vendor has are required. An unknown state is kept as it is. `null` and `""` stay
/// different.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(rename_all(deserialize = "camelCase"))]
pub struct Vendor {
    #[serde(deserialize_with = "key")]
    id: Text,
    #[serde(deserialize_with = "not_blank")]
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
    created_at: Option<Time>,
    updated_at: Option<Time>,
    deleted_at: Option<Time>,
}

impl Resource for Vendor {
    const HARMLESS: &'static str =
        r#"{"id":"rehearsal","companyId":"rehearsal","name":"","state":"DRAFT"}"#;

    const COMPANIES: &'static str = "select id, company_id from vendors where id = any($1)";

    fn id(&self) -> &Text {
        &self.id
    }

    fn company_id(&self) -> &Text {
        &self.company_id
    }

    fn times(&self) -> impl IntoIterator<Item = (&'static str, Option<DateTime<Utc>>)> {
        [
            ("createdAt", self.created_at),
            ("updatedAt", self.updated_at),
            ("deletedAt", self.deleted_at),
        ]
        .map(|(field, time)| (field, Time::of(time)))
    }

    /// At equal times a deletion is the newer state. An unknown state counts as between `DRAFT` and
    /// `ACTIVE`.
    fn rank(&self) -> u8 {
        match (self.deleted_at, self.state.as_str()) {
            (Some(_), _) => 4,
            (None, "DRAFT") => 0,
            (None, "ACTIVE") => 2,
            (None, "ARCHIVED") => 3,
            (None, _) => 1,
        }
    }

    async fn upsert(
        connection: &mut PgConnection,
        rows: &[&Row<Self>],
    ) -> Result<u64, sqlx::Error> {
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
             where current.sort_key < excluded.sort_key
               and current.company_id = excluded.company_id",
        )
        .bind(column(rows, |r| r.id.as_str()))
        .bind(column(rows, |r| r.company_id.as_str()))
        .bind(column(rows, |r| r.name.as_str()))
        .bind(column(rows, |r| r.state.as_str()))
        .bind(column(rows, |r| Text::as_optional(&r.country)))
        .bind(column(rows, |r| Text::as_optional(&r.code)))
        .bind(column(rows, |r| Text::as_optional(&r.external_id)))
        .bind(column(rows, |r| Text::as_optional(&r.accounting_system)))
        .bind(column(rows, |r| Text::as_optional(&r.registration_number)))
        .bind(column(rows, |r| {
            Text::as_optional(&r.tax_registration_number)
        }))
        .bind(column(rows, |r| Text::as_optional(&r.default_currency)))
        .bind(column(rows, |r| Text::as_optional(&r.created_by)))
        .bind(column(rows, |r| Time::of(r.created_at)))
        .bind(column(rows, |r| Time::of(r.updated_at)))
        .bind(column(rows, |r| Time::of(r.deleted_at)))
        .bind(sort_keys(rows))
        .bind(webhook_ids(rows))
        .execute(connection)
        .await
        .map(|done| done.rows_affected())
    }
}
