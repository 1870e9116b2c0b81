//! Settings and attributes of the services' accounts that a transaction cannot override, and that stop a
//! service or expose events' bodies.

use std::{collections::BTreeMap, time::Duration};

use shared::{Program, config::parse_duration};
use sqlx::PgConnection;

use crate::account;

/// One account's settings and attributes, by name.
type Values = BTreeMap<String, String>;

/// A value that an account should not have.
#[derive(Debug)]
pub(crate) struct Hindrance {
    pub(crate) account: String,
    /// Such as `role = app`.
    pub(crate) found: String,
    pub(crate) remedy: String,
    /// Because of it, events are not stored or not safe.
    pub(crate) stops: bool,
}

struct Rule {
    /// The settings and attributes that it reads, settings first.
    names: &'static [&'static str],
    hinders: fn(&Values) -> bool,
    /// `{}` stands for the account.
    remedy: &'static str,
    stops: bool,
}

const CONNECTION_LIMIT: &str = "connection limit";
const EXPIRED: &str = "password expired";
const EMIT: &str = "execute on pg_logical_emit_message";

/// Below this limit even the statement that begins a transaction may not finish in time.
const SHORT_STATEMENT: Duration = Duration::from_secs(1);
/// Events arrive in bursts. Pauses between two bursts are longer than this only at night.
const SHORT_IDLE: Duration = Duration::from_secs(10);
/// How many connections a worker opens with default settings: one for each batch, four for its other tasks,
/// and one to check a commit that hangs. Ingest opens fewer.
pub(crate) const CONNECTIONS: i64 = 9;

const RULES: [Rule; 10] = [
    Rule {
        names: &["role"],
        hinders: |values| !matches!(value(values, "role"), "" | "none"),
        remedy: "alter role {} reset role, also in this database: statements have the rights of \
                 that role and not of the account",
        stops: true,
    },
    Rule {
        names: &[EMIT],
        hinders: |values| value(values, EMIT) == "false",
        remedy: "as a superuser, grant execute on function pg_logical_emit_message(boolean, text, text) \
                 to {}, from Postgres 17 on (boolean, text, text, boolean): without it neither a repeated event is answered nor a repeated message acknowledged",
        stops: true,
    },
    Rule {
        names: &[EXPIRED],
        hinders: |values| value(values, EXPIRED) == "true",
        remedy: "alter role {} valid until 'infinity': Postgres refuses its logins",
        stops: true,
    },
    Rule {
        names: &[CONNECTION_LIMIT],
        hinders: |values| {
            let limit = value(values, CONNECTION_LIMIT).parse::<i64>();
            limit.is_ok_and(|limit| (0..CONNECTIONS).contains(&limit))
        },
        remedy: "run `hookctl setup`, which lets {} have 9 for each of ACCOUNT_REPLICAS: a service \
                 that gets no connection stores nothing",
        stops: false,
    },
    Rule {
        names: &["statement_timeout"],
        hinders: |values| is_short(values, "statement_timeout", SHORT_STATEMENT),
        remedy: "alter role {} set statement_timeout = 0: each transaction sets its own limit, and \
                 is under this one until it has",
        stops: false,
    },
    Rule {
        names: &["idle_session_timeout"],
        hinders: |values| is_short(values, "idle_session_timeout", SHORT_IDLE),
        remedy: "alter role {} set idle_session_timeout = 0: it closes connections that wait for \
                 the next event, which then waits for a login",
        stops: false,
    },
    Rule {
        names: &["track_activities"],
        hinders: |values| value(values, "track_activities") == "off",
        remedy: "as a superuser, alter role {} set track_activities = on: without it a commit that \
                 waits for a standby looks as if it were over",
        stops: false,
    },
    Rule {
        names: &[
            "log_statement",
            "log_min_duration_statement",
            "log_min_duration_sample",
            "log_statement_sample_rate",
            "log_transaction_sample_rate",
            "log_parameter_max_length",
        ],
        hinders: logs_bodies,
        remedy: "as a superuser, alter role {} set log_parameter_max_length = 0: the server's log \
                 gets the bodies of events",
        stops: false,
    },
    Rule {
        names: &["log_parameter_max_length_on_error"],
        hinders: |values| is_length(values, "log_parameter_max_length_on_error"),
        remedy: "alter role {} set log_parameter_max_length_on_error = 0: the server's log gets the \
                 bodies of events that it refuses",
        stops: false,
    },
    Rule {
        names: &[
            "auto_explain.log_min_duration",
            "auto_explain.log_parameter_max_length",
        ],
        hinders: explains_bodies,
        remedy: "as a superuser, alter role {} set auto_explain.log_parameter_max_length = 0: the \
                 server's log gets the bodies of events",
        stops: false,
    },
];

