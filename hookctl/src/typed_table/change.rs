//! Changes of typed rows, for the audit record.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value, json};
use sqlx::{AssertSqlSafe, PgConnection};

use super::{Current, Table};

/// The columns that are recorded with their values before and after. Of the other columns only the names
/// are recorded, because their values come from bodies.
const SHOWN: [&str; 2] = ["webhook_id", "stored_at"];

/// What happened to these rows since they were locked.
pub(crate) async fn describe(
    connection: &mut PgConnection,
    table: &Table,
    before: &HashMap<String, Current>,
    ids: &[&str],
) -> Result<Vec<Value>, sqlx::Error> {
    let after: Vec<(String, Value)> = sqlx::query_as(AssertSqlSafe(format!(
        "select id, to_jsonb(t) from {} t where id = any($1)",
        table.qualified()
    )))
    .bind(ids)
    .fetch_all(connection)
    .await?;
    let after: BTreeMap<&str, &Value> = after.iter().map(|(id, row)| (&**id, row)).collect();
    let changes = ids.iter().map(|id| {
        let before = before.get(*id).map(|current| &current.row);
        let after = after.get(id).copied();
        json!({
            "table": table.name(),
            "id": id,
            "before": before.map(shown),
            "after": after.map(shown),
            "columns": differing(before, after),
        })
    });
    Ok(changes.collect())
}

fn shown(row: &Value) -> Value {
    SHOWN
        .into_iter()
        .map(|column| (column.to_owned(), row[column].clone()))
        .collect::<Map<_, _>>()
        .into()
}

/// The columns that differ, of a row that existed before and still exists.
fn differing<'r>(before: Option<&'r Value>, after: Option<&Value>) -> Vec<&'r str> {
    let (Some(Value::Object(before)), Some(after)) = (before, after) else {
        return Vec::new();
    };
    before
        .iter()
        .filter(|(column, value)| after[column.as_str()] != **value)
        .map(|(column, _)| column.as_str())
        .collect()
}
