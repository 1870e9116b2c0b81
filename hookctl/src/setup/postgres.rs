//! Roles and grants in Postgres.

use std::{collections::HashSet, time::Duration};

use anyhow::{Context, ensure};
use postgres_protocol::password::scram_sha_256;
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use shared::{Program, database::TransactionMode};
use sqlx::{AssertSqlSafe, PgConnection};
use worker::config::{Retention, RetentionArgs};

use super::{policies, record::State};
use crate::{
    account::{self, identifier},
    actions::Run,
    database::{CHANGING, Connection},
    passwords::Passwords,
};

/// What the accounts may do, with variables for names.
pub(crate) const GRANTS: &str = include_str!("grants.sql");

/// The additional rights if old events are to be swept.
const SWEEP_GRANT: &str = include_str!("sweep_grant.sql");

/// The additional rights if typed rows are to be swept.
const TYPED_ROW_SWEEP: &str = include_str!("typed_row_sweep.sql");

/// Only one setup of a database runs at a time. Any number will do that nobody else uses.
const LOCK: &str = "select pg_advisory_xact_lock(7236839910421)";

/// While it waits for a table lock, all later transactions on the table wait as well. So it waits only
/// briefly, and is tried again.
const APPLYING: TransactionMode = CHANGING.lock_timeout(Duration::from_millis(500));

/// Settings of the accounts besides name and password.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// How many connections each may have.
    pub(super) connections: i64,
    /// What may be swept.
    pub(super) retention: RetentionArgs,
}

impl Terms {
    /// Which takes indexes of its own.
    pub(super) fn sweeps_typed_rows(self) -> bool {
        self.retention.typed_row_retention != Retention::Forever
    }
}

/// Where the accounts get their rights.
#[derive(Debug)]
pub(super) struct Place {
    /// The database.
    pub(super) database: String,
    /// The schema with the tables.
    pub(super) schema: String,
    /// The role that runs the setup.
    pub(super) role: String,
}

impl Place {
    /// Where the connection's statements go.
    pub(super) async fn find(connection: &mut PgConnection) -> anyhow::Result<Self> {
        // Without that schema the schema of temporary tables comes first.
        let found = "select current_database(), case when current_schema() !~ '^pg_temp_' then current_schema() end, current_user";
        let (database, schema, role): (String, Option<String>, String) =
            sqlx::query_as(found).fetch_one(connection).await?;
        let schema = schema.context(
            "there is no schema of that name that we may use: create it, or set DATABASE_SCHEMA",
        )?;
        Ok(Self {
            database,
            schema,
            role,
        })
    }
}

/// The accounts that exist already.
pub(super) async fn existing(
    connection: &mut PgConnection,
    prefix: &str,
) -> anyhow::Result<HashSet<String>> {
    let names: Vec<String> =
        sqlx::query_scalar("select rolname from pg_roles where rolname = any($1)")
            .bind(names(prefix))
            .fetch_all(connection)
            .await?;
    Ok(names.into_iter().collect())
}

/// Refuses accounts whose attributes allow more than anything granted here.
pub(super) async fn check_existing(
    connection: &mut PgConnection,
    prefix: &str,
) -> anyhow::Result<()> {
    let mighty: Vec<String> = sqlx::query_scalar(
        "select rolname from pg_roles r
          where rolname = any($1)
            and (rolsuper or rolcreaterole or rolcreatedb or rolreplication or rolbypassrls
                 or exists (select from pg_auth_members m where m.member = r.oid)
                 or exists (select from pg_class c where c.relowner = r.oid))",
    )
    .bind(names(prefix))
    .fetch_all(connection)
    .await?;
    ensure!(
        mighty.is_empty(),
        "{} exists already and has an attribute, a membership or a table of its own, and so more \
         rights than its service needs: take them away (alter role, revoke, reassign owned), or \
         choose another TOPOLOGY_PREFIX",
        mighty.join(", ")
    );
    Ok(())
}

