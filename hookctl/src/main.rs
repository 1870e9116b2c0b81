//! The hookctl binary.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use hookctl::{
    actions, completions, dead_letters, distrust, doctor, erase, health, load, rebuild, receipts,
    reconcile, send, setup, tail, verdict,
};
use shared::config;

/// Operates a webhook pipeline.
///
/// Exit codes: 0 nothing is wrong, 1 it could not be done, 2 wrong settings, 3 it was done and
/// something is wrong.
#[derive(Debug, Parser)]
#[command(name = "hookctl", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Setup(setup::Args),
    DeadLetters(dead_letters::Args),
    Receipts(receipts::Args),
    Secrets(distrust::Args),
    Actions(actions::Args),
    Reconcile(reconcile::Args),
    Rebuild(rebuild::Args),
    Erase(erase::Args),
    Health(health::Args),
    Send(send::Args),
    Load(load::Args),
    Doctor(doctor::Args),
    Tail(tail::Args),
    Completions(completions::Args),
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli: Cli = config::parse();
    verdict::exit_code(match &cli.command {
        Command::Setup(args) => setup::run(args).await,
        Command::DeadLetters(args) => dead_letters::run(args).await,
        Command::Receipts(args) => receipts::run(args).await,
        Command::Secrets(args) => distrust::run(args).await,
        Command::Actions(args) => actions::run(args).await,
        Command::Reconcile(args) => reconcile::run(args).await,
        Command::Rebuild(args) => rebuild::run(args).await,
        Command::Erase(args) => erase::run(args).await,
        Command::Health(args) => health::run(args).await,
        Command::Send(args) => send::run(args).await,
        Command::Load(args) => load::run(args).await,
        Command::Doctor(args) => doctor::run(args).await,
        Command::Tail(args) => tail::run(args).await,
        Command::Completions(args) => completions::run(*args, &mut Cli::command()),
    })
}
