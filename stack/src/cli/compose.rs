//! `cargo stack compose`.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use stack::compose::{self, Settings};
use stack::data_folder::{self, DataFolder};
use stack::progress::{Progress, note};

use super::signals::Signals;

/// The exit code that test runners treat as "skipped".
const SKIPPED: u8 = 77;

/// Exit codes: 0 everything holds, 1 something does not, 77 it cannot be tried here; the line
/// "skipped: …" says why.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// An image that is there already, instead of building one
    #[arg(long)]
    image: Option<String>,

    /// Start a Docker engine of our own, also where one runs
    #[arg(long)]
    own_engine: bool,
}

pub(super) async fn run(args: &Args, signals: &Signals) -> Result<ExitCode> {
    let ended = signals.unless_stopped(compose(args)).await;
    data_folder::sweep_abandoned()?;
    Ok(ended?.exit_code())
}

async fn compose(args: &Args) -> Result<ExitCode> {
    let progress = Progress::Shown;
    let base = DataFolder::temporary()?;
    let workspace = super::workspace()?;
    let settings = Settings {
        image: args.image.clone(),
        own_engine: args.own_engine,
    };
    let ready = match compose::prepare(&base, &workspace, &settings, progress).await {
        Ok(ready) => ready,
        Err(error) => {
            // One line, for scripts.
            note(&format!(
                "skipped: {}",
                format!("{error:#}").replace('\n', "; ")
            ));
            return Ok(ExitCode::from(SKIPPED));
        }
    };
    let report = ready.check(&base, &workspace, &settings, progress).await?;
    writeln!(io::stdout(), "{report}").context("cannot print the report")?;
    Ok(ExitCode::SUCCESS)
}
