//! What a secret has signed, and what was changed.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{FromRow, QueryBuilder};

use super::{Which, batch::Done, set::LONG};
use crate::{
    database::Connection,
    output,
    printable::printable,
    typed_table::{NAMED, Table},
};

#[derive(Debug, Serialize)]
pub(super) struct Report {
    secret: String,
    since: DateTime<Utc>,
    until: Option<DateTime<Utc>>,
    /// The events, as they were found.
    types: Vec<Type>,
    /// The rows that they had set, or that earlier distrusted events had set.
    rows: Vec<Rows>,
    /// How many are in the spool. Events in RabbitMQ cannot be counted.
    spooled: i64,
    /// `None` without `--yes`.
    pub(super) done: Option<Done>,
}

/// The events of one type.
#[derive(Debug, Serialize, FromRow)]
struct Type {
    event_type: String,
    events: i64,
    healthy: i64,
    dead_letters: i64,
    resources: i64,
    last_received_at: DateTime<Utc>,
}

#[derive(Debug, Serialize)]
struct Rows {
    table: &'static str,
    rows: i64,
}

impl Report {
    /// Reads everything, and changes nothing.
    pub(super) async fn look(
        connection: &mut Connection,
        which: &Which,
        tables: &[Table],
    ) -> Result<Self, sqlx::Error> {
        let mut transaction = connection.begin(&LONG.in_one_snapshot()).await?;
        let mut query = QueryBuilder::new(
            "select event_type, count(*) as events,
                    count(*) filter (where problem is null) as healthy,
                    count(*) filter (where problem is not null) as dead_letters,
                    count(distinct resource_id) as resources,
                    max(received_at) as last_received_at
               from events e where ",
        );
        which.push_trusted(&mut query);
        query.push(" group by event_type order by events desc, event_type");
        let types = query.build_query_as().fetch_all(&mut *transaction).await?;
        let mut rows = Vec::new();
        for table in tables {
            let mut query = QueryBuilder::new(format!(
                "select count(*) from events e join {} t on {NAMED} where ",
                table.qualified()
            ));
            which.push(&mut query);
            let count = query.build_query_scalar().fetch_one(&mut *transaction);
            rows.push(Rows {
                table: table.name(),
                rows: count.await?,
            });
        }
        transaction.rollback().await?;
        let mut report = Self {
            secret: which.secret.clone(),
            since: which.since,
            until: which.until,
            types,
            rows,
            spooled: 0,
            done: None,
        };
        report.count_spooled(connection, which).await?;
        Ok(report)
    }

    pub(super) async fn count_spooled(
        &mut self,
        connection: &mut Connection,
        which: &Which,
    ) -> Result<(), sqlx::Error> {
        let mut transaction = connection.begin(&LONG).await?;
        let mut query = QueryBuilder::new("select count(*) from webhook_spool e where ");
        which.push(&mut query);
        self.spooled = query
            .build_query_scalar()
            .fetch_one(&mut *transaction)
            .await?;
        Ok(())
    }

    /// Whether, as far as is known, another run has nothing to do.
    pub(super) fn is_complete(&self) -> bool {
        self.spooled == 0
    }

    pub(super) fn text(&self) -> String {
        let mut lines = Vec::new();
        if !self.types.is_empty() {
            let mut table = output::table(&[
                "type",
                "events",
                "healthy",
                "dead letters",
                "resources",
                "last received (UTC)",
            ]);
            table.add_rows(self.types.iter().map(Type::cells));
            lines.push(table.to_string());
        }
        for Rows { table, rows } in self.rows.iter().filter(|rows| rows.rows > 0) {
            lines.push(format!(
                "{rows} row(s) of {table} are as these events say: each gets the newest state of the \
                 other healthy events, or is removed if there is none"
            ));
        }
        if self.spooled > 0 {
            lines.push(format!(
                "{} event(s) of this secret are in the spool and will be stored as healthy ones",
                self.spooled
            ));
        }
        lines.push(
            "more may be in RabbitMQ. Take the secret out of ingest's settings, and run this again when \
             the spool and the queues are empty"
                .to_owned(),
        );
        lines.push(match &self.done {
            None if self.types.is_empty() && self.rows.iter().all(|rows| rows.rows == 0) => {
                "no events like that".to_owned()
            }
            None => "nothing was changed; do it with --yes".to_owned(),
            Some(done) => format!(
                "{} event(s) distrusted, {} row(s) computed again, {} removed",
                done.distrusted, done.recomputed, done.removed
            ),
        });
        lines.join("\n")
    }
}

impl Type {
    fn cells(&self) -> Vec<String> {
        vec![
            printable(&self.event_type, false),
            self.events.to_string(),
            self.healthy.to_string(),
            self.dead_letters.to_string(),
            self.resources.to_string(),
            self.last_received_at.format("%F %T").to_string(),
        ]
    }
}
