//! Row-level security: a worker's account can touch only rows of its family, and the console's operator
//! account can see and change only events with a problem.
//!
//! The tables' owner and superusers are exempt. All other roles keep seeing what their grants allow, by a
//! policy for everybody; the policies for single accounts only restrict.

use shared::{Family, Program};
use sqlx::{AssertSqlSafe, PgConnection};
use worker::problem::Kind;

use crate::account::{self, identifier};

/// The policy by which other roles see what they saw before.
const EVERYBODY: &str = "everybody";

/// The tables that have policies, in the order in which services lock them.
pub(crate) const TABLES: [&str; 2] = ["events", "webhook_spool"];

/// What one account may do with a table's rows.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
struct Policy {
    table: String,
    name: String,
    account: String,
    command: String,
    /// Which rows it can see, as Postgres prints the expression.
    sees: Option<String>,
    /// Which rows it can add, printed in the same way.
    adds: Option<String>,
}

impl Policy {
    fn statement(&self) -> String {
        let clause = |keyword: &str, expression: &Option<String>| match expression {
            Some(expression) => format!(" {keyword} {expression}"),
            None => String::new(),
        };
        format!(
            "drop policy if exists {0} on {1};\n\
             create policy {0} on {1} as restrictive for {2} to {3}{4}{5};\n",
            identifier(&self.name),
            self.table,
            self.command.to_lowercase(),
            identifier(&self.account),
            clause("using", &self.sees),
            clause("with check", &self.adds),
        )
    }
}

/// The policies of all accounts that have some. An event of another family can be added only with a problem
/// that withholds it from a replay, and with a body that matches its hash. So no account can create an
/// event of another family that an operator would replay with others, and an event that it stores never
/// counts as another event whose body is lost.
fn wanted(prefix: &str) -> Vec<Policy> {
    let workers = Family::ALL.map(|family| {
        let account = account::name(Program::Worker(family), prefix);
        let events = Policy {
            table: "events".to_owned(),
            name: account.clone(),
            account: account.clone(),
            command: "INSERT".to_owned(),
            sees: None,
            adds: Some(format!(
                "({} OR ((problem IS NOT NULL) AND (problem_kind = ANY (ARRAY[{}])) AND \
                 (sha256(raw) = body_sha256)))",
                is_of(family),
                withheld()
            )),
        };
        let spool = Policy {
            table: "webhook_spool".to_owned(),
            name: account.clone(),
            account,
            command: "ALL".to_owned(),
            sees: Some(format!("(family = '{family}'::text)")),
            adds: None,
        };
        [events, spool]
    });
    workers
        .into_iter()
        .flatten()
        .chain(of_operators(prefix))
        .collect()
}

/// The console's operator account sees only dead letters and replayed events, the latter because Postgres
/// applies the policy for reading to updated rows as well. It can change only dead letters. If it clears a
/// problem, it must keep it in `replayed_problem`, and the event cannot be dismissed: otherwise the event
/// would not become a dead letter when it gets a problem again.
fn of_operators(prefix: &str) -> [Policy; 2] {
    let account = account::name(Program::ConsoleOperator, prefix);
    let sees = Policy {
        table: "events".to_owned(),
        // No account has this name, so no other policy has it.
        name: format!("{prefix}-dead-letters"),
        account: account.clone(),
        command: "SELECT".to_owned(),
        sees: Some("((problem IS NOT NULL) OR (replayed_problem IS NOT NULL))".to_owned()),
        adds: None,
    };
    let changes = Policy {
        table: "events".to_owned(),
        name: account.clone(),
        account,
        command: "UPDATE".to_owned(),
        sees: Some("(problem IS NOT NULL)".to_owned()),
        adds: Some(
            "((problem IS NOT NULL) OR ((replayed_problem IS NOT NULL) AND (dismissed_at IS NULL)))"
                .to_owned(),
        ),
    };
    [sees, changes]
}

