//! The `cargo stack` command.

mod cli;

use std::process::ExitCode;

use clap::Parser;
use stack::progress::note;

#[tokio::main]
async fn main() -> ExitCode {
    match cli::run(cli::Cli::parse()).await {
        Ok(code) => code,
        Err(error) => {
            note(&format!("error: {}", shared::reason::one_line(&error)));
            ExitCode::FAILURE
        }
    }
}
