//! How a service shuts down: SIGTERM and SIGINT cancel a token that every waiting task watches, and
//! the result becomes the exit code.

use std::process::ExitCode;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::systemd;

/// A token that is cancelled by the first SIGTERM or SIGINT. Call it inside the runtime.
pub fn on_signal() -> anyhow::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let token = CancellationToken::new();
    let cancel = token.clone();
    tokio::spawn(async move {
        let signal = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        info!(signal, "stopping");
        systemd::stopping();
        cancel.cancel();
    });
    Ok(token)
}

/// The exit code of a service, with an error as one line on standard error.
#[expect(
    clippy::print_stderr,
    reason = "an error at startup comes before logging"
)]
pub fn exit_code(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", crate::reason::one_line(&error));
            ExitCode::FAILURE
        }
    }
}