/// The kinds of problems with which a replay withholds a worker's event.
fn withheld() -> String {
    let kinds = [Kind::Misrouted, Kind::Conflict, Kind::Unidentified];
    kinds.map(|kind| format!("'{kind}'::text")).join(", ")
}

/// Whether an event's type is of the family, by the rule of [`Family::of`].
fn is_of(family: Family) -> String {
    if let Some(pattern) = family.pattern() {
        return format!("(event_type ~ '{pattern}'::text)");
    }
    let others = Family::ALL.into_iter().filter_map(Family::pattern);
    let others: Vec<String> = others
        .map(|pattern| format!("(event_type !~ '{pattern}'::text)"))
        .collect();
    format!("({})", others.join(" AND "))
}

/// The wanted policies that are missing or differ.
async fn lacking(connection: &mut PgConnection, prefix: &str) -> Result<Vec<Policy>, sqlx::Error> {
    let mut wanted = wanted(prefix);
    let found: Vec<Policy> = sqlx::query_as(
        r#"select tablename::text as "table", policyname::text as name, roles[1]::text as account,
                  cmd as command, qual as sees, with_check as adds
             from pg_policies
            where schemaname = current_schema() and tablename = any($1)
              and permissive = 'RESTRICTIVE' and cardinality(roles) = 1"#,
    )
    .bind(&TABLES[..])
    .fetch_all(connection)
    .await?;
    wanted.retain(|policy| !found.contains(policy));
    Ok(wanted)
}

/// The tables that have no row-level security yet.
async fn open_tables(connection: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(
        "select relname::text from pg_class
          where relnamespace = (select oid from pg_namespace where nspname = current_schema())
            and relname = any($1) and not relrowsecurity
          order by relname",
    )
    .bind(&TABLES[..])
    .fetch_all(connection)
    .await
}

/// The accounts that can touch rows of others.
pub(crate) async fn unbound(
    connection: &mut PgConnection,
    prefix: &str,
) -> Result<Vec<String>, sqlx::Error> {
    let all_are_open = !open_tables(&mut *connection).await?.is_empty();
    let policies = match all_are_open {
        true => wanted(prefix),
        false => lacking(connection, prefix).await?,
    };
    let mut accounts: Vec<String> = policies.into_iter().map(|policy| policy.account).collect();
    accounts.sort();
    accounts.dedup();
    Ok(accounts)
}

/// Creates what is missing. Each statement needs an exclusive lock on its table, so a setup without changes
/// here takes no lock.
pub(super) async fn apply(connection: &mut PgConnection, prefix: &str) -> Result<(), sqlx::Error> {
    let sql = statements(
        &open_tables(&mut *connection).await?,
        &lacking(&mut *connection, prefix).await?,
    );
    sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(connection)
        .await?;
    Ok(())
}

/// All statements, as for a database without any policy.
pub(super) fn script(prefix: &str) -> String {
    statements(&TABLES.map(str::to_owned), &wanted(prefix))
}

fn statements(open: &[String], policies: &[Policy]) -> String {
    let mut sql = String::new();
    for table in TABLES {
        // If somebody else has enabled it, everything that their policies let everybody see stays visible.
        if open.iter().any(|open| open == table) {
            sql.push_str(&format!(
                "alter table {table} enable row level security;\n\
                 drop policy if exists {EVERYBODY} on {table};\n\
                 create policy {EVERYBODY} on {table} using (true);\n"
            ));
        }
        for policy in policies.iter().filter(|policy| policy.table == table) {
            sql.push_str(&policy.statement());
        }
    }
    sql
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_worker_is_bound_in_both_tables() {
        let script = script("a\"b");
        for family in Family::ALL {
            let account = format!("to \"a\"\"b-{}-worker\"", family.name());
            assert_eq!(script.matches(&account).count(), TABLES.len(), "{script}");
        }
        assert!(
            script.contains("using (family = 'vendor'::text);"),
            "{script}"
        );
    }
}
