//! `hookctl completions`: scripts with which a shell completes commands and flags.

use std::io::{self, Write};

use clap_complete::{Shell, generate};

use crate::verdict::Verdict;

/// Print a script with which a shell completes commands and flags.
///
/// For bash: hookctl completions bash > /etc/bash_completion.d/hookctl
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Args {
    /// Which shell
    pub shell: Shell,
}

/// Runs the subcommand for the whole program's command line.
pub fn run(args: Args, program: &mut clap::Command) -> anyhow::Result<Verdict> {
    let mut script = Vec::new();
    generate(args.shell, program, "hookctl", &mut script);
    io::stdout().lock().write_all(&script)?;
    Ok(Verdict::Fine)
}
