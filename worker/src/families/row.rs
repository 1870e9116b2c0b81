//! What the typed tables have in common: one row for each resource, with its newest state.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use sqlx::PgConnection;

use super::{SortKey, Text, mismatch};

/// How far ahead of ours a sender's clock may be. A state with a time in the future would win over
/// all others until that time.
const AHEAD: TimeDelta = TimeDelta::days(1);

/// A resource in an event's `data`, and the typed table with its newest state. It is serialized
/// with the table's column names.
pub trait Resource: DeserializeOwned + Serialize + Send + Sync {
    /// The `data` of a harmless resource, for rehearsals.
    const HARMLESS: &'static str;

    /// The query for the ids and companies of those resources, by their ids, that are in the table.
    const COMPANIES: &'static str;

    /// The table's key.
    fn id(&self) -> &Text;

    /// The company that it belongs to.
    fn company_id(&self) -> &Text;

    /// All times of changes that the resource gives, with the names of their fields in `data`. The
    /// latest one is the time of the state: a deletion may not change the time of the last update.
    fn times(&self) -> impl IntoIterator<Item = (&'static str, Option<DateTime<Utc>>)>;

    /// The rank of its status, which decides between two events with the same time.
    fn rank(&self) -> u8;

    /// Writes the rows whose sort key is greater than the table's and whose company is the same.
    /// The rows' ids must be distinct and sorted. Returns the number of rows written.
    fn upsert(
        connection: &mut PgConnection,
        rows: &[&Row<Self>],
    ) -> impl Future<Output = Result<u64, sqlx::Error>> + Send;
}

/// The state of a resource in one event.
#[derive(Clone, Debug, PartialEq)]
pub struct Row<R> {
    /// The resource.
    pub resource: R,
    /// Decides which of two states is newer.
    pub sort_key: SortKey,
    /// The event.
    pub webhook_id: String,
}

impl<R: Resource> Row<R> {
    /// Parses `data`, a JSON object, of an event that was received at `received_at`. The error
    /// names the wrong field and no value.
    pub fn parse(data: &str, webhook_id: &str, received_at: DateTime<Utc>) -> Result<Self, String> {
        let resource: R = serde_json::from_str(data).map_err(|_| mismatch::explain::<R>(data))?;
        let mut latest = None;
        for (field, time) in resource.times() {
            if time.is_some_and(|time| time - received_at > AHEAD) {
                return Err(format!(
                    "`data.{field}`: more than a day after the event came"
                ));
            }
            latest = latest.max(time);
        }
        Ok(Self {
            sort_key: SortKey::new(latest, resource.rank(), webhook_id),
            webhook_id: webhook_id.to_owned(),
            resource,
        })
    }

    /// The columns that [`Resource::upsert`] writes, by name, in a form that Postgres converts to
    /// the table's types.
    pub fn columns(&self) -> serde_json::Result<Map<String, Value>> {
        let mut columns = match serde_json::to_value(&self.resource)? {
            Value::Object(columns) => columns,
            _ => Map::new(),
        };
        let sort_key = format!("\\x{}", hex::encode(self.sort_key.as_bytes()));
        columns.insert("sort_key".to_owned(), sort_key.into());
        columns.insert("webhook_id".to_owned(), self.webhook_id.as_str().into());
        Ok(columns)
    }

    /// Writes the newest state of each resource. Returns the rows whose resource belongs to another
    /// company. The company of a resource is that of its row in the table, or if there is none,
    /// that of the first of these rows.
    pub(super) async fn upsert_newest<'r>(
        connection: &mut PgConnection,
        mut rows: Vec<&'r Self>,
    ) -> Result<Vec<&'r Self>, sqlx::Error> {
        let mut company_changes = Vec::new();
        while !rows.is_empty() {
            let newest = newest(&rows);
            let written = R::upsert(connection, &newest).await?;
            let is_written = usize::try_from(written) == Ok(newest.len());
            if is_written && rows.iter().all(|row| is_of_one_company(row, &newest)) {
                break;
            }
            let companies = companies::<R>(connection, &newest).await?;
            let (others, own): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| {
                let company = companies.get(row.resource.id().as_str());
                company.is_some_and(|company| company != row.resource.company_id().as_str())
            });
            if others.is_empty() {
                break;
            }
            company_changes.extend(others);
            // A removed row may have been the first of its resource, and so kept a remaining one
            // from being written.
            rows = own;
        }
        Ok(company_changes)
    }
}

/// For each resource, the newest state among the rows with the same company as its first row,
/// sorted by id. Postgres refuses to update a row twice in one statement, and the common order
/// keeps two batches from deadlocking.
fn newest<'r, R: Resource>(rows: &[&'r Row<R>]) -> Vec<&'r Row<R>> {
    let mut newest: BTreeMap<&Text, &Row<R>> = BTreeMap::new();
    for &row in rows {
        let known = newest.entry(row.resource.id()).or_insert(row);
        let is_of_one_company = known.resource.company_id() == row.resource.company_id();
        if is_of_one_company && known.sort_key < row.sort_key {
            *known = row;
        }
    }
    newest.into_values().collect()
}

/// Whether the row has the same company as its resource's row in `newest`, which is sorted by id.
fn is_of_one_company<R: Resource>(row: &Row<R>, newest: &[&Row<R>]) -> bool {
    newest
        .binary_search_by_key(&row.resource.id(), |row| row.resource.id())
        .is_ok_and(|at| newest[at].resource.company_id() == row.resource.company_id())
}

/// The companies of those resources that are in the table, by id.
async fn companies<R: Resource>(
    connection: &mut PgConnection,
    rows: &[&Row<R>],
) -> Result<HashMap<String, String>, sqlx::Error> {
    let ids: Vec<&str> = rows.iter().map(|row| row.resource.id().as_str()).collect();
    let companies: Vec<(String, String)> = sqlx::query_as(R::COMPANIES)
        .bind(ids)
        .fetch_all(connection)
        .await?;
    Ok(companies.into_iter().collect())
}

/// One field of all rows, as an array parameter of a statement.
pub(super) fn column<'r, R, T>(rows: &[&'r Row<R>], pick: impl Fn(&'r R) -> T) -> Vec<T> {
    rows.iter().map(|row| pick(&row.resource)).collect()
}

pub(super) fn sort_keys<'r, R>(rows: &[&'r Row<R>]) -> Vec<&'r [u8]> {
    rows.iter().map(|row| row.sort_key.as_bytes()).collect()
}

pub(super) fn webhook_ids<'r, R>(rows: &[&'r Row<R>]) -> Vec<&'r str> {
    rows.iter().map(|row| row.webhook_id.as_str()).collect()
}
