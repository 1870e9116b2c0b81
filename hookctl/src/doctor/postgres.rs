//! Postgres: whether it can be reached, and then all checks in it.

use std::time::Duration;

use shared::database::{DatabaseUrl, TransactionMode};
use sqlx::PgConnection;
use worker::config::RetentionArgs;

use super::{backlog, bounds, clocks, durability, finding::Finding, grants, schema, settings};
use crate::database::{self, Connection, READING, TABLES_REMEDY};

/// The oldest tested version.
const OLDEST: i32 = 15;

/// No query here takes long on a healthy database.
const LOOK: TransactionMode = READING.statement_timeout(Duration::from_secs(20));

/// All checks in Postgres.
pub(super) async fn check(
    options: &DatabaseUrl,
    prefix: &str,
    overdue: Duration,
    retention: RetentionArgs,
) -> Vec<Finding> {
    let mut connection = match database::connect(options).await {
        Ok(connection) => connection,
        Err(error) => {
            let remedy = if error.is_of_pooler() {
                "let DATABASE_URL point to Postgres itself, or to a PgBouncer 1.21 or newer with \
                 pool_mode transaction and max_prepared_statements above 0"
            } else {
                "check DATABASE_URL, and that Postgres runs and takes connections from here"
            };
            return vec![
                Finding::problem("postgres", error.to_string(), remedy),
                Finding::skipped("schema, accounts, durability, backlog", "no Postgres"),
            ];
        }
    };
    let postgres = &mut connection;
    let mut findings = look(postgres, "postgres", version).await;
    findings.extend(look(postgres, "clock of postgres", clocks::postgres).await);
    findings.extend(check_tables(postgres, prefix, overdue, retention).await);
    let settings = async |connection: &mut PgConnection| settings::check(connection, prefix).await;
    findings.extend(look(postgres, "settings", settings).await);
    findings.extend(look(postgres, "durability", durability::settings).await);
    findings.extend(look(postgres, "standby", durability::standby).await);
    connection.close().await;
    findings
}

/// The checks in the pipeline's tables, if the schema has them.
async fn check_tables(
    postgres: &mut Connection,
    prefix: &str,
    overdue: Duration,
    retention: RetentionArgs,
) -> Vec<Finding> {
    match postgres.lacks_tables().await {
        Ok(None) => {}
        Ok(Some(lacking)) => {
            return vec![
                Finding::problem("schema", lacking, TABLES_REMEDY),
                Finding::skipped("accounts, dead letters, spool", "no tables"),
            ];
        }
        Err(error) => return settle("schema", Err(error)),
    }
    let mut findings = look(postgres, "schema", schema::check).await;
    let grants = async |connection: &mut PgConnection| grants::check(connection, prefix).await;
    findings.extend(look(postgres, "accounts", grants).await);
    let bounds =
        async |connection: &mut PgConnection| bounds::check(connection, prefix, retention).await;
    findings.extend(look(postgres, "bounds of accounts", bounds).await);
    findings.extend(look(postgres, "dead letters", backlog::dead_letters).await);
    let spool = async |connection: &mut PgConnection| backlog::spool(connection, overdue).await;
    findings.extend(look(postgres, "spool", spool).await);
    findings
}

/// Runs a check in a transaction of its own, so that its failure does not affect the next one.
async fn look(
    connection: &mut Connection,
    check: &str,
    look: impl AsyncFnOnce(&mut PgConnection) -> Result<Vec<Finding>, sqlx::Error>,
) -> Vec<Finding> {
    let result = async {
        let mut transaction = connection.begin(&LOOK).await?;
        let findings = look(&mut transaction).await?;
        transaction.rollback().await?;
        Ok(findings)
    };
    settle(check, result.await)
}

async fn version(postgres: &mut PgConnection) -> Result<Vec<Finding>, sqlx::Error> {
    // Not `default_transaction_read_only`: each transaction states whether it writes.
    let (number, name, standby): (i32, String, bool) = sqlx::query_as(
        "select current_setting('server_version_num')::int / 10000,
                current_setting('server_version'), pg_is_in_recovery()",
    )
    .fetch_one(postgres)
    .await?;
    Ok(vec![if number < OLDEST {
        Finding::problem(
            "postgres",
            format!("version {name}"),
            format!("upgrade to Postgres {OLDEST} or newer"),
        )
    } else if standby {
        Finding::problem(
            "postgres",
            format!("version {name}, a standby, which takes no writes"),
            "let DATABASE_URL point to the primary",
        )
    } else {
        Finding::ok("postgres", format!("version {name}"))
    }])
}

/// A check without an answer from Postgres is a finding as well.
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