/// Fails unless we may grant rights on everything: Postgres only warns about grants that it leaves out.
pub(super) async fn check_ownership(
    connection: &mut PgConnection,
    place: &Place,
) -> anyhow::Result<()> {
    let foreign: Vec<String> = sqlx::query_scalar(
        "select c.relname || ' (of ' || pg_get_userbyid(c.relowner) || ')'
           from pg_class c
          where c.relnamespace = (select oid from pg_namespace where nspname = current_schema())
            and c.relname = any($1)
            and not pg_has_role(c.relowner, 'usage')
          order by 1",
    )
    .bind(relations())
    .fetch_all(connection)
    .await?;
    ensure!(
        foreign.is_empty(),
        "{} cannot grant rights on tables that it does not own: {}; run setup as their owner",
        place.role,
        foreign.join(", ")
    );
    Ok(())
}

/// Creates the accounts and gives each its rights and password, in one transaction.
pub(super) async fn apply(
    connection: &mut Connection,
    place: &Place,
    prefix: &str,
    terms: Terms,
    before: &State,
    passwords: &Passwords,
) -> anyhow::Result<()> {
    let applied = connection.change(&APPLYING, async |connection| {
        apply_on(connection, place, prefix, terms, before, passwords).await
    });
    applied.await
}

async fn apply_on(
    connection: &mut PgConnection,
    place: &Place,
    prefix: &str,
    terms: Terms,
    before: &State,
    passwords: &Passwords,
) -> anyhow::Result<()> {
    sqlx::raw_sql(LOCK)
        .execute(&mut *connection)
        .await
        .context("another setup is under way")?;
    let existing = existing(connection, prefix).await?;
    for program in Program::ACCOUNTS {
        let name = account::name(program, prefix);
        let password = passwords.of(program);
        let login = match password {
            Some(_) => Login::Allowed,
            None => Login::Forbidden,
        };
        let statement = role(&name, existing.contains(&name), login, terms);
        let statement = match password {
            Some(password) => with_password(statement, password),
            None => statement,
        };
        sqlx::raw_sql(AssertSqlSafe(statement))
            .execute(&mut *connection)
            .await
            .with_context(|| {
                format!(
                    "cannot make the role {name}: {} needs the attribute CREATEROLE",
                    place.role
                )
            })?;
    }
    sqlx::raw_sql(AssertSqlSafe(grants(place, prefix, terms)))
        .execute(&mut *connection)
        .await
        .context("cannot grant rights")?;
    // Last, because it blocks everybody else until the commit.
    policies::apply(connection, prefix).await.context(
        "cannot bind the workers' accounts to their families, which needs the tables events and \
         webhook_spool for a moment alone",
    )?;
    check_reach(connection, place, prefix).await?;
    let after = State::look(connection, prefix).await?;
    let run = Run::new("setup", json!({"topology_prefix": prefix}), None);
    run.record(connection, before.changes_to(&after))
        .await
        .context("cannot write down what was changed")?;
    Ok(())
}

/// The owner of the tables need not own the schema and the database.
async fn check_reach(
    connection: &mut PgConnection,
    place: &Place,
    prefix: &str,
) -> anyhow::Result<()> {
    let reached: bool = sqlx::query_scalar(
        "select bool_and(has_database_privilege(name, current_database(), 'connect')
                         and has_schema_privilege(name, current_schema(), 'usage'))
           from unnest($1::text[]) as name",
    )
    .bind(names(prefix))
    .fetch_one(connection)
    .await?;
    ensure!(
        reached,
        "{} cannot grant connect on the database {} and usage on the schema {}: run setup as their \
         owner",
        place.role,
        place.database,
        place.schema
    );
    Ok(())
}

