//! Whether the services' accounts have rights beyond their work: rights that `hookctl setup` revokes, or
//! never grants.

use shared::Program;
use sqlx::PgConnection;
use worker::config::{Retention, RetentionArgs};

use super::finding::Finding;
use crate::{account, setup::policies};

const CHECK: &str = "bounds of accounts";

const REMEDY: &str = "run `hookctl setup` as the owner of the database";

pub(super) async fn check(
    postgres: &mut PgConnection,
    prefix: &str,
    retention: RetentionArgs,
) -> Result<Vec<Finding>, sqlx::Error> {
    let names = Program::ALL.map(|program| account::name(program, prefix));
    let excesses = excesses(postgres, &names).await?;
    if excesses.is_empty() {
        return Ok(Vec::new());
    }
    let mut findings = excesses
        .into_iter()
        .filter(|(_, accounts)| !accounts.is_empty())
        .map(|(what, accounts)| {
            let who = accounts.join(", ");
            Finding::warning(CHECK, format!("{who}: {what}"), REMEDY)
        })
        .collect::<Vec<_>>();
    let unbound = policies::unbound(postgres, prefix).await?;
    if !unbound.is_empty() {
        let found = format!(
            "{}: may touch rows of other families in events and webhook_spool, or healthy events",
            unbound.join(", ")
        );
        findings.push(Finding::warning(CHECK, found, REMEDY));
    }
    for sweep in Sweep::all(retention) {
        findings.extend(sweep.check(postgres, &names).await?);
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "no account can do more than its work"));
    }
    Ok(findings)
}

/// The rights that accounts should not have, with the accounts' names; nothing if there are no accounts.
/// Only a superuser can revoke the right to create large objects, so others get no finding about it.
async fn excesses(
    postgres: &mut PgConnection,
    names: &[String],
) -> Result<Vec<(String, Vec<String>)>, sqlx::Error> {
    sqlx::query_as(
        "select what, coalesce(array_agg(rolname::text order by rolname) filter (where has), '{}')
           from pg_roles
          cross join lateral (values
                ('may make temporary tables',
                 has_database_privilege(oid, current_database(), 'temporary')),
                ('may make large objects',
                 has_function_privilege(oid, 'pg_catalog.lo_create(oid)', 'execute')
                 and (select rolsuper from pg_roles where rolname = current_user)
                 and not exists (select from pg_largeobject_metadata)),
                ('may take every connection', rolconnlimit < 0)) as excess (what, has)
          where rolname = any($1)
          group by what
          order by what",
    )
    .bind(names)
    .fetch_all(postgres)
    .await
}

/// A sweep that other-worker may do only if a setting asks for it.
struct Sweep {
    function: &'static str,
    /// The swept table.
    rows: &'static str,
    setting: &'static str,
    retention: Retention,
}

impl Sweep {
    const fn all(retention: RetentionArgs) -> [Self; 2] {
        [
            Self {
                function: "sweep_events",
                rows: "old events",
                setting: "EVENT_RETENTION",
                retention: retention.event_retention,
            },
            Self {
                function: "sweep_typed_rows",
                rows: "old typed rows",
                setting: "TYPED_ROW_RETENTION",
                retention: retention.typed_row_retention,
            },
        ]
    }

    /// Whether exactly the right accounts can do it.
    async fn check(
        &self,
        postgres: &mut PgConnection,
        names: &[String],
    ) -> Result<Option<Finding>, sqlx::Error> {
        let (accounts, superusers): (Vec<String>, Vec<String>) = sqlx::query_as(
            "select coalesce(array_agg(distinct rolname::text), '{}'),
                    coalesce(array_agg(distinct pg_get_userbyid(proowner)::text)
                                 filter (where (select rolsuper from pg_roles o where o.oid = proowner)),
                             '{}')
               from pg_roles r
               join pg_namespace n on n.nspname = current_schema()
               join pg_proc p on p.proname = $2
                             and p.pronamespace = n.oid
                             and has_function_privilege(r.oid, p.oid, 'execute')
              where rolname = any($1)",
        )
        .bind(names)
        .bind(self.function)
        .fetch_one(postgres)
        .await?;
        Ok(self.judge(&accounts.join(", "), &superusers.join(", ")))
    }

    /// The names of the accounts that may, and of the superusers whose rights these then have.
    fn judge(&self, accounts: &str, superusers: &str) -> Option<Finding> {
        let Self {
            function,
            rows,
            setting,
            retention,
        } = self;
        match retention {
            Retention::For(_) if accounts.is_empty() => Some(Finding::problem(
                CHECK,
                format!("no account may sweep {rows}, although {setting} is set"),
                format!("run `hookctl setup` with the {setting} of the workers"),
            )),
            Retention::Forever if !accounts.is_empty() => Some(Finding::warning(
                CHECK,
                format!("{accounts}: may sweep {rows}, although {setting} is not set here"),
                format!("run `hookctl setup`, and this, with the {setting} of the workers"),
            )),
            Retention::For(_) if !superusers.is_empty() => Some(Finding::warning(
                CHECK,
                format!(
                    "{accounts}: sweeps {rows} by a function that has the rights of a superuser, \
                     {superusers}"
                ),
                format!(
                    "where you can, let an owner of the tables that is no superuser own {function} as \
                     well (docs/retention.md)"
                ),
            )),
            Retention::For(_) | Retention::Forever => None,
        }
    }
}
