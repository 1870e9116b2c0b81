//! Runs the replays that operators start, one at a time, as background jobs.
//!
//! A job is stored in Postgres. So a replay depends neither on the session of the operator who started it
//! nor on this process: after a restart or an outage of Postgres it continues with the dead letters that
//! have no outcome yet. The outcome of a dead letter is written in the transaction that replays it.
//!
//! If there are several consoles, one of them runs the jobs: the one that has the [`Lease`]. If it crashes or
//! freezes, another one takes over when the lease ends, and the first one changes nothing when it wakes.
//!
//! It connects as the operators' account only while there is a job.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use anyhow::Context;
use futures_util::FutureExt as _;
use operations::{
    database::Connection,
    dead_letters::replay::{
        Host, Letters, Outcome, Replay, Replayed,
        job::{End, Job},
        lease::{Lease, LeaseLost},
    },
};
use shared::database::TransactionError;
use thiserror::Error;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use worker::judge::Class;

use super::{Operations, replays};
use crate::store::{Store, StoreError};

/// How often it looks for jobs. It is also the pause before an interrupted job continues.
const POLL_INTERVAL: Duration = Duration::from_secs(3);

/// After so many tries in a row in which no dead letter was finished, a job fails: the next dead letters may
/// be what crashes the console or Postgres.
const MAX_TRIES: i32 = 5;

/// If a statement about a job takes longer, the connection counts as lost.
const DEADLINE: Duration = Duration::from_secs(30);

/// A statement about a job took too long.
#[derive(Debug, Error)]
#[error("Postgres does not answer")]
struct NoAnswer;

/// Runs the jobs.
pub struct Runner {
    operations: Operations,
    store: Store,
    lease: Lease,
    /// The current or last job.
    job: Option<i64>,
    last_run: LastRun,
    /// The last poll failed, and this was logged.
    poll_failed: bool,
}

/// How the last run of a job ended in this process.
#[derive(Debug)]
enum LastRun {
    /// There was none, or it ended well. An earlier process may have crashed during the job.
    Well,
    /// Postgres was not reachable. This does not count as a try.
    Unreachable,
    /// An error of the batch ended it.
    Failed(String),
}

impl Runner {
    /// Creates a runner that finds jobs through `store` and runs them through `operations`.
    pub fn new(operations: Operations, store: Store) -> Self {
        Self {
            operations,
            store,
            lease: Lease::default(),
            job: None,
            last_run: LastRun::Well,
            poll_failed: false,
        }
    }

    /// Runs jobs until `stop`. An unfinished job stays in the table, and a later process continues it.
    pub async fn run(mut self, stop: CancellationToken) {
        if self.operations.url.is_none() {
            stop.cancelled().await;
            return;
        }
        while !stop.is_cancelled() {
            if self.has_job().await {
                self.run_jobs(&stop).await;
            }
            let news = Arc::clone(&self.operations.news);
            tokio::select! {
                () = stop.cancelled() => {}
                () = news.notified() => {}
                () = sleep(POLL_INTERVAL) => {}
            }
        }
    }

    async fn has_job(&mut self) -> bool {
        let look = self.store.look(async |connection| {
            sqlx::query_scalar("select exists (select from replay_jobs where ended is null)")
                .fetch_one(connection)
                .await
        });
        match look.await {
            Ok(has_job) => {
                self.poll_failed = false;
                has_job
            }
            // The watch on the figures logs these.
            Err(StoreError::Away(_) | StoreError::TooSlow) => false,
            Err(error) => {
                if !self.poll_failed {
                    warn!(%error, "cannot look for replays to run");
                }
                self.poll_failed = true;
                false
            }
        }
    }

    /// Runs all jobs, and remembers how that ended. A panic is handled like an error of the batch, so that
    /// the console goes on.
    async fn run_jobs(&mut self, stop: &CancellationToken) {
        let outcome = AssertUnwindSafe(self.try_run_jobs(stop))
            .catch_unwind()
            .await;
        let last_run = match outcome {
            Ok(Ok(())) => LastRun::Well,
            Ok(Err(error)) => LastRun::of(&error),
            Err(_panic) => LastRun::Failed("the console panicked".to_owned()),
        };
        // An error that was not written to the job yet must not get lost.
        let is_unwritten = matches!(self.last_run, LastRun::Failed(_));
        if !(is_unwritten && matches!(last_run, LastRun::Unreachable)) {
            self.last_run = last_run;
        }
    }