/// What an account can do, as Postgres reports it: each table with the kinds of rights.
pub(super) async fn rights(
    connection: &mut PgConnection,
    account: &str,
) -> Result<Vec<(String, String)>, sqlx::Error> {
    sqlx::query_as(
        "select table_name::text, string_agg(distinct lower(privilege_type), ', ')
           from (select table_name, privilege_type, grantee, table_schema
                   from information_schema.column_privileges
                 union all
                 select table_name, privilege_type, grantee, table_schema
                   from information_schema.table_privileges) granted
          where grantee = $1 and table_schema = current_schema()
          group by table_name
          order by table_name",
    )
    .bind(account)
    .fetch_all(connection)
    .await
}

/// Whether a role may log in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Login {
    Allowed,
    /// It has no password.
    Forbidden,
}

/// Creates or changes the role, except its password. It gets only the right to log in; all other rights are
/// granted.
pub(super) fn role(name: &str, exists: bool, login: Login, terms: Terms) -> String {
    let verb = if exists { "alter" } else { "create" };
    let login = match login {
        Login::Allowed => "login",
        Login::Forbidden => "nologin",
    };
    format!(
        "{verb} role {} {login} connection limit {}",
        identifier(name),
        terms.connections
    )
}

/// Adds a salted hash that is no use for a login, in case Postgres logs statements.
fn with_password(role: String, password: &SecretString) -> String {
    let verifier = scram_sha_256(password.expose_secret().as_bytes());
    format!("{role} password '{verifier}'")
}

/// The grants, ready to be run.
pub(super) fn grants(place: &Place, prefix: &str, terms: Terms) -> String {
    let sweep = |retention: Retention, sql| match retention {
        Retention::Forever => "",
        Retention::For(_) => sql,
    };
    let events = sweep(terms.retention.event_retention, SWEEP_GRANT);
    let typed_rows = sweep(terms.retention.typed_row_retention, TYPED_ROW_SWEEP);
    let mut sql = format!("{GRANTS}\n{events}{typed_rows}")
        .replace(":\"schema\"", &identifier(&place.schema))
        .replace(":\"database\"", &identifier(&place.database));
    for program in Program::ACCOUNTS {
        let variable = format!(":\"{}\"", program.name().replace('-', "_"));
        sql = sql.replace(&variable, &identifier(&account::name(program, prefix)));
    }
    sql
}

fn names(prefix: &str) -> Vec<String> {
    Program::ACCOUNTS
        .map(|program| account::name(program, prefix))
        .to_vec()
}

/// The tables and views that the grants are about: those of the first `revoke`, which names all of them.
fn relations() -> Vec<&'static str> {
    let all = GRANTS
        .split_once("revoke all on\n")
        .and_then(|(_, rest)| rest.split_once("from"))
        .map_or("", |(all, _)| all);
    all.split(',').map(str::trim).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_variable_is_left_in_the_grants() {
        let place = Place {
            database: "a \"b\"".into(),
            schema: "public".into(),
            role: "owner".into(),
        };
        let terms = Terms {
            connections: 9,
            retention: RetentionArgs {
                event_retention: Retention::For(Duration::ZERO),
                typed_row_retention: Retention::For(Duration::ZERO),
            },
        };
        let sql = grants(&place, "x.y", terms);
        assert!(!sql.contains(":\""), "{sql}");
        assert!(sql.contains("on database \"a \"\"b\"\"\""), "{sql}");
        assert!(sql.contains("to \"x.y-ingest\";"), "{sql}");
        assert!(sql.contains("to \"x.y-console\";"), "{sql}");
    }

    #[test]
    fn postgres_is_told_a_verifier_and_no_password() {
        let sql = with_password("create role x login".into(), &"correct-horse".into());
        assert!(sql.starts_with("create role x login password 'SCRAM-SHA-256$4096:"));
        assert!(!sql.contains("correct"));
        // The verifier's alphabet has no character that would end the literal.
        assert_eq!(sql.matches(['\'', '\\']).count(), 2);
    }

    #[test]
    fn the_relations_are_read_from_the_grants() {
        assert!(relations().contains(&"webhook_receipts"));
        assert!(relations().contains(&"_sqlx_migrations"));
        assert!(
            relations()
                .iter()
                .all(|name| !name.contains(char::is_whitespace))
        );
    }
}
