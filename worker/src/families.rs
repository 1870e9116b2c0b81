//! The families with a typed table. Each has one file, with the shape of `data`, the table's row
//! and the SQL that writes it.

mod export_job;
mod mismatch;
mod row;
mod sort_key;
mod text;
mod time;
mod vendor;

use std::collections::HashSet;

use chrono::{DateTime, Utc};
pub use export_job::ExportJob;
pub use row::{Resource, Row};
use serde_json::{Map, Value, value::RawValue};
use shared::{Family, envelope::json_kind};
pub use sort_key::SortKey;
use sqlx::PgConnection;
pub use text::Text;
pub use time::Time;
pub use vendor::Vendor;

use crate::problem::{NO_DATA, WRONG_DATA};

/// The family's typed table, with the newest state of each resource; `None` if it has none.
pub const fn table(family: Family) -> Option<&'static str> {
    match family {
        Family::ExportJob => Some("export_jobs"),
        Family::Vendor => Some("vendors"),
        Family::Other => None,
    }
}

/// A statement that fails unless the family's typed table can be written now. It writes nothing.
/// `None` for a family without a table.
pub const fn probe(family: Family) -> Option<&'static str> {
    match family {
        Family::ExportJob => Some("update export_jobs set id = id where false"),
        Family::Vendor => Some("update vendors set id = id where false"),
        Family::Other => None,
    }
}

macro_rules! locked_in {
    ($table:literal) => {
        concat!(
            "with free as materialized (
                 select id from ",
            $table,
            " where id = any ($1) for no key update skip locked)
             select id from ",
            $table,
            " where id = any ($1) and id not in (select id from free)"
        )
    };
}

/// The row of a typed table.
#[derive(Clone, Debug, PartialEq)]
pub enum Typed {
    /// A row of `export_jobs`.
    ExportJob(Row<ExportJob>),
    /// A row of `vendors`.
    Vendor(Row<Vendor>),
}

impl Typed {
    /// Parses `data` by the family's type. Returns `Ok(None)` for a family without a table. An
    /// error says why `data` does not match the type.
    pub fn parse(
        family: Family,
        data: Option<&RawValue>,
        webhook_id: &str,
        received_at: DateTime<Utc>,
    ) -> Result<Option<Self>, String> {
        let parse = match family {
            Family::ExportJob => |json, id, at| Row::parse(json, id, at).map(Self::ExportJob),
            Family::Vendor => |json, id, at| Row::parse(json, id, at).map(Self::Vendor),
            Family::Other => return Ok(None),
        };
        let data = data.ok_or(NO_DATA)?;
        // serde accepts an array as a struct's fields in order, which no sender means.
        if !data.get().starts_with('{') {
            let found = json_kind(data.get());
            return Err(format!(
                "{WRONG_DATA} {family} its type names: `data`: expected an object, found {found}"
            ));
        }
        parse(data.get(), webhook_id, received_at)
            .map(Some)
            .map_err(|reason| format!("{WRONG_DATA} {family} its type names: {reason}"))
    }

    /// The columns that a worker writes, as [`Row::columns`].
    pub fn columns(&self) -> serde_json::Result<Map<String, Value>> {
        match self {
            Self::ExportJob(row) => row.columns(),
            Self::Vendor(row) => row.columns(),
        }
    }

    /// The key in its table.
    pub fn id(&self) -> &str {
        match self {
            Self::ExportJob(row) => row.resource.id().as_str(),
            Self::Vendor(row) => row.resource.id().as_str(),
        }
    }

    /// The company that the resource belongs to.
    pub fn company_id(&self) -> &str {
        match self {
            Self::ExportJob(row) => row.resource.company_id().as_str(),
            Self::Vendor(row) => row.resource.company_id().as_str(),
        }
    }
}

/// The ids of these rows whose row in the family's table another session has locked. The free rows
/// stay locked until the transaction ends.
pub async fn locked(
    connection: &mut PgConnection,
    family: Family,
    rows: &[&Typed],
) -> Result<HashSet<String>, sqlx::Error> {
    let sql = match family {
        Family::ExportJob => locked_in!("export_jobs"),
        Family::Vendor => locked_in!("vendors"),
        Family::Other => return Ok(HashSet::new()),
    };
    let ids: Vec<&str> = rows.iter().map(|row| row.id()).collect();
    let locked: Vec<String> = sqlx::query_scalar(sql)
        .bind(ids)
        .fetch_all(connection)
        .await?;
    Ok(locked.into_iter().collect())
}

/// The type and `data` of a harmless event of the family.
pub fn harmless(family: Family) -> (String, &'static str) {
    let data = match family {
        Family::ExportJob => ExportJob::HARMLESS,
        Family::Vendor => Vendor::HARMLESS,
        Family::Other => "{}",
    };
    let resource = family.resource().unwrap_or("rehearsal");
    (format!("v1.{resource}.created"), data)
}

/// Writes the rows into their tables. A row is overwritten only by a newer state, so the result
/// does not depend on order, repetition or batching.
///
/// A row never changes its company. Returns the webhook ids of rows that were not written because
/// their resource belongs to another company.
pub async fn upsert<'r>(
    connection: &mut PgConnection,
    rows: &[&'r Typed],
) -> Result<HashSet<&'r str>, sqlx::Error> {
    let mut export_jobs = Vec::new();
    let mut vendors = Vec::new();
    for &row in rows {
        match row {
            Typed::ExportJob(row) => export_jobs.push(row),
            Typed::Vendor(row) => vendors.push(row),
        }
    }
    // Always in this order of tables, so that the batches of several workers wait for each other
    // and do not deadlock.
    let export_jobs = Row::upsert_newest(connection, export_jobs).await?;
    let vendors = Row::upsert_newest(connection, vendors).await?;
    let webhook_ids = export_jobs.into_iter().map(|row| row.webhook_id.as_str());
    Ok(webhook_ids
        .chain(vendors.into_iter().map(|row| row.webhook_id.as_str()))
        .collect())
}
