//! The commands of the binary.

mod bench;
mod compose;
mod console_bench;
mod drill;
mod measuring;
mod report;
mod siege;
mod signals;
mod test;
mod up;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use self::signals::Signals;

/// Runs the whole pipeline on this machine, with a private RabbitMQ and Postgres.
#[derive(Debug, Parser)]
#[command(name = "cargo stack", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start everything, send two sample events, show what was stored, and stay until Ctrl-C
    Up(up::Args),
    /// Start a throw-away RabbitMQ and Postgres and run all tests
    Test(test::Args),
    /// Let everything go wrong under load, and show that nothing is lost
    Drill(drill::Args),
    /// Try docker-compose.yml on a Docker engine, from a clean clone
    Compose(compose::Args),
    /// Measure how near the pipeline comes to what its parts can do on this machine
    Bench(bench::Args),
    /// Measure how fast the console's pages are with ten million events
    ConsoleBench(console_bench::Args),
    /// Let strangers attack, direct and through the proxy, and tell what good senders see
    Siege(siege::Args),
}

pub(crate) async fn run(cli: Cli) -> Result<ExitCode> {
    let signals = Signals::listen()?;
    match cli.command {
        Command::Up(args) => up::run(&args, &signals).await,
        Command::Test(args) => test::run(&args, &signals).await,
        Command::Drill(args) => drill::run(&args, &signals).await,
        Command::Compose(args) => compose::run(&args, &signals).await,
        Command::Bench(args) => bench::run(&args, &signals).await,
        Command::ConsoleBench(args) => console_bench::run(&args, &signals).await,
        Command::Siege(args) => siege::run(&args, &signals).await,
    }
}

/// The source folder that this binary was built from.
fn workspace() -> Result<PathBuf> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(package
        .parent()
        .context("the package is in no workspace")?
        .to_owned())
}
