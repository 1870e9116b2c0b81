//! What the measuring commands share: an optimised build of themselves and of the services, the stores'
//! packages, and where their logs and figures go.

use std::fmt::Display;
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde::Serialize;
use stack::data_folder::DataFolder;
use stack::packages::Packages;
use stack::process::{Process, Spec};
use stack::programs::{Profile, Programs, Scope};
use stack::progress::Progress;

#[derive(Debug, clap::Args)]
pub(super) struct Outputs {
    /// Also write every figure to this file, as JSON
    #[arg(long)]
    json: Option<PathBuf>,

    /// Folder for the services' logs, to be kept
    #[arg(long)]
    logs: Option<PathBuf>,
}

impl Outputs {
    /// Where the services' logs go: the given folder, or one that is deleted with `base`.
    pub(super) fn logs(&self, base: &DataFolder) -> Result<PathBuf> {
        match &self.logs {
            Some(logs) => {
                fs::create_dir_all(logs)?;
                Ok(logs.clone())
            }
            None => base.folder("logs"),
        }
    }

    /// Prints the report, and writes its figures to a file if there is one.
    pub(super) fn print(&self, report: &(impl Display + Serialize)) -> Result<()> {
        if let Some(path) = &self.json {
            let json = serde_json::to_vec_pretty(report)?;
            fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
        }
        writeln!(io::stdout(), "{report}").context("cannot print the report")
    }
}

/// What a measurement runs on.
pub(super) struct Prepared {
    pub(super) packages: Packages,
    pub(super) programs: Programs,
    /// Where the services' logs go.
    pub(super) logs: PathBuf,
}

/// Builds the services, runs `measurement` and reports its figures.
pub(super) async fn measure<R: Display + Serialize>(
    outputs: &Outputs,
    measurement: impl AsyncFnOnce(Prepared) -> Result<R>,
) -> Result<ExitCode> {
    let progress = Progress::Shown;
    let workspace = super::workspace()?;
    let programs = Programs::build(&workspace, Scope::Services, Profile::Release, progress).await?;
    if cfg!(debug_assertions) {
        // The load generator has to be optimised as well.
        return run_built(&programs).await;
    }
    let base = DataFolder::temporary()?;
    let packages = Packages::find_or_install(&base.path().join("apt.log"), progress).await?;
    let prepared = Prepared {
        packages,
        programs,
        logs: outputs.logs(&base)?,
    };
    outputs.print(&measurement(prepared).await?)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs the same command line with the `stack` that was built with `programs`, until it ends.
pub(super) async fn run_built(programs: &Programs) -> Result<ExitCode> {
    let spec =
        Spec::new("stack", programs.folder().join("stack")).args(std::env::args_os().skip(1));
    let status = Process::spawn(spec)?.wait().await;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
