//! Whether the services' accounts have the rights in Postgres that they need: each right in `grants.sql` is
//! checked.

use shared::Program;
use sqlx::PgConnection;

use super::finding::Finding;
use crate::{account, setup::GRANTS};

const CHECK: &str = "accounts";

/// One right of one program.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Right {
    program: Program,
    privilege: String,
    on: On,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum On {
    Database,
    Schema,
    Function(String),
    Table(String),
    Column(String, String),
}

impl On {
    fn parts(&self) -> (&'static str, &str, &str) {
        match self {
            Self::Database => ("database", "", ""),
            Self::Schema => ("schema", "", ""),
            Self::Function(signature) => ("function", signature, ""),
            Self::Table(table) => ("table", table, ""),
            Self::Column(table, column) => ("column", table, column),
        }
    }
}

pub(super) async fn check(
    postgres: &mut PgConnection,
    prefix: &str,
) -> Result<Vec<Finding>, sqlx::Error> {
    let names = Program::ACCOUNTS.map(|program| account::name(program, prefix));
    let existing: Vec<String> =
        sqlx::query_scalar("select rolname::text from pg_roles where rolname = any($1)")
            .bind(names.to_vec())
            .fetch_all(&mut *postgres)
            .await?;
    if existing.is_empty() {
        return Ok(vec![Finding::skipped(
            CHECK,
            format!("no account {} and so on: the services use others", names[0]),
        )]);
    }
    let mut findings = Vec::new();
    for program in Program::ACCOUNTS {
        let name = account::name(program, prefix);
        let found = if existing.contains(&name) {
            let lacking = lacking(postgres, program, &name).await?;
            if lacking.is_empty() {
                findings.push(Finding::ok(format!("account {name}"), "has its rights"));
                continue;
            }
            format!("lacks {}", lacking.join(", "))
        } else {
            "does not exist".to_owned()
        };
        findings.push(Finding::problem(
            format!("account {name}"),
            found,
            "run `hookctl setup` as the owner of the database",
        ));
    }
    Ok(findings)
}

/// The rights that the program needs and its account does not have.
async fn lacking(
    postgres: &mut PgConnection,
    program: Program,
    account: &str,
) -> Result<Vec<String>, sqlx::Error> {
    let rights = rights(GRANTS);
    let rights: Vec<_> = rights.iter().filter(|r| r.program == program).collect();
    let column = |part: fn(&Right) -> &str| -> Vec<String> {
        rights.iter().map(|right| part(right).to_owned()).collect()
    };
    sqlx::query_scalar(
        "select privilege || ' on ' || case kind
                    when 'database' then 'the database'
                    when 'schema' then 'the schema'
                    when 'column' then object || ' (' || string_agg(part, ', ') || ')'
                    else object end
           from unnest($2::text[], $3::text[], $4::text[], $5::text[])
                as needed (kind, object, part, privilege)
          where not case kind
                    when 'database' then has_database_privilege($1::name, current_database(), privilege)
                    when 'schema' then has_schema_privilege($1::name, current_schema(), privilege)
                    when 'function' then has_function_privilege($1::name, object, privilege)
                    when 'table' then has_table_privilege($1::name, object, privilege)
                    else has_column_privilege($1::name, object, part, privilege) end
          group by kind, object, privilege
          order by object, privilege",
    )
    .bind(account)
    .bind(column(|right| right.on.parts().0))
    .bind(column(|right| right.on.parts().1))
    .bind(column(|right| right.on.parts().2))
    .bind(column(|right| &right.privilege))
    .fetch_all(postgres)
    .await
}