    /// Does nothing if another console runs the jobs.
    async fn try_run_jobs(&mut self, stop: &CancellationToken) -> anyhow::Result<()> {
        let mut connection = self.operations.connect().await?;
        if !with_deadline(self.lease.take(&mut connection)).await? {
            connection.close().await;
            return Ok(());
        }
        while !stop.is_cancelled() {
            let job = with_deadline(self.take(&mut connection)).await?;
            let Some(job) = job else { break };
            self.run_job(&job, &mut connection, stop).await?;
        }
        with_deadline(self.lease.release(&mut connection)).await?;
        connection.close().await;
        Ok(())
    }

    async fn take(&mut self, connection: &mut Connection) -> anyhow::Result<Option<Job>> {
        let error = match (&self.last_run, self.job) {
            (LastRun::Failed(error), Some(job)) => Some((job, &**error)),
            _ => None,
        };
        let counts = !matches!(self.last_run, LastRun::Unreachable);
        let job = Job::take(connection, &self.lease, counts, error).await?;
        self.last_run = LastRun::Well;
        self.job = job.as_ref().map(|job| job.id);
        Ok(job)
    }

    async fn run_job(
        &self,
        job: &Job,
        connection: &mut Connection,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        if job.tries > MAX_TRIES {
            warn!(job = job.id, error = job.error, "a replay failed too often");
            return with_deadline(job.end(connection, End::Failed)).await;
        }
        let letters = Letters::new(with_deadline(job.unfinished(connection)).await?);
        info!(job = job.id, events = letters.len(), "running a replay");
        let url = self.operations.url.as_ref();
        let url = url.context("there is no account for operators")?;
        let attempt = replays::attempt(url, Some(job.run.clone()), Some(job.share()));
        let mut host = RunningJob {
            job,
            connection,
            has_progress: false,
            is_stopped: false,
        };
        let mut replay = Replay {
            attempt: &attempt,
            rate: job.rate,
            host: &mut host,
        };
        let left = replay.all(letters, stop).await?;
        let end = match (left, host.is_stopped) {
            (0, _) => End::Done,
            (_, true) => End::Stopped,
            // The console stops, and a later process continues.
            (_, false) => return Ok(()),
        };
        info!(job = job.id, left, end = end.name(), "a replay ended");
        with_deadline(job.end(connection, end)).await
    }
}

impl LastRun {
    /// Only an error of a batch may be the fault of its dead letters, which also includes a lost connection:
    /// they may crash Postgres.
    fn of(error: &anyhow::Error) -> Self {
        if error.is::<LeaseLost>() {
            info!("another console runs the replays now");
            return Self::Well;
        }
        let class = error.downcast_ref::<TransactionError>().map(Class::of);
        let error = shared::reason::one_line(error);
        warn!(error, "a replay was interrupted and will continue");
        match class {
            None | Some(Class::Away) => Self::Unreachable,
            Some(_) => Self::Failed(error),
        }
    }
}

/// A job while this console runs it.
struct RunningJob<'a> {
    job: &'a Job,
    connection: &'a mut Connection,
    has_progress: bool,
    is_stopped: bool,
}

impl Host for RunningJob<'_> {
    async fn may_continue(&mut self) -> anyhow::Result<bool> {
        self.is_stopped = with_deadline(self.job.is_stop_requested(self.connection)).await?;
        Ok(!self.is_stopped)
    }

    async fn dangerous(&mut self, webhook_id: String) -> anyhow::Result<Replayed> {
        Ok(replays::left_to_hookctl(webhook_id))
    }

    async fn finished(&mut self, replayed: Vec<Replayed>) -> anyhow::Result<()> {
        // Their transaction was rolled back, or there was none, so their outcomes are not written yet.
        let unwritten: Vec<Replayed> = replayed
            .iter()
            .filter(|one| !one.outcome.is_good() && one.outcome != Outcome::StillWrong)
            .cloned()
            .collect();
        if !unwritten.is_empty() {
            with_deadline(self.job.write_outcomes(self.connection, &unwritten)).await?;
        }
        if !replayed.is_empty() && !self.has_progress {
            self.has_progress = true;
            with_deadline(self.job.reset_tries(self.connection)).await?;
        }
        Ok(())
    }

    fn retrying(&mut self, locked: usize) -> anyhow::Result<()> {
        info!(job = self.job.id, locked, "retrying what was locked");
        Ok(())
    }
}

/// Runs a statement about a job.
async fn with_deadline<T>(statement: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    timeout(DEADLINE, statement)
        .await
        .map_err(|_elapsed| NoAnswer)?
}
