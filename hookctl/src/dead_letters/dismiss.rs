//! `hookctl dead-letters dismiss` and `restore`

use anyhow::{Context, anyhow};
use shared::config::DatabaseArgs;
use sqlx::{PgConnection, Postgres, QueryBuilder, Row as _};

use super::{
    connect,
    filter::{Filter, State},
    letter::{COLUMNS, Letter},
};
use crate::{
    actions::Run,
    database::{CHANGING, Connection, READING},
    output::OutputArgs,
    verdict::{Verdict, WrongSettings},
};

/// The most rows of one transaction: few enough to hold no lock for long.
const BATCH: i64 = 1_000;

/// Dismiss dead letters that need nothing more. They stay in `events` and can be restored.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct DismissArgs {
    /// Why, for whoever comes across it later
    #[arg(long)]
    note: String,

    #[command(flatten)]
    change: ChangeArgs,
}

/// Make dismissed dead letters open ones again.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct RestoreArgs {
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Clone, Debug, clap::Args)]
struct ChangeArgs {
    #[command(flatten)]
    database: DatabaseArgs,

    #[command(flatten)]
    output: OutputArgs,

    /// Do it. Without this it is only shown which they are
    #[arg(long)]
    yes: bool,

    /// All of them, if no filter is given
    #[arg(long)]
    all: bool,

    #[command(flatten)]
    filter: Filter,
}

/// A change of many dead letters at once.
struct Change<'a> {
    args: &'a ChangeArgs,
    /// Which they are before.
    from: State,
    /// What is set, and to what.
    note: Option<&'a str>,
    verb: &'static str,
    action: &'static str,
}

pub(super) async fn dismiss(args: &DismissArgs) -> anyhow::Result<Verdict> {
    Change {
        args: &args.change,
        from: State::Open,
        note: Some(&args.note),
        verb: "dismissed",
        action: "dead-letters dismiss",
    }
    .run()
    .await
}

pub(super) async fn restore(args: &RestoreArgs) -> anyhow::Result<Verdict> {
    Change {
        args: &args.change,
        from: State::Dismissed,
        note: None,
        verb: "restored",
        action: "dead-letters restore",
    }
    .run()
    .await
}

impl Change<'_> {
    #[expect(clippy::print_stderr, reason = "JSON on standard output stays JSON")]
    async fn run(&self) -> anyhow::Result<Verdict> {
        if self.args.filter.is_empty() && !self.args.all {
            return Err(WrongSettings::new(anyhow!("say which ones, or --all")).into());
        }
        let mut connection = connect(&self.args.database).await?;
        let verb = self.verb;
        if !self.args.yes {
            let letters = self.find(&mut *connection.begin(&READING).await?).await?;
            self.args.output.print_rows(&letters)?;
            eprintln!(
                "{} would be {verb}; nothing was changed, do it with --yes",
                letters.len()
            );
            return Ok(Verdict::Fine);
        }
        Run::check(&mut connection).await?;
        let run = Run::new(self.action, self.args.filter.describe(), None);
        let mut changed = 0;
        loop {
            let letters = self.batch(&mut connection, &run).await.with_context(|| {
                format!("{changed} {verb}, and none of the others; run it again for those")
            })?;
            if letters.is_empty() {
                break;
            }
            changed += letters.len();
            self.args.output.print_rows(&letters)?;
        }
        eprintln!("{changed} {verb}");
        Ok(Verdict::Fine)
    }

    async fn find(&self, connection: &mut PgConnection) -> anyhow::Result<Vec<Letter>> {
        let mut query = QueryBuilder::<Postgres>::new(format!("select {COLUMNS} from events"));
        self.args.filter.push(self.from, &mut query);
        query.push(" order by stored_at desc, webhook_id");
        let rows = query.build().fetch_all(connection).await?;
        Ok(rows.iter().map(Letter::read).collect::<Result<_, _>>()?)
    }

    /// Changes some of those that are left and answers with them. They are locked in the order of a
    /// replay, so that neither waits for the other in a circle.
    async fn batch(&self, connection: &mut Connection, run: &Run) -> anyhow::Result<Vec<Letter>> {
        let mut query = QueryBuilder::<Postgres>::new(
            "with chosen as materialized (
                 select webhook_id as id, dismissed_at as was_at, dismissed_by as was_by,
                        dismissal_note as was_note
                   from events",
        );
        self.args.filter.push(self.from, &mut query);
        query.push(" order by webhook_id limit ").push_bind(BATCH);
        query.push(" for update) update events set dismissed_at = ");
        match self.note {
            Some(note) => {
                query.push("now(), dismissed_by = session_user, dismissal_note = ");
                query.push_bind(note);
            }
            None => {
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
        let changed = connection.change(&CHANGING, async |connection| {
            let rows = query.build().fetch_all(&mut *connection).await?;
            let changes: Result<_, _> = rows.iter().map(|row| row.try_get("change")).collect();
            run.record(connection, changes?).await?;
            Ok(rows)
        });
        let rows = changed.await?;
        Ok(rows.iter().map(Letter::read).collect::<Result<_, _>>()?)
    }
}