/// The values that the accounts have and should not; without accounts, those of the current user.
pub(crate) async fn hindrances(
    postgres: &mut PgConnection,
    prefix: &str,
) -> Result<Vec<Hindrance>, sqlx::Error> {
    let mut accounts: BTreeMap<String, Values> = BTreeMap::new();
    for (account, name, value) in read(postgres, prefix).await? {
        accounts.entry(account).or_default().insert(name, value);
    }
    let found = accounts.iter().flat_map(|(account, values)| {
        let rules = RULES.iter().filter(|rule| (rule.hinders)(values));
        rules.map(|rule| Hindrance {
            account: account.clone(),
            found: rule
                .names
                .iter()
                .map(|name| format!("{name} = {}", value(values, name)))
                .collect::<Vec<_>>()
                .join(", "),
            remedy: rule.remedy.replace("{}", &account::identifier(account)),
            stops: rule.stops,
        })
    });
    Ok(found.collect())
}

/// Each account's values, as its next session will get them. A setting without a value for the account or
/// the database has the same value as in our own session.
async fn read(
    postgres: &mut PgConnection,
    prefix: &str,
) -> Result<Vec<(String, String, String)>, sqlx::Error> {
    let names = Program::ALL.map(|program| account::name(program, prefix));
    let settings: Vec<&str> = RULES.iter().flat_map(|rule| rule.names).copied().collect();
    sqlx::query_as(
        "with accounts as (
             select * from pg_roles where rolname = any($1)
             union all
             select * from pg_roles
              where rolname = current_user
                and not exists (select from pg_roles where rolname = any($1)))
         select a.rolname::text, v.name, v.value
           from accounts a
          cross join lateral (
             select s.name, coalesce(
                        (select substr(c, strpos(c, '=') + 1)
                           from pg_db_role_setting d
                          cross join unnest(d.setconfig) as c
                          where d.setrole in (0, a.oid)
                            and d.setdatabase in (0, (select oid from pg_database
                                                       where datname = current_database()))
                            and split_part(c, '=', 1) = s.name
                          order by d.setrole = 0, d.setdatabase = 0
                          limit 1),
                        (select reset_val from pg_settings where name = s.name))
               from unnest($2::text[]) as s (name)
             union all
             select $3, a.rolconnlimit::text
             union all
             select $4, (a.rolvaliduntil < now())::text
             union all
             select $5, bool_and(has_function_privilege(a.oid, p.oid, 'execute'))::text
               from pg_proc p where p.proname = 'pg_logical_emit_message'
                               and p.proargtypes[2] = 'text'::regtype) as v (name, value)
          where v.value is not null",
    )
    .bind(names.to_vec())
    .bind(settings)
    .bind(CONNECTION_LIMIT)
    .bind(EXPIRED)
    .bind(EMIT)
    .fetch_all(postgres)
    .await
}

fn value<'v>(values: &'v Values, name: &str) -> &'v str {
    values.get(name).map_or("", String::as_str)
}

