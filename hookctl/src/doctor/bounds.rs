//! Whether the services' accounts can do more than their work needs: what `hookctl setup` takes away
//! from them, or never gives.

use shared::Program;
use sqlx::PgConnection;
use worker::config::EventRetention;

use super::finding::Finding;
use crate::{account, setup::policies};

const CHECK: &str = "bounds of accounts";

const REMEDY: &str = "run `hookctl setup` as the owner of the database";

pub(super) async fn check(
    postgres: &mut PgConnection,
    prefix: &str,
    event_retention: EventRetention,
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
            "{}: may touch rows of other families in events and webhook_spool",
            unbound.join(", ")
        );
        findings.push(Finding::warning(CHECK, found, REMEDY));
    }
    findings.extend(sweeps(postgres, &names, event_retention).await?);
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "no account can do more than its work"));
    }
    Ok(findings)
}

/// What accounts have too much, with their names; nothing where there are no accounts. Only a superuser
/// can take large objects away, so others are not told of them.
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

/// Whether events can be swept by the accounts that have to, and by no others.
async fn sweeps(
    postgres: &mut PgConnection,
    names: &[String],
    event_retention: EventRetention,
) -> Result<Vec<Finding>, sqlx::Error> {
    let (accounts, superusers): (Vec<String>, Vec<String>) = sqlx::query_as(
        "select coalesce(array_agg(distinct rolname::text), '{}'),
                coalesce(array_agg(distinct pg_get_userbyid(proowner)::text)
                             filter (where (select rolsuper from pg_roles o where o.oid = proowner)),
                         '{}')
           from pg_roles r
           join pg_proc p on p.proname = 'sweep_events'
                         and p.pronamespace = current_schema()::regnamespace
                         and has_function_privilege(r.oid, p.oid, 'execute')
          where rolname = any($1)",
    )
    .bind(names)
    .fetch_one(postgres)
    .await?;
    let who = accounts.join(", ");
    Ok(match event_retention {
        EventRetention::For(_) if accounts.is_empty() => vec![Finding::problem(
            CHECK,
            "no account may sweep old events, although EVENT_RETENTION is set",
            "run `hookctl setup` with the EVENT_RETENTION of the workers",
        )],
        EventRetention::Forever if !accounts.is_empty() => vec![Finding::warning(
            CHECK,
            format!("{who}: may sweep old events, although EVENT_RETENTION is not set here"),
            "run `hookctl setup`, and this, with the EVENT_RETENTION of the workers",
        )],
        EventRetention::For(_) if !superusers.is_empty() => vec![Finding::warning(
            CHECK,
            format!(
                "{who}: sweeps old events by a function that has the rights of a superuser, {}",
                superusers.join(", ")
            ),
            "where you can, let an owner of the tables that is no superuser own sweep_events as well \
             (docs/retention.md)",
        )],
        EventRetention::For(_) | EventRetention::Forever => Vec::new(),
    })
}
