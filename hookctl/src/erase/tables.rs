//! Stored data: rows of `events` stay without their personal data, rows of the typed tables are deleted.

use serde_json::{Value, json};
use shared::Family;
use sqlx::AssertSqlSafe;

use super::matching::Subject;
use crate::{
    actions::Run,
    database::{CHANGING, Connection, READING},
    typed_table,
};

/// The most rows of one transaction: few enough to hold no lock for long.
const BATCH: usize = 1_000;

/// The condition that a webhook id is `$1`, or that of a second body under it. An index can find this range
/// in any collation, because hexadecimal digits follow the mark.
macro_rules! of_event {
    () => {
        "(webhook_id = $1 or (webhook_id > $1 || '#conflict-' and webhook_id < $1 || '#conflict-g'
                              and starts_with(webhook_id, $1 || '#conflict-')))"
    };
}

/// A table with rows about a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    Events,
    /// A typed table, by its name.
    Typed(&'static str),
}

impl Table {
    /// The typed tables come last, so that a row which a worker writes meanwhile is from a later event.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        let typed = Family::ALL.into_iter().filter_map(typed_table::name);
        std::iter::once(Self::Events).chain(typed.map(Self::Typed))
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Typed(name) => name,
        }
    }

    const fn key(self) -> &'static str {
        match self {
            Self::Events => "webhook_id",
            Self::Typed(_) => "id",
        }
    }

    /// The column that names the subject, and further conditions.
    const fn condition(self, subject: &Subject) -> &'static str {
        match (self, subject) {
            (Self::Events, Subject::Company(_)) => {
                "(company_id = $1 or (company_id is null
                                      and payload #> '{data,companyId}' = to_jsonb($1::text)))
                 and erased_at is null"
            }
            (Self::Events, Subject::Resource(_)) => {
                "(resource_id = $1 or (resource_id is null
                                       and payload #> '{data,id}' = to_jsonb($1::text)))
                 and erased_at is null"
            }
            (Self::Events, Subject::Event(_)) => concat!(of_event!(), " and erased_at is null"),
            (Self::Typed(_), Subject::Company(_)) => "company_id = $1",
            (Self::Typed(_), Subject::Resource(_)) => "id = $1",
            // Not the row of a swept event whose id another event has got since.
            (Self::Typed(_), Subject::Event(_)) => concat!(
                of_event!(),
                " and not exists (select from events e
                                   where e.webhook_id = t.webhook_id and e.stored_at > t.stored_at)"
            ),
        }
    }

    /// The keys of the rows about the subject, in order.
    pub(super) async fn find(
        self,
        connection: &mut Connection,
        subject: &Subject,
    ) -> anyhow::Result<Vec<String>> {
        let (table, key) = (self.name(), self.key());
        let condition = self.condition(subject);
        let sql = format!("select {key} from {table} t where {condition} order by 1");
        let mut transaction = connection.begin(&READING).await?;
        Ok(sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(subject.id())
            .fetch_all(&mut *transaction)
            .await?)
    }

    /// What the audit record has of a row.
    fn change(self, key: &str) -> Value {
        match self {
            Self::Events => json!({"webhook_id": key, "after": {"event_type": "erased"}}),
            Self::Typed(name) => json!({"table": name, "id": key, "after": null}),
        }
    }

    /// Erases these rows, in several transactions, if they are still about the subject. Rows are locked in
    /// the order in which others lock them.
    pub(super) async fn erase(
        self,
        connection: &mut Connection,
        subject: &Subject,
        keys: &[String],
        run: &Run,
    ) -> anyhow::Result<()> {
        let (table, key) = (self.name(), self.key());
        let condition = self.condition(subject);
        let change = match self {
            Self::Events => "update events e
                    set event_type = 'erased', event_id = null, company_id = null,
                        resource_id = null, payload = null, raw = '', problem = null,
                        problem_kind = null, secret_name = null, secret_companies = null,
                        replayed_problem = null, dismissal_note = null, erased_at = now()
                   from chosen where e.webhook_id = chosen.key
                 returning e.webhook_id"
                .to_owned(),
            Self::Typed(name) => {
                format!("delete from {name} using chosen where id = chosen.key returning id")
            }
        };
        let sql = format!(
            "with chosen as materialized (
                 select {key} as key from {table} t
                  where {key} = any($2) and {condition} order by 1 for update)
             {change}"
        );
        for some in keys.chunks(BATCH) {
            let erased = connection.change(&CHANGING, async |connection| {
                let erased: Vec<String> = sqlx::query_scalar(AssertSqlSafe(sql.as_str()))
                    .bind(subject.id())
                    .bind(some)
                    .fetch_all(&mut *connection)
                    .await?;
                let changes = erased.iter().map(|key| self.change(key)).collect();
                Ok(run.record(connection, changes).await?)
            });
            erased.await?;
        }
        Ok(())
    }
}