/// Reads the `grant` statements: `grant privilege [(columns)], … on objects to :"program", …`.
fn rights(sql: &str) -> Vec<Right> {
    let code: Vec<&str> = sql
        .lines()
        .map(|line| line.split("--").next().unwrap_or_default())
        .flat_map(str::split_whitespace)
        .collect();
    let mut rights = Vec::new();
    for statement in code.join(" ").split(';') {
        let granted = statement.trim().strip_prefix("grant ");
        let Some((privileges, rest)) = granted.and_then(|granted| granted.split_once(" on "))
        else {
            continue;
        };
        let Some((objects, to)) = rest.rsplit_once(" to ") else {
            continue;
        };
        let programs = Program::ACCOUNTS.into_iter().filter(|program| {
            let variable = format!(":\"{}\"", program.name().replace('-', "_"));
            to.contains(&variable)
        });
        for program in programs {
            for privilege in split_outside_parentheses(privileges) {
                rights.extend(
                    on(privilege, objects)
                        .into_iter()
                        .map(|(privilege, on)| Right {
                            program,
                            privilege,
                            on,
                        }),
                );
            }
        }
    }
    rights
}

/// One privilege, on some columns or all, for each of the objects.
fn on(privilege: &str, objects: &str) -> Vec<(String, On)> {
    let (privilege, columns) = match privilege.split_once('(') {
        Some((privilege, columns)) => (privilege.trim(), Some(columns.trim_end_matches(')'))),
        None => (privilege, None),
    };
    let objects: Vec<On> = match (objects.split_once(' '), columns) {
        (Some(("database", _)), _) => vec![On::Database],
        (Some(("schema", _)), _) => vec![On::Schema],
        (Some(("function", signatures)), _) => split_outside_parentheses(signatures)
            .map(|signature| On::Function(signature.to_owned()))
            .collect(),
        (_, None) => objects
            .split(',')
            .map(|table| On::Table(table.trim().to_owned()))
            .collect(),
        (_, Some(columns)) => columns
            .split(',')
            .map(|column| On::Column(objects.trim().to_owned(), column.trim().to_owned()))
            .collect(),
    };
    objects
        .into_iter()
        .map(|on| (privilege.to_owned(), on))
        .collect()
}

fn split_outside_parentheses(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_usize;
    text.split(move |c| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    })
    .map(str::trim)
}

#[cfg(test)]
mod tests {
    use shared::Family;

    use super::*;

    #[test]
    fn every_kind_of_grant_is_read() {
        let sql = r#"
            -- grant drop on everything to :"ingest";
            revoke all on a from :"ingest";
            grant select (x, y), -- two
                  delete
               on a to :"ingest";
            grant insert on b, c to :"other_worker";
            grant usage on schema :"schema" to :"other_worker";
            grant execute on function f(timestamptz, integer), g() to :"other_worker";"#;
        let read: Vec<_> = rights(sql)
            .into_iter()
            .map(|right| (right.program, right.privilege, right.on))
            .collect();
        let (ingest, other) = (Program::Ingest, Program::Worker(Family::Other));
        let column = |name: &str| On::Column("a".into(), name.into());
        let expected = [
            (ingest, "select", column("x")),
            (ingest, "select", column("y")),
            (ingest, "delete", On::Table("a".into())),
            (other, "insert", On::Table("b".into())),
            (other, "insert", On::Table("c".into())),
            (other, "usage", On::Schema),
            (
                other,
                "execute",
                On::Function("f(timestamptz, integer)".into()),
            ),
            (other, "execute", On::Function("g()".into())),
        ]
        .map(|(program, privilege, on)| (program, privilege.to_owned(), on));
        assert_eq!(read, expected);
    }

    #[test]
    fn no_grant_of_the_set_up_is_overlooked() {
        let rights = rights(GRANTS);
        for program in Program::ACCOUNTS {
            let of = |on: &On| rights.iter().any(|r| r.program == program && r.on == *on);
            assert!(of(&On::Database) && of(&On::Schema), "{program}");
        }
        let statements = GRANTS
            .lines()
            .filter(|line| line.starts_with("grant "))
            .count();
        let tables = rights
            .iter()
            .filter(|r| r.program == Program::Ingest)
            .count();
        assert!(statements > 5 && tables > 10, "{rights:?}");
    }
}
