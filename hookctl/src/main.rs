//! The hookctl binary.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use hookctl::setup;
use shared::config;

/// Operates a webhook pipeline.
#[derive(Debug, Parser)]
#[command(name = "hookctl", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Setup(setup::Args),
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli: Cli = config::parse();
    match cli.command {
        Command::Setup(args) => setup::main(&args).await,
    }
}
