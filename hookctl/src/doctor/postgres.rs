//! Postgres: whether it can be reached, and then everything that is looked at in it.

use std::time::Duration;

use shared::database::DatabaseUrl;
use sqlx::{Connection, PgConnection};

use super::{backlog, clocks, durability, finding::Finding, grants, schema};
use crate::database;

/// The oldest version that the pipeline is tested with.
const OLDEST: i32 = 15;

/// Everything in Postgres.
pub(super) async fn check(options: &DatabaseUrl, prefix: &str, overdue: Duration) -> Vec<Finding> {
    // No question asked here takes long on a well database.
    let options = options
        .clone()
        .with_settings([("statement_timeout", "20s")]);
    let mut connection = match database::connect(&options).await {
        Ok(connection) => connection,
        Err(error) => {
            return vec![
                Finding::problem(
                    "postgres",
                    error.to_string(),
                    "check DATABASE_URL, and that Postgres runs and takes connections from here",
                ),
                Finding::skipped("schema, accounts, durability, backlog", "no Postgres"),
            ];
        }
    };
    let postgres = &mut connection;
    let mut findings = settle("postgres", version(postgres).await);
    findings.extend(settle(
        "clock of postgres",
        clocks::postgres(postgres).await,
    ));
    findings.extend(settle("schema", schema::check(postgres).await));
    findings.extend(settle("accounts", grants::check(postgres, prefix).await));
    findings.extend(settle("durability", durability::settings(postgres).await));
    findings.extend(settle("standby", durability::standby(postgres).await));
    findings.extend(settle(
        "dead letters",
        backlog::dead_letters(postgres).await,
    ));
    findings.extend(settle("spool", backlog::spool(postgres, overdue).await));
    // Whatever happens to a connection that is not needed any more.
    connection.close().await.ok();
    findings
}

async fn version(postgres: &mut PgConnection) -> Result<Vec<Finding>, sqlx::Error> {
    let (number, name, read_only): (i32, String, bool) = sqlx::query_as(
        "select current_setting('server_version_num')::int / 10000,
                current_setting('server_version'),
                pg_is_in_recovery() or current_setting('default_transaction_read_only')::bool",
    )
    .fetch_one(postgres)
    .await?;
    Ok(vec![if number < OLDEST {
        Finding::problem(
            "postgres",
            format!("version {name}"),
            format!("upgrade to Postgres {OLDEST} or newer"),
        )
    } else if read_only {
        Finding::problem(
            "postgres",
            format!("version {name}, read-only"),
            "let DATABASE_URL point to the primary, and set default_transaction_read_only to off",
        )
    } else {
        Finding::ok("postgres", format!("version {name}"))
    }])
}

/// A check that Postgres did not answer is a finding as well.
fn settle(check: &str, result: Result<Vec<Finding>, sqlx::Error>) -> Vec<Finding> {
    let error = match result {
        Ok(findings) => return findings,
        Err(error) => error,
    };
    let code = error.as_database_error().and_then(|error| error.code());
    vec![match code.as_deref() {
        Some("42501") => Finding::skipped(
            check,
            format!("the user of DATABASE_URL may not look ({error})"),
        ),
        Some("42P01" | "42703") => Finding::problem(
            check,
            error.to_string(),
            "bring the schema up to date with `hookctl setup`",
        ),
        _ => Finding::problem(
            check,
            error.to_string(),
            "look at Postgres' log, and run doctor again",
        ),
    }]
}
