//! Whether each typed row matches its event, and has the newest state of its resource's events.
//!
//! Reads every typed row with the body of its event, and of the other events only those whose resource has
//! a row of another event. Both in batches, by the keys of the tables.

use std::{collections::BTreeSet, time::Duration};

use serde::Serialize;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use crate::typed_table::{Candidate, NAMED, Table, key};

/// Rows or events of one statement.
const BATCH: i64 = 1_000;

/// A row that differs from its event.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Differing {
    pub(super) id: String,
    pub(super) webhook_id: String,
    /// The columns that differ.
    pub(super) columns: Vec<String>,
    /// Why this version cannot make a row of the event.
    pub(super) problem: Option<String>,
}

/// The findings about the rows of a table.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) differing: i64,
    /// The first of those, by id.
    pub(super) such_differing: Vec<Differing>,
    pub(super) outdated: i64,
    /// The first ids of those.
    pub(super) such_outdated: Vec<String>,
}

/// Compares the rows of a table, and keeps at most `limit` of each finding. Newer states are searched among
/// events that were received within `newer_within`.
pub(super) async fn compare(
    connection: &mut PgConnection,
    table: &Table,
    newer_within: Option<Duration>,
    limit: usize,
) -> Result<Findings, sqlx::Error> {
    let mut findings = Findings::default();
    compare_with_own_events(connection, table, limit, &mut findings).await?;
    let outdated = outdated(connection, table, newer_within).await?;
    findings.outdated = i64::try_from(outdated.len()).unwrap_or(i64::MAX);
    findings.such_outdated = outdated.into_iter().take(limit).collect();
    Ok(findings)
}

async fn compare_with_own_events(
    connection: &mut PgConnection,
    table: &Table,
    limit: usize,
    findings: &mut Findings,
) -> Result<(), sqlx::Error> {
    let sql = format!(
        "select t.id, {} from {} t
           join events e on {NAMED} and not {}
          where t.id > $1 order by t.id limit $2",
        Candidate::COLUMNS,
        table.qualified(),
        table.not_set_by()
    );
    let mut after = String::new();
    loop {
        let rows = sqlx::query(AssertSqlSafe(sql.as_str()))
            .bind(&after)
            .bind(BATCH)
            .fetch_all(&mut *connection)
            .await?;
        let Some(last) = rows.last() else {
            return Ok(());
        };
        after = last.try_get("id")?;
        let mut expected = Vec::new();
        let mut found = Vec::new();
        for row in &rows {
            let id: String = row.try_get("id")?;
            let Candidate { webhook_id, typed } = Candidate::read(row)?;
            let columns = typed.and_then(|typed| typed.columns().map_err(|e| e.to_string()));
            match columns {
                Ok(columns) => expected.push((id, serde_json::Value::from(columns).to_string())),
                Err(problem) => found.push(Differing {
                    id,
                    webhook_id,
                    columns: Vec::new(),
                    problem: Some(problem),
                }),
            }
        }
        found.extend(differing(connection, table, expected).await?);
        findings.differing += i64::try_from(found.len()).unwrap_or(i64::MAX);
        found.sort_by(|a, b| a.id.cmp(&b.id));
        let room = limit.saturating_sub(findings.such_differing.len());
        findings.such_differing.extend(found.into_iter().take(room));
    }
}

/// Of the rows, given by their ids and the columns that they should have, returns those that differ.
/// Postgres compares, because it has converted both to the same types. Columns that users have added are
/// ignored.
async fn differing(
    connection: &mut PgConnection,
    table: &Table,
    expected: Vec<(String, String)>,
) -> Result<Vec<Differing>, sqlx::Error> {
    let (ids, rows): (Vec<String>, Vec<String>) = expected.into_iter().unzip();
    let found: Vec<(String, String, Vec<String>)> = sqlx::query_as(AssertSqlSafe(format!(
        "select * from (
             select t.id, t.webhook_id,
                    array(select is_now.key
                            from jsonb_each(to_jsonb(t)) as is_now
                            join jsonb_each(to_jsonb(should)) as should_be
                              on should_be.key = is_now.key
                           where x.columns ? is_now.key and is_now.value <> should_be.value
                           order by is_now.key) as columns
               from unnest($1::text[], $2::text[]) as given (id, columns)
              cross join lateral (select given.columns::jsonb as columns) as x
              cross join lateral jsonb_populate_record(null::{0}, x.columns) as should
               join {0} t on t.id = given.id) as compared
          where columns <> '{{}}'",
        table.qualified()
    )))
    .bind(ids)
    .bind(rows)
    .fetch_all(connection)
    .await?;
    let differing = found
        .into_iter()
        .map(|(id, webhook_id, columns)| Differing {
            id,
            webhook_id,
            columns,
            problem: None,
        });
    Ok(differing.collect())
}

/// The ids of the rows that have an older state than a healthy event of their company. A row never takes
/// another company's state.
async fn outdated(
    connection: &mut PgConnection,
    table: &Table,
    newer_within: Option<Duration>,
) -> Result<BTreeSet<String>, sqlx::Error> {
    let sql = format!(
        "select t.id, t.sort_key, t.company_id as row_company, {} from events e
           join {} t on t.id = e.resource_id and t.webhook_id <> e.webhook_id
          where e.webhook_id > $1 and e.problem is null and e.event_type ~ $2
            and ($3::float8 is null or e.received_at > now() - make_interval(secs => $3))
          order by e.webhook_id limit $4",
        Candidate::COLUMNS,
        table.qualified()
    );
    let mut outdated = BTreeSet::new();
    let mut after = String::new();
    loop {
        let rows = sqlx::query(AssertSqlSafe(sql.as_str()))
            .bind(&after)
            .bind(table.pattern())
            .bind(newer_within.map(|age| age.as_secs_f64()))
            .bind(BATCH)
            .fetch_all(&mut *connection)
            .await?;
        for row in &rows {
            let sort_key: Vec<u8> = row.try_get("sort_key")?;
            let candidate = Candidate::read(row)?;
            let id: String = row.try_get("id")?;
            if let Ok(typed) = &candidate.typed {
                let (own, newest, _) = key(typed);
                let is_newer = sort_key.as_slice() < newest.as_bytes()
                    && row.try_get::<&str, _>("row_company")? == typed.company_id();
                // An event that is stored under another resource cannot be expected to have set this row.
                if own != id {
                    outdated.insert(own.to_owned());
                } else if is_newer {
                    outdated.insert(id);
                }
            }
            after = candidate.webhook_id;
        }
        if rows.is_empty() {
            return Ok(outdated);
        }
    }
}
