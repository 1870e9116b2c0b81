//! Options that the measuring commands share: an optimised build of themselves, and where their logs and
//! figures go.

use std::fmt::Display;
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde::Serialize;
use stack::data_folder::DataFolder;
use stack::process::{Process, Spec};
use stack::programs::Programs;

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
