//! `hookctl dead-letters`: events that were stored with a problem, for people who look for the cause and
//! fix it. Each subcommand needs only Postgres.

mod dismiss;
mod letter;
mod list;
mod replay;
mod show;

use shared::config::DatabaseArgs;

use crate::{
    database::{self, Connection},
    verdict::{Verdict, WrongSettings},
};

/// See, understand and mend events that were stored with a problem.
///
/// A dead letter is a row of `events` that has a problem and therefore no row in its typed table.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Command {
    List(list::Args),
    Show(show::Args),
    Replay(replay::Args),
    Dismiss(dismiss::DismissArgs),
    Restore(dismiss::RestoreArgs),
}

/// Runs the subcommand.
pub async fn run(args: &Args) -> anyhow::Result<Verdict> {
    match &args.command {
        Command::List(args) => list::run(args).await,
        Command::Show(args) => show::run(args).await,
        Command::Replay(args) => replay::run(args).await,
        Command::Dismiss(args) => dismiss::dismiss(args).await,
        Command::Restore(args) => dismiss::restore(args).await,
    }
}

async fn connect(args: &DatabaseArgs) -> anyhow::Result<Connection> {
    let url = args.postgres().map_err(WrongSettings::new)?;
    database::connect_to_tables(&url).await
}
