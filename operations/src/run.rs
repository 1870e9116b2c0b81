//! The rows that a command leaves in `operator_actions`.

use anyhow::{bail, ensure};
use serde_json::Value;
use sqlx::PgConnection;

use crate::database::{Connection, READING};

/// One run of a command that changes something: what its transactions have in common.
#[derive(Clone, Debug)]
pub struct Run {
    id: String,
    action: &'static str,
    person: Option<String>,
    filter: Value,
}

impl Run {
    /// `filter` is an object that says how the command was told what to change; its nulls are left
    /// out. `person` is for whom a program acts that knows its users. The account is not to be given:
    /// the database writes down who logged in.
    pub fn new(action: &'static str, filter: Value, person: Option<&str>) -> Self {
        Self {
            id: format!("{:032x}", rand::random::<u128>()),
            action,
            person: person.map(str::to_owned),
            filter: Self::described(filter),
        }
    }

    /// A filter as it is written down.
    pub(crate) fn described(mut filter: Value) -> Value {
        if let Value::Object(fields) = &mut filter {
            fields.retain(|_, value| !value.is_null());
        }
        filter
    }

    /// As a part of another process's run.
    #[must_use]
    pub fn part_of(self, id: Option<&str>) -> Self {
        Self {
            id: id.map_or(self.id, str::to_owned),
            ..self
        }
    }

    /// What [`Run::part_of`] takes.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Fails with the remedy where the record cannot be written, before anything is changed.
    pub async fn check(connection: &mut Connection) -> anyhow::Result<()> {
        let mut transaction = connection.begin(&READING).await?;
        let (may_add, account): (Option<bool>, String) = sqlx::query_as(
            "select has_column_privilege(to_regclass('operator_actions'), 'changes', 'insert'),
                    session_user::text",
        )
        .fetch_one(&mut *transaction)
        .await?;
        transaction.rollback().await?;
        let Some(may_add) = may_add else {
            bail!(
                "the schema is older than this hookctl: it has no table operator_actions, in which \
                 it is written down who changed what. Run `hookctl setup` of this version first"
            );
        };
        ensure!(
            may_add,
            "{account} may not write down what it changes: as the owner of the tables, grant insert \
             (run, person, action, filter, changed, changes) on operator_actions to it"
        );
        Ok(())
    }

    /// Writes down what a transaction has changed, in that transaction. Each change is an object with
    /// what was changed, and what was `before` and `after`, without a body or a value of one.
    pub async fn record(
        &self,
        connection: &mut PgConnection,
        changes: Vec<Value>,
    ) -> Result<(), sqlx::Error> {
        if changes.is_empty() {
            return Ok(());
        }
        sqlx::query(
            "insert into operator_actions (run, person, action, filter, changed, changes)
             values ($1::uuid, $2, $3, $4, $5, $6)",
        )
        .bind(&self.id)
        .bind(&self.person)
        .bind(self.action)
        .bind(&self.filter)
        .bind(i64::try_from(changes.len()).unwrap_or(i64::MAX))
        .bind(Value::Array(changes))
        .execute(connection)
        .await?;
        Ok(())
    }
}
