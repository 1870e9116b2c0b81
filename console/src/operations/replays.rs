//! Tries replays, starts them as background jobs, and stops them.

use std::{sync::Mutex, time::Duration};

use anyhow::Context;
use operations::{
    Run,
    database::{Connection, READING},
    dead_letters::replay::{Attempt, Host, Letters, Outcome, Replay, Replayed, job},
    lock_holders::Watch,
};
use shared::{
    Program,
    database::{self, DatabaseUrl},
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use worker::problem::Kind;

use super::Operations;

/// The limits of a trial.
pub const MAX_TRIED: usize = 500;
const TRIAL_DEADLINE: Duration = Duration::from_secs(20);

/// A trial has no pauses between its batches.
const UNLIMITED: u32 = 100_000;

impl Operations {
    /// Tries the first of these in this order, and rolls everything back. Returns the outcomes, and the
    /// error if there was one after them.
    pub async fn try_replay(&self, ids: &[String]) -> (Vec<Replayed>, Option<anyhow::Error>) {
        let mut trial = Trial::default();
        let ids = &ids[..ids.len().min(MAX_TRIED)];
        let tried = timeout(TRIAL_DEADLINE, self.try_all(ids, &mut trial)).await;
        // After the deadline there is no error, but fewer outcomes.
        let error = tried.ok().and_then(Result::err);
        (trial.0, error)
    }

    async fn try_all(&self, ids: &[String], trial: &mut Trial) -> anyhow::Result<()> {
        let _place = self.places.acquire().await?;
        let url = self.url.as_ref();
        let url = url.context("there is no account for operators")?;
        let mut connection = self.connect().await?;
        let letters = find(&mut connection, ids).await?;
        connection.close().await;
        let attempt = attempt(url, None, None);
        let mut replay = Replay {
            attempt: &attempt,
            rate: UNLIMITED,
            host: trial,
        };
        replay.all(letters, &CancellationToken::new()).await?;
        Ok(())
    }

    /// Starts a replay, and returns the number of its job.
    pub async fn start_replay(&self, job: job::NewJob<'_>) -> anyhow::Result<i64> {
        let _place = self.places.acquire().await?;
        let mut connection = self.connect().await?;
        Run::check(&mut connection).await?;
        let id = job.create(&mut connection).await?;
        connection.close().await;
        self.news.notify_one();
        Ok(id)
    }

    /// Stops a replay before its next batch. Returns `false` if it has ended or is already being stopped.
    pub async fn stop_replay(&self, job: i64, person: Option<&str>) -> anyhow::Result<bool> {
        let _place = self.places.acquire().await?;
        let mut connection = self.connect().await?;
        let is_new = job::request_stop(&mut connection, job, person).await?;
        connection.close().await;
        self.news.notify_one();
        Ok(is_new)
    }
}

/// A replay in the console: with one connection, and without what hookctl does only with further flags.
pub(super) fn attempt(url: &DatabaseUrl, run: Option<Run>, job: Option<job::OfJob>) -> Attempt {
    let name = Program::ConsoleOperator.name();
    Attempt {
        watch: Watch::of(url, name),
        pool: database::pool(url.clone(), name, 1),
        run,
        include_withheld: false,
        any_company: false,
        trial: Mutex::default(),
        job,
    }
}

/// The outcome of a poison message, which could stop the console like the workers.
pub(super) fn left_to_hookctl(webhook_id: String) -> Replayed {
    Replayed {
        webhook_id,
        outcome: Outcome::Withheld,
        reason: Some(
            "it has stopped workers; use hookctl dead-letters replay, which reads it in a separate process"
                .to_owned(),
        ),
        kept: false,
    }
}

/// Finds out which of these are poison messages.
async fn find(connection: &mut Connection, ids: &[String]) -> anyhow::Result<Letters> {
    let mut transaction = connection.begin(&READING).await?;
    let found: Vec<(String, bool)> = sqlx::query_as(
        "select id, coalesce(e.problem_kind = $2, false)
           from unnest($1::text[]) with ordinality as letter (id, position)
           left join events e on e.webhook_id = id
          order by position",
    )
    .bind(ids)
    .bind(Kind::StoppedWorker.name())
    .fetch_all(&mut *transaction)
    .await?;
    transaction.rollback().await?;
    Ok(Letters::new(found))
}

/// The outcomes of a trial so far.
#[derive(Default)]
struct Trial(Vec<Replayed>);

impl Host for Trial {
    async fn may_continue(&mut self) -> anyhow::Result<bool> {
        Ok(true)
    }

    async fn dangerous(&mut self, webhook_id: String) -> anyhow::Result<Replayed> {
        Ok(left_to_hookctl(webhook_id))
    }

    async fn finished(&mut self, replayed: Vec<Replayed>) -> anyhow::Result<()> {
        self.0.extend(replayed);
        Ok(())
    }

    fn retrying(&mut self, _locked: usize) -> anyhow::Result<()> {
        Ok(())
    }
}