/// Whether a time limit is set and less than `least`.
fn is_short(values: &Values, name: &str, least: Duration) -> bool {
    let value = value(values, name);
    // Without a unit it is in milliseconds; zero is no limit.
    let limit = match value.parse() {
        Ok(0) => return false,
        Ok(ms) => Ok(Duration::from_millis(ms)),
        Err(_) => parse_duration(value),
    };
    limit.is_ok_and(|limit| limit < least)
}

/// Statements are logged with their parameters, which include the events' bodies: all statements, slow
/// ones, a sample of the slow ones, or all of a sample of transactions.
fn logs_bodies(values: &Values) -> bool {
    let statements = matches!(value(values, "log_statement"), "mod" | "all");
    let slow = is_time(values, "log_min_duration_statement");
    let samples =
        is_time(values, "log_min_duration_sample") && is_rate(values, "log_statement_sample_rate");
    let transactions = is_rate(values, "log_transaction_sample_rate");
    (statements || slow || samples || transactions) && is_length(values, "log_parameter_max_length")
}

/// The same as [`logs_bodies`], for the module that logs plans (`auto_explain`). From Postgres 16 on it can
/// omit parameters; before that, plans never contain them.
fn explains_bodies(values: &Values) -> bool {
    is_time(values, "auto_explain.log_min_duration")
        && is_length(values, "auto_explain.log_parameter_max_length")
}

/// Whether statements are logged that take longer than some time.
fn is_time(values: &Values, name: &str) -> bool {
    !matches!(value(values, name), "" | "-1")
}

/// Whether a sample is logged. Without a value nothing is.
fn is_rate(values: &Values, name: &str) -> bool {
    value(values, name)
        .parse::<f64>()
        .is_ok_and(|rate| rate > 0.0)
}

/// Whether parameters are logged, truncated or whole.
fn is_length(values: &Values, name: &str) -> bool {
    !matches!(value(values, name), "" | "0")
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// The defaults of a new Postgres.
    const STOCK: [(&str, &str); 6] = [
        ("log_statement", "none"),
        ("log_min_duration_statement", "-1"),
        ("log_min_duration_sample", "-1"),
        ("log_statement_sample_rate", "1"),
        ("log_transaction_sample_rate", "0"),
        ("log_parameter_max_length", "-1"),
    ];

    #[rstest]
    #[case(&[], false)]
    #[case(&[("log_statement", "ddl")], false)]
    #[case(&[("log_statement", "mod")], true)]
    #[case(&[("log_statement", "all"), ("log_parameter_max_length", "0")], false)]
    #[case(&[("log_min_duration_statement", "1s")], true)]
    #[case(&[("log_min_duration_sample", "0")], true)]
    #[case(&[("log_min_duration_sample", "10"), ("log_statement_sample_rate", "0.01")], true)]
    #[case(&[("log_min_duration_sample", "10"), ("log_statement_sample_rate", "0")], false)]
    #[case(&[("log_transaction_sample_rate", "0.5")], true)]
    #[case(&[("log_transaction_sample_rate", "1"), ("log_parameter_max_length", "0")], false)]
    fn whether_bodies_get_into_the_servers_log(
        #[case] changed: &[(&str, &str)],
        #[case] expected: bool,
    ) {
        let all = STOCK.iter().chain(changed);
        let values = all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        assert_eq!(logs_bodies(&values.collect()), expected);
    }

    #[rstest]
    #[case(&[], false)]
    #[case(&[("auto_explain.log_min_duration", "-1"), ("auto_explain.log_parameter_max_length", "-1")], false)]
    #[case(&[("auto_explain.log_min_duration", "250ms")], false)]
    #[case(&[("auto_explain.log_min_duration", "0"), ("auto_explain.log_parameter_max_length", "-1")], true)]
    #[case(&[("auto_explain.log_min_duration", "0"), ("auto_explain.log_parameter_max_length", "0")], false)]
    fn whether_plans_show_bodies(#[case] set: &[(&str, &str)], #[case] expected: bool) {
        let values = (set.iter()).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        assert_eq!(explains_bodies(&values.collect()), expected);
    }
}
