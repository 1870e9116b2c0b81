//! Ctrl-C, SIGTERM and SIGHUP.

use std::process::ExitCode;

use anyhow::{Context, Result};
use stack::progress::note;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The exit code that shells report for a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

/// How work ended that the first signal stops.
#[derive(Debug)]
pub(super) enum Ended<T> {
    Finished(T),
    Interrupted,
}

impl Ended<ExitCode> {
    /// The program's exit code.
    pub(super) fn exit_code(self) -> ExitCode {
        match self {
            Self::Finished(code) => code,
            Self::Interrupted => ExitCode::from(INTERRUPTED),
        }
    }
}

/// Stops in order at the first signal, and at once at the second.
#[derive(Debug)]
pub(super) struct Signals {
    first: CancellationToken,
    second: CancellationToken,
}

impl Signals {
    /// From now on signals no longer end the process by themselves.
    pub(super) fn listen() -> Result<Self> {
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for signals")?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let signals = Self {
            first: CancellationToken::new(),
            second: CancellationToken::new(),
        };
        let tokens = [signals.first.clone(), signals.second.clone()];
        tokio::spawn(async move {
            for token in tokens {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hangup.recv() => {}
                }
                token.cancel();
            }
        });
        Ok(signals)
    }

    /// Waits for the first signal.
    pub(super) async fn first(&self) {
        self.first.cancelled().await;
    }

    /// Runs `work` unless the first signal arrives before its end. In that case drops it, with every
    /// process that it has started.
    pub(super) async fn unless_stopped<T>(
        &self,
        work: impl Future<Output = Result<T>>,
    ) -> Result<Ended<T>> {
        tokio::select! {
            result = work => result.map(Ended::Finished),
            () = self.first() => {
                note("interrupted, stopping …");
                Ok(Ended::Interrupted)
            }
        }
    }

    /// Runs `work` unless a second signal arrives.
    pub(super) async fn unless_forced(&self, work: impl Future<Output = Result<()>>) -> Result<()> {
        tokio::select! {
            result = work => result,
            () = self.second.cancelled() => Err(anyhow::anyhow!("interrupted twice, killed everything")),
        }
    }
}
