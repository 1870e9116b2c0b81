//! Dismissing dead letters, and taking that back.

use sqlx::{PgConnection, Postgres, QueryBuilder, Row as _};

use super::{
    filter::{Filter, State},
    letter::{COLUMNS, Letter},
};
use crate::{
    Run,
    database::{CHANGING, Connection, READING},
};

/// The most rows of one transaction: few enough to hold no lock for long.
const BATCH: i64 = 1_000;

/// A change of many dead letters at once.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    /// They need nothing more.
    Dismiss {
        /// Why, for whoever comes across it later.
        note: &'a str,
    },
    /// They are open ones again.
    Restore,
}

impl Change<'_> {
    /// As `operator_actions` names it.
    pub fn action(self) -> &'static str {
        match self {
            Self::Dismiss { .. } => "dead-letters dismiss",
            Self::Restore => "dead-letters restore",
        }
    }

    /// What is done to them, as in "3 dismissed".
    pub fn verb(self) -> &'static str {
        match self {
            Self::Dismiss { .. } => "dismissed",
            Self::Restore => "restored",
        }
    }

    /// Which they are before.
    fn from(self) -> State {
        match self {
            Self::Dismiss { .. } => State::Open,
            Self::Restore => State::Dismissed,
        }
    }

    /// Those that it would change, the newest first.
    pub async fn find(
        self,
        connection: &mut Connection,
        filter: &Filter,
    ) -> anyhow::Result<Vec<Letter>> {
        let mut transaction = connection.begin(&READING).await?;
        let mut query = QueryBuilder::<Postgres>::new(format!("select {COLUMNS} from events"));
        filter.push(self.from(), &mut query);
        query.push(" order by stored_at desc, webhook_id");
        let rows = query.build().fetch_all(&mut *transaction).await?;
        Ok(rows.iter().map(Letter::read).collect::<Result<_, _>>()?)
    }

    /// Changes some of those that are left and answers with them; none if none is left. They are locked in
    /// the order of a replay, so that neither waits for the other in a circle.
    pub async fn batch(
        self,
        connection: &mut Connection,
        filter: &Filter,
        run: &Run,
    ) -> anyhow::Result<Vec<Letter>> {
        let mut query = QueryBuilder::<Postgres>::new(
            "with chosen as materialized (
                 select webhook_id as id, dismissed_at as was_at, dismissed_by as was_by,
                        dismissal_note as was_note
                   from events",
        );
        filter.push(self.from(), &mut query);
        query.push(" order by webhook_id limit ").push_bind(BATCH);
        query.push(" for update) update events set dismissed_at = ");
        match self {
            Self::Dismiss { note } => {
                query.push("now(), dismissed_by = session_user, dismissal_note = ");
                query.push_bind(note);
            }
            Self::Restore => {
                query.push("null, dismissed_by = null, dismissal_note = null");
            }
        }
        query.push(format!(
            " from chosen where webhook_id = id returning {COLUMNS},
              jsonb_build_object(
                  'webhook_id', webhook_id,
                  'before', jsonb_build_object('dismissed_at', was_at, 'dismissed_by', was_by,
                                               'dismissal_note', was_note),
                  'after', jsonb_build_object('dismissed_at', dismissed_at,
                                              'dismissed_by', dismissed_by,
                                              'dismissal_note', dismissal_note)) as change"
        ));
        let changed = connection.change(&CHANGING, async |connection: &mut PgConnection| {
            let rows = query.build().fetch_all(&mut *connection).await?;
            let changes: Result<_, _> = rows.iter().map(|row| row.try_get("change")).collect();
            run.record(connection, changes?).await?;
            Ok(rows)
        });
        let rows = changed.await?;
        Ok(rows.iter().map(Letter::read).collect::<Result<_, _>>()?)
    }
}
