//! `hookctl dead-letters dismiss` and `restore`

use anyhow::{Context, anyhow};
use operations::{
    Run,
    dead_letters::{Change, Filter},
};
use shared::config::DatabaseArgs;

use super::connect;
use crate::{
    output::OutputArgs,
    verdict::{Verdict, WrongSettings},
};

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

pub(super) async fn dismiss(args: &DismissArgs) -> anyhow::Result<Verdict> {
    args.change.run(Change::Dismiss { note: &args.note }).await
}

pub(super) async fn restore(args: &RestoreArgs) -> anyhow::Result<Verdict> {
    args.change.run(Change::Restore).await
}

impl ChangeArgs {
    #[expect(clippy::print_stderr, reason = "JSON on standard output stays JSON")]
    async fn run(&self, change: Change<'_>) -> anyhow::Result<Verdict> {
        if self.filter.is_empty() && !self.all {
            return Err(WrongSettings::new(anyhow!("say which ones, or --all")).into());
        }
        let mut connection = connect(&self.database).await?;
        let verb = change.verb();
        if !self.yes {
            let letters = change.find(&mut connection, &self.filter).await?;
            self.output.print_rows(&letters)?;
            eprintln!(
                "{} would be {verb}; nothing was changed, do it with --yes",
                letters.len()
            );
            return Ok(Verdict::Fine);
        }
        Run::check(&mut connection).await?;
        let run = Run::new(change.action(), self.filter.describe(), None);
        let mut changed = 0;
        loop {
            let letters = change.batch(&mut connection, &self.filter, &run).await;
            let letters = letters.with_context(|| {
                format!("{changed} {verb}, and none of the others; run it again for those")
            })?;
            if letters.is_empty() {
                break;
            }
            changed += letters.len();
            self.output.print_rows(&letters)?;
        }
        eprintln!("{changed} {verb}");
        Ok(Verdict::Fine)
    }
}
