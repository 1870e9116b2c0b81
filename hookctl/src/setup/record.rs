//! The changes of a setup in Postgres, as recorded in `operator_actions`.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use shared::Program;
use sqlx::PgConnection;

use super::postgres;
use crate::account;

/// The schema and the accounts at one moment.
pub(super) struct State {
    /// The newest migration; `None` without a schema.
    migration: Option<i64>,
    accounts: BTreeMap<String, Account>,
}

struct Account {
    exists: bool,
    /// Only the two accounts of the console may have no password, and then they cannot log in.
    can_log_in: bool,
    /// By table, as in [`postgres::rights`].
    rights: BTreeMap<String, String>,
}

impl State {
    pub(super) async fn look(
        connection: &mut PgConnection,
        prefix: &str,
    ) -> Result<Self, sqlx::Error> {
        let has_migrations: bool =
            sqlx::query_scalar("select to_regclass('_sqlx_migrations') is not null")
                .fetch_one(&mut *connection)
                .await?;
        let migration = match has_migrations {
            true => {
                sqlx::query_scalar("select max(version) from _sqlx_migrations")
                    .fetch_one(&mut *connection)
                    .await?
            }
            false => None,
        };
        let mut accounts = BTreeMap::new();
        for program in Program::ACCOUNTS {
            let name = account::name(program, prefix);
            let can_log_in: Option<bool> =
                sqlx::query_scalar("select rolcanlogin from pg_roles where rolname = $1")
                    .bind(&name)
                    .fetch_optional(&mut *connection)
                    .await?;
            let rights = postgres::rights(connection, &name).await?;
            let rights = rights.into_iter().collect();
            let account = Account {
                exists: can_log_in.is_some(),
                can_log_in: can_log_in.unwrap_or(false),
                rights,
            };
            accounts.insert(name, account);
        }
        Ok(Self {
            migration,
            accounts,
        })
    }

    /// What has changed. It includes every account that can log in, because each gets its password.
    pub(super) fn changes_to(&self, after: &Self) -> Vec<Value> {
        let mut changes = Vec::new();
        if self.migration != after.migration {
            changes.push(json!({
                "schema": "migrations",
                "before": {"newest": self.migration},
                "after": {"newest": after.migration},
            }));
        }
        for (name, now) in &after.accounts {
            let then = self.accounts.get(name);
            changes.push(json!({
                "account": name,
                "password": if now.can_log_in { "set" } else { "none" },
                "before": then.map(|then| then.without(now)),
                "after": now.without(then.unwrap_or(&Account::NONE)),
            }));
        }
        changes
    }
}

impl Account {
    const NONE: Self = Self {
        exists: false,
        can_log_in: false,
        rights: BTreeMap::new(),
    };

    /// Without the rights that the other one has as well.
    fn without(&self, other: &Self) -> Value {
        let rights: BTreeMap<_, _> = self
            .rights
            .iter()
            .filter(|(table, kinds)| other.rights.get(*table) != Some(*kinds))
            .collect();
        json!({"exists": self.exists, "rights": rights})
    }
}
